"""``csv:PATH``: your own texts in .csv, .tsv, .parquet or .jsonl.

``PATH`` is a folder with ``train.csv``, ``val.csv`` and ``test.csv`` (any of the three; ``valid``, ``validation``
and ``dev`` are ``val``), or one file. A file is split by its column ``split``, or by another column that only contains
names of splits (such as ``partition`` or ``set``). Without such a column it is split 80/10/10 by a hash of each text:
adding rows moves no other row, and equal texts are in one split.

The text and label columns are found by their usual names or given as ``csv:PATH?text=COL&label=COL``. Further options
are ``split=COL``, ``encoding=NAME``, ``sep=CHARACTER`` (also ``semicolon``, ``tab``, ``pipe``) if the separator is not
detected, and ``quote=none`` if quotation marks are part of the text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipadapt.core.api.errors import DataError
from clipadapt.core.data.labelled import LabelledSet, many_left_out
from clipadapt.core.data.table_rows import assemble
from clipadapt.core.data.table_splits import read_rows
from textsent.datasets._columns import TEXTS
from textsent.datasets._splits import split_rows

if TYPE_CHECKING:
    from clipadapt.core.api.data import DatasetOptions, SplitName
    from clipadapt.core.data.table_rows import Row
    from clipadapt.core.data.table_splits import LabelledRows


def open_csv(argument: str, options: DatasetOptions, /) -> LabelledSet[str]:
    """Open a table, or a folder of tables.

    Args:
        argument: ``PATH``, or ``PATH?text=COL&label=COL`` with the options above.
        options: With ``on_bad_image="skip"`` rows without a text or label are skipped and counted.

    Raises:
        DataError: If a file, column, text or label is missing or invalid; the message says where.
    """
    read = read_rows(argument, TEXTS, skip=options.on_bad_image == "skip")
    title = f"csv:{read.path.resolve().name}"  # resolved, so that "." has a name
    rows = _by_hash(read) if read.whole else read.rows
    assembled = assemble(rows)
    notes = [*read.notes, *assembled.notes]
    skipped, joined = read.n_skipped, read.n_joined
    if skipped:
        notes.append(f"{skipped} rows without a text or label are left out")
    n_rows = sum(map(len, rows.values()))
    return LabelledSet(
        name=title,
        classnames=assembled.classnames,
        licence="unknown (the user's own texts)",
        citation="none (the user's own texts)",
        source=f"'{read.path.resolve().name}'",
        parts=assembled.parts,
        skipped=skipped,
        flags=(
            *(("split_by_hash",) if read.whole else ()),
            *assembled.flags,
            *many_left_out(n_rows, skipped + joined),
        ),
        notes=tuple(f"{title}: {note}" for note in notes),
        found=n_rows + skipped + joined,
        left_out={
            "without a text or label": skipped,
            "joined to others by quotation marks": joined,
        },
    )


def _by_hash(read: LabelledRows) -> dict[SplitName, list[Row]]:
    rows = read.rows["train"]
    parts = split_rows(rows)
    empty = [split for split, part in parts.items() if not part]
    if empty:
        raise DataError(
            f"{read.path.name} has {len(rows)} rows; split 80/10/10 by a hash of the text, "
            f"the split '{empty[0]}' is empty",
            hint="add a column 'split' with train, val and test, or use a folder with train.csv and test.csv",
        )
    return parts


DATASET = open_csv
