"""CoOp's image datasets: folders, file formats and published splits.

``split_zhou_*.json`` holds ``{"train": [[path, label, class name], ...], "val": [...], "test": [...]}``; the paths are
relative to the image folder. Folders and files are those of ``DATASETS.md`` and ``datasets/*.py`` in the official code
(commit ff61507), sizes those of the table of datasets in the paper's appendix.

Labels and their order are those of the split file, so the base and the new classes of a base-to-new evaluation are the
two halves of CoOp's labels. CoOp and the papers after it report plain accuracy on every dataset, also on Caltech101,
Oxford Pets, Flowers102 and FGVC Aircraft, for which others report the mean of the classes' accuracies.

References:
    K. Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022. arXiv:2109.01134
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.data import SPLITS
from clipadapt.core.api.errors import DataError
from clipadapt.core.api.user_input import read_text, shown, visible
from clipadapt.core.data.index_files import plain_path, read_json
from clipadapt.core.data.labelled import LabelledSet, make_split
from clipadapt.core.data.published_draws import first_few
from clipadapt.datasets import _sets
from clipadapt.datasets._images import ImageFiles, in_threads
from clipadapt.datasets._published import without_unreadable
from clipadapt.datasets._report import Report

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from PIL.Image import Image

    from clipadapt.core.api.data import DatasetOptions, Split, SplitName

DATASETS_MD: Final = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
FORM: Final = '{"train": [[path, label, class name], ...], "val": [...], "test": [...]}, as in split_zhou_*.json'
MAX_LIST_BYTES: Final = 100 << 20
_LISTS: Final[Mapping[SplitName, str]] = {s: f"images_variant_{s}.txt" for s in SPLITS}


@dataclass(frozen=True, slots=True)
class CoopSet:
    """One of CoOp's datasets.

    Attributes:
        name: Its name here.
        folder: Its folder in CoOp's data folder.
        images: Folder of the images in it, or empty.
        split_file: Name of the split file; empty for FGVC Aircraft, which has lists instead.
        sizes: Published numbers of train, val and test examples.
        n_classes: Published number of classes.
        facts: Prompt, licence and citation.
        also: Other names.
    """

    name: str
    folder: str
    images: str
    split_file: str
    sizes: tuple[int, int, int]
    n_classes: int
    facts: _sets.Facts
    also: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every accepted name, normalised."""
        own = self.split_file.removeprefix("split_zhou_").removesuffix(".json")
        return tuple(map(plain_name, filter(None, (self.name, self.folder, own, *self.also))))


SETS: Final[Mapping[str, CoopSet]] = {
    s.name: s
    for s in (
        CoopSet(
            "caltech101", "caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json",
            (4128, 1649, 2465), 100, _sets.CALTECH101,
        ),
        CoopSet(
            "oxford_pets", "oxford_pets", "images", "split_zhou_OxfordPets.json",
            (2944, 736, 3669), 37, _sets.OXFORD_PETS, ("oxford_iiit_pet",),
        ),
        CoopSet(
            "stanford_cars", "stanford_cars", "", "split_zhou_StanfordCars.json",
            (6509, 1635, 8041), 196, _sets.STANFORD_CARS,
        ),
        CoopSet(
            "flowers102", "oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json",
            (4093, 1633, 2463), 102, _sets.FLOWERS102,
        ),
        CoopSet(
            "food101", "food-101", "images", "split_zhou_Food101.json",
            (50500, 20200, 30300), 101, _sets.FOOD101,
        ),
        CoopSet(
            "fgvc_aircraft", "fgvc_aircraft", "images", "",
            (3334, 3333, 3333), 100, _sets.FGVC_AIRCRAFT,
        ),
        CoopSet(
            "sun397", "sun397", "SUN397", "split_zhou_SUN397.json",
            (15880, 3970, 19850), 397, _sets.SUN397,
        ),
        CoopSet(
            "dtd", "dtd", "images", "split_zhou_DescribableTextures.json",
            (2820, 1128, 1692), 47, _sets.DTD,
        ),
        CoopSet(
            "eurosat", "eurosat", "2750", "split_zhou_EuroSAT.json",
            (13500, 5400, 8100), 10, _sets.EUROSAT,
        ),
        CoopSet(
            "ucf101", "ucf101", "UCF-101-midframes", "split_zhou_UCF101.json",
            (7639, 1898, 3783), 101, _sets.UCF101,
        ),
    )
}  # fmt: skip
"""CoOp's datasets but ImageNet, by name."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a split: path below the image folder, label, class name."""

    path: str
    label: int
    classname: str


def plain_name(name: str) -> str:
    """Return a name in lower case without marks."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def set_named(name: str) -> CoopSet | None:
    """Return the dataset of a name, in any of its spellings, or None."""
    plain = plain_name(name)
    return next((s for s in SETS.values() if plain in s.names), None)


def home_of(coop_set: CoopSet, root: Path) -> Path | None:
    """Return the folder with the split of a dataset: ``root``, its folder in ``root``, or the parent of ``root``."""
    wanted = coop_set.split_file or _LISTS["train"]
    above = (root.resolve().parent,) if root.resolve().name == coop_set.images else ()
    places = (root / coop_set.folder, root, *above)
    return next((place for place in places if (place / wanted).is_file()), None)


def open_set(
    coop_set: CoopSet, home: Path, options: DatasetOptions, split_file: Path | None = None
) -> LabelledSet[Image]:
    """Open a dataset with CoOp's split.

    Args:
        coop_set: The dataset.
        home: Its folder, with the split file and the images in CoOp's layout.
        options: With ``on_bad_image="skip"`` every image is decoded once, to find the unreadable ones.
        split_file: Another split file to use.

    Raises:
        DataError: If the split file is not valid, or lists images that are not there.
    """
    if split_file is None and not coop_set.split_file:
        split_file, rows = home / _LISTS["train"], _aircraft(home)
    else:
        split_file = split_file or home / coop_set.split_file
        rows = read_split(split_file)
    names = class_names(rows, split_file)
    prompts = tuple(map(coop_set.facts.prompt_name, names))
    base = _image_folder(coop_set, home, rows, split_file)
    left_out: Counter[str] = Counter()
    parts: dict[SplitName, Split[Image]] = {}
    for split, listed in rows.items():
        if not listed:
            continue
        paths = [row.path for row in listed]
        part = make_split(ImageFiles(base, paths), paths, [row.label for row in listed], prompts)
        parts[split] = without_unreadable(part, options, left_out)
    report = Report()
    report.classes(prompts, parts)
    sizes = tuple(len(rows[split]) for split in SPLITS)
    if sizes != coop_set.sizes or len(names) != coop_set.n_classes:
        report.add(
            "not_the_official_split",
            f"'{split_file.name}' is not CoOp's published split: {_sizes(sizes, len(names))} instead of "
            f"{_sizes(coop_set.sizes, coop_set.n_classes)}",
        )
    data = LabelledSet(
        name=f"{coop_set.name}:coop",
        classnames=prompts,
        templates=(coop_set.facts.template,),
        template_sets=coop_set.facts.template_sets,
        licence=coop_set.facts.licence,
        citation=f"{coop_set.facts.citation}; split of K. Zhou et al., IJCV 2022, arXiv:2109.01134",
        source=DATASETS_MD,
        parts=parts,
        keys=names,
    )
    return report.attached(data, left_out)


def _sizes(sizes: tuple[int, ...], n_classes: int) -> str:
    counts = " / ".join(f"{n:,}" for n in sizes)
    return f"{counts} examples (train / val / test) of {n_classes} classes"


def read_split(path: Path) -> dict[SplitName, list[Row]]:
    """Read a ``split_zhou_*.json``.

    Raises:
        DataError: If it is a pickle, not JSON, or has another form.
    """
    what = "split file"
    content = read_json(path, what)
    if not isinstance(content, dict) or not isinstance(content.get("train"), list):
        got = (
            f"keys {', '.join(map(str, content))[:100]}" if isinstance(content, dict) else "a list"
        )
        if not isinstance(content, dict | list):
            got = shown(content)
        raise DataError(
            f"'{path}' is not a split file: it has {got}; expected {FORM}",
            hint="a few-shot index file is given with data.manifest, besides the split",
        )
    return {s: list(_rows(content.get(s, []), s, path)) for s in SPLITS}


def _rows(listed: Any, split: str, path: Path) -> Iterator[Row]:
    if not isinstance(listed, list):
        raise DataError(f"'{split}' in the split file '{path}' is {shown(listed)}; expected {FORM}")
    for i, item in enumerate(listed):
        match item:
            case [str(name), int(label), str(classname)] if (
                label >= 0 and not isinstance(label, bool) and classname.strip()
            ):
                path_below = plain_path(name)
                if name.startswith("/") or ".." in path_below.split("/") or visible(name) != name:
                    raise DataError(
                        f"{split}[{i}] in the split file '{path}' is not below the image folder: {shown(name)}",
                        hint="write paths relative to the folder of the images",
                    )
                yield Row(path_below, label, visible(classname))
            case _:
                raise DataError(
                    f"{split}[{i}] in the split file '{path}' is {shown(item)}; expected {FORM}"
                )


def class_names(rows: Mapping[SplitName, list[Row]], path: Path) -> tuple[str, ...]:
    """Return the class name of each label, and check that every example occurs once.

    Raises:
        DataError: If a label has two names or a label between 0 and the largest has none, or a path occurs twice.
    """
    named: dict[int, str] = {}
    seen: dict[str, str] = {}
    for split, listed in rows.items():
        for row in listed:
            if named.setdefault(row.label, row.classname) != row.classname:
                raise DataError(
                    f"the split file '{path}' gives the label {row.label} to two classes: "
                    f"'{named[row.label]}' and '{row.classname}'"
                )
            if row.path in seen:
                raise DataError(
                    f"the split file '{path}' lists '{row.path}' twice: in {seen[row.path]} and in {split}"
                )
            seen[row.path] = split
    missing = next(label for label in range(len(named) + 1) if label not in named)
    if missing < max(named, default=1):
        raise DataError(
            f"the split file '{path}' has no example of the label {missing}; labels are 0, 1, 2, ..."
        )
    return tuple(named[label] for label in sorted(named))


def _image_folder(
    coop_set: CoopSet, home: Path, rows: Mapping[SplitName, list[Row]], path: Path
) -> Path:
    """Return the folder to which the paths are relative.

    Raises:
        DataError: If images are missing.
    """
    paths = [row.path for listed in rows.values() for row in listed]
    places = [p for p in dict.fromkeys((home / coop_set.images, home)) if p.is_dir()]
    missing: list[str] = paths
    for place in places:
        absent = _absent(place, paths)
        if not absent:
            return place
        missing = min(missing, absent, key=len)
    base = home / coop_set.images
    why = "unpack the archive again"
    if len(missing) == len(paths):
        why = "the split file belongs to other images, or to another folder"
    raise DataError(
        f"{len(missing):,} of the {len(paths):,} images in '{path}' are not in '{base}': {first_few(missing)}",
        hint=f"{why}; the layout is described in {DATASETS_MD}",
    )


def _absent(place: Path, paths: list[str]) -> list[str]:
    """Return the paths that are not files below a folder."""

    def is_there(name: str) -> bool:
        return (place / name).is_file()

    return [
        name for name, there in zip(paths, in_threads(is_there, paths), strict=True) if not there
    ]


def _aircraft(home: Path) -> dict[SplitName, list[Row]]:
    """Read the lists of FGVC Aircraft: one image number and variant per line; labels in the order of variants.txt.

    Raises:
        DataError: If a list is missing, or names another variant.
    """
    variants = read_text(home / "variants.txt", "list of classes", MAX_LIST_BYTES).split("\n")
    label = {name.strip(): i for i, name in enumerate(v for v in variants if v.strip())}
    rows: dict[SplitName, list[Row]] = {}
    for split, name in _LISTS.items():
        rows[split] = []
        for line in read_text(home / name, "list of images", MAX_LIST_BYTES).split("\n"):
            image, _, variant = line.strip().partition(" ")
            if not image:
                continue
            if variant.strip() not in label:
                raise DataError(
                    f"'{home / name}' has the class {shown(variant)}, which variants.txt does not have"
                )
            rows[split].append(Row(f"{image}.jpg", label[variant.strip()], variant.strip()))
    return rows
