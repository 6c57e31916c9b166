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

from clipadapt.core.api.data import SPLITS
from clipadapt.core.api.errors import DataError
from clipadapt.core.api.user_input import user_path
from clipadapt.core.data.columns import split_query
from clipadapt.core.data.labelled import SPLIT_ALIASES, LabelledSet, many_left_out, split_named
from textsent.datasets._rows import assemble, rows_of
from textsent.datasets._splits import split_rows
from textsent.datasets._tables import (
    ENDINGS,
    LABEL_COLUMNS,
    TEXT_COLUMNS,
    Reading,
    read_table,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from clipadapt.core.api.data import DatasetOptions, SplitName
    from textsent.datasets._rows import Row
    from textsent.datasets._tables import Table

OPTIONS = ("text", "label", "split", "encoding", "sep", "quote")
SPLIT_COLUMN = "split"
LAYOUTS = "a .csv, .tsv, .parquet or .jsonl file, or a folder with train.csv, val.csv and test.csv"


def open_csv(argument: str, options: DatasetOptions, /) -> LabelledSet[str]:
    """Open a table, or a folder of tables.

    Args:
        argument: ``PATH``, or ``PATH?text=COL&label=COL`` with any of :data:`OPTIONS`.
        options: With ``on_bad_image="skip"`` rows without a text or label are skipped and counted.

    Raises:
        DataError: If a file, column, text or label is missing or invalid; the message says where.
    """
    path, query = _path_and_query(argument)
    reading = Reading.of(query)
    skip = options.on_bad_image == "skip"
    title = f"csv:{path.resolve().name}"  # resolved, so that "." has a name
    if path.is_dir():
        files, others = _split_files(path)
        notes = [f"tables not named after a split are left out: {', '.join(others)}"] * bool(others)
        tables = {split: read_table(file, reading) for split, file in files.items()}
        rows, skipped = _from_tables(tables, query, skip=skip)
        by_hash = False
    else:
        table = read_table(path, reading)
        tables = {"train": table}
        column = _split_column(table, query)
        notes = _split_column_note(column, query)
        rows, skipped = _from_one(table, column, query, skip=skip)
        by_hash = column is None
    assembled = assemble(rows)
    notes += [note for table in tables.values() for note in table.notes]
    notes += assembled.notes
    if skipped:
        notes.append(f"{skipped} rows without a text or label are left out")
    joined = sum(table.joined for table in tables.values())
    n_rows = sum(map(len, rows.values()))
    return LabelledSet(
        name=title,
        classnames=assembled.classnames,
        licence="unknown (the user's own texts)",
        citation="none (the user's own texts)",
        source=f"'{path.resolve().name}'",
        parts=assembled.parts,
        skipped=skipped,
        flags=(
            *(("split_by_hash",) if by_hash else ()),
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


def _path_and_query(argument: str) -> tuple[Path, dict[str, str]]:
    """Return the path and the options of a dataset name.

    Raises:
        DataError: If there is no path, or no such file or folder.
    """
    # A "?" may be part of a file name.
    exists = bool(argument.strip()) and user_path(argument).exists()
    name, query = (argument, {}) if exists else split_query(argument, OPTIONS)
    if not name:
        raise DataError("csv: has no path", hint=f"write csv:PATH, where PATH is {LAYOUTS}")
    path = user_path(name)
    if not path.exists():
        raise DataError(f"no such file or folder: '{path}'", hint=f"csv:PATH takes {LAYOUTS}")
    return path, query


def _split_column_note(column: str | None, query: dict[str, str]) -> list[str]:
    """Return a note if the split column was guessed from its values."""
    guessed = column and "split" not in query and column.strip().casefold() != SPLIT_COLUMN
    return [f"the column '{column}' gives the split of a row"] if guessed else []


def _split_files(folder: Path) -> tuple[dict[SplitName, Path], list[str]]:
    """Return the table of each split, and the names of tables that are not named after a split."""
    found: dict[SplitName, Path] = {}
    others = []
    try:
        inside = sorted(folder.iterdir())
    except OSError as err:
        raise DataError(f"cannot read the folder '{folder}': {err.strerror or err}") from None
    for path in inside:
        if path.suffix.lower() not in ENDINGS or path.name.startswith("."):
            continue
        split = split_named(path.stem)
        if split is None:
            others.append(path.name)
            continue
        if split in found:
            raise DataError(
                f"'{folder}' has more than one file for the split '{split}': "
                f"{found[split].name}, {path.name}",
                hint="keep one of them",
            )
        found[split] = path
    if not found:
        shown = ", ".join(p.name for p in inside[:8]) or "nothing"
        raise DataError(
            f"'{folder}' contains no train, val or test table; it contains: {shown}",
            hint=f"csv:PATH takes {LAYOUTS}",
        )
    return {split: found[split] for split in SPLITS if split in found}, others


def _columns(table: Table, query: dict[str, str]) -> tuple[str, str]:
    text = table.find("text", query.get("text"), TEXT_COLUMNS)
    label = table.find("label", query.get("label"), LABEL_COLUMNS)
    if text == label:
        raise DataError(
            f"{table.origin}: the column '{text}' cannot be both text and label",
            hint="give two columns by adding ?text=COLUMN&label=COLUMN to the dataset's name",
        )
    return text, label


def _from_tables(
    tables: dict[SplitName, Table], query: dict[str, str], *, skip: bool
) -> tuple[dict[SplitName, list[Row]], int]:
    rows: dict[SplitName, list[Row]] = {}
    total = 0
    for split, table in tables.items():
        found, skipped = rows_of(table, *_columns(table, query), prefix=split, skip=skip)
        rows[split] = [row for row in found if row is not None]
        total += skipped
    return rows, total


def _split_column(table: Table, query: dict[str, str]) -> str | None:
    """Return the split column: the given one, the one named ``split``, or one whose values are all names of splits."""
    if "split" in query:
        return table.find("split", query["split"], ())
    called = next((c for c in table.columns if c.strip().casefold() == SPLIT_COLUMN), None)
    others = [c for c in table.columns if c not in _columns(table, query)]
    return called or next((c for c in others if _are_splits(table.columns[c])), None)


def _are_splits(values: Sequence[object]) -> bool:
    if not all(isinstance(v, str) for v in values):
        return False
    found = {split_named(str(v)) for v in dict.fromkeys(values)}
    return len(found) > 1 and None not in found


def _from_one(
    table: Table, column: str | None, query: dict[str, str], *, skip: bool
) -> tuple[dict[SplitName, list[Row]], int]:
    found, skipped = rows_of(table, *_columns(table, query), prefix="row", skip=skip)
    if not any(found):
        raise DataError(f"{table.origin} has no rows")
    if column is None:
        return _by_hash(table, [row for row in found if row is not None]), skipped
    rows: dict[SplitName, list[Row]] = {split: [] for split in SPLITS}
    for i, row in enumerate(found):
        if row is None:
            continue
        value = str(table.columns[column][i]).strip()
        split = split_named(value)
        if split is None:
            raise DataError(
                f"{row.where}: '{value}' in column '{column}' is not a split; "
                f"accepted: {', '.join(SPLIT_ALIASES)}",
                hint="give another column by adding ?split=COLUMN to the dataset's name",
            )
        rows[split].append(row)
    return {split: part for split, part in rows.items() if part}, skipped


def _by_hash(table: Table, rows: list[Row]) -> dict[SplitName, list[Row]]:
    parts = split_rows(rows)
    empty = [split for split, part in parts.items() if not part]
    if empty:
        raise DataError(
            f"{table.origin} has {len(rows)} rows; split 80/10/10 by a hash of the text, "
            f"the split '{empty[0]}' is empty",
            hint="add a column 'split' with train, val and test, or use a folder with train.csv and test.csv",
        )
    return parts


DATASET = open_csv
