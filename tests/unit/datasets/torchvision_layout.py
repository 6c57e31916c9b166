"""Tiny copies of the folders in which torchvision stores its datasets, each with a few images."""

from __future__ import annotations

import io
import struct
import types
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat


def write_image(path: Path, *colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), colour).save(path)


def caltech101(root: Path) -> None:
    for c, name in enumerate(("BACKGROUND_Google", "Faces", "Faces_easy", "airplanes", "car_side")):
        for i in range(1, 13):
            write_image(
                root / "caltech101" / "101_ObjectCategories" / name / f"image_{i:04d}.jpg", c, i, 0
            )


def sun397(root: Path) -> None:
    names = ("/a/abbey", "/c/church/outdoor")
    (root / "SUN397").mkdir()
    (root / "SUN397" / "ClassName.txt").write_text("".join(f"{n}\n" for n in names))
    for c, name in enumerate(names):
        for i in (3, 1, 2, 5, 4, 9, 8, 7, 6):
            write_image(root / "SUN397" / name[1:] / f"sun_{i}.jpg", c, i, 0)


def stanford_cars(root: Path) -> None:
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    savemat(
        base / "devkit" / "cars_meta.mat",
        {
            "class_names": np.array(
                ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"], object
            )
        },
    )
    for folder, file in (
        ("cars_train", "devkit/cars_train_annos.mat"),
        ("cars_test", "cars_test_annos_withlabels.mat"),
    ):
        rows = np.zeros(30, dtype=[("class", "u1"), ("fname", object)])
        for i in range(30):
            rows[i] = (i % 2 + 1, f"{i:05d}.jpg")
            write_image(base / folder / f"{i:05d}.jpg", i % 2, i, len(folder))
        savemat(base / file, {"annotations": rows})


def mnist(root: Path) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, n in (("train", 20), ("t10k", 10)):
        pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        head = struct.pack(">BBBBIII", 0, 0, 8, 3, n, 28, 28)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        labels = bytes(i % 10 for i in range(n))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(
            struct.pack(">BBBBI", 0, 0, 8, 1, n) + labels
        )


def gtsrb(root: Path) -> None:
    base = root / "gtsrb"
    for label in range(43):
        write_image(base / "GTSRB" / "Training" / f"{label:05d}" / "00000_00000.ppm", label, 0, 0)
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for i, label in enumerate((16, 1, 42)):
        write_image(base / "GTSRB" / "Final_Test" / "Images" / f"{i:05d}.ppm", label, 1, 0)
        rows.append(f"{i:05d}.ppm;6;6;0;0;5;5;{label}")
    (base / "GT-final_test.csv").write_text("\n".join(rows) + "\n")


def country211(root: Path) -> None:
    for s, split in enumerate(("train", "valid", "test")):
        for c, code in enumerate(("AD", "CI", "XK")):
            write_image(root / "country211" / split / code / f"{c}.jpg", c, s, 0)


def rendered_sst2(root: Path) -> None:
    for s, split in enumerate(("train", "valid", "test")):
        for c, name in enumerate(("negative", "positive")):
            write_image(root / "rendered-sst2" / split / name / "0.png", c, s, 0)


def fer2013(root: Path) -> None:
    (root / "fer2013").mkdir()
    pixels = " ".join(["7"] * 48 * 48)
    rows = [
        f"{label},{pixels},{usage}"
        for usage in ("Training", "Training", "Training", "PublicTest", "PrivateTest")
        for label in range(7)
    ]
    (root / "fer2013" / "fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *rows]) + "\n")


def pcam(root: Path) -> None:
    """Write arrays for :func:`stand_in_for_h5py`, because h5py is not a requirement."""
    (root / "pcam").mkdir()
    for s, split in enumerate(("train", "valid", "test")):
        x = np.full((6, 96, 96, 3), 40 * s, dtype=np.uint8)
        y = np.arange(6, dtype=np.uint8).reshape(-1, 1, 1, 1) % 2
        for key, value in (("x", x), ("y", y)):
            file = io.BytesIO()
            np.savez(file, **{key: value})
            (root / "pcam" / f"camelyonpatch_level_2_split_{split}_{key}.h5").write_bytes(
                file.getvalue()
            )


def stand_in_for_h5py() -> types.ModuleType:
    """Return a module that opens the files of :func:`pcam` as h5py opens the real ones."""
    from importlib.machinery import ModuleSpec

    module = types.ModuleType("h5py")
    module.__spec__ = ModuleSpec("h5py", None)
    module.File = np.load
    return module


LAYOUTS = {
    f.__name__: f
    for f in (
        caltech101, country211, fer2013, gtsrb, mnist, pcam, rendered_sst2, stanford_cars, sun397,
    )
}  # fmt: skip
