"""Image datasets with one folder per WordNet id, as ImageNet and its variants."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import DataError, did_you_mean
from clipadapt.core.data.labelled import make_split
from clipadapt.datasets._folders import list_images, subfolders
from clipadapt.datasets._imagenet import CLASSNAMES, WNIDS, wnid_index
from clipadapt.datasets._images import ImageFiles
from clipadapt.datasets._published import without_unreadable
from clipadapt.datasets._report import shown

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from PIL.Image import Image

    from clipadapt.core.api.data import DatasetOptions, Split

_WNID: Final = re.compile(r"n\d{8}")
_NAMED_WNID: Final = re.compile(r"n\d{8}[-_ .]+(\D.*)")


def wnid_folders(folder: Path) -> tuple[str, ...]:
    """Return the sorted WordNet ids that have a subfolder in ``folder``."""
    return tuple(name for name in subfolders(folder) if _WNID.fullmatch(name))


def locate(root: Path, name: str, places: Sequence[str], takes: str = "") -> str:
    """Return the path from ``root`` to its WordNet-id folders.

    Args:
        root: Folder given by the user.
        name: Name of the dataset, for messages.
        places: Possible locations relative to ``root``; an empty string is ``root`` itself.
        takes: Description of the expected folder; by default the unpacked archive.

    Raises:
        DataError: If there are none, or if some are not among ImageNet's thousand classes.
    """
    for below in places:
        found = wnid_folders(root / below) if (root / below).is_dir() else ()
        unknown = [wnid for wnid in found if wnid not in wnid_index()]
        if unknown:
            near = did_you_mean(unknown[0], WNIDS, most=1)
            raise DataError(
                f"'{root / below}' contains folders with WordNet ids that are not classes of ImageNet-1k: "
                f"{shown(unknown)}{near}",
                hint="rename or remove them; any other folder of classes opens with folder:PATH",
            )
        if found:
            return below
    wanted = " or ".join("/".join(filter(None, (root.name, p, WNIDS[0]))) for p in places[:2])
    raise DataError(
        f"'{root}' contains no WordNet-id folders; expected folders such as {wanted}",
        hint=f"{takes or f'{name}:DIR takes the unpacked archive'}; any other folder of classes opens with folder:PATH",
    )


def imagenet_names(wnids: Sequence[str]) -> tuple[str, ...]:
    """Return the curated ImageNet class names of WordNet ids.

    Raises:
        KeyError: If an id is not one of ImageNet's thousand.
    """
    index = wnid_index()
    return tuple(CLASSNAMES[index[wnid]] for wnid in wnids)


def prompt_names(keys: Sequence[str]) -> tuple[str, ...]:
    """Return the class names for folders or labels: ``_`` becomes a space, WordNet ids become ImageNet's names.

    ``n02085620-Chihuahua``, as in Stanford Dogs, becomes ``Chihuahua``.
    """
    if wnid_index().keys() >= set(keys):
        return imagenet_names(keys)
    after = [_NAMED_WNID.fullmatch(key) for key in keys]
    plain = [found[1] if found else key for found, key in zip(after, keys, strict=True)]
    if not all(after) or len(set(plain)) < len(plain):
        plain = list(keys)
    return tuple(name.replace("_", " ") for name in plain)


def read_folders(
    root: Path,
    below: str,
    folders: Sequence[str],
    classnames: tuple[str, ...],
    options: DatasetOptions,
    left_out: Counter[str],
    id_of: Callable[[str], str] = str,
) -> Split[Image] | None:
    """Return the images of the given classes, or None if there are none.

    Args:
        root: Folder given by the user.
        below: Path from ``root`` to the class folders, or empty.
        folders: Folder of each class, in label order; other folders are ignored.
        classnames: Name of each class.
        options: With ``on_bad_image="skip"``, every image is decoded once and the unreadable ones are left out.
        left_out: Counter to which the files left out are added, by reason.
        id_of: Maps the path of an image below the class folders' parent to its id.
    """
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(folders):
        folder = root / below / name
        if folder.is_dir():
            images = list_images(folder, left_out)
            paths += [f"{name}/{image}" for image in images]
            labels += [label] * len(images)
    files = ImageFiles(root, [f"{below}/{path}" if below else path for path in paths])
    part = make_split(files, list(map(id_of, paths)), labels, classnames)
    part = without_unreadable(part, options, left_out)
    return part if len(part) else None
