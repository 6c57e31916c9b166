"""Image datasets that torchvision downloads, by name: ``dtd``, ``eurosat``, ``oxford_iiit_pet`` and others.

``NAME:DIR`` reads a dataset that torchvision has downloaded to the root ``DIR``; if ``DIR`` is CoOp's data folder, with
CoOp's split file, it is the same as ``coop:NAME:DIR``. Splits are the published ones; without val, a fixed tenth of
train is val; without any split (Caltech101, EuroSAT, SUN397), the dataset is split 60/20/20 by the hash of the file
name and flagged ``not_the_official_split``. Labels are in torchvision's order. ``stanford_cars`` and ``fer2013`` are
not downloaded: torchvision has no address for them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

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
from clipadapt.datasets._known import KNOWN
from clipadapt.datasets._published import SHARES, VAL_SHARES, by_split, without_unreadable
from clipadapt.datasets._report import Report
from clipadapt.datasets.coop import open_coop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL.Image import Image

    from clipadapt.core.api.data import DatasetOptions, Split, SplitName
    from clipadapt.core.api.errors import UnknownNameError
    from clipadapt.datasets._known import Known, Splits

OFFLINE: Final = (
    "use a copy that torchvision has downloaded with NAME:DIR, your own images with folder:PATH, "
    "or a dataset that needs no network: openmoji:color, openmoji:line"
)
LAYOUT_SHOWN: Final = 5
# What torchvision and h5py raise on files that are damaged or of another dataset.
_BROKEN: Final = (RuntimeError, OSError, ValueError, LookupError, TypeError, AssertionError)


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
    _require_packages(name, known)
    root = existing_folder(folder, given) if folder else _downloaded(name, known)
    _require_layout(name, known, root)
    published = _open_splits(known, root, name)

    classes = _classes(name, known, published)
    classnames = tuple(map(known.facts.prompt_name, classes))
    left_out: Counter[str] = Counter()
    parts: dict[SplitName, Split[Image]] = {}
    for split, base in published.items():
        examples, ids, labels = _rows(base, root, split)
        if not known.splits and isinstance(
            examples, ImageFiles
        ):  # SUN397 is in the order of the disk
            order = sorted(range(len(ids)), key=ids.__getitem__)
            ids, labels = [ids[i] for i in order], [labels[i] for i in order]
            examples = ImageFiles(root, ids)
        _require_classes(name, labels, split, len(classes))
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
        keys=classes,
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


def _open_splits(known: Known, root: Path, name: str, **download: bool) -> dict[SplitName, Any]:
    """Return torchvision's dataset object for each published split."""
    import torchvision.datasets
    from scipy.io.matlab import MatReadError

    kind = getattr(torchvision.datasets, known.kind)
    splits: Splits = known.splits or {"train": {}}
    try:
        return {s: kind(root=str(root), **arguments, **download) for s, arguments in splits.items()}
    except (*_BROKEN, MatReadError) as err:
        if download:
            raise
        raise DataError(
            f"'{root}' does not contain {name} in torchvision's layout: {err}",
            hint=f"give the root folder that was passed to torchvision.datasets.{known.kind}",
        ) from err


def _require_packages(name: str, known: Known) -> None:
    """Raise if a package is missing that torchvision needs for a dataset.

    Raises:
        DataError: With the command that installs it.
    """
    missing = [package for package in known.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise DataError(
            f"{name} needs the package {', '.join(missing)}, which is not installed",
            hint=f"pip install {' '.join(missing)}",
        )


def _require_layout(name: str, known: Known, root: Path) -> None:
    """Raise if files or folders of a dataset are missing, before torchvision makes folders or counts files.

    Raises:
        DataError: With what is missing.
    """
    missing = [
        place for place in known.layout if not any((root / p).exists() for p in place.split("|"))
    ]
    if missing:
        raise DataError(
            f"'{root}' does not contain {name} in torchvision's layout: there is no {_shown(missing)}",
            hint=f"give the root folder that was passed to torchvision.datasets.{known.kind}",
        )


def _shown(layout: Sequence[str]) -> str:
    more = len(layout) - LAYOUT_SHOWN
    shown = ", ".join(place.replace("|", " or ") for place in layout[:LAYOUT_SHOWN])
    return shown + (f" and {more} more" if more > 0 else "")


def _downloaded(name: str, known: Known) -> Path:
    """Return the root to which a dataset is downloaded at first use.

    Raises:
        DataError: If torchvision cannot download it.
    """
    if not known.downloads:
        coop = set_named(name)
        also = f", or coop:{coop.name}:DIR with CoOp's split file" if coop else ""
        raise DataError(
            f"{name} needs a folder: torchvision cannot download it (source: {known.url})",
            hint=f"write {name}:DIR, where DIR contains {_shown(known.layout)}{also}",
        )
    target = cache_dir() / "datasets" / "torchvision" / name
    if not target.is_dir():
        require_reachable(known.url, what=name, hint=OFFLINE)
        with atomic_directory(target) as temporary, download_errors(name, hint=OFFLINE):
            _open_splits(known, temporary, name, download=True)
    return target


def _classes(name: str, known: Known, published: Mapping[SplitName, Any]) -> tuple[str, ...]:
    """Return torchvision's name of each label.

    Raises:
        DataError: If the splits have different classes, because folders are missing.
    """
    if known.classes:
        return known.classes
    held = {
        s: tuple(getattr(base, "classes", None) or base.categories) for s, base in published.items()
    }
    first = next(iter(held.values()))
    for split, classes in held.items():
        if classes != first:
            odd = sorted({*classes} ^ {*first})
            raise DataError(
                f"the splits of {name} have different classes: {len(first)} in {next(iter(held))}, {len(classes)} in "
                f"{split}; only one of them has {_shown(odd)}",
                hint="download it again: a part of it is missing",
            )
    return first


def _require_classes(name: str, labels: Sequence[int], split: str, n_classes: int) -> None:
    """Raise if a label is not one of the classes.

    Raises:
        DataError: With the labels found.
    """
    if labels and not 0 <= min(labels) <= max(labels) < n_classes:
        raise DataError(
            f"{name} has {n_classes} classes, but labels from {min(labels)} to {max(labels)} in {split}",
            hint="download it again: a part of it is missing or damaged",
        )


def _rows(base: Any, root: Path, split: SplitName) -> tuple[Sequence[Image], list[str], list[int]]:
    """Return images, ids and labels of a torchvision dataset; the images are files if it stores files."""
    if (files := _files(base)) is None:
        labels = list(map(int, _labels(base)))
        return ArrayImages(base), [f"{split}/{i:06d}" for i in range(len(labels))], labels
    names = [Path(path).relative_to(root).as_posix() for path, _ in files]
    return ImageFiles(root, names), names, [int(label) for _, label in files]


def _files(base: Any) -> list[tuple[Any, Any]] | None:
    """Return path and label of each image, or None if torchvision's class holds the images in arrays."""
    if hasattr(base, "_labels"):
        paths = base._image_files if hasattr(base, "_image_files") else base._images
        return list(zip(paths, base._labels, strict=True))
    if hasattr(base, "annotation_categories"):  # Caltech101
        folders = [Path(base.root, "101_ObjectCategories", name) for name in base.categories]
        rows = zip(base.y, base.index, strict=True)
        return [(folders[label] / f"image_{i:04d}.jpg", label) for label, i in rows]
    samples = getattr(base, "samples", None) or getattr(base, "_samples", None)
    return list(samples) if samples and isinstance(samples[0][0], str) else None


def _labels(base: Any) -> Any:
    """Return the labels of a dataset whose images are arrays."""
    if hasattr(base, "h5py"):  # PCAM
        with base.h5py.File(base._base_folder / base._FILES[base._split]["targets"][0]) as file:
            return file["y"][:].reshape(-1)
    if hasattr(base, "_samples"):  # FER2013
        return [label for _, label in base._samples]
    return base.targets if hasattr(base, "targets") else base.labels


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
    hint = "list them with 'clipadapt ls datasets'; a folder of your own images is folder:PATH"
    if other := DATASETS.elsewhere(argument, "clip"):
        hint = f"{other}; {hint}"
    if user_path(argument).exists():
        hint = f"for a folder of your own images write folder:{argument}"
    return unknown("dataset", argument, names, hint=hint)


DATASET = open_torchvision
