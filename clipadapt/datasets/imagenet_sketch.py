"""``imagenet-sketch[:DIR]``: black-and-white sketches of the thousand ImageNet classes, about fifty of each.

Without a folder, the authors' archive (7.6 GB) is downloaded from the hub and unpacked once to the cache folder, which
takes the same space again. It is downloaded from the branch ``main`` and verified by the sha256 of the archive. ``DIR``
is a folder of WordNet-id folders, or one that contains them in ``sketch/`` (as the archive does) or ``images/``.

There is no train or val (the hub names the only split train): all 50,889 images are ``test``; the paper states 50,000.
Class names are the curated ones, in ImageNet's order; there are always a thousand, even if a folder has fewer.
"""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import DataError
from clipadapt.core.files import hub_datasets
from clipadapt.core.files.atomic import atomic_directory
from clipadapt.core.files.checksums import sha256_file
from clipadapt.core.files.folders import cache_dir
from clipadapt.datasets._folders import existing_folder
from clipadapt.datasets._imagenet import WNIDS
from clipadapt.datasets._shifted import Variant, variant_of
from clipadapt.datasets._wnid import imagenet_names, locate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL.Image import Image

    from clipadapt.core.api.data import DatasetOptions
    from clipadapt.core.data.labelled import LabelledSet

REPO: Final = "songweig/imagenet_sketch"
ARCHIVE: Final = "data/ImageNet-Sketch.zip"
ARCHIVE_SHA256 = "4d3ce6b82a7c48aabf14aeac105eb533e75707f152cc858f55bfc022031a72ed"
LOCATIONS: Final = ("", "sketch", "images")
"""Locations of the WordNet-id folders: directly, as in the archive, or as in CoOp's instructions."""


def open_imagenet_sketch(argument: str, options: DatasetOptions, /) -> LabelledSet[Image]:
    """Open ImageNet-Sketch.

    Args:
        argument: A folder, or empty for the hub.
        options: With ``on_bad_image="skip"`` every image is decoded once, to find the unreadable ones.

    Raises:
        DataError: If the folder does not exist or has no WordNet-id folders or unknown ones, or the archive is not
            available.
    """
    return open_sketches("imagenet-sketch", WNIDS, argument, options)


def open_sketches(
    name: str, wnids: Sequence[str], argument: str, options: DatasetOptions
) -> LabelledSet[Image]:
    """Open the sketches of some classes.

    Args:
        name: Name of the dataset.
        wnids: Its classes in label order; other folders are ignored.
        argument: A folder, or empty for the hub.
        options: As for :func:`open_imagenet_sketch`.

    Raises:
        DataError: As :func:`open_imagenet_sketch`.
    """
    root = existing_folder(argument, name) if argument.strip() else _unpacked(name)
    below = locate(root, name, LOCATIONS)
    variant = Variant(
        name=name,
        folder=LOCATIONS[1],
        n_classes=len(wnids),
        licence="unknown (found by image search; the authors state no licence for the images)",
        citation="H. Wang et al., Learning Robust Global Representations by Penalizing Local Predictive Power, "
        "NeurIPS 2019, arXiv:1905.13549",
        source=f"https://github.com/HaohanWang/ImageNet-Sketch; {ARCHIVE} of the hub's {REPO}",
    )
    hint = f"expected images such as {root.name}/{wnids[0]}/sketch_0.JPEG"
    return variant_of(variant, root, below, wnids, imagenet_names(wnids), options, hint=hint)


def _unpacked(name: str) -> Path:
    """Return the folder of the whole dataset; download and unpack it if necessary."""
    target = cache_dir() / "datasets" / "imagenet-sketch"
    if target.is_dir():
        return target
    way_out = (
        f"give the unpacked archive with {name}:DIR (a folder of WordNet-id folders), or use a dataset that needs no "
        "network: openmoji:line"
    )
    files = hub_datasets.dataset(REPO, None, (ARCHIVE,), way_out=way_out)
    archive = files.folder / ARCHIVE
    if (found := sha256_file(archive)) != ARCHIVE_SHA256:
        raise DataError(
            f"{ARCHIVE} of the hub's {REPO}, commit {files.revision}, has changed: "
            f"its sha256 is {found}, expected {ARCHIVE_SHA256}",
            hint=f"if '{archive}' is damaged, remove it and try again, or {way_out}",
        )
    try:
        with atomic_directory(target) as temporary, zipfile.ZipFile(archive) as packed:
            packed.extractall(
                temporary, [m for m in packed.namelist() if m.startswith(f"{LOCATIONS[1]}/n")]
            )
    except OSError as err:
        raise DataError(
            f"cannot unpack {name} into '{target.parent}': {err.strerror or err}",
            hint="it needs 8 GB; set CLIPADAPT_CACHE to use another cache folder",
        ) from err
    return target


DATASET = open_imagenet_sketch
