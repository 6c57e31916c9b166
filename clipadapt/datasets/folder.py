"""``folder:PATH``: your own images, one folder per class.

Either ``PATH/{train,val,test}/CLASS/*.jpg`` (any of the three, with common variants of their names: ``Training``,
``valid``, ``test_set``), or ``PATH/CLASS/*.jpg``, which is split 60/20/20 by the hash of each file's bytes: adding
files does not move the others, identical files are in the same split, and a class with few images has one in train
first, then in test, then in val. ``zeroshot``, which learns nothing from them, evaluates all images of such a folder.
Links to folders are followed. A folder without images is not a class.

Classes are in natural order (1, 2, 10) and named after their folders, with ``_`` replaced by a space; WordNet ids get
ImageNet's class names. Folders of different splits whose names differ only in case or spaces are one class.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from unicodedata import category

import numpy as np

from clipadapt.core.api.errors import DataError
from clipadapt.core.data.labelled import (
    LabelledSet,
    class_key,
    make_split,
    natural_key,
    split_evenly,
    split_named,
    split_within,
)
from clipadapt.datasets._decode import FORMATS
from clipadapt.datasets._folders import counts_text, existing_folder, list_images, subfolders
from clipadapt.datasets._imagenet import PHOTO_TEMPLATES
from clipadapt.datasets._images import UNREADABLE, ImageFiles, in_threads, readable
from clipadapt.datasets._published import SHARES, by_split
from clipadapt.datasets._report import Report, shown
from clipadapt.datasets._wnid import prompt_names

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from PIL.Image import Image

    from clipadapt.core.api.data import DatasetOptions, SplitName

LAYOUTS = (
    "PATH/train/CLASS/*.jpg, PATH/val/CLASS/*.jpg and PATH/test/CLASS/*.jpg, or PATH/CLASS/*.jpg"
)
ELSEWHERE = "images outside the class folders"


@dataclass(slots=True)
class _Found:
    """Contents of the folder, before it is split.

    Attributes:
        folders: Folder name of every class, in natural order.
        ids: Relative path of every image, sorted.
        labels: Index into ``folders`` of every image.
        where: Split of every image; empty if the files' bytes decide.
        left_out: Number of files that are not read, by reason.
        notes: Notes for the user, one sentence each.
    """

    folders: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    where: list[SplitName] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def open_folder(argument: str, options: DatasetOptions, /) -> LabelledSet[Image]:
    """Open a folder of images; every file is hashed once.

    Args:
        argument: The folder.
        options: With ``on_bad_image="skip"`` every image is decoded once, to find the unreadable ones.

    Raises:
        DataError: If the folder does not exist, contains no images or fewer than two classes, or has an unsupported
            layout; the message describes the supported ones.
    """
    root = existing_folder(argument, "folder")
    name = f"folder:{root.resolve().name or root.resolve().anchor}"
    found = _find(root)
    files = ImageFiles(root, found.ids)
    skip = options.on_bad_image == "skip"
    kept = [i for i, good in enumerate(readable(files) if skip else [True] * len(files)) if good]
    if not kept:
        raise DataError(f"none of the {len(files)} images in '{argument}' can be decoded")
    found.left_out[UNREADABLE] += len(files) - len(kept)
    contents = in_threads(files.content, kept)
    classnames = prompt_names(found.folders)
    whole = make_split(files, found.ids, found.labels, classnames).take(np.asarray(kept))
    where = [found.where[i] for i in kept] if found.where else None
    where = where or split_evenly(contents, whole.labels, SHARES)
    parts = by_split(whole, where)
    report = Report(notes=found.notes)
    report.classes(found.folders, parts)
    report.duplicates(zip(contents, where, whole.inputs.ids, whole.labels.tolist(), strict=True))
    if not found.where:
        report.empty_splits(parts)
    data = LabelledSet(
        name=name,
        classnames=classnames,
        templates=PHOTO_TEMPLATES,
        licence="unknown (the user's own images)",
        citation="none (the user's own images)",
        source=f"the folder '{root.resolve().name}'",
        parts=parts,
        keys=tuple(found.folders),
        whole=None if found.where else whole,
    )
    return report.attached(data, found.left_out)


def _find(root: Path) -> _Found:
    found = _Found()
    places = _places(root, found)
    # Class folders of every place, and the images below each.
    held: dict[str, dict[str, list[str]]] = {}
    for prefix in places:
        place = root / prefix
        held[prefix] = {f: list_images(place / f, found.left_out) for f in subfolders(place)}
        loose = list_images(place, Counter(), deep=False)
        found.left_out[ELSEWHERE] += len(loose)
    named = _class_of(held, found.notes)
    found.folders = sorted(set(named.values()), key=natural_key)
    _require_classes(root, held, found)
    label = {folder: i for i, folder in enumerate(found.folders)}
    rows = sorted(
        (f"{prefix}{folder}/{image}", label[named[folder]], prefix)
        for prefix, folders in held.items()
        for folder, images in folders.items()
        for image in images
    )
    found.ids = [key for key, _, _ in rows]
    found.labels = [of for _, of, _ in rows]
    found.where = [split for _, _, prefix in rows if (split := places[prefix]) is not None]
    return found


def _places(root: Path, found: _Found) -> Mapping[str, SplitName | None]:
    """Return the locations of class folders, as prefixes of ids, with their split; None if the bytes decide."""
    children = subfolders(root)
    split_of = {c: split for c in children if (split := split_named(c)) is not None}
    # A class may be named "test": only a folder that contains class folders is a split.
    holding = {c: split for c, split in split_of.items() if subfolders(root / c)}
    alike = [] if holding else _alike(root, children)
    if alike and all(_is_dataset(root / c) for c in alike):
        raise DataError(
            f"'{root}' contains no classes but {len(alike)} datasets, each with its own splits: {shown(alike)}",
            hint="use one of them: "
            + " or ".join(f"folder:{(root / c).as_posix()}" for c in alike[:3]),
        )
    if alike and all(split_within(c) for c in alike):  # seg_train, seg_test
        split_of = holding = {c: split for c in alike if (split := split_within(c)) is not None}
    elif alike:
        found.notes.append(
            f"read as classes, although they contain folders with the same names: {shown(alike)}; if those are the "
            "classes, rename the outer folders to train, val and test"
        )
    wrapped = [c for c in children if _wraps_folders(root / c)]
    if wrapped and not holding and not alike:  # seg_train/seg_train/CLASS, as archives unpack
        found.notes.append(
            f"read as classes, although each contains one folder of folders: {shown(wrapped)}; if the classes are "
            f"deeper, arrange the images as {LAYOUTS}"
        )
    if not holding:
        if split_of and len(split_of) == len(children):
            raise DataError(
                f"'{root}' contains {', '.join(split_of)} but no class folders in them",
                hint=f"arrange the images as {LAYOUTS}",
            )
        if split_of:
            found.notes.append(
                "read as classes although they are named like splits, because they contain no class folders: "
                + shown([*split_of])
            )
        return {"": None}
    twice = [split for split, n in Counter(split_of.values()).items() if n > 1]
    if twice:
        both = [c for c, split in split_of.items() if split in twice]
        raise DataError(
            f"'{root}' has more than one folder for the split '{twice[0]}': {', '.join(both)}",
            hint="merge them, or move one of them elsewhere",
        )
    others = {c: len(list_images(root / c, Counter())) for c in children if c not in holding}
    images = sum(others.values())
    found.left_out[ELSEWHERE] += images + len(list_images(root, Counter(), deep=False))
    if images:
        found.notes.append(
            f"folders next to {', '.join(holding)} that are not splits are not read: "
            + shown([c for c, n in others.items() if n])
        )
    return {f"{c}/": split for c, split in holding.items()}


def _alike(root: Path, children: list[str]) -> list[str]:
    """Return the folders that contain folders of the same names, as splits do, or none if some folder does not."""
    inside = {c: frozenset(subfolders(root / c)) for c in children}
    names = [inner for inner in inside.values() if len(inner) > 1]
    shared = len(names) > 1 and frozenset.intersection(*names)
    return [c for c in children if inside[c]] if shared and len(names) == len(children) else []


def _is_dataset(folder: Path) -> bool:
    """Return whether a folder contains splits with class folders in them, and nothing else."""
    inside = subfolders(folder)
    return len(inside) > 1 and all(split_named(c) and subfolders(folder / c) for c in inside)


def _wraps_folders(folder: Path) -> bool:
    inside = subfolders(folder)
    return len(inside) == 1 and len(subfolders(folder / inside[0])) > 1


def _class_of(held: Mapping[str, Mapping[str, list[str]]], notes: list[str]) -> dict[str, str]:
    """Return the class of every folder with images; names in different splits may differ in case or spaces."""
    spelled: dict[str, dict[str, None]] = {}
    empty: dict[str, None] = {}
    apart: set[str] = set()
    for folders in held.values():
        here: Counter[str] = Counter()
        for folder, images in folders.items():
            (spelled.setdefault(class_key(folder), {}) if images else empty)[folder] = None
            here[class_key(folder)] += bool(images)
        apart |= {key for key, n in here.items() if n > 1}
    class_of: dict[str, str] = {}
    for key, folders_ in spelled.items():
        first = next(iter(folders_))
        class_of |= {f: f if key in apart else first for f in folders_}
        if len(folders_) > 1 and key not in apart:
            notes.append(f"{shown([repr(f) for f in folders_])} are read as one class, '{first}'")
    if gone := [folder for folder in empty if folder not in class_of]:
        notes.append(f"folders without a readable image are not classes: {shown(gone)}")
    return class_of


def _require_classes(
    root: Path, held: Mapping[str, Mapping[str, list[str]]], found: _Found
) -> None:
    """Check that there are at least two classes with images.

    Raises:
        DataError: If there are not; the message says what the folder contains.
    """
    layouts = f"arrange the images as {LAYOUTS}"
    direct = list_images(root, Counter(), deep=False)
    if not found.folders and direct:
        raise DataError(
            f"'{root}' contains {len(direct)} images but no class folders: '{direct[0]}'",
            hint=layouts,
        )
    folders = [folder for place in held.values() for folder in place]
    if not found.folders:
        raise DataError(
            f"no images in '{root}': it contains {len(folders)} class folders; in them: {counts_text(found.left_out)}",
            hint=f"{layouts}; supported formats: {', '.join(FORMATS)}",
        )
    odd = next((f for f in found.folders if any(category(c) == "Cc" for c in f)), None)
    if odd is not None:
        raise DataError(
            f"the name of the class folder {odd!r} contains a control character",
            hint="rename it",
        )
    if len(found.folders) < 2:
        only = root / next(iter(held)) / found.folders[0]
        below = subfolders(only) if only.is_dir() else []
        raise DataError(
            f"'{root}' contains only one class, '{found.folders[0]}'; at least two are needed",
            hint=f"its folders may be the classes: try folder:{only.as_posix()}"
            if len(below) > 1
            else layouts,
        )


DATASET = open_folder
