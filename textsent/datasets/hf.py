"""``hf:REPO[@REVISION]``: any text classification dataset of the Hugging Face hub.

The text and label columns are found by their usual names or given as ``hf:ORG/NAME?text=COL&label=COL``;
``config=NAME`` selects one of several configurations. With ``HF_HUB_OFFLINE=1`` only the hub cache is used. A dataset
with a single split is split 80/10/10 by a hash of each text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipadapt.core.data.columns import split_hub_name
from clipadapt.core.data.labelled import LabelledSet, many_left_out, match_splits, split_named
from clipadapt.core.data.table_rows import assemble, rows_of
from clipadapt.core.files import hub_datasets
from textsent.datasets import _hub
from textsent.datasets._splits import split_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clipadapt.core.api.data import DatasetOptions, SplitName
    from clipadapt.core.data.table_rows import Row
    from clipadapt.core.data.tables import Table

OPTIONS = ("text", "label", "config")
WAY_OUT = "without a network use rotten_tomatoes:offline, or your own file with csv:PATH"


def open_hf(argument: str, options: DatasetOptions, /) -> LabelledSet[str]:
    """Open a dataset of the hub.

    Args:
        argument: ``ORG/NAME`` or ``ORG/NAME@REVISION``, optionally with ``?text=COL&label=COL&config=NAME``.
        options: With ``on_bad_image="skip"`` rows without a text or label are skipped and counted.

    Raises:
        DataError: If the dataset is not available, cannot be read, or has no usable texts and labels.
    """
    repo, revision, title, query = split_hub_name(argument, OPTIONS)
    config = query.get("config")
    files = hub_datasets.dataset(
        repo, revision, hub_datasets.TABLES, way_out=WAY_OUT, config=config
    )
    tables, text, label, classnames = _hub.read(
        files.folder, title, text=query.get("text"), label=query.get("label"), config=config
    )
    rows, skipped, notes = _rows(title, tables, text, label, skip=options.on_bad_image == "skip")
    flags: tuple[str, ...] = ()
    if len(tables) == 1:
        (whole,) = rows.values()
        rows = split_rows(whole)
        flags = ("split_by_hash",)
    assembled = assemble(rows, classnames)
    n_rows = sum(map(len, rows.values()))
    notes = [*([files.note] if files.note else []), *notes, *assembled.notes]
    return LabelledSet(
        name=title,
        classnames=assembled.classnames,
        licence=hub_datasets.licence_of(files),
        citation=files.see,
        revision=files.revision,
        source=files.source,
        parts=assembled.parts,
        skipped=skipped,
        flags=(*flags, *assembled.flags, *many_left_out(n_rows, skipped)),
        notes=tuple(f"{title}: {note}" for note in notes),
        found=n_rows + skipped,
        left_out={"without a text or label": skipped},
    )


def _rows(
    title: str, tables: Mapping[str, Table], text: str, label: str, *, skip: bool
) -> tuple[dict[SplitName, list[Row]], int, list[str]]:
    """Return the checked rows of each split, how many rows are skipped, and notes for the user."""
    labelled = {
        name: not table.columns[label] or any(v is not None for v in table.columns[label])
        for name, table in tables.items()
    }
    published, notes = match_splits(title, labelled)
    rows: dict[SplitName, list[Row]] = {}
    total = 0
    for split, name in published.items():
        prefix = split_named(name) or name
        checked, skipped = rows_of(tables[name], text, label, prefix=prefix, skip=skip)
        rows[split] = [row for row in checked if row is not None]
        total += skipped
    if total:
        notes.append(f"{total} rows without a text or label are left out")
    return rows, total, notes


DATASET = open_hf
