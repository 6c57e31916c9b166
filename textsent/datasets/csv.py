"""``csv:PATH``: one's own texts in .csv, .tsv, .parquet or .jsonl.

``PATH`` is a folder with ``train.csv``, ``val.csv`` and ``test.csv`` (any of the three; ``valid``, ``validation``
and ``dev`` are ``val``), or one file. One file is split by its column ``split``, or another one that holds names of
splits alone (``partition``, ``set``), where it has one, else 80/10/10 by a hash of each text: rows added later move
none of the others, and equal texts fall into one split.

The columns of text and label are found by their usual names, or named: ``csv:PATH?text=COL&label=COL``;
``split=COL`` and ``encoding=NAME`` are accepted too, ``sep=CHARACTER`` (also ``semicolon``, ``tab``, ``pipe``) where
the separator is not found out, and ``quote=none`` where quotation marks are part of the text.
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
    """Open one's own table or tables.

    Args:
        argument: ``PATH``, or ``PATH?text=COL&label=COL`` with any of :data:`OPTIONS`.
        options: With ``on_bad_image="skip"`` rows without a text or label are left out and counted.

    Raises:
        DataError: If a file, column, text or label is missing or cannot be used; the message says where.
    """
    # A "?" may belong to the file's own name.
    exists = bool(argument.strip()) and user_path(argument).exists()
    name, query = (argument, {}) if exists else split_query(argument, OPTIONS)
    if not name:
        raise DataError("csv: names no file", hint=f"write csv:PATH, where PATH is {LAYOUTS}")
    path = user_path(name)
    if not path.exists():
        raise DataError(f"no such file or folder: '{path}'", hint=f"csv:PATH takes {LAYOUTS}")
    reading = Reading.of(query)
    skip = options.on_bad_image == "skip"
    by_hash = False
    notes: tuple[str, ...] = ()
    if path.is_dir():
        files, others = _split_files(path)
        if others:
            notes += (
                f"tables that are not called after a split are left out: {', '.join(others)}",
            )
        tables = {split: read_table(file, reading) for split, file in files.items()}
        rows, skipped = _from_tables(tables, query, skip=skip)
    else:
        table = read_table(path, reading)
        tables = {"train": table}
        column = _split_column(table, query)
        if column and "split" not in query and column.strip().casefold() != SPLIT_COLUMN:
            notes += (f"the column '{column}' says which split a row is of",)
        by_hash = column is None
        rows, skipped = _from_one(table, column, query, skip=skip)
    assembled = assemble(rows)
    # Absolute, so that "." has a name too.
    title = f"csv:{path.resolve().name}"
    notes += tuple(note for table in tables.values() for note in table.notes) + assembled.notes
    joined = sum(table.joined for table in tables.values())
    if skipped:
        notes += (f"{skipped} rows without a text or label are left out",)
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
            *many_left_out(sum(map(len, rows.values())), skipped + joined),
        ),
        notes=tuple(f"{title}: {note}" for note in notes),
        found=sum(map(len, rows.values())) + skipped + joined,
        left_out={
            "without a text or label": skipped,
            "joined to others by quotation marks": joined,
        },
    )


def _split_files(folder: Path) -> tuple[dict[SplitName, Path], list[str]]:
    """Return the table of each split, and the names of tables that belong to none."""
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
            f"'{folder}' holds no train, val or test table; it holds: {shown}",
            hint=f"csv:PATH takes {LAYOUTS}",
        )
    return {split: found[split] for split in SPLITS if split in found}, others


def _columns(table: Table, query: dict[str, str]) -> tuple[str, str]:
    text = table.find("text", query.get("text"), TEXT_COLUMNS)
    label = table.find("label", query.get("label"), LABEL_COLUMNS)
    if text == label:
        raise DataError(
            f"{table.origin}: the column '{text}' cannot be the text and the label",
            hint="name two columns by adding ?text=COLUMN&label=COLUMN to the data set's name",
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
    """Return the column of the splits: the one named, the one called so, else one whose values all are splits."""
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
                hint="name another column by adding ?split=COLUMN to the data set's name",
            )
        rows[split].append(row)
    return {split: part for split, part in rows.items() if part}, skipped


def _by_hash(table: Table, rows: list[Row]) -> dict[SplitName, list[Row]]:
    parts = split_rows(rows)
    empty = [split for split, part in parts.items() if not part]
    if empty:
        raise DataError(
            f"{table.origin} has {len(rows)} rows; split 80/10/10 by a hash of the text they "
            f"leave the split '{empty[0]}' empty",
            hint="add a column 'split' with train, val and test, or give a folder with train.csv and test.csv",
        )
    return parts


DATASET = open_csv
