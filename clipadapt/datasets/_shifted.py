"""Sets that test ImageNet's classes on other pictures: everything is ``test``, no file is fetched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from clipadapt.core.api.errors import DataError
from clipadapt.core.data.labelled import LabelledSet, make_split
from clipadapt.datasets._imagenet import PHOTO_TEMPLATES
from clipadapt.datasets._images import existing_folder
from clipadapt.datasets._report import Report
from clipadapt.datasets._wnid import imagenet_names, locate, read_folders, wnid_folders

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL.Image import Image

    from clipadapt.core.api.data import DatasetOptions, Split, SplitName


@dataclass(frozen=True, slots=True)
class Shifted:
    """What is known of a published set.

    Attributes:
        name: Its name here.
        folder: The folder that its archive unpacks to.
        n_classes: How many of ImageNet's classes it has.
        licence: Its licence.
        citation: Its paper.
        source: Where it comes from.
    """

    name: str
    folder: str
    n_classes: int
    licence: str
    citation: str
    source: str


def opened(it: Shifted, argument: str, options: DatasetOptions) -> LabelledSet[Image]:
    """Open a set of WordNet-id folders; its classes are those that have a folder, in ImageNet's order.

    Args:
        it: Which set.
        argument: The unpacked archive, or the folder that holds it.
        options: With ``on_bad_image="skip"`` every image is decoded once, to find the bad ones.

    Raises:
        DataError: If the folder is missing, or holds no WordNet-id folders or unknown ones, or no image.
    """
    root = existing_folder(argument, it.name) if argument.strip() else needs_folder(it)
    below = locate(root, it.name, ("", it.folder, "images"))
    # WordNet ids sort as ImageNet's labels do.
    wnids = wnid_folders(root / below)
    return listed(it, root, below, wnids, imagenet_names(wnids), options)


def listed(
    it: Shifted,
    root: Path,
    below: str,
    folders: Sequence[str],
    classnames: tuple[str, ...],
    options: DatasetOptions,
    *,
    hint: str | None = None,
) -> LabelledSet[Image]:
    """Return the set of one split that some folders hold, with what is worth telling of it.

    Args:
        it: Which set.
        root: Folder that a user named.
        below: Path from there to the folders of the classes.
        folders: Folder of each class.
        classnames: Name of each class.
        options: As for :func:`opened`.
        hint: What to do where there is no readable image.

    Raises:
        DataError: If there is no readable image.
    """
    files, labels, left_out = read_folders(root, below, folders, options.on_bad_image)
    if not len(files):
        raise DataError(
            f"'{root / below}' holds no readable image of the {len(folders)} classes of {it.name}",
            hint=hint or f"{it.name}:DIR takes the archive of {it.source}",
        )
    ids = [path.removeprefix(f"{below}/") for path in files.names]
    test = make_split(files, ids, labels, classnames)
    parts: dict[SplitName, Split[Image]] = {"test": test}
    report = Report()
    report.classes(test.classnames, parts)
    if len(test.classnames) != it.n_classes:
        report.add(
            "other_classes",
            f"it has {len(test.classnames)} classes here, {it.n_classes} as published: accuracies are of another task",
        )
    data = LabelledSet(
        name=it.name,
        classnames=test.classnames,
        templates=PHOTO_TEMPLATES,
        licence=it.licence,
        citation=it.citation,
        source=it.source,
        parts=parts,
    )
    return report.attached(data, left_out)


def needs_folder(it: Shifted) -> NoReturn:
    """Refuse to open a set without a folder.

    Raises:
        DataError: Always; it says where the set comes from.
    """
    raise DataError(
        f"{it.name} is not fetched by itself: it needs a folder",
        hint=f"unpack the archive of {it.source} and write {it.name}:DIR; without a network: openmoji:line",
    )
