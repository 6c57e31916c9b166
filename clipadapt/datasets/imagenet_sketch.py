"""``imagenet-sketch[:DIR]``: black-and-white sketches of the thousand ImageNet classes, about fifty of each.

Without a folder, the authors' archive (7.6 GB) comes from the hub and is unpacked once into the cache folder, which
takes as much again. The hub's set is taken from its branch ``main``; what pins it is the sha256 of the archive.
``DIR`` is a folder of WordNet-id folders, or one that holds them in ``sketch/`` (as the archive does) or ``images/``.

Nothing is published as train or val (the hub calls everything train): all 50,889 images are ``test``. The paper says
50,000. Class names are the curated ones, in ImageNet's order; all thousand are there, also where a folder holds fewer.
"""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import DataError
from clipadapt.core.files import hub_datasets
from clipadapt.core.files.atomic import atomic_directory
from clipadapt.core.files.checksums import sha256_file
from clipadapt.core.files.folders import cache_dir
from clipadapt.datasets._imagenet import WNIDS
from clipadapt.datasets._images import existing_folder
from clipadapt.datasets._shifted import Shifted, listed
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
BELOW: Final = ("", "sketch", "images")
"""Where the WordNet-id folders may lie: directly, as in the archive, or as CoOp's instructions lay them out."""


def open_imagenet_sketch(argument: str, options: DatasetOptions, /) -> LabelledSet[Image]:
    """Open ImageNet-Sketch.

    Args:
        argument: A folder, or nothing for the hub.
        options: With ``on_bad_image="skip"`` every image is decoded once, to find the bad ones.

    Raises:
        DataError: If the folder is missing or holds no WordNet-id folders or unknown ones, or the archive cannot
            be had.
    """
    return open_sketches("imagenet-sketch", WNIDS, argument, options)


def open_sketches(
    name: str, wnids: Sequence[str], argument: str, options: DatasetOptions
) -> LabelledSet[Image]:
    """Open the sketches of some classes.

    Args:
        name: Name of the set.
        wnids: Its classes in label order; others in the folder are passed over.
        argument: A folder, or nothing for the hub.
        options: As for :func:`open_imagenet_sketch`.

    Raises:
        DataError: As :func:`open_imagenet_sketch`.
    """
    root = existing_folder(argument, name) if argument.strip() else _unpacked(name)
    below = locate(root, name, BELOW)
    it = Shifted(
        name=name,
        folder=BELOW[1],
        n_classes=len(wnids),
        licence="unknown (found by image search; the authors state none for the images)",
        citation="H. Wang et al., Learning Robust Global Representations by Penalizing Local Predictive Power, "
        "NeurIPS 2019, arXiv:1905.13549",
        source=f"https://github.com/HaohanWang/ImageNet-Sketch; {ARCHIVE} of the hub's {REPO}",
    )
    hint = f"wanted are images such as {root.name}/{wnids[0]}/sketch_0.JPEG"
    return listed(it, root, below, wnids, imagenet_names(wnids), options, hint=hint)


def _unpacked(name: str) -> Path:
    """Return the folder of the whole set, fetched and unpacked if it is not there."""
    target = cache_dir() / "datasets" / "imagenet-sketch"
    if target.is_dir():
        return target
    way_out = (
        f"give the unpacked archive with {name}:DIR (a folder of WordNet-id folders), or take a set that needs no "
        "network: openmoji:line"
    )
    files = hub_datasets.dataset(REPO, None, (ARCHIVE,), way_out=way_out)
    archive = files.folder / ARCHIVE
    if (found := sha256_file(archive)) != ARCHIVE_SHA256:
        raise DataError(
            f"{ARCHIVE} of the hub's {REPO}, commit {files.revision}, is another file than the one known here: "
            f"its sha256 is {found}, not {ARCHIVE_SHA256}",
            hint=f"remove '{archive}' if it is damaged and start again, or {way_out}",
        )
    try:
        with atomic_directory(target) as temporary, zipfile.ZipFile(archive) as packed:
            packed.extractall(
                temporary, [m for m in packed.namelist() if m.startswith(f"{BELOW[1]}/n")]
            )
    except OSError as err:
        raise DataError(
            f"cannot unpack {name} into '{target.parent}': {err.strerror or err}",
            hint="it takes 8 GB; CLIPADAPT_CACHE names another cache folder",
        ) from err
    return target


DATASET = open_imagenet_sketch
