"""Variants of ImageNet for testing distribution shift: every image is ``test``, nothing is downloaded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from clipadapt.core.api.errors import DataError
from clipadapt.core.data.labelled import LabelledSet
from clipadapt.datasets._folders import existing_folder
from clipadapt.datasets._imagenet import PHOTO_TEMPLATES, TEMPLATES_80
from clipadapt.datasets._report import Report
from clipadapt.datasets._wnid import imagenet_names, locate, read_folders, wnid_folders

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL.Image import Image

    from clipadapt.core.api.data import DatasetOptions, Split, SplitName


@dataclass(frozen=True, slots=True)
class Variant:
    """Facts about a published dataset.

    Attributes:
        name: Name of the dataset.
        folder: Folder to which its archive unpacks.
        n_classes: Number of ImageNet classes it contains.
        licence: Its licence.
        citation: Its paper.
        source: Where it is published.
    """

    name: str
    folder: str
    n_classes: int
    licence: str
    citation: str
    source: str


def open_variant(variant: Variant, argument: str, options: DatasetOptions) -> LabelledSet[Image]:
    """Open a dataset of WordNet-id folders; its classes are those that have a folder, in ImageNet's order.

    Args:
        variant: The dataset.
        argument: The unpacked archive, or the folder that contains it.
        options: With ``on_bad_image="skip"`` every image is decoded once, to find the unreadable ones.

    Raises:
        DataError: If the folder does not exist, or has no WordNet-id folders, unknown ones, or no images.
    """
    root = existing_folder(argument, variant.name) if argument.strip() else needs_folder(variant)
    below = locate(root, variant.name, ("", variant.folder, "images"))
    # ImageNet's labels are in the order of the WordNet ids.
    wnids = wnid_folders(root / below)
    return variant_of(variant, root, below, wnids, imagenet_names(wnids), options)


def variant_of(
    variant: Variant,
    root: Path,
    below: str,
    folders: Sequence[str],
    classnames: tuple[str, ...],
    options: DatasetOptions,
    *,
    hint: str | None = None,
) -> LabelledSet[Image]:
    """Return the dataset of the given class folders, with all images in ``test``.

    Args:
        variant: The dataset.
        root: Folder given by the user.
        below: Path from ``root`` to the class folders.
        folders: Folder of each class.
        classnames: Name of each class.
        options: As for :func:`open_variant`.
        hint: Advice for the case that there is no readable image.

    Raises:
        DataError: If there is no readable image.
    """
    left_out: Counter[str] = Counter()
    test = read_folders(root, below, folders, classnames, options, left_out)
    if test is None:
        raise DataError(
            f"'{root / below}' contains no readable image of the {len(folders)} classes of {variant.name}",
            hint=hint or f"{variant.name}:DIR takes the archive of {variant.source}",
        )
    parts: dict[SplitName, Split[Image]] = {"test": test}
    report = Report()
    report.classes(test.classnames, parts)
    if len(test.classnames) != variant.n_classes:
        report.add(
            "other_classes",
            f"it has {len(test.classnames)} classes here, {variant.n_classes} as published: accuracies are not "
            "comparable",
        )
    data = LabelledSet(
        name=variant.name,
        classnames=test.classnames,
        templates=PHOTO_TEMPLATES,
        template_sets={"clip": TEMPLATES_80},
        licence=variant.licence,
        citation=variant.citation,
        source=variant.source,
        parts=parts,
    )
    return report.attached(data, left_out)


def needs_folder(variant: Variant) -> NoReturn:
    """Raise the error for a dataset that needs a folder.

    Raises:
        DataError: Always; it says where to get the dataset.
    """
    raise DataError(
        f"{variant.name} is not downloaded automatically: it needs a folder",
        hint=f"unpack the archive of {variant.source} and write {variant.name}:DIR; without a network: openmoji:line",
    )
