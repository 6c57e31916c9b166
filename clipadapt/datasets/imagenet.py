"""``imagenet:DIR``: ImageNet-1k (ILSVRC 2012), available from its owners on request.

``DIR`` contains ``train/`` and ``val/`` with WordNet-id folders, or only ``val/``, in torchvision's layout; or these
folders in ``images/``, as in CoOp's instructions.

The published splits are train, val, and a test split without labels; results are reported on val. Therefore ``test`` is
the published val, and ``val``, on which methods select, is a fixed tenth of the published train (by the hash of the
file name). CoOp's code selects on the published val itself. Class names are the curated ones, in ImageNet's order.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import DataError
from clipadapt.core.data.labelled import LabelledSet
from clipadapt.datasets._folders import existing_folder
from clipadapt.datasets._imagenet import PHOTO_TEMPLATES, TEMPLATES_80, WNIDS
from clipadapt.datasets._published import val_as_test
from clipadapt.datasets._report import Report
from clipadapt.datasets._wnid import imagenet_names, locate, read_folders

if TYPE_CHECKING:
    from PIL.Image import Image

    from clipadapt.core.api.data import DatasetOptions, Split

LAYOUT: Final = (
    "imagenet:DIR takes a folder with train/ and val/, or val/ alone, of WordNet-id folders"
)


def open_imagenet(argument: str, options: DatasetOptions, /) -> LabelledSet[Image]:
    """Open ImageNet-1k.

    Args:
        argument: The folder.
        options: With ``on_bad_image="skip"`` every image is decoded once, to find the unreadable ones.

    Raises:
        DataError: If the folder does not exist, has another layout, or contains no readable image.
    """
    if not argument.strip():
        raise DataError(
            "imagenet is not downloaded automatically: its owners require an agreement",
            hint=f"get it from https://image-net.org; {LAYOUT}; without a network: openmoji:color",
        )
    root = existing_folder(argument, "imagenet")
    base = root if any((root / s).is_dir() for s in ("train", "val")) else root / "images"
    if not any((base / s).is_dir() for s in ("train", "val")):
        raise DataError(f"'{root}' contains neither train/ nor val/", hint=LAYOUT)
    classnames = imagenet_names(WNIDS)
    left_out: Counter[str] = Counter()

    def read(split: str) -> Split[Image] | None:
        if not (base / split).is_dir():
            return None
        locate(base / split, "imagenet", ("",), LAYOUT)
        return read_folders(
            base, split, WNIDS, classnames, options, left_out, lambda path: f"{split}/{path}"
        )

    train, val = read("train"), read("val")
    served = val_as_test(train, val)
    if not served.parts:
        raise DataError(f"'{base}' contains no readable image", hint=LAYOUT)
    report = Report()
    report.classes(classnames, served.parts)
    data = LabelledSet(
        name="imagenet",
        classnames=classnames,
        templates=PHOTO_TEMPLATES,
        template_sets={"clip": TEMPLATES_80},
        licence="ImageNet's terms: non-commercial research",
        citation="O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015, "
        "arXiv:1409.0575",
        source="https://image-net.org",
        parts=served.parts,
        aliases=served.aliases,
        flags=served.flags,
    )
    return report.attached(data, left_out)


DATASET = open_imagenet
