"""``folder:PATH``: one's own images, one folder per class.

Either ``PATH/{train,val,test}/CLASS/*.jpg`` (any of the three, by any usual name: ``Training``, ``valid``,
``test_set``), or ``PATH/CLASS/*.jpg``, which is split 60/20/20 by a hash of each file's bytes: files added later move
none of the others, and equal files fall into one split; a class too small for its share has an image in train, then
test, then val. Linked folders are followed. A folder without an image is no class.

Classes are in natural order (1, 2, 10) and named like their folders, with ``_`` as a space; WordNet ids have
ImageNet's names. Folders of two splits whose names differ by case or spaces alone are one class.
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
from clipadapt.datasets._imagenet import PHOTO_TEMPLATES
from clipadapt.datasets._images import (
    FORMATS,
    SHARES,
    UNREADABLE,
    ImageFiles,
    existing_folder,
    in_threads,
    list_images,
    listed,
    readable,
    subfolders,
)
from clipadapt.datasets._published import by_split
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
    """What lies in the folder, before it is split.

    Attributes:
        folders: Name of every class, in natural order.
        ids: Relative path of every image, sorted.
        labels: Index into ``folders`` of every image.
        where: Split of every image; empty where the bytes decide.
        left_out: Reason -> files that are not read.
        notes: What is worth telling, one sentence each.
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
        options: With ``on_bad_image="skip"`` every image is decoded once, to find the bad ones.

    Raises:
        DataError: If there is no such folder, it holds no images or fewer than two classes, or it is laid out
            in another way; the message says how it must look.
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
    )
    return report.attached(data, found.left_out)


def _find(root: Path) -> _Found:
    found = _Found()
    places = _places(root, found)
    # Of every place: its class folders, and the images below each.
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
    """Return where class folders lie, as prefixes of ids, and the split of each; None where the bytes decide."""
    children = subfolders(root)
    split_of = {c: split for c in children if (split := split_named(c)) is not None}
    # A class may be called "test": what makes a split is that it holds class folders.
    holding = {c: split for c, split in split_of.items() if subfolders(root / c)}
    alike = [] if holding else _alike(root, children)
    if alike and all(split_within(c) for c in alike):  # seg_train, seg_test
        split_of = holding = {c: split for c in alike if (split := split_within(c)) is not None}
    elif alike:
        found.notes.append(
            f"taken for classes, though they hold folders of the same names: {shown(alike)}; if those are the classes, "
            "call the outer folders train, val and test"
        )
    wrapped = [c for c in children if _wraps_folders(root / c)]
    if wrapped and not holding and not alike:  # seg_train/seg_train/CLASS, as archives unpack
        found.notes.append(
            f"taken for classes, though each holds one folder of folders: {shown(wrapped)}; if the classes are deeper, "
            f"lay the images out as {LAYOUTS}"
        )
    if not holding:
        if split_of and len(split_of) == len(children):
            raise DataError(
                f"'{root}' holds {', '.join(split_of)} but no class folders in them",
                hint=f"lay the images out as {LAYOUTS}",
            )
        if split_of:
            found.notes.append(
                "read as classes although they are named like splits, as they hold no class folders: "
                + shown([*split_of])
            )
        return {"": None}
    twice = [split for split, n in Counter(split_of.values()).items() if n > 1]
    if twice:
        both = [c for c, split in split_of.items() if split in twice]
        raise DataError(
            f"'{root}' has more than one folder for the split '{twice[0]}': {', '.join(both)}",
            hint="merge them, or move one away",
        )
    beside = {c: len(list_images(root / c, Counter())) for c in children if c not in holding}
    images = sum(beside.values())
    found.left_out[ELSEWHERE] += images + len(list_images(root, Counter(), deep=False))
    if images:
        found.notes.append(
            f"folders beside {', '.join(holding)} that are no split of class folders are not read: "
            + shown([c for c, n in beside.items() if n])
        )
    return {f"{c}/": split for c, split in holding.items()}


def _alike(root: Path, children: list[str]) -> list[str]:
    """Return the folders that hold folders of the same names, as splits do, where every folder that counts does."""
    inside = {c: frozenset(subfolders(root / c)) for c in children}
    names = [held for held in inside.values() if len(held) > 1]
    shared = len(names) > 1 and frozenset.intersection(*names)
    return [c for c in children if inside[c]] if shared and len(names) == len(children) else []


def _wraps_folders(folder: Path) -> bool:
    inside = subfolders(folder)
    return len(inside) == 1 and len(subfolders(folder / inside[0])) > 1


def _class_of(held: Mapping[str, Mapping[str, list[str]]], notes: list[str]) -> dict[str, str]:
    """Return the class of every folder with an image: folders of two splits may differ by case or spaces."""
    spelt: dict[str, dict[str, None]] = {}
    empty: dict[str, None] = {}
    apart: set[str] = set()
    for folders in held.values():
        here: Counter[str] = Counter()
        for folder, images in folders.items():
            (spelt.setdefault(class_key(folder), {}) if images else empty)[folder] = None
            here[class_key(folder)] += bool(images)
        apart |= {key for key, n in here.items() if n > 1}
    class_of: dict[str, str] = {}
    for key, folders_ in spelt.items():
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
    """Raise where there is nothing to classify; the message says what is there."""
    layouts = f"lay the images out as {LAYOUTS}"
    direct = list_images(root, Counter(), deep=False)
    if not found.folders and direct:
        raise DataError(
            f"'{root}' holds {len(direct)} images but no class folders: '{direct[0]}'", hint=layouts
        )
    folders = [folder for place in held.values() for folder in place]
    if not found.folders:
        raise DataError(
            f"no images in '{root}': it holds {len(folders)} class folders; in them: {listed(found.left_out)}",
            hint=f"{layouts}; formats that are read: {', '.join(FORMATS)}",
        )
    odd = next((f for f in found.folders if any(category(c) == "Cc" for c in f)), None)
    if odd is not None:
        raise DataError(
            f"the name of the class folder {odd!r} holds a character that cannot be shown",
            hint="rename it",
        )
    if len(found.folders) < 2:
        only = root / next(iter(held)) / found.folders[0]
        below = subfolders(only) if only.is_dir() else []
        raise DataError(
            f"'{root}' holds one class only, '{found.folders[0]}'; at least two are needed",
            hint=f"its folders may be the classes: try folder:{only.as_posix()}"
            if len(below) > 1
            else layouts,
        )


DATASET = open_folder
