"""Datasets of several domains with the same classes, each domain opened as a dataset of its own.

``NAME:DIR/DOMAIN`` opens one domain. The protocol ``domain_shift``, or ``eval_on`` in a sweep, evaluates a fit on one
domain on the others. ``NAME:DIR/DOMAIN?test=all`` has all images of the domain in ``test`` and no other split, for
target domains, on which nothing is trained.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import DataError
from clipadapt.core.api.user_input import read_text, shown
from clipadapt.core.data.index_files import plain_path
from clipadapt.core.data.labelled import LabelledSet, make_split, split_by_hash
from clipadapt.core.data.published_draws import first_few
from clipadapt.datasets._folders import existing_folder
from clipadapt.datasets._imagenet import PHOTO_TEMPLATES
from clipadapt.datasets._images import ImageFiles, in_threads
from clipadapt.datasets._published import VAL_SHARES, by_split, without_unreadable
from clipadapt.datasets._report import Report
from clipadapt.datasets.folder import open_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from PIL.Image import Image

    from clipadapt.core.api.data import DatasetOptions, Split, SplitName

ALL: Final = "test=all"
MAX_LIST_BYTES: Final = 1 << 30
LABEL: Final = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class DomainSet:
    """Facts about a dataset of several domains.

    Attributes:
        name: Its name.
        domains: Folder of each domain.
        lists: Ending of the list of images of each split, after the name of the domain.
        first_label: Label of the first class in the lists.
        licence: Licence of the images.
        citation: The paper.
        source: Where it is published.
    """

    name: str
    domains: tuple[str, ...]
    lists: Mapping[SplitName, str]
    first_label: int
    licence: str
    citation: str
    source: str


def open_domain(
    domain_set: DomainSet, argument: str, options: DatasetOptions
) -> LabelledSet[Image]:
    """Open one domain with its published lists of images, or without them as ``folder:`` does.

    Args:
        domain_set: The dataset.
        argument: The folder of the domain, optionally with ``?test=all``.
        options: With ``on_bad_image="skip"`` every image is decoded once, to find the unreadable ones.

    Raises:
        DataError: If the folder is not that of a domain, or a list is not valid or names images that are missing.
    """
    folder, has_query, query = argument.strip().partition("?")
    name = domain_set.name
    if has_query and query != ALL:
        raise DataError(
            f"'?{query}' is not an option of {name}; accepted: ?{ALL}",
            hint=f"write {name}:DIR/{domain_set.domains[0]}?{ALL}",
        )
    if not folder:
        raise DataError(
            f"{name} is not downloaded automatically: it needs the folder of one domain",
            hint=f"get it from {domain_set.source}, and write {name}:DIR/{domain_set.domains[0]}",
        )
    path = existing_folder(folder, name).resolve()
    if path.name not in domain_set.domains:
        raise DataError(
            f"'{folder}' is not the folder of a domain of {name}: {', '.join(domain_set.domains)}",
            hint=f"write {name}:DIR/{domain_set.domains[0]}",
        )
    lists = _lists(domain_set, path)
    data = (
        _by_lists(domain_set, path, lists, options)
        if lists
        else _by_folder(domain_set, path, options)
    )
    return _all_in_test(data, path) if has_query else data


def _lists(domain_set: DomainSet, path: Path) -> dict[SplitName, Path]:
    """Return the list of each split; empty if there are none."""
    root = path.parent
    for place in (root, root / "splits", root.parent, root.parent / "splits"):
        found = {s: place / f"{path.name}{end}" for s, end in domain_set.lists.items()}
        if all(file.is_file() for file in found.values()):
            return found
    return {}


def _by_lists(
    domain_set: DomainSet,
    path: Path,
    lists: Mapping[SplitName, Path],
    options: DatasetOptions,
) -> LabelledSet[Image]:
    named: dict[int, str] = {}
    seen: dict[str, Path] = {}
    rows = {s: _read_list(domain_set, path, file, named, seen) for s, file in lists.items()}
    missing = next(label for label in range(len(named) + 1) if label not in named)
    if missing < max(named, default=1):
        raise DataError(
            f"the lists of {domain_set.name} in '{path.parent}' have no image of the label "
            f"{missing + domain_set.first_label}"
        )
    names = tuple(named[label].replace("_", " ") for label in range(len(named)))
    left_out: Counter[str] = Counter()
    parts: dict[SplitName, Split[Image]] = {}
    for split, listed in rows.items():
        ids = [key for key, _ in listed]
        part = make_split(ImageFiles(path, ids), ids, [label for _, label in listed], names)
        parts[split] = without_unreadable(part, options, left_out)
    train = parts["train"]
    hashes = (hashlib.sha256(key.encode()).digest() for key in train.inputs.ids)
    parts |= by_split(train, [split_by_hash(h, VAL_SHARES) for h in hashes])
    report = Report()
    report.classes(names, parts)
    return report.attached(_described(domain_set, path, names, parts), left_out)


def _read_list(
    domain_set: DomainSet, path: Path, file: Path, named: dict[int, str], seen: dict[str, Path]
) -> list[tuple[str, int]]:
    """Return path below the folder of the domain and label of each line.

    Class names are added to ``named``, paths with their list to ``seen``.

    Raises:
        DataError: If a line is not ``DOMAIN/CLASS/IMAGE LABEL``, an image is listed twice, or images are missing.
    """
    rows = []
    for i, line in enumerate(read_text(file, "list of images", MAX_LIST_BYTES).split("\n"), 1):
        if not line.strip():
            continue
        listed, _, label = line.strip().rpartition(" ")
        parts = plain_path(listed).split("/")
        if len(parts) < 3 or parts[0] != path.name or ".." in parts or not LABEL.fullmatch(label):
            raise DataError(
                f"line {i} of '{file}' is {shown(line)}; expected {path.name}/CLASS/IMAGE LABEL"
            )
        number = int(label) - domain_set.first_label
        if number < 0 or named.setdefault(number, parts[1]) != parts[1]:
            raise DataError(
                f"line {i} of '{file}' gives the label {label} to '{parts[1]}'"
                + (f", other lines to '{named[number]}'" if number in named else "")
            )
        below = "/".join(parts[1:])
        if below in seen:
            raise DataError(
                f"line {i} of '{file}' lists {shown(below)} a second time; it is already in '{seen[below]}'",
                hint="list each image once, in train, val or test",
            )
        seen[below] = file
        rows.append((below, number))
    there = in_threads(lambda row: (path / row[0]).is_file(), rows)
    absent = [row[0] for row, found in zip(rows, there, strict=True) if not found]
    if absent:
        raise DataError(
            f"{len(absent):,} of the {len(rows):,} images in '{file}' are not in '{path}': {first_few(absent)}",
            hint=f"unpack the archive of this domain again, from {domain_set.source}",
        )
    return rows


def _by_folder(domain_set: DomainSet, path: Path, options: DatasetOptions) -> LabelledSet[Image]:
    """Open the folder of a domain without its lists, as ``folder:`` does."""
    data = open_folder(str(path), options)
    own = _described(domain_set, path, data.classnames, data.parts)
    note = f"the published lists of images are not in '{path.parent}'; the splits are those of folder:PATH"
    return replace(
        own,
        skipped=data.skipped,
        found=data.found,
        left_out=data.left_out,
        keys=data.keys,
        flags=(*data.flags, "not_the_official_split"),
        notes=(*data.notes, f"{own.name}: {note}"),
    )


def _all_in_test(data: LabelledSet[Image], path: Path) -> LabelledSet[Image]:
    """Return a dataset with the images of all splits in ``test``, sorted by their ids."""
    rows = sorted(
        row
        for part in data.parts.values()
        for row in zip(part.inputs.ids, part.labels.tolist(), strict=True)
    )
    ids = [key for key, _ in rows]
    test = make_split(ImageFiles(path, ids), ids, [label for _, label in rows], data.classnames)
    return replace(data, name=f"{data.name}:all", parts={"test": test})


def _described(
    domain_set: DomainSet,
    path: Path,
    names: tuple[str, ...],
    parts: Mapping[SplitName, Split[Image]],
) -> LabelledSet[Image]:
    return LabelledSet(
        name=f"{domain_set.name}:{path.name}",
        classnames=names,
        templates=PHOTO_TEMPLATES,
        licence=domain_set.licence,
        citation=domain_set.citation,
        source=domain_set.source,
        parts=parts,
    )
