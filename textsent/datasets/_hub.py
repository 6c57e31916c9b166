"""Read text datasets of the Hugging Face hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipadapt.core.data.tables import Table
from clipadapt.core.files import hub_datasets
from clipadapt.core.files.atomic import scratch_folder
from clipadapt.tensor import rows
from textsent.datasets._columns import TEXTS

if TYPE_CHECKING:
    from collections.abc import Mapping
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
    folder, config = hub_datasets.configuration(folder, config)
    # Prepare the library's copy in a scratch folder: the texts are kept in memory.
    with (
        scratch_folder() as scratch,
        rows.tables(folder, origin, config=config, cache=scratch) as found,
    ):
        features: Mapping[str, Any] = next(iter(found.values())).features
        names = Table(origin, dict.fromkeys(features, ()))
        named = {"text": text, "label": label}
        text, label = TEXTS.find(names, {key: name for key, name in named.items() if name})
        columns = {s: part.select_columns([text, label]).to_dict() for s, part in found.items()}
    declared = rows.declared_classes(features[label])
    for values in columns.values():
        values[label] = rows.named_labels(values[label], declared)
    tables = {s: Table(f"{origin}, split {s}", values) for s, values in columns.items()}
    return tables, text, label, declared
