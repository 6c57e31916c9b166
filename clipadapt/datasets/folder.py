"""``folder:PATH``: one's own images, one folder per class.

Either ``PATH/{train,val,test}/CLASS/*.jpg`` (any of the three; ``valid`` and ``validation`` are ``val``), or
``PATH/CLASS/*.jpg``, which is split 60/20/20 by a hash of each file's bytes: files added later move none of the
others, and equal files fall into one split. The class names are the folders' names with ``_`` as a space.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clipadapt.core.errors import DataError
from clipadapt.core.labelled import LabelledSet, make_split
from clipadapt.core.protocols import SPLITS, Subset
from clipadapt.datasets._images import (
    EXTENSIONS,
    ImageFiles,
    existing_folder,
    hash_split,
    in_threads,
    list_images,
    readable,
    subfolders,
)
from clipadapt.datasets._report import Report, shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL.Image import Image

    from clipadapt.core.protocols import DatasetOptions, SplitName

SPLIT_FOLDERS: dict[str, SplitName] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
LAYOUTS = (
    "PATH/train/CLASS/*.jpg, PATH/val/CLASS/*.jpg and PATH/test/CLASS/*.jpg, or PATH/CLASS/*.jpg"
)


@dataclass(frozen=True, slots=True)
class _Found:
    """What lies in the folder, before it is split.

    Attributes:
        folders: Names of the class folders, sorted, over all splits.
        ids: Relative path of every image, sorted.
        labels: Index into ``folders`` of every image.
        where: Split of every image; empty where the bytes decide.
        ignored: Extensions of other files, counted.
        beside: Folders beside those of the splits, which are not read.
    """

    folders: list[str]
    ids: list[str]
    labels: list[int]
    where: list[SplitName]
    ignored: Counter[str]
    beside: list[str]


def open_folder(argument: str, options: DatasetOptions, /) -> LabelledSet[Image]:
    """Open a folder of images; every file is hashed once.

    Args:
        argument: The folder.
        options: With ``on_bad_image="skip"`` every image is decoded once, to find the bad ones.

    Raises:
        DataError: If there is no such folder, it holds no images or fewer than two classes, or it is laid out
            in another way; the message says how it must look.
    """
    root = existing_folder(argument, "folder")
    name = f"folder:{root.resolve().name or root.resolve().anchor}"
    found = _find(root)
    files = ImageFiles(root, found.ids)
    keep = np.asarray(
        readable(files) if options.on_bad_image == "skip" else [True] * len(files), dtype=bool
    )
    contents = in_threads(files.content, range(len(files)))
    where = found.where or [hash_split(content) for content in contents]

    classnames = tuple(folder.replace("_", " ") for folder in found.folders)
    parts = {}
    for split in SPLITS:
        rows = [i for i in range(len(files)) if keep[i] and where[i] == split]
        if rows:
            ids = [found.ids[i] for i in rows]
            labels = [found.labels[i] for i in rows]
            parts[split] = make_split(Subset(files, np.asarray(rows)), ids, labels, classnames)
    if not parts:
        raise DataError(f"none of the {len(files)} images in '{argument}' can be decoded")

    report = Report()
    report.classes(found.folders, parts)
    kept = [i for i in range(len(files)) if keep[i]]
    report.duplicates((contents[i], where[i], found.ids[i], found.labels[i]) for i in kept)
    skipped = len(files) - len(kept)
    if skipped:
        report.notes.append(f"{skipped} unreadable images are left out")
    if found.beside:
        report.notes.append(f"folders that are no split are not read: {shown(found.beside)}")
    if found.ignored:
        report.notes.append(f"files that are no images are ignored: {_listed(found.ignored)}")
    return LabelledSet(
        name=name,
        classnames=classnames,
        templates=("a photo of a {}.",),
        licence="unknown (the user's own images)",
        citation="none (the user's own images)",
        source=f"the folder '{root.resolve().name}'",
        parts=parts,
        skipped=skipped,
        flags=tuple(report.flags),
        notes=tuple(f"{name}: {note}" for note in report.notes),
    )


def _find(root: Path) -> _Found:
    children = subfolders(root)
    split_of = {c: SPLIT_FOLDERS[c.casefold()] for c in children if c.casefold() in SPLIT_FOLDERS}
    ignored: Counter[str] = Counter()
    places: list[tuple[SplitName | None, Path]] = [(None, root)]
    beside: list[str] = []
    # A class may be called "test": what makes a split is that it holds class folders.
    if any(subfolders(root / c) for c in split_of):
        twice = [s for s, n in Counter(split_of.values()).items() if n > 1]
        if twice:
            both = [c for c, s in split_of.items() if s in twice]
            raise DataError(f"'{root}' has more than one folder for a split: {', '.join(both)}")
        places = [(split, root / child) for child, split in split_of.items()]
        beside = [c for c in children if c not in split_of]
    elif split_of and len(split_of) == len(children):
        raise DataError(
            f"'{root}' holds {', '.join(split_of)} but no class folders in them",
            hint=f"lay the images out as {LAYOUTS}",
        )

    by_folder: dict[str, list[tuple[str, SplitName | None]]] = defaultdict(list)
    for split, place in places:
        prefix = "" if split is None else f"{place.name}/"
        for folder in subfolders(place):
            images = list_images(place / folder, ignored)
            by_folder[folder] += [(f"{prefix}{folder}/{image}", split) for image in images]
    folders = sorted(by_folder)
    rows = sorted(
        (key, label, split)
        for label, folder in enumerate(folders)
        for key, split in by_folder[folder]
    )
    _require_classes(root, folders, rows, ignored)
    return _Found(
        folders=folders,
        ids=[key for key, _, _ in rows],
        labels=[label for _, label, _ in rows],
        where=[split for _, _, split in rows if split is not None],
        ignored=ignored,
        beside=beside,
    )


def _require_classes(
    root: Path, folders: list[str], rows: Sequence[object], ignored: Counter[str]
) -> None:
    accepted = f"accepted extensions: {' '.join(EXTENSIONS)}"
    if not rows:
        direct = list_images(root, Counter())
        if direct:
            raise DataError(
                f"'{root}' holds {len(direct)} images but no class folders: '{direct[0]}'",
                hint=f"lay them out as {LAYOUTS}",
            )
        held = f"{len(folders)} class folders, other files: {_listed(ignored) or 'none'}"
        raise DataError(
            f"no images in '{root}' ({held}); {accepted}", hint=f"lay them out as {LAYOUTS}"
        )
    if len(folders) < 2:
        raise DataError(
            f"'{root}' holds one class only, '{folders[0]}'; at least two are needed",
            hint=f"lay the images out as {LAYOUTS}",
        )


def _listed(ignored: Counter[str]) -> str:
    return ", ".join(f"{n} {extension}" for extension, n in ignored.most_common(5))


DATASET = open_folder
