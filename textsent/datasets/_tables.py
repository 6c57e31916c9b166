"""Tables of one's own: .csv, .tsv, .parquet and .jsonl, read whole, every value as the file holds it."""

from __future__ import annotations

import codecs
import csv
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from clipadapt.core.columns import find_column
from clipadapt.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

QUOTED: Literal[0] = csv.QUOTE_MINIMAL
LITERAL: Literal[3] = csv.QUOTE_NONE
ENDINGS = (".csv", ".tsv", ".parquet", ".jsonl")
TEXT_COLUMNS = (
    "text",
    "review",
    "sentence",
    "content",
    "comment",
    "body",
    "message",
    "tweet",
    "document",
    "utterance",
)
LABEL_COLUMNS = (
    "label",
    "labels",
    "sentiment",
    "class",
    "target",
    "category",
    "polarity",
    "rating",
)


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of equal length.

    Attributes:
        origin: What to call the table in a message: its file's name.
        columns: Values by column name; None where a value is missing.
    """

    origin: str
    columns: Mapping[str, Sequence[Any]]

    def find(self, what: str, named: str | None, usual: Sequence[str]) -> str:
        """Return the name of the column that holds ``what``.

        Args:
            what: ``text`` or ``label``.
            named: The column the user named, or None to look for a usual name.
            usual: Usual names, the likeliest first; case does not matter.

        Raises:
            DataError: If there is no such column; the message names those there are.
        """
        return find_column(
            self.origin,
            tuple(self.columns),
            what,
            named,
            usual,
            both="?text=COLUMN&label=COLUMN",
        )


def read_table(path: Path, encoding: str = "utf-8") -> Table:
    """Read one file; its ending tells the format.

    Args:
        path: The file.
        encoding: Encoding of a .csv, .tsv or .jsonl; a byte order mark of UTF-8 is dropped.

    Raises:
        DataError: If the file cannot be read, the ending is none of :data:`ENDINGS`, the bytes are not in
            the encoding, or a row does not fit the header.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise DataError(
            f"'{path.name}' ends in '{ending}'; accepted endings: {' '.join(ENDINGS)}",
            hint="save the table in one of these formats",
        )
    try:
        if ending == ".parquet":
            return _read_parquet(path)
        text = _decode(path, path.read_bytes(), encoding)
    except OSError as err:
        raise DataError(f"cannot read '{path}': {err.strerror or err}") from None
    return (
        _parse_jsonl(path.name, text) if ending == ".jsonl" else _parse_csv(path.name, text, ending)
    )


def _decode(path: Path, raw: bytes, encoding: str) -> str:
    try:
        codec = codecs.lookup(encoding).name
        b"".decode(codec)  # base64 and the like are codecs, but of no text
    except LookupError:
        raise DataError(
            f"unknown encoding '{encoding}'", hint="for example encoding=latin-1, cp1252 or utf-16"
        ) from None
    try:
        return raw.decode("utf-8-sig" if codec == "utf-8" else codec)
    except UnicodeDecodeError as err:
        line = raw.count(b"\n", 0, err.start) + 1
        raise DataError(
            f"{path.name} is not {encoding.upper()}: byte 0x{raw[err.start]:02x} at offset {err.start}, line {line}",
            hint="save the file as UTF-8, or name its encoding by adding ?encoding=latin-1 (or cp1252, utf-16) "
            "to the data set's name",
        ) from None


def _parse_csv(origin: str, text: str, ending: str) -> Table:
    delimiter = "\t" if ending == ".tsv" else ","
    try:
        lines = _csv_lines(text, delimiter, QUOTED)
    except csv.Error as err:
        if ending != ".tsv":
            raise DataError(
                f"{origin} is not a table of comma-separated values: {err}",
                hint='double the quotes inside a quoted field: "he said ""no"""',
            ) from None
        # Most .tsv files quote nothing: a quotation mark is a character of the text.
        lines = _csv_lines(text, delimiter, LITERAL)
    if not lines:
        raise DataError(f"{origin} is empty; its first line must name the columns")
    header = lines[0][1]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{origin} has two columns of the same name: {', '.join(twice)}")
    for number, row in lines[1:]:
        if len(row) != len(header):
            raise DataError(
                f"{origin}, line {number}: {len(row)} fields, but the header names {len(header)}: "
                + ", ".join(header),
                hint=f"separate fields by {delimiter!r} and put a field that holds it in double quotes",
            )
    return Table(origin, {name: [row[i] for _, row in lines[1:]] for i, name in enumerate(header)})


def _csv_lines(text: str, delimiter: str, quoting: Literal[0, 3]) -> list[tuple[int, list[str]]]:
    """Return ``(line number, fields)`` of every row that is not blank."""
    limit = csv.field_size_limit(2**31 - 1)
    # newline="": a field may hold \r or \n, and only those end a line (str.splitlines knows more).
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True
    )
    try:
        return [(reader.line_num, row) for row in reader if row]
    except csv.Error as err:
        raise csv.Error(f"line {reader.line_num}: {err}") from None
    finally:
        csv.field_size_limit(limit)


def _parse_jsonl(origin: str, text: str) -> Table:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as err:
            raise DataError(f"{origin}, line {number}: not JSON: {err}") from None
        if not isinstance(row, dict):
            raise DataError(
                f"{origin}, line {number}: a JSON {type(row).__name__}, not an object",
                hint='one object per line: {"text": "...", "label": "..."}',
            )
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(origin, {name: [row.get(name) for row in rows] for name in names})


def _read_parquet(path: Path) -> Table:
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(path)
    except ArrowException as err:
        raise DataError(f"'{path.name}' is not a Parquet file: {err}") from None
    return Table(path.name, table.to_pydict())
