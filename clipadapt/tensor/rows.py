"""Rows of Hugging Face hub datasets, read with the ``datasets`` library."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from clipadapt.core.files import hub_datasets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


@contextlib.contextmanager
def tables(
    folder: Path, origin: str, *, config: str | None, cache: Path
) -> Iterator[Mapping[str, Any]]:
    """Open the tables of a dataset, by split name; the library's progress bars are off inside the block.

    Args:
        folder: The dataset's files, see :func:`~clipadapt.core.files.hub_datasets.configuration`.
        origin: Its name, for messages.
        config: Configuration of a dataset that has several.
        cache: Folder for the copy that the library prepares.

    Raises:
        DataError: If the files cannot be read.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        try:
            loaded = datasets.load_dataset(str(folder), name=config, cache_dir=str(cache))
        except (DatasetsError, OSError, ValueError) as err:
            raise hub_datasets.unreadable(folder, origin, err) from None
        yield {str(name): table for name, table in loaded.items()}
    finally:
        if shown:
            datasets.enable_progress_bars()


def declared_classes(feature: Any) -> tuple[str, ...] | None:
    """Return the class names that a label column declares, in label order, or None."""
    import datasets

    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def named_labels(values: Sequence[Any], classes: tuple[str, ...] | None) -> list[Any]:
    """Return labels as class names, with None for a missing label (-1 on the hub); other values stay as they are."""
    if classes is None:
        return list(values)
    return [None if v is None or v < 0 else classes[v] for v in values]
