"""``imagenet-v2:DIR``: new test photos for ImageNet's thousand classes, ten of each (matched frequency).

``DIR`` is the unpacked archive with the folders ``0`` to ``999``, named by ImageNet's labels, or a folder that contains
it. All images are ``test``. Class names are ImageNet's curated ones; there are always a thousand, even if a folder has
fewer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import DataError
from clipadapt.datasets._folders import existing_folder, subfolders
from clipadapt.datasets._imagenet import CLASSNAMES
from clipadapt.datasets._report import shown
from clipadapt.datasets._shifted import Variant, needs_folder, variant_of

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from clipadapt.core.api.data import DatasetOptions
    from clipadapt.core.data.labelled import LabelledSet

SET: Final = Variant(
    name="imagenet-v2",
    folder="imagenetv2-matched-frequency-format-val",
    n_classes=len(CLASSNAMES),
    licence="MIT for the collection; the images belong to their owners",
    citation="B. Recht et al., Do ImageNet Classifiers Generalize to ImageNet?, ICML 2019, arXiv:1902.10811",
    source="https://github.com/modestyachts/ImageNetV2",
)
LABELS: Final = tuple(map(str, range(len(CLASSNAMES))))


def open_imagenet_v2(argument: str, options: DatasetOptions, /) -> LabelledSet[Image]:
    """Open ImageNetV2.

    Args:
        argument: The folder.
        options: With ``on_bad_image="skip"`` every image is decoded once, to find the unreadable ones.

    Raises:
        DataError: If the folder does not exist, has no folders named by labels, other folders, or no images.
    """
    root = existing_folder(argument, SET.name) if argument.strip() else needs_folder(SET)
    return variant_of(SET, root, _locate(root), LABELS, CLASSNAMES, options)


def _locate(root: Path) -> str:
    """Return the path from ``root`` to the folders named by labels."""
    for below in ("", SET.folder, "images"):
        found = subfolders(root / below) if (root / below).is_dir() else []
        if set(found).isdisjoint(LABELS):
            continue
        unknown = [name for name in found if name not in LABELS]
        if unknown:
            raise DataError(
                f"'{root / below}' contains folders that are not labels from 0 to 999: {shown(unknown)}",
                hint="move them elsewhere; any other folder of classes opens with folder:PATH",
            )
        return below
    raise DataError(
        f"'{root}' contains no folders named by ImageNet's labels, 0 to 999",
        hint=f"imagenet-v2:DIR takes the unpacked archive of {SET.source}",
    )


DATASET = open_imagenet_v2
