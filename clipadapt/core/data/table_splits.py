"""Read the labelled rows of a table, or of a folder with a table per split, for every track.

A folder holds ``train.csv``, ``val.csv`` and ``test.csv`` (any of the three; ``valid``, ``validation`` and ``dev`` are
``val``). A single table may give the split of each row in a column ``split``, or in another column that only contains
names of splits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.data import SPLITS
from clipadapt.core.api.errors import DataError
from clipadapt.core.api.user_input import user_path
from clipadapt.core.data.columns import split_query
from clipadapt.core.data.labelled import SPLIT_ALIASES, split_named
from clipadapt.core.data.table_rows import rows_of
from clipadapt.core.data.tables import ENDINGS, Reading, read_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from clipadapt.core.api.data import SplitName
    from clipadapt.core.data.table_rows import Row
    from clipadapt.core.data.tables import Table

SPLIT_COLUMN: Final = "split"
LAYOUTS: Final = (
    "a .csv, .tsv, .parquet or .jsonl file, or a folder with train.csv, val.csv and test.csv"
)


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that a dataset consists of.

    Attributes:
        what: What the values are: ``text`` or ``image``; also the key that names their column.
        usual: Usual names of that column, the most likely first.
        labels: Usual names of the label column.
    """

    what: str
    usual: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def options(self) -> tuple[str, ...]:
        """The options after a dataset's name."""
        return (self.what, "label", "split", "encoding", "sep", "quote")

    def find(self, table: Table, query: Mapping[str, str]) -> tuple[str, str]:
        """Return the names of the value and label columns.

        Args:
            table: The table.
            query: The options of the dataset's name.

        Raises:
            DataError: If one is missing, or they are the same column.
        """
        both = f"?{self.what}=COLUMN&label=COLUMN"
        value = table.find(self.what, query.get(self.what), self.usual, both=both)
        label = table.find("label", query.get("label"), self.labels, both=both)
        if value == label:
            raise DataError(
                f"{table.origin}: the column '{value}' cannot be both {self.what} and label",
                hint=f"give two columns by adding {both} to the dataset's name",
            )
        return value, label


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """The labelled rows of one dataset.

    Attributes:
        path: The file or folder.
        rows: Rows of each split; all of them are ``train`` if there is no split column.
        whole: Whether the rows have no splits.
        n_skipped: Number of rows without a value or label that were left out.
        n_joined: Number of rows that quotation marks may have joined to others.
        notes: Notes for the user, one sentence each.
    """

    path: Path
    rows: Mapping[SplitName, list[Row]]
    whole: bool
    n_skipped: int
    n_joined: int
    notes: tuple[str, ...]


def read_rows(argument: str, columns: Columns, *, skip: bool) -> LabelledRows:
    """Read a table, or a folder of tables.

    Args:
        argument: ``PATH``, or ``PATH?key=value&key=value`` with the options of ``columns``.
        columns: The columns to read.
        skip: Skip rows without a value or label instead of raising an error.

    Raises:
        DataError: If a file, column, value or label is missing or invalid; the message says where.
    """
    path, query = _path_and_query(argument, columns)
    reading = Reading.of(query)
    whole = False
    if path.is_dir():
        files, others = _split_files(path)
        notes = [f"tables not named after a split are left out: {', '.join(others)}"] * bool(others)
        tables = {split: read_table(file, reading) for split, file in files.items()}
        rows, skipped = _from_tables(tables, columns, query, skip=skip)
    else:
        table = read_table(path, reading)
        tables = {"train": table}
        column = _split_column(table, columns, query)
        notes = _split_column_note(column, query)
        rows, skipped = _from_one(table, column, columns, query, skip=skip)
        whole = column is None
    notes += [note for table in tables.values() for note in table.notes]
    joined = sum(table.joined for table in tables.values())
    return LabelledRows(path, rows, whole, skipped, joined, tuple(notes))


def _path_and_query(argument: str, columns: Columns) -> tuple[Path, dict[str, str]]:
    """Return the path and the options of a dataset name.

    Raises:
        DataError: If there is no path, or no such file or folder.
    """
    # A "?" may be part of a file name.
    exists = bool(argument.strip()) and user_path(argument).exists()
    name, query = (argument, {}) if exists else split_query(argument, columns.options)
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


def _rows(
    table: Table, columns: Columns, query: dict[str, str], *, prefix: str, skip: bool
) -> tuple[list[Row | None], int]:
    value, label = columns.find(table, query)
    return rows_of(table, value, label, prefix=prefix, skip=skip, what=columns.what)


def _from_tables(
    tables: Mapping[SplitName, Table], columns: Columns, query: dict[str, str], *, skip: bool
) -> tuple[dict[SplitName, list[Row]], int]:
    rows: dict[SplitName, list[Row]] = {}
    total = 0
    for split, table in tables.items():
        found, skipped = _rows(table, columns, query, prefix=split, skip=skip)
        rows[split] = [row for row in found if row is not None]
        total += skipped
    return rows, total


def _split_column(table: Table, columns: Columns, query: dict[str, str]) -> str | None:
    """Return the split column: the given one, the one named ``split``, or one whose values are all names of splits."""
    if "split" in query:
        return table.find("split", query["split"], (), both="?split=COLUMN")
    called = next((c for c in table.columns if c.strip().casefold() == SPLIT_COLUMN), None)
    others = [c for c in table.columns if c not in columns.find(table, query)]
    return called or next((c for c in others if _are_splits(table.columns[c])), None)


def _are_splits(values: Sequence[object]) -> bool:
    if not all(isinstance(v, str) for v in values):
        return False
    found = {split_named(str(v)) for v in dict.fromkeys(values)}
    return len(found) > 1 and None not in found


def _from_one(
    table: Table, column: str | None, columns: Columns, query: dict[str, str], *, skip: bool
) -> tuple[dict[SplitName, list[Row]], int]:
    found, skipped = _rows(table, columns, query, prefix="row", skip=skip)
    if not any(found):
        raise DataError(f"{table.origin} has no rows")
    if column is None:
        return {"train": [row for row in found if row is not None]}, skipped
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
