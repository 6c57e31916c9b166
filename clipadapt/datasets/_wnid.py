"""Image sets laid out as one folder per WordNet id, as ImageNet and its relatives are."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

from clipadapt.core._imagenet import CLASSNAMES, wnid_index
from clipadapt.datasets._images import ImageFiles, list_images, readable, subfolders

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.protocols import OnBadImage

_WNID: Final = re.compile(r"n\d{8}")


def wnid_folders(folder: Path) -> tuple[str, ...]:
    """Return the WordNet ids that ``folder`` holds folders of, sorted."""
    return tuple(name for name in subfolders(folder) if _WNID.fullmatch(name))


def imagenet_names(wnids: Sequence[str]) -> tuple[str, ...]:
    """Return the curated ImageNet class names of WordNet ids.

    Raises:
        KeyError: If an id is not one of ImageNet's thousand.
    """
    index = wnid_index()
    return tuple(CLASSNAMES[index[wnid]] for wnid in wnids)


def read_wnids(
    root: Path, below: str, wnids: Sequence[str], on_bad_image: OnBadImage
) -> tuple[ImageFiles, NDArray[np.int64], int]:
    """List the images of the given classes.

    Args:
        root: Folder that ids are relative to.
        below: Path from ``root`` to the WNID folders, or empty.
        wnids: The classes, in label order; others in the folder are passed over.
        on_bad_image: ``skip`` decodes every image once and leaves the unreadable ones out.

    Returns:
        The files, their labels of shape ``(n,)``, and how many were left out.
    """
    prefix = f"{below}/" if below else ""
    names: list[str] = []
    labels: list[int] = []
    for label, wnid in enumerate(wnids):
        folder = root / below / wnid
        if folder.is_dir():
            images = list_images(folder, Counter())
            names += [f"{prefix}{wnid}/{image}" for image in images]
            labels += [label] * len(images)
    files = ImageFiles(root, names)
    if on_bad_image == "error":
        return files, np.asarray(labels, dtype=np.int64), 0
    keep = np.asarray(readable(files), dtype=bool)
    kept = ImageFiles(root, [name for name, good in zip(names, keep, strict=True) if good])
    return kept, np.asarray(labels, dtype=np.int64)[keep], int((~keep).sum())
