"""``tiny-imagenet[:DIR]``: 200 ImageNet classes at 64 pixels, with 500 training images each.

Without a folder, the dataset comes from the hub at a pinned commit, or from the hub cache without a network. ``DIR`` is
the unpacked original archive (``tiny-imagenet-200``): ``wnids.txt``, ``train/WNID/images/*.JPEG`` and ``val/images``
with ``val/val_annotations.txt``. ``words.txt`` is not read: class names are ImageNet's curated ones, by WordNet id.

The published splits are train, val, and a test split without labels; results are reported on val. Therefore ``test`` is
the published val, and ``val``, on which methods select, is a fixed tenth of the published train. Classes are in the
order of their WordNet ids. The hub's label column names eighteen classes by another sense of the same word (the state
of Chihuahua for the dog, a unit of mass for the slug); :data:`MISNAMED` maps them to the right ids.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import DataError, did_you_mean
from clipadapt.core.data.labelled import LabelledSet, make_split, match_splits
from clipadapt.core.files import hub_datasets
from clipadapt.datasets import _hub
from clipadapt.datasets._folders import existing_folder
from clipadapt.datasets._imagenet import PHOTO_TEMPLATES, WNIDS, wnid_index
from clipadapt.datasets._images import UNREADABLE, ImageFiles
from clipadapt.datasets._published import val_as_test, without_unreadable
from clipadapt.datasets._report import Report
from clipadapt.datasets._wnid import imagenet_names, read_folders

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL.Image import Image

    from clipadapt.core.api.data import DatasetOptions, Split, SplitName

REPO: Final = "zh-plus/tiny-imagenet"
REVISION: Final = "5a77092c28e51558c5586e9c5eb71a7e17a5e43f"
MISNAMED: Final = {
    "n02666347": "n02666196",  # abacus
    "n03373237": "n02190166",  # fly
    "n04465666": "n04465501",  # tractor
    "n04598010": "n04597913",  # wooden spoon
    "n07056680": "n04067472",  # reel
    "n07646821": "n01855672",  # goose
    "n07647870": "n03250847",  # drumstick
    "n07657664": "n07579787",  # plate
    "n07975909": "n02206856",  # bee
    "n08496334": "n02730930",  # apron
    "n08620881": "n03976657",  # pole
    "n08742578": "n02085620",  # Chihuahua
    "n12520864": "n02906734",  # broom
    "n13001041": "n07734744",  # mushroom
    "n13652335": "n03804744",  # nail
    "n13652994": "n02999410",  # chain
    "n13719102": "n01945685",  # slug
    "n14991210": "n07747607",  # orange
}
FOLDER: Final = "tiny-imagenet-200"
LAYOUT: Final = (
    "tiny-imagenet:DIR takes the unpacked tiny-imagenet-200.zip: wnids.txt, train/WNID/images/*.JPEG, val/images, "
    "val/val_annotations.txt"
)
WAY_OUT: Final = (
    "give the unpacked tiny-imagenet-200.zip with tiny-imagenet:DIR, or use a dataset that needs no network: "
    "openmoji:color, openmoji:line"
)


def open_tiny_imagenet(argument: str, options: DatasetOptions, /) -> LabelledSet[Image]:
    """Open Tiny ImageNet.

    Args:
        argument: The folder, or empty for the hub.
        options: With ``on_bad_image="skip"`` every image is decoded once, to find the unreadable ones.

    Raises:
        DataError: If the folder does not exist or has another layout than the archive, or the hub's copy is not
            available.
    """
    if argument.strip():
        return _from_folder(existing_folder(argument, "tiny-imagenet"), options)
    return _from_hub(options)


def _set(
    wnids: Sequence[str],
    train: Split[Image] | None,
    val: Split[Image] | None,
    left_out: Counter[str],
    notes: Sequence[str],
    source: str,
) -> LabelledSet[Image]:
    if train is None and val is None:
        raise DataError(
            f"tiny-imagenet contains no readable image of its {len(wnids)} classes", hint=LAYOUT
        )
    served = val_as_test(train, val)
    report = Report(notes=list(notes))
    report.classes(imagenet_names(wnids), served.parts)
    data = LabelledSet(
        name="tiny-imagenet",
        classnames=imagenet_names(wnids),
        templates=PHOTO_TEMPLATES,
        licence="ImageNet's terms: non-commercial research",
        citation="Y. Le and X. Yang, Tiny ImageNet Visual Recognition Challenge, Stanford CS 231N, 2015; "
        "J. Deng et al., ImageNet: A Large-Scale Hierarchical Image Database, CVPR 2009",
        source=source,
        parts=served.parts,
        aliases=served.aliases,
        flags=served.flags,
    )
    return report.attached(data, left_out)


# ---------------------------------------------------------------- hub


def _from_hub(options: DatasetOptions) -> LabelledSet[Image]:
    files = hub_datasets.dataset(
        REPO, REVISION, _hub.PATTERNS, way_out=WAY_OUT, or_any_revision=True
    )
    tables = _hub.read(files.folder, REPO, image="image", label="label")
    wnids = sorted(MISNAMED.get(name, name) for name in tables.declared or ())
    strange = [wnid for wnid in wnids if wnid not in wnid_index()]
    if strange or not wnids:
        what = f"the class '{strange[0]}'" if strange else "no declared classes"
        raise DataError(f"the hub's copy of tiny-imagenet is not as expected: {what}", hint=WAY_OUT)
    index = {wnid: label for label, wnid in enumerate(wnids)}
    published, unknown = match_splits(
        REPO, {name: None not in table.labels for name, table in tables.splits.items()}
    )
    left_out: Counter[str] = Counter()

    def read(split: SplitName) -> Split[Image] | None:
        if split not in published:
            return None
        found = published[split]
        table = tables.splits[found]
        labels = [index[MISNAMED.get(name, name)] for name in table.labels]
        ids = [f"{found}/{i:06d}" for i in range(len(labels))]
        part = make_split(table.images, ids, labels, imagenet_names(wnids))
        part = without_unreadable(part, options, left_out)
        return part if len(part) else None

    train, val = read("train"), read("val")
    notes = [*filter(None, [files.note]), *unknown]
    found = _set(wnids, train, val, left_out, notes, files.source)
    return replace(found, revision=files.revision)


# ---------------------------------------------------------------- the original archive


def _from_folder(root: Path, options: DatasetOptions) -> LabelledSet[Image]:
    if not (root / "wnids.txt").is_file() and (root / FOLDER / "wnids.txt").is_file():
        root /= FOLDER
    wnids = _read_wnids_txt(root / "wnids.txt")
    train = val = None
    left_out: Counter[str] = Counter()
    if (root / "train").is_dir():
        train = read_folders(root, "train", wnids, imagenet_names(wnids), options, left_out, _id_of)
    if (root / "val").is_dir():
        val = without_unreadable(_read_val(root, wnids), options, left_out)
        val = val if len(val) else None
    if train is None and val is None and not left_out[UNREADABLE]:
        raise DataError(
            f"'{root}' contains no images in train/ or val/ of the classes in wnids.txt",
            hint=LAYOUT,
        )
    return _set(wnids, train, val, left_out, (), "http://cs231n.stanford.edu/tiny-imagenet-200.zip")


def _id_of(path: str) -> str:
    return f"train/{path.replace('/images/', '/')}"


def _read_wnids_txt(path: Path) -> list[str]:
    """Return the sorted WordNet ids in ``wnids.txt``.

    Raises:
        DataError: If the file does not exist, or a line is not a WordNet id of ImageNet-1k.
    """
    found = []
    for number, line in enumerate(_lines(path), start=1):
        wnid = line.strip()
        if wnid and wnid not in wnid_index():
            near = did_you_mean(wnid, WNIDS, most=1)
            raise DataError(
                f"{path.name}, line {number}: '{wnid}' is not a WordNet id of ImageNet-1k{near}",
                hint="one id per line, such as n01443537",
            )
        found.append(wnid)
    wnids = sorted(set(filter(None, found)))
    if len(wnids) < 2:
        raise DataError(
            f"'{path}' lists {len(wnids)} classes; at least two are needed", hint=LAYOUT
        )
    return wnids


def _read_val(root: Path, wnids: Sequence[str]) -> Split[Image]:
    """Return the published val, whose labels are in a table next to the images.

    Raises:
        DataError: If the table does not exist, a line is wrong, or an image in it does not exist.
    """
    path = root / "val" / "val_annotations.txt"
    index = {wnid: label for label, wnid in enumerate(wnids)}
    labels: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0].strip()
        if wnid not in index:
            raise DataError(
                f"{path.name}, line {number}: '{wnid}' is not a class of wnids.txt (the line is {line!r:.80})",
                hint="a line is FILE, WNID and four numbers, separated by tabs",
            )
        if name in {"", ".", ".."} or PurePath(name).name != name or "\\" in name:
            raise DataError(
                f"{path.name}, line {number}: {name!r:.80} is not the name of a file in val/images",
                hint="a line is FILE, WNID and four numbers, separated by tabs",
            )
        labels[name] = index[wnid]
    missing = [name for name in labels if not (root / "val" / "images" / name).is_file()]
    if missing or not labels:
        what = "is empty"
        if missing:
            what = f"lists '{missing[0]}', which is not in val/images (cases: {len(missing)} of {len(labels)})"
        raise DataError(f"{path} {what}", hint="unpack the archive again; " + LAYOUT)
    files = ImageFiles(root, [f"val/images/{name}" for name in labels])
    ids = [f"val/{name}" for name in labels]
    return make_split(files, ids, list(labels.values()), imagenet_names(wnids))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"'{path.parent}' contains no {path.name}", hint=LAYOUT) from None
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"cannot read '{path}': {err}", hint=LAYOUT) from err


DATASET = open_tiny_imagenet
