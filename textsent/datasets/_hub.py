"""Read text datasets of the Hugging Face hub."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from clipadapt.core.files import hub_datasets
from clipadapt.core.files.atomic import scratch_folder
from textsent.datasets._tables import LABEL_COLUMNS, TEXT_COLUMNS, Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


def read(
    folder: Path, origin: str, *, text: str | None, label: str | None, config: str | None
) -> tuple[dict[str, Table], str, str, tuple[str, ...] | None]:
    """Read the text and label columns of every split.

    Args:
        folder: The files of the dataset.
        origin: Name of the dataset, for messages.
        text: Text column, or None to find it.
        label: Label column, or None to find it.
        config: Configuration, for a dataset that has several.

    Returns:
        One table per split; the two columns; the class names, if the label column declares them. Labels of
        declared classes are names, or None for -1, which means "no label" on the hub.

    Raises:
        DataError: If the files cannot be read, or a column does not exist.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    folder, config = hub_datasets.configuration(folder, config)
    # The texts are kept in memory, so the copy that the library prepares is temporary.
    with scratch_folder() as scratch, _no_bars():
        try:
            loaded = datasets.load_dataset(str(folder), name=config, cache_dir=str(scratch))
        except (DatasetsError, OSError, ValueError) as err:
            # The message is "An error occurred while generating the dataset"; the details are in its cause.
            raise hub_datasets.unreadable(folder, origin, err) from None
        features: Mapping[str, Any] = next(iter(loaded.values())).features
        names = Table(origin, dict.fromkeys(features, ()))
        text = names.find("text", text, TEXT_COLUMNS)
        label = names.find("label", label, LABEL_COLUMNS)
        columns = {
            split: part.select_columns([text, label]).to_dict() for split, part in loaded.items()
        }
    declared: tuple[str, ...] | None = None
    if isinstance(features[label], datasets.ClassLabel):
        declared = tuple(features[label].names)
        for values in columns.values():
            values[label] = [None if v is None or v < 0 else declared[v] for v in values[label]]
    tables = {s: Table(f"{origin}, split {s}", values) for s, values in columns.items()}
    return tables, text, label, declared


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Disable the library's progress bars, which would interrupt those of this program."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
