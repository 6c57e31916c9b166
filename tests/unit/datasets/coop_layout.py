"""Tiny copies of the folders of CoOp's datasets: two classes with a handful of images each."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

# Dataset -> folder of the images in CoOp's data folder, split file, two classes: folder, name in the split file, name
# in prompts.
LAYOUTS = {
    "caltech101": (
        "caltech-101/101_ObjectCategories", "split_zhou_Caltech101.json",
        (("Faces", "face", "face"), ("car_side", "car_side", "car side")),
    ),
    "oxford_pets": (
        "oxford_pets/images", "split_zhou_OxfordPets.json",
        (("", "abyssinian", "abyssinian"), ("", "american_bulldog", "american bulldog")),
    ),
    "stanford_cars": (
        "stanford_cars", "split_zhou_StanfordCars.json",
        (
            ("cars_train", "2000 AM General Hummer SUV", "2000 AM General Hummer SUV"),
            ("cars_test", "2012 Acura RL Sedan", "2012 Acura RL Sedan"),
        ),
    ),
    "flowers102": (
        "oxford_flowers/jpg", "split_zhou_OxfordFlowers.json",
        (("", "pink primrose", "pink primrose"), ("", "hard-leaved pocket orchid", "hard-leaved pocket orchid")),
    ),
    "food101": (
        "food-101/images", "split_zhou_Food101.json",
        (("apple_pie", "apple_pie", "apple pie"), ("baby_back_ribs", "baby_back_ribs", "baby back ribs")),
    ),
    "sun397": (
        "sun397/SUN397", "split_zhou_SUN397.json",
        (("a/abbey", "abbey", "abbey"), ("c/church/outdoor", "outdoor church", "outdoor church")),
    ),
    "dtd": (
        "dtd/images", "split_zhou_DescribableTextures.json",
        (("banded", "banded", "banded"), ("polka-dotted", "polka-dotted", "polka-dotted")),
    ),
    "eurosat": (
        "eurosat/2750", "split_zhou_EuroSAT.json",
        (("AnnualCrop", "Annual Crop Land", "Annual Crop Land"), ("SeaLake", "SeaLake", "Sea or Lake")),
    ),
    "ucf101": (
        "ucf101/UCF-101-midframes", "split_zhou_UCF101.json",
        (("Apply_Eye_Makeup", "Apply_Eye_Makeup", "Apply Eye Makeup"), ("Archery", "Archery", "Archery")),
    ),
}  # fmt: skip
SIZES = {"train": 6, "val": 4, "test": 4}


def write_image(path: Path, label: int, seed: int) -> None:
    """Write a small image with a colour of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (200 * label + 20, 7 * seed % 256, seed % 256)
    Image.new("RGB", (8, 8), colour).save(path, "JPEG", quality=100)


def make(data: Path, name: str) -> dict[str, list[list]]:
    """Write a dataset below CoOp's data folder and return the content of its split file."""
    folder, split_file, classes = LAYOUTS[name]
    split: dict[str, list[list]] = {}
    seed = 0
    for part, n in SIZES.items():
        split[part] = []
        for label, (below, classname, _) in enumerate(classes):
            for _ in range(n):
                seed += 1
                path = "/".join(filter(None, (below, f"{classname.replace(' ', '_')}_{seed:03}.jpg")))  # fmt: skip
                write_image(data / folder / path, label, seed)
                split[part].append([path, label, classname])
    (data / folder.split("/")[0] / split_file).write_text(json.dumps(split))
    return split


def make_aircraft(data: Path) -> dict[str, list[str]]:
    """Write FGVC Aircraft, which has lists of images instead of a split file; return the image names of each split."""
    home = data / "fgvc_aircraft"
    names: dict[str, list[str]] = {}
    seed = 0
    for part, n in SIZES.items():
        lines = []
        for label, variant in enumerate(("707-320", "F-16A/B")):
            for _ in range(n):
                seed += 1
                write_image(home / "images" / f"{seed:07}.jpg", label, seed)
                lines.append(f"{seed:07} {variant}")
        (home / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")
        names[part] = [f"{line.split()[0]}.jpg" for line in lines]
    (home / "variants.txt").write_text("707-320\nF-16A/B\n")
    return names
