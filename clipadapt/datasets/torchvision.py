"""Image datasets that torchvision downloads, by name: ``dtd``, ``eurosat``, ``oxford_iiit_pet`` and others.

``NAME:DIR`` reads a dataset that torchvision has downloaded to the root ``DIR``; if ``DIR`` is CoOp's data folder, with
CoOp's split file, it is the same as ``coop:NAME:DIR``. Splits are the published ones; without val, a fixed tenth of
train is val; without any split (EuroSAT), the dataset is split 60/20/20 by the hash of the file name and flagged
``not_the_official_split``. Templates are CoOp's (``trainers/zsclip.py``).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from clipadapt.core.api.errors import DataError, unknown
from clipadapt.core.api.registry import DATASETS
from clipadapt.core.api.user_input import user_path
from clipadapt.core.data.labelled import LabelledSet, make_split, split_by_hash
from clipadapt.core.files.atomic import atomic_directory
from clipadapt.core.files.folders import cache_dir
from clipadapt.datasets._coop import SETS, home_of, set_named
from clipadapt.datasets._download import download_errors, require_reachable
from clipadapt.datasets._folders import existing_folder
from clipadapt.datasets._images import ImageFiles
from clipadapt.datasets._published import SHARES, VAL_SHARES, by_split, without_unreadable
from clipadapt.datasets._report import Report
from clipadapt.datasets._sets import (
    CIFAR_ENSEMBLE,
    DTD,
    EUROSAT,
    FGVC_AIRCRAFT,
    FLOWERS102,
    FOOD101,
    OXFORD_PETS,
    PHOTO,
    STL10_ENSEMBLE,
    Facts,
)
from clipadapt.datasets.coop import open_coop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL.Image import Image

    from clipadapt.core.api.data import DatasetOptions, Split, SplitName
    from clipadapt.core.api.errors import UnknownNameError

OFFLINE: Final = (
    "use a copy that torchvision has downloaded with NAME:DIR, your own images with folder:PATH, "
    "or a dataset that needs no network: openmoji:color, openmoji:line"
)

_Splits: TypeAlias = "Mapping[SplitName, Mapping[str, Any]]"


@dataclass(frozen=True, slots=True)
class _Known:
    """Facts about a dataset that torchvision does not provide.

    Attributes:
        kind: Name of the class in ``torchvision.datasets``.
        url: Address that is checked before the download starts.
        facts: Prompt, licence, citation and curated class names.
        splits: Arguments of that class for each published split; empty if there are no splits.
        folder: Its folder in torchvision's root, if CoOp's layout has none of that name.
    """

    kind: str
    url: str
    facts: Facts
    splits: _Splits = field(default_factory=dict)
    folder: str = ""


_TRAIN_TEST: Final[_Splits] = {"train": {"split": "train"}, "test": {"split": "test"}}
_ALL_THREE: Final[_Splits] = {
    "train": {"split": "train"},
    "val": {"split": "val"},
    "test": {"split": "test"},
}
_OXFORD: Final = "https://www.robots.ox.ac.uk/~vgg/data"
KNOWN: Final[dict[str, _Known]] = {
    "cifar10": _Known(
        kind="CIFAR10",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        facts=Facts(
            template=PHOTO,
            licence="unknown (none stated by the authors)",
            citation="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
            ensemble=CIFAR_ENSEMBLE,
        ),
        splits={"train": {"train": True}, "test": {"train": False}},
    ),
    "cifar100": _Known(
        kind="CIFAR100",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        facts=Facts(
            template=PHOTO,
            licence="unknown (none stated by the authors)",
            citation="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
            ensemble=CIFAR_ENSEMBLE,
        ),
        splits={"train": {"train": True}, "test": {"train": False}},
    ),
    "dtd": _Known(
        kind="DTD",
        url=f"{_OXFORD}/dtd/download/dtd-r1.0.1.tar.gz",
        facts=DTD,
        splits=_ALL_THREE,
        folder="dtd/dtd",
    ),
    "eurosat": _Known(
        kind="EuroSAT",
        url="https://huggingface.co/datasets/torchgeo/eurosat",
        facts=EUROSAT,
    ),
    "fgvc_aircraft": _Known(
        kind="FGVCAircraft",
        url=f"{_OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
        facts=FGVC_AIRCRAFT,
        splits=_ALL_THREE,
        folder="fgvc-aircraft-2013b",
    ),
    "flowers102": _Known(
        kind="Flowers102",
        url=f"{_OXFORD}/flowers/102/102flowers.tgz",
        facts=FLOWERS102,
        splits=_ALL_THREE,
        folder="flowers-102",
    ),
    "food101": _Known(
        kind="Food101",
        url="http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
        facts=FOOD101,
        splits=_TRAIN_TEST,
    ),
    "oxford_iiit_pet": _Known(
        kind="OxfordIIITPet",
        url=f"{_OXFORD}/pets/data/images.tar.gz",
        facts=OXFORD_PETS,
        splits={"train": {"split": "trainval"}, "test": {"split": "test"}},
        folder="oxford-iiit-pet",
    ),
    "stl10": _Known(
        kind="STL10",
        url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        facts=Facts(
            template=PHOTO,
            licence="unknown (none stated by the authors)",
            citation="A. Coates et al., An Analysis of Single-Layer Networks in Unsupervised Feature Learning, "
            "AISTATS 2011",
            ensemble=STL10_ENSEMBLE,
        ),
        splits=_TRAIN_TEST,
    ),
}


class ArrayImages(Sequence["Image"]):
    """Images that torchvision keeps as one array in memory."""

    def __init__(self, base: Any) -> None:
        self.base = base

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        image, _ = self.base[index]
        return image.convert("RGB")


def open_torchvision(argument: str, options: DatasetOptions, /) -> LabelledSet[Image]:
    """Open a torchvision dataset; download it at first use.

    Args:
        argument: ``NAME`` or ``NAME:DIR``; case, ``-`` and ``_`` in the name are ignored.
        options: With ``on_bad_image="skip"`` every image file is decoded once, to find the unreadable ones.

    Raises:
        UnknownNameError: If no dataset has that name.
        DataError: If it cannot be downloaded, or the folder does not contain all of it.
    """
    given, _, folder = argument.strip().partition(":")
    name = {_plain(known): known for known in KNOWN}.get(_plain(given))
    if set_named(given) is not None and (name is None or _is_coop(name, folder)):
        return open_coop(argument, options)
    if name is None:
        raise _unknown(argument)
    known = KNOWN[name]
    root = existing_folder(folder, given) if folder else _downloaded(name, known)
    published = _open_splits(known, root, name)

    classnames = tuple(map(known.facts.prompt_name, next(iter(published.values())).classes))
    left_out: Counter[str] = Counter()
    parts: dict[SplitName, Split[Image]] = {}
    for split, base in published.items():
        examples, ids, labels = _rows(base, root, split)
        part = make_split(examples, ids, labels, classnames)
        if isinstance(examples, ImageFiles):
            part = without_unreadable(part, options, left_out)
        parts[split] = part
    if not known.splits:
        parts = _by_name(parts["train"], SHARES)
    elif "val" not in parts:
        parts |= _by_name(parts["train"], VAL_SHARES)
    data = LabelledSet(
        name=name,
        classnames=classnames,
        templates=(known.facts.template,),
        template_sets=known.facts.template_sets,
        licence=known.facts.licence,
        citation=known.facts.citation,
        source=known.url,
        parts=parts,
        flags=() if known.splits else ("not_the_official_split",),
    )
    return Report().attached(data, left_out)


def _is_coop(name: str, folder: str) -> bool:
    """Return whether a folder has CoOp's copy of a dataset and not torchvision's, or a split file is given."""
    coop_set = set_named(name)
    if coop_set is None or not folder.strip():
        return False
    root = user_path(folder)
    if "?split=" in folder or (root.suffix == ".json" and root.is_file()):
        return True
    own = KNOWN[name].folder
    return home_of(coop_set, root) is not None and not (own and (root / own).is_dir())


def _open_splits(known: _Known, root: Path, name: str, **download: bool) -> dict[SplitName, Any]:
    """Return torchvision's dataset object for each published split."""
    import torchvision.datasets

    kind = getattr(torchvision.datasets, known.kind)
    splits: _Splits = known.splits or {"train": {}}
    try:
        return {s: kind(root=str(root), **arguments, **download) for s, arguments in splits.items()}
    except (RuntimeError, OSError) as err:
        if download:
            raise
        raise DataError(
            f"'{root}' does not contain {name} in torchvision's layout: {err}",
            hint=f"give the root folder that was passed to torchvision.datasets.{known.kind}",
        ) from err


def _downloaded(name: str, known: _Known) -> Path:
    target = cache_dir() / "datasets" / "torchvision" / name
    if not target.is_dir():
        require_reachable(known.url, what=name, hint=OFFLINE)
        with atomic_directory(target) as temporary, download_errors(name, hint=OFFLINE):
            _open_splits(known, temporary, name, download=True)
    return target


def _rows(base: Any, root: Path, split: SplitName) -> tuple[Sequence[Image], list[str], list[int]]:
    """Return images, ids and labels of a torchvision dataset; the images are files if it stores files."""
    if hasattr(base, "samples"):
        paths, labels = zip(*base.samples, strict=True)
    elif hasattr(base, "_labels"):
        paths = base._image_files if hasattr(base, "_image_files") else base._images
        labels = base._labels
    else:
        labels = base.targets if hasattr(base, "targets") else base.labels
        ids = [f"{split}/{i:06d}" for i in range(len(labels))]
        return ArrayImages(base), ids, [int(label) for label in labels]
    names = [Path(path).relative_to(root).as_posix() for path in paths]
    return ImageFiles(root, names), names, [int(label) for label in labels]


def _by_name(
    part: Split[Image], shares: Mapping[SplitName, float]
) -> dict[SplitName, Split[Image]]:
    """Split by the hash of the last two components of each id: the class folder and the file."""
    names = ("/".join(key.split("/")[-2:]) for key in part.inputs.ids)
    return by_split(
        part, [split_by_hash(hashlib.sha256(n.encode()).digest(), shares) for n in names]
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _unknown(argument: str) -> UnknownNameError:
    own = (name.partition("/")[2] for name in DATASETS.names("clip"))
    names = sorted({*KNOWN, *SETS, *own} - {"torchvision"})
    hint = "list them with 'clipadapt ls datasets'"
    if user_path(argument).exists():
        hint = f"for a folder of your own images write folder:{argument}"
    return unknown("dataset", argument, names, hint=hint)


DATASET = open_torchvision
