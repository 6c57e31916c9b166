"""Image datasets of the Hugging Face Hub, in any format that ``datasets`` reads, decoded lazily."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from clipadapt.core.api.data import Subset
from clipadapt.core.api.errors import DataError
from clipadapt.core.data.columns import find_column
from clipadapt.core.files import hub_datasets
from clipadapt.core.files.folders import cache_dir, require_regular
from clipadapt.datasets._decode import EXTENSIONS, Contents, decoded_digest, load_rgb
from clipadapt.tensor import rows

if TYPE_CHECKING:
    from collections.abc import Mapping

IMAGE_COLUMNS: Final = ("image", "img", "images", "picture", "photo", "pixel_values", "jpg", "png")
LABEL_COLUMNS: Final = (
    *("label", "labels", "class", "target", "category", "fine_label", "label_name", "class_name"),
    *("cls", "y"),
)
BOTH: Final = "?image=COLUMN&label=COLUMN"
# Tables, image files in folders, and archives of either.
PATTERNS: Final = (
    *hub_datasets.TABLES,
    *(f"*{ending}" for e in EXTENSIONS for ending in (e, e.upper())),
    *("*.JPEG", "*.tar", "*.tar.gz", "*.zip"),
)


class HubImages(Sequence[Image.Image]):
    """Lazily decoded images of one split; safe to read from several threads.

    Args:
        rows: Table of ``datasets`` whose column ``column`` contains ``{"bytes": ..., "path": ...}``.
        column: The image column.
        origin: Name of the split in messages.
        roots: Folders that must contain the files listed in the table.
    """

    def __init__(self, rows: Any, column: str, origin: str, roots: Sequence[Path]) -> None:
        self._roots = [_plain(root) for root in roots]
        self._rows = rows
        self._column = column
        self._origin = origin
        self._contents = Contents(len(rows))

    def __len__(self) -> int:
        return len(self._contents)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Subset(self, np.arange(len(self))[index])
        raw, name = self._raw(index)
        return load_rgb(raw, name=name)

    def content(self, index: int) -> str:
        """Return the hexadecimal sha256 of the image's bytes.

        Raises:
            DataError: If the row contains no image.
        """
        return self._contents.get(index, lambda i: hashlib.sha256(self._raw(i)[0]).hexdigest())

    def digest(self, index: int) -> bytes:
        """Return the sha256 over the image's bytes and the version of the decoding."""
        return decoded_digest(self.content(index))

    def _raw(self, index: int) -> tuple[bytes, str]:
        """Return the bytes of one image, and its name in error messages."""
        cell = self._rows[int(index)][self._column] or {}
        raw, path = cell.get("bytes"), cell.get("path")
        name = f"{self._origin}, row {index + 1}" + (f" ({Path(path).name})" if path else "")
        if raw is not None:
            return raw, name
        if path is None:
            raise DataError(
                f"{name}: there is no image in column '{self._column}'",
                hint="leave such rows out with --on-bad-image skip",
            )
        # A table may contain the path of any local file.
        if not any(_plain(path).is_relative_to(root) for root in self._roots):
            raise DataError(
                f"{self._origin}, row {index + 1}: the file '{path}' is outside the dataset's folder",
                hint="leave such rows out with --on-bad-image skip",
            )
        try:
            require_regular(Path(path))
            return Path(path).read_bytes(), name
        except OSError as err:
            raise DataError(
                f"{name}: cannot read the file '{path}': {err.strerror or err}"
            ) from err


def _plain(path: str | Path) -> Path:
    """Return an absolute path without ``..``; links are not resolved."""
    return Path(os.path.normpath(Path.cwd() / path))


@dataclass(frozen=True, slots=True)
class HubSplit:
    """One published split.

    Attributes:
        images: Its images.
        labels: One value per image: the name of a declared label, else the value in the column, or None.
    """

    images: HubImages
    labels: Sequence[Any]


@dataclass(frozen=True, slots=True)
class HubTables:
    """Contents of a hub dataset.

    Attributes:
        splits: Splits by their published names.
        label: The label column.
        declared: Class names in label order if the column declares them, else None.
    """

    splits: Mapping[str, HubSplit]
    label: str
    declared: tuple[str, ...] | None


def read(
    folder: Path,
    origin: str,
    *,
    image: str | None = None,
    label: str | None = None,
    config: str | None = None,
) -> HubTables:
    """Open every split; ``datasets`` prepares a memory-mapped copy in the cache folder.

    Args:
        folder: The files of the dataset.
        origin: Name of the dataset, for messages.
        image: Image column, or None to find it.
        label: Label column, or None to find it.
        config: Configuration, for a dataset that has several.

    Raises:
        DataError: If the files cannot be read, or a column does not exist or has the wrong type.
    """
    import datasets

    folder, config = hub_datasets.configuration(folder, config)
    prepared = cache_dir() / "datasets" / "hf"
    # The dataset's own files (links into the hub cache), and those that the library extracted from archives.
    repo = folder.parents[1] if folder.parent.name == "snapshots" else folder
    with rows.tables(folder, origin, config=config, cache=prepared) as tables:
        features: Mapping[str, Any] = next(iter(tables.values())).features
        image = _image_column(features, origin, image)
        label = _label_column(features, origin, label)
        names = rows.declared_classes(features[label])
        splits = {}
        for name, table in tables.items():
            column = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
            labels = rows.named_labels(table[label], names)
            labels = [None if isinstance(v, str) and not v.strip() else v for v in labels]
            images = HubImages(column, image, f"{origin}, split {name}", (repo, prepared))
            splits[name] = HubSplit(images, labels)
    return HubTables(splits, label, names)


def _image_column(features: Mapping[str, Any], origin: str, named: str | None) -> str:
    import datasets

    declared = [name for name, f in features.items() if isinstance(f, datasets.Image)]
    if named is None and len(declared) == 1:
        return declared[0]
    among = declared if declared and named is None else tuple(features)
    column = find_column(origin, among, "image", named, IMAGE_COLUMNS, both=BOTH)
    feature = features[column]
    if column in declared or (isinstance(feature, dict) and "bytes" in feature):
        return column
    if isinstance(feature, datasets.Value) and feature.dtype in {"binary", "large_binary"}:
        return column
    raise DataError(
        f"{origin}: column '{column}' contains {_described(feature)}, not images; its columns: {', '.join(features)}",
        hint="name the right column by adding ?image=COLUMN to the dataset's name",
    )


def _label_column(features: Mapping[str, Any], origin: str, named: str | None) -> str:
    import datasets

    declared = [name for name, f in features.items() if isinstance(f, datasets.ClassLabel)]
    usual = any(name.strip().casefold() in LABEL_COLUMNS for name in features)
    if named is None and not usual and len(declared) == 1:
        return declared[0]
    column = find_column(origin, tuple(features), "label", named, LABEL_COLUMNS, both=BOTH)
    feature = features[column]
    if column in declared:
        return column
    if isinstance(feature, datasets.Value) and (
        feature.dtype in {"string", "large_string", "bool"} or "int" in feature.dtype
    ):
        return column
    raise DataError(
        f"{origin}: column '{column}' contains {_described(feature)}, not one label per image; "
        f"its columns: {', '.join(features)}",
        hint="name the right column by adding ?label=COLUMN to the dataset's name",
    )


def _described(feature: Any) -> str:
    return f"{getattr(feature, 'dtype', None) or type(feature).__name__}"
