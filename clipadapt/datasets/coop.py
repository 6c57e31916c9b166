"""``coop:NAME:DIR``: the image datasets of CoOp's papers with CoOp's published splits.

``DIR`` is CoOp's data folder (``$DATA`` in its instructions), or the folder of the dataset in it. ``NAME`` is one of
caltech101, oxford_pets, stanford_cars, flowers102, food101, fgvc_aircraft, sun397, dtd, eurosat, ucf101 and imagenet::

    coop:caltech101:DIR                          # DIR/caltech-101/split_zhou_Caltech101.json
    coop:DIR/oxford_pets/split_zhou_OxfordPets.json     # the same for each, by the name of the file
    coop:dtd:DIR?split=FILE.json                 # a split file elsewhere

The split file must be beside the images, or given with ``?split=``; FGVC Aircraft has its lists. Datasets are named
``caltech101:coop`` and so on in tables, because torchvision's splits of the same images are others. A split file of
other sizes than the published one is flagged ``not_the_official_split``.

``coop:imagenet:DIR`` is ``imagenet:DIR/imagenet`` with the class names of CoOp's ``classnames.txt``, if it is there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.data import Split
from clipadapt.core.api.errors import DataError, unknown
from clipadapt.core.api.user_input import read_text, user_path
from clipadapt.datasets._coop import (
    DATASETS_MD,
    MAX_LIST_BYTES,
    SETS,
    home_of,
    open_set,
    plain_name,
    set_named,
)
from clipadapt.datasets._folders import existing_folder
from clipadapt.datasets._imagenet import WNIDS
from clipadapt.datasets.imagenet import open_imagenet

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from clipadapt.core.api.data import DatasetOptions
    from clipadapt.core.data.labelled import LabelledSet

NAMES: Final = (*SETS, "imagenet")


def open_coop(argument: str, options: DatasetOptions, /) -> LabelledSet[Image]:
    """Open one of CoOp's datasets.

    Args:
        argument: ``NAME:DIR``, optionally with ``?split=FILE``, or the path of a ``split_zhou_*.json``.
        options: With ``on_bad_image="skip"`` every image is decoded once, to find the unreadable ones.

    Raises:
        UnknownNameError: If CoOp has no dataset of that name.
        DataError: If the folder or the split file does not exist or is not valid, or images are missing.
    """
    name, colon, given = argument.strip().partition(":")
    if plain_name(name) == "imagenet":
        return _imagenet(given, options)
    coop_set = set_named(name)
    if coop_set is None and (path := user_path(argument.strip() or ".")).is_file():
        return _by_file(path, options)
    if coop_set is None:
        raise unknown("dataset of CoOp", name, NAMES, hint="write coop:NAME:DIR")
    folder, has_query, query = given.partition("?")
    if has_query and not query.startswith("split="):
        raise DataError(
            f"'?{query}' is not an option of coop:{name}; accepted: ?split=FILE",
            hint=f"write coop:{coop_set.name}:DIR?split=FILE",
        )
    if not colon or not folder.strip():
        raise DataError(
            f"coop:{name} needs a folder: it is not downloaded automatically",
            hint=f"prepare it as {DATASETS_MD} describes, and write coop:{coop_set.name}:DIR",
        )
    split_file = user_path(query.removeprefix("split=")) if has_query else None
    if split_file is None and (path := user_path(folder)).suffix == ".json" and path.is_file():
        return open_set(coop_set, path.parent, options, path)
    root = existing_folder(folder, f"coop:{name}")
    home = home_of(coop_set, root)
    if home is None and split_file is not None:
        home = root / coop_set.folder if (root / coop_set.folder).is_dir() else root
    if home is None:
        wanted = coop_set.split_file or "images_variant_train.txt"
        raise DataError(
            f"there is no {wanted} in '{root / coop_set.folder}' or in '{root}'",
            hint=f"download it as {DATASETS_MD} describes, or give its path: "
            f"coop:{coop_set.name}:DIR?split=FILE",
        )
    return open_set(coop_set, home, options, split_file)


def _by_file(path: Path, options: DatasetOptions) -> LabelledSet[Image]:
    """Open the dataset of a split file that is beside its images, by the name of the file."""
    coop_set = next((s for s in SETS.values() if s.split_file == path.name), None)
    if coop_set is None:
        raise DataError(
            f"'{path}' does not have the name of one of CoOp's split files, such as split_zhou_Caltech101.json",
            hint="write coop:NAME:DIR?split=FILE, with the name of the dataset and the folder of its images",
        )
    return open_set(coop_set, path.parent, options, path)


def _imagenet(folder: str, options: DatasetOptions) -> LabelledSet[Image]:
    """Open ImageNet in CoOp's layout, with CoOp's class names."""
    root = existing_folder(folder, "coop:imagenet")
    home = root / "imagenet" if (root / "imagenet").is_dir() else root
    data = open_imagenet(str(home), options)
    path = home / "classnames.txt"
    if not path.is_file():
        return data
    lines = [
        line.partition(" ") for line in read_text(path, "class names", MAX_LIST_BYTES).split("\n")
    ]
    named = {wnid: name.strip() for wnid, _, name in lines if wnid}
    missing = [wnid for wnid in WNIDS if not named.get(wnid)]
    if missing:
        raise DataError(
            f"'{path}' has no name for {len(missing)} of the {len(WNIDS):,} classes, the first is {missing[0]}",
            hint="each line is a WordNet id and a name, as in CoOp's classnames.txt",
        )
    names = tuple(named[wnid] for wnid in WNIDS)
    parts = {s: Split(part.inputs, part.labels, names) for s, part in data.parts.items()}
    return replace(data, classnames=names, parts=parts)


DATASET = open_coop
