"""Image data sets of the Hugging Face hub: any format that its library reads, decoded when asked for."""

from __future__ import annotations

import contextlib
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
from clipadapt.datasets._images import EXTENSIONS, decoded_digest, load_rgb

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
    """Images of one split, decoded when asked for; safe to read from several threads.

    Args:
        rows: The library's table, whose column ``column`` gives ``{"bytes": ..., "path": ...}``.
        column: The image column.
        origin: What to call the split in a message.
        roots: Folders that the files named in the table must be in.
    """

    def __init__(self, rows: Any, column: str, origin: str, roots: Sequence[Path]) -> None:
        self._roots = [_plain(root) for root in roots]
        self._rows = rows
        self._column = column
        self._origin = origin
        self._contents: list[str | None] = [None] * len(rows)

    def __len__(self) -> int:
        return len(self._contents)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Subset(self, np.arange(len(self))[index])
        raw, name = self._raw(index)
        return load_rgb(raw, name=name)

    def content(self, index: int) -> str:
        """Return the sha256 of the image's bytes, in hexadecimal digits.

        Raises:
            DataError: If the row holds no image.
        """
        known = self._contents[index]
        if known is None:
            known = self._contents[index] = hashlib.sha256(self._raw(index)[0]).hexdigest()
        return known

    def digest(self, index: int) -> bytes:
        """Return the sha256 over the image's bytes and the version of the decoding."""
        return decoded_digest(self.content(index))

    def _raw(self, index: int) -> tuple[bytes, str]:
        """Return the bytes of one image, and what errors call it."""
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
        # A table may name any file of this machine.
        if not any(_plain(path).is_relative_to(root) for root in self._roots):
            raise DataError(
                f"{self._origin}, row {index + 1}: the file '{path}' is outside the data set's folder",
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
    """Return an absolute path without ``..``, its links as they are."""
    return Path(os.path.normpath(Path.cwd() / path))


@dataclass(frozen=True, slots=True)
class HubSplit:
    """One published split.

    Attributes:
        images: Its images.
        labels: One value per image: a declared label's name, else what the column holds; None where there is none.
    """

    images: HubImages
    labels: Sequence[Any]


@dataclass(frozen=True, slots=True)
class HubTables:
    """What a hub data set holds.

    Attributes:
        splits: Published name -> split.
        label: The label column.
        declared: Class names in label order where the column declares them.
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
    """Open every split; the library prepares a copy in the cache folder, which is read from the disk.

    Args:
        folder: The data set's files.
        origin: Its name, for messages.
        image: Column of the images, or None to find it.
        label: Column of the labels, or None to find it.
        config: Configuration of a data set that has several.

    Raises:
        DataError: If the files cannot be read, a column is missing, or holds something else.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    folder, config = hub_datasets.configuration(folder, config)
    with _no_bars():
        try:
            loaded = datasets.load_dataset(
                str(folder), name=config, cache_dir=str(cache_dir() / "datasets" / "hf")
            )
        except (DatasetsError, OSError, ValueError) as err:
            # "An error occurred while generating the dataset": its cause says which.
            raise hub_datasets.unreadable(folder, origin, err) from None
        features: Mapping[str, Any] = next(iter(loaded.values())).features
        image = _image_column(features, origin, image)
        label = _label_column(features, origin, label)
        names = (
            tuple(features[label].names)
            if isinstance(features[label], datasets.ClassLabel)
            else None
        )
        splits = {}
        # Its own files (links into the hub's cache), and what the library unpacked of archives.
        repo = folder.parents[1] if folder.parent.name == "snapshots" else folder
        roots = (repo, cache_dir() / "datasets" / "hf")
        for name, table in loaded.items():
            rows = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
            labels = list(table[label])
            if names is not None:
                # The hub's sign for "no label" is -1.
                labels = [None if v is None or v < 0 else names[v] for v in labels]
            labels = [None if isinstance(v, str) and not v.strip() else v for v in labels]
            splits[str(name)] = HubSplit(
                HubImages(rows, image, f"{origin}, split {name}", roots), labels
            )
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
        f"{origin}: column '{column}' holds {_described(feature)}, not images; its columns: {', '.join(features)}",
        hint="name the right column by adding ?image=COLUMN to the data set's name",
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
        f"{origin}: column '{column}' holds {_described(feature)}, not one label per image; "
        f"its columns: {', '.join(features)}",
        hint="name the right column by adding ?label=COLUMN to the data set's name",
    )


def _described(feature: Any) -> str:
    return f"{getattr(feature, 'dtype', None) or type(feature).__name__}"


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Switch the library's progress bars off for a moment; they would break up the program's own."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
