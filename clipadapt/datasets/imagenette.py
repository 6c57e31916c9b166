"""``imagenette[:full|320|160|DIR]``: ten easily distinguished ImageNet classes.

Without a folder, torchvision downloads the dataset (``full`` by default, or with a shorter side of 320 or 160 pixels)
and checks its MD5. ``DIR`` is a folder with ``train/`` and ``val/``, or only ``val/``, of WordNet-id folders; or these
folders themselves, which are then the published ``val``.

The published splits are train and val; results are reported on val. Therefore ``test`` is the published val, and
``val``, on which methods select, is a fixed tenth of the published train (by the hash of the file name, equal for all
sizes). Without train, the published val is ``val`` too, which is enough for zero-shot classification.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import DataError
from clipadapt.core.data.labelled import LabelledSet
from clipadapt.core.files.atomic import atomic_directory
from clipadapt.core.files.folders import cache_dir
from clipadapt.datasets._download import download_errors, require_reachable
from clipadapt.datasets._folders import existing_folder
from clipadapt.datasets._imagenet import PHOTO_TEMPLATES
from clipadapt.datasets._published import val_as_test
from clipadapt.datasets._report import Report
from clipadapt.datasets._wnid import imagenet_names, read_folders, wnid_folders

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from clipadapt.core.api.data import DatasetOptions, Split

WNIDS: Final = (
    "n01440764",  # tench
    "n02102040",  # English Springer Spaniel
    "n02979186",  # cassette player
    "n03000684",  # chainsaw
    "n03028079",  # church
    "n03394916",  # French horn
    "n03417042",  # garbage truck
    "n03425413",  # gas pump
    "n03445777",  # golf ball
    "n03888257",  # parachute
)
SIZES: Final = {
    "": "full",
    "full": "full",
    "320": "320px",
    "320px": "320px",
    "160": "160px",
    "160px": "160px",
}
FOLDERS: Final = {"full": "imagenette2", "320px": "imagenette2-320", "160px": "imagenette2-160"}
HOST: Final = "https://s3.amazonaws.com/fast-ai-imageclas"  # torchvision downloads from here
OFFLINE: Final = (
    "give a folder with imagenette:DIR, or use a dataset that needs no network: openmoji:color, "
    "openmoji:line"
)


@dataclass(frozen=True, slots=True)
class _Published:
    """Locations of the published splits, relative to ``root``; None if there is no such split."""

    root: Path
    train: str | None
    val: str | None


def open_imagenette(argument: str, options: DatasetOptions, /) -> LabelledSet[Image]:
    """Open ImageNette.

    Args:
        argument: ``full``, ``320``, ``160``, a folder, or empty for ``full``.
        options: With ``on_bad_image="skip"`` every image is decoded once, to find the unreadable ones.

    Raises:
        DataError: If the folder does not exist or has none of the ten classes, or the dataset cannot be downloaded.
    """
    size = SIZES.get(argument.strip())
    published = _locate(_downloaded(size) if size else existing_folder(argument, "imagenette"))
    classnames = imagenet_names(WNIDS)
    left_out: Counter[str] = Counter()

    def read(split: str, below: str | None) -> Split[Image] | None:
        if below is None:
            return None
        root = published.root
        # The ids do not depend on the location of the folders.
        return read_folders(
            root, below, WNIDS, classnames, options, left_out, lambda path: f"{split}/{path}"
        )

    train, val = read("train", published.train), read("val", published.val)
    served = val_as_test(train, val)  # by ids, train/WNID/file, which are equal for all sizes
    if not served.parts:
        raise DataError(f"'{argument}' contains no readable image of the ten classes of ImageNette")
    report = Report()
    report.classes(classnames, served.parts)
    data = LabelledSet(
        name="imagenette" if size in {None, "full"} else f"imagenette:{size[:-2]}",
        classnames=classnames,
        templates=PHOTO_TEMPLATES,
        licence="Apache-2.0 for the selection; the images under ImageNet's terms: non-commercial research",
        citation="J. Howard, Imagenette, 2019; J. Deng et al., ImageNet: A Large-Scale Hierarchical Image "
        "Database, CVPR 2009",
        source="https://github.com/fastai/imagenette",
        parts=served.parts,
        aliases=served.aliases,
        flags=served.flags,
    )
    return report.attached(data, left_out)


def _locate(root: Path) -> _Published:
    for name in ("", *FOLDERS.values()):
        base = root / name
        if not base.is_dir():
            continue
        here = {s: s for s in ("train", "val") if (base / s).is_dir() and _ours(base / s)}
        if here:
            return _Published(base, here.get("train"), here.get("val"))
        if _ours(base):
            return _Published(base, None, "")
    raise DataError(
        f"'{root}' contains none of the ten classes of ImageNette; expected folders such as "
        f"{root.name}/val/{WNIDS[0]} (train/ or val/, or the WordNet-id folders themselves)",
        hint="any other folder of classes opens with folder:PATH",
    )


def _ours(folder: Path) -> bool:
    return not set(WNIDS).isdisjoint(wnid_folders(folder))


def _downloaded(size: str) -> Path:
    """Return the folder of one size; download it if necessary."""
    target = cache_dir() / "datasets" / "imagenette" / FOLDERS[size]
    if target.is_dir():
        return target
    what = f"imagenette ({size})"
    require_reachable(HOST, what=what, hint=OFFLINE)
    from torchvision.datasets import (
        Imagenette,  # seconds: after the question whether there is a network
    )

    # torchvision accepts any folder of that name as complete, even a partly unpacked one.
    with atomic_directory(target) as temporary, download_errors(what, hint=OFFLINE):
        Imagenette(temporary, size=size, download=True)
        unpacked = temporary / FOLDERS[size]
        for part in tuple(unpacked.iterdir()):
            part.rename(temporary / part.name)
        for rest in (unpacked, *temporary.glob("*.tgz")):
            rest.rmdir() if rest.is_dir() else rest.unlink()
    return target


DATASET = open_imagenette
