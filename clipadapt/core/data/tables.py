"""Read .csv, .tsv, .parquet and .jsonl files; values are not converted."""

from __future__ import annotations

import codecs
import csv
import io
import json
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from clipadapt.core.api.errors import DataError
from clipadapt.core.data.columns import find_column

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

ENDINGS = (".csv", ".tsv", ".parquet", ".jsonl")
QUOTES: Final = ("auto", "double", "none")
"""Meaning of quotation marks: detected, delimiters of a field, or characters of the text."""
SEPARATORS: Final = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|"}
"""Names of separators; the characters themselves are accepted too."""

_SNIFFED: Final = (",", ";", "\t", "|")
_BYTE_ORDER_MARKS: Final = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",  # after the longer mark with the same start
    codecs.BOM_UTF16_BE: "utf-16",
}
_Rows = list[tuple[int, list[str]]]


@dataclass(frozen=True, slots=True)
class Reading:
    """Options for reading a .csv, .tsv or .jsonl file.

    Attributes:
        encoding: Text encoding; a UTF-8 byte order mark is dropped.
        separator: Character between two fields; None detects it.
        quotes: One of :data:`QUOTES`.
    """

    encoding: str = "utf-8"
    separator: str | None = None
    quotes: str = "auto"

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Reading:
        """Return the options ``encoding``, ``sep`` and ``quote`` of a dataset name.

        Raises:
            DataError: If the encoding is not a text encoding, or another value is invalid.
        """
        encoding, quotes = query.get("encoding", "utf-8"), query.get("quote", "auto")
        try:
            known = "\0" not in encoding and codecs.lookup(encoding)._is_text_encoding
        except (LookupError, ValueError, UnicodeError):
            known = False
        if not known:  # zlib and rot13 are codecs but not text encodings
            raise DataError(
                f"unknown encoding '{encoding}'",
                hint="for example encoding=latin-1, cp1252 or utf-16",
            )
        named = query.get("sep")
        separator = None if named is None else SEPARATORS.get(named.casefold(), named)
        if separator is not None and (len(separator) != 1 or separator in '\r\n"\0'):
            raise DataError(
                f"sep={named} is not a separator; accepted: one character, or {', '.join(SEPARATORS)}",
                hint="for example csv:PATH?sep=semicolon",
            )
        if quotes not in QUOTES:
            raise DataError(f"quote={quotes} is not accepted; accepted: {', '.join(QUOTES)}")
        return cls(encoding, separator, quotes)


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of equal length.

    Attributes:
        origin: File name, for messages.
        columns: Values by column name; None for missing values.
        notes: Notes for the user on how the file was read, one sentence each.
        repeated: Names of several columns; these are not in ``columns``.
        joined: Lines that may be separate rows but are joined to others by quotation marks.
    """

    origin: str
    columns: Mapping[str, Sequence[Any]]
    notes: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    joined: int = 0

    def find(self, what: str, named: str | None, usual: Sequence[str], *, both: str) -> str:
        """Return the name of one column.

        Args:
            what: Content of the column, such as ``text``, ``image`` or ``label``; also the key that names it.
            named: Column given by the user, or None to look for a usual name.
            usual: Usual names, the most likely first; case is ignored.
            both: How to name all columns, for the hint.

        Raises:
            DataError: If there is no such column, or more than one; the message lists the columns.
        """
        name = find_column(
            self.origin,
            (*self.columns, *self.repeated),
            what,
            named,
            usual,
            both=both,
        )
        if name in self.repeated:
            raise DataError(
                f"{self.origin} has several columns named '{name}'",
                hint=f"rename all but one, or give another column by adding ?{what}=COLUMN to the dataset's name",
            )
        return name


def read_table(path: Path, reading: Reading | None = None) -> Table:
    """Read one file; the format is given by its extension.

    Args:
        path: The file.
        reading: Options for .csv, .tsv and .jsonl; None detects everything.

    Raises:
        DataError: If the file cannot be read, its extension is not one of :data:`ENDINGS`, its bytes are not valid in
            the encoding, or a row does not match the header.
    """
    reading = reading or Reading()
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise DataError(
            f"'{path.name}' ends in '{ending}'; accepted endings: {' '.join(ENDINGS)}",
            hint="save the table in one of these formats",
        )
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading from a pipe would block
            raise DataError(f"'{path}' is not a regular file", hint="save the table as a file")
        if ending == ".parquet":
            return _read_parquet(path)
        text = _decode(path, path.read_bytes(), reading.encoding)
    except OSError as err:
        raise DataError(f"cannot read '{path}': {err.strerror or err}") from None
    if ending == ".jsonl":
        return _parse_jsonl(path.name, text)
    return _parse_csv(path.name, text, ending, reading)


def _decode(path: Path, raw: bytes, encoding: str) -> str:
    codec = codecs.lookup(encoding).name
    marks = (name for mark, name in _BYTE_ORDER_MARKS.items() if raw.startswith(mark))
    marked = next(marks, "latin-1 (or cp1252, utf-16, gb18030)")
    try:
        text = raw.decode("utf-8-sig" if codec == "utf-8" else codec)
    except UnicodeDecodeError as err:
        line = raw.count(b"\n", 0, err.start) + 1
        raise DataError(
            f"{path.name} is not {encoding.upper()}: byte 0x{raw[err.start]:02x} at offset {err.start}, line {line}",
            hint="save the file as UTF-8, or give its encoding by adding "
            f"?encoding={marked} to the dataset's name",
        ) from None
    except UnicodeError as err:  # such as utf-16 without a byte order mark
        raise DataError(f"{path.name} is not {encoding.upper()}: {err}") from None
    if "\0" in text.partition("\n")[0]:  # utf-16 without a byte order mark is valid UTF-8
        raise DataError(
            f"{path.name} is not {encoding.upper()}: its first line contains NUL characters",
            hint="give its encoding by adding ?encoding=utf-16-le (or utf-16-be) to the dataset's name",
        )
    return text


# ---------------------------------------------------------------- separated values


def _parse_csv(origin: str, text: str, ending: str, reading: Reading) -> Table:
    separators, text = _separators(text, ending, reading.separator)
    failure: DataError | None = None
    for separator in separators:
        try:
            rows, joined, notes = _unquoted(origin, text, separator, ending, reading.quotes)
            table = replace(_table(origin, rows, separator, notes), joined=joined)
        except DataError as err:
            failure = failure or err  # of the most likely separator
            continue
        usual = "\t" if ending == ".tsv" else ","
        if separator != usual and reading.separator is None:
            note = f"{origin} is read as separated by {_shown(separator)}"
            return replace(table, notes=(note, *table.notes))
        return table
    assert failure is not None
    raise failure


def _separators(text: str, ending: str, named: str | None) -> tuple[list[str], str]:
    """Return the separators to try, the most likely first, and the text without a line ``sep=;``."""
    first, newline, rest = text.partition("\n")
    if first.startswith("sep=") and len(first.rstrip("\r")) == 5:  # written by spreadsheets
        named, text = named or first[4], rest if newline else ""
    if named is not None:
        return [named], text
    usual = "\t" if ending == ".tsv" else ","
    header = next((line for line in text.splitlines() if line.strip()), "")
    fields = {s: header.count(s) for s in (usual, *_SNIFFED)}
    likely = sorted((s for s in fields if fields[s]), key=lambda s: -fields[s])
    return likely or [usual], text


def _unquoted(
    origin: str, text: str, separator: str, ending: str, quotes: str
) -> tuple[_Rows, int, tuple[str, ...]]:
    """Return the rows of a text, the number of lines that quotation marks may have joined by mistake, and notes.

    A quotation mark that opens a field and is closed some lines further down joins these lines into one field. If
    every line is also a complete row by itself, the mark is taken as text in a .tsv, which most programs write
    without quotes; in a .csv it is ambiguous and is reported.
    """
    if quotes == "none" or '"' not in text:
        return _rows(text, separator, csv.QUOTE_NONE), 0, ()
    # With quotation marks in every line, an unclosed one means that the file is damaged or truncated.
    every_row = text.count('"') >= 2 * text.count("\n") - 2
    try:
        quoted = _rows(text, separator, csv.QUOTE_MINIMAL)
    except csv.Error as err:
        plain = _whole_lines(text, separator) if quotes == "auto" and not every_row else None
        if plain is not None:
            return plain, 0, (f"{origin}: quotation marks are read as part of the text ({err})",)
        raise DataError(
            f"{origin} is not a table of values separated by {_shown(separator)}: {err}",
            hint='double the quotes inside a quoted field ("he said ""no"""), or add ?quote=none to the '
            "dataset's name if quotation marks are part of the text",
        ) from None
    every_row = every_row or text.count('"') >= 2 * (len(quoted) - 1)
    joined = any("\n" in cell for _, row in quoted for cell in row)
    plain = _whole_lines(text, separator) if quotes == "auto" and joined and not every_row else None
    if plain is None:
        return quoted, 0, ()
    if ending == ".tsv":
        return plain, 0, (f"{origin}: quotation marks are read as part of the text",)
    note = (
        f"{origin}: quotation marks join {len(plain)} lines into {len(quoted)} rows; if they are part of the "
        "text, add ?quote=none to the dataset's name"
    )
    return quoted, len(plain) - len(quoted), (note,)


def _whole_lines(text: str, separator: str) -> _Rows | None:
    """Return one row per line if all lines have the same number of fields (more than one), else None."""
    rows = _rows(text, separator, csv.QUOTE_NONE)
    widths = {len(row) for _, row in rows}
    return rows if len(widths) == 1 and widths != {1} else None


def _rows(text: str, separator: str, quoting: Literal[0, 3]) -> _Rows:
    """Return ``(line number, fields)`` of every row that is not blank."""
    limit = csv.field_size_limit(2**31 - 1)
    # newline="": only \r and \n end a line, and a field may contain them (str.splitlines splits at more characters).
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, quoting=quoting, strict=True
    )
    try:
        return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as err:
        raise csv.Error(f"line {reader.line_num}: {err}") from None
    finally:
        csv.field_size_limit(limit)


def _table(origin: str, rows: _Rows, separator: str, notes: tuple[str, ...]) -> Table:
    if not rows:
        raise DataError(f"{origin} is empty; its first line must contain the column names")
    header = [name.strip() for name in rows[0][1]]
    width = len(header)
    for number, row in rows[1:]:
        if len(row) < width or any(cell.strip() for cell in row[width:]):
            raise DataError(
                f"{origin}, line {number}: {len(row)} fields, but the header has {width}: "
                + ", ".join(header),
                hint=f"fields are separated by {_shown(separator)} (for another separator add ?sep=CHARACTER to the "
                "dataset's name); put a field that contains it in double quotes",
            )
    columns = {name: [row[i] for _, row in rows[1:]] for i, name in enumerate(header) if name}
    unnamed = [i for i, name in enumerate(header) if not name]
    filled = sum(any(row[i].strip() for i in unnamed) for _, row in rows[1:])
    if filled:
        notes += (
            f"{origin}: columns without a name are ignored; {filled} rows have values in them",
        )
    repeated = tuple(sorted({name for name in columns if header.count(name) > 1}))
    return Table(origin, {n: v for n, v in columns.items() if n not in repeated}, notes, repeated)


def _shown(separator: str) -> str:
    return {"\t": "tabs", ";": "semicolons", ",": "commas"}.get(separator, f"'{separator}'")


# ---------------------------------------------------------------- other formats


def _parse_jsonl(origin: str, text: str) -> Table:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as err:
            raise DataError(f"{origin}, line {number}: not JSON: {err}") from None
        if not isinstance(row, dict):
            raise DataError(
                f"{origin}, line {number}: a JSON {type(row).__name__}, not an object",
                hint='one object per line: {"COLUMN": VALUE, "COLUMN": VALUE}',
            )
        rows.append(row)
    if not rows:
        raise DataError(
            f"{origin} is empty",
            hint='write one object per line: {"COLUMN": VALUE, "COLUMN": VALUE}',
        )
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(origin, {name: [row.get(name) for row in rows] for name in names})


def _read_parquet(path: Path) -> Table:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            table = file.read()
    except ArrowException as err:
        raise DataError(f"'{path.name}' is not a Parquet file: {err}") from None
    names = table.column_names
    repeated = tuple(sorted({name for name in names if names.count(name) > 1}))
    kept = [name for name in names if name not in repeated]
    return Table(path.name, table.select(kept).to_pydict(), repeated=repeated)
