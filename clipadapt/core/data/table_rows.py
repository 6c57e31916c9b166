"""Check the rows of a table and assemble them into splits of values and labels.

A value is a text, or the path of an image.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from clipadapt.core.api.data import SPLITS
from clipadapt.core.api.errors import DataError
from clipadapt.core.data.labelled import class_key, make_split, natural_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from clipadapt.core.api.data import Split, SplitName
    from clipadapt.core.data.tables import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled value.

    Attributes:
        key: Unique, stable id.
        value: The value, not empty.
        label: Class name.
        where: File and row number, for messages.
    """

    key: str
    value: str
    label: str
    where: str


@dataclass(frozen=True, slots=True)
class Assembled:
    """Splits that passed all checks, with flags and notes for the user."""

    classnames: tuple[str, ...]
    parts: Mapping[SplitName, Split[str]]
    flags: tuple[str, ...]
    notes: tuple[str, ...]


def rows_of(
    table: Table, column: str, label: str, *, prefix: str, skip: bool, what: str = "text"
) -> tuple[list[Row | None], int]:
    """Check every value of two columns.

    Args:
        table: The table.
        column: Column of the values.
        label: Label column.
        prefix: Start of every id: ``train`` gives ``train/00000``.
        skip: Skip rows without a value or label instead of raising an error.
        what: What the values are, for messages; also the key that names their column.

    Returns:
        One entry per row of the table, None if it is skipped; and the number of skipped rows.

    Raises:
        DataError: If a value or label is empty, missing or of the wrong type.
    """
    rows: list[Row | None] = []
    skipped = 0
    values = zip(table.columns[column], table.columns[label], strict=True)
    for i, (value, label_value) in enumerate(values):
        where = f"{table.origin}, row {i + 1}"
        try:
            checked = _checked_value(value, column, where, what)
            name = _checked_label(label_value, label, where)
        except DataError:
            if not skip:
                raise
            skipped += 1
            rows.append(None)
        else:
            rows.append(Row(f"{prefix}/{i:05d}", checked, name, where))
    return rows, skipped


def assemble(
    rows: Mapping[SplitName, Sequence[Row]],
    classnames: tuple[str, ...] | None = None,
    *,
    what: str = "text",
    natural: bool = False,
    max_distinct: float = 0.5,
) -> Assembled:
    """Check the splits together and number the classes.

    Args:
        rows: Rows of every split.
        classnames: ``C`` class names in order; None takes those of the train split (of all splits if there is
            no train split), sorted by value if they are numbers, else alphabetically.
        what: What the values are, for messages.
        natural: Whether names that are not numbers are in natural order (1, 2, 10) instead.
        max_distinct: Largest number of labels, from eleven on, as a share of the rows; 1 allows one row per class.

    Raises:
        DataError: If a split is empty, there is only one class, a label is not one of the classes, or the
            label column has too many different values.
    """
    for split, found in rows.items():
        if not found:
            raise DataError(
                f"the split '{split}' is empty", hint="add rows to it, or remove the split"
            )
    basis = rows.get("train") or [row for found in rows.values() for row in found]
    merged: tuple[str, ...] = ()
    if classnames is None:
        rows, merged = _merge_alike(rows)
        basis = rows.get("train") or [row for found in rows.values() for row in found]
    names = classnames or _ordered({row.label for row in basis}, natural=natural)
    _require_classes(next(iter(rows)), basis, max_distinct)
    index = {name: i for i, name in enumerate(names)}
    parts = {}
    for split in SPLITS:
        if split not in rows:
            continue
        for row in rows[split]:
            if row.label not in index:
                raise DataError(
                    f"{row.where}: the label '{row.label}' is not one of the classes: {_shown(names)}",
                    hint="the classes are those of the train split; correct the label or remove the row",
                )
        parts[split] = make_split(
            [row.value for row in rows[split]],
            [row.key for row in rows[split]],
            [index[row.label] for row in rows[split]],
            names,
        )
    flags, notes = _duplicates(rows, what)
    return Assembled(names, parts, flags, (*merged, *notes))


def _require_classes(split: str, basis: Sequence[Row], max_distinct: float) -> None:
    """Raise if the labels of the rows that define the classes are not those of at least two classes.

    Raises:
        DataError: If they are all the same, or too many.
    """
    used = {row.label for row in basis}
    if len(used) < 2:
        raise DataError(
            f"all {len(basis)} rows of the split '{split}' have the label '{basis[0].label}'; "
            "at least two classes are needed",
        )
    if len(used) > 10 and len(used) > max_distinct * len(basis):
        raise DataError(
            f"the label column has {len(used)} different values in {len(basis)} rows; these are not classes",
            hint="give the right column by adding ?label=COLUMN to the dataset's name",
        )


def _merge_alike(
    rows: Mapping[SplitName, Sequence[Row]],
) -> tuple[dict[SplitName, list[Row]], tuple[str, ...]]:
    """Merge labels that differ only in spelling into the most frequent one."""
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for row in (row for found in rows.values() for row in found):
        spellings[class_key(row.label)][row.label] += 1
    kept = {key: min(c, key=lambda name: (-c[name], name)) for key, c in spellings.items()}
    notes = tuple(
        f"labels that differ only in spelling are merged into one class, '{kept[key]}': "
        + ", ".join(f"'{name}' ({n:,})" for name, n in counts.most_common())
        for key, counts in spellings.items()
        if len(counts) > 1
    )
    if not notes:
        return {split: list(found) for split, found in rows.items()}, ()
    return {
        split: [replace(row, label=kept[class_key(row.label)]) for row in found]
        for split, found in rows.items()
    }, notes


def _checked_value(value: Any, column: str, where: str, what: str) -> str:
    if _is_nan(value):
        raise DataError(f"{where}: the {what} in column '{column}' is missing (NaN)", hint=_FIX)
    if not isinstance(value, str):
        raise DataError(
            f"{where}: column '{column}' contains {value!r:.40} of type {type(value).__name__}, not {_named(what)}",
            hint=f"give the right column by adding ?{what}=COLUMN to the dataset's name",
        )
    if not value.strip():
        raise DataError(f"{where}: the {what} in column '{column}' is empty", hint=_FIX)
    try:
        value.encode()
    except UnicodeEncodeError as err:
        raise DataError(
            f"{where}: the {what} in column '{column}' contains half a Unicode character "
            f"(U+{ord(value[err.start]):04X} at position {err.start})",
            hint=_FIX,
        ) from None
    return value


def _named(what: str) -> str:
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"


def _checked_label(value: Any, column: str, where: str) -> str:
    if _is_nan(value) or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{where}: the label in column '{column}' is missing", hint=_FIX)
    if not isinstance(value, (str, int, float)):
        raise DataError(
            f"{where}: column '{column}' contains {value!r:.40} of type {type(value).__name__}, not a label",
            hint="give the right column by adding ?label=COLUMN to the dataset's name",
        )
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # Parquet stores integers as floats if one is missing
    name = str(value).strip()
    broken = next((c for c in name if unicodedata.category(c) in {"Cc", "Cs"}), None)
    if broken is not None:
        raise DataError(
            f"{where}: the label in column '{column}' contains a character that cannot be displayed "
            f"(U+{ord(broken):04X})",
            hint=_FIX,
        )
    return name


_FIX = "fix or remove the row, or skip such rows with --set data.on_bad_image=skip"


def _is_nan(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().casefold() == "nan"  # str() of a missing value
    return value is None or (isinstance(value, float) and math.isnan(value))


def _ordered(labels: Iterable[str], *, natural: bool) -> tuple[str, ...]:
    try:
        return tuple(sorted(labels, key=lambda name: (float(name), name)))
    except ValueError:
        return tuple(sorted(labels, key=natural_key if natural else None))


def _duplicates(
    rows: Mapping[SplitName, Sequence[Row]], what: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    groups: dict[str, list[tuple[SplitName, Row]]] = defaultdict(list)
    for split, found in rows.items():
        for row in found:
            groups[row.value].append((split, row))
    flags, notes = [], []
    across = [g for g in groups.values() if len({split for split, _ in g}) > 1]
    if across:
        flags.append("duplicates_across_splits")
        example = " = ".join(row.where for _, row in across[0][:2])
        notes.append(f"{what}s in more than one split: {len(across)}, for example {example}")
    conflicts = [g for g in groups.values() if len({row.label for _, row in g}) > 1]
    if conflicts:
        flags.append("duplicates_across_classes")
        example = " = ".join(row.where for _, row in conflicts[0][:2])
        notes.append(f"{what}s with more than one label: {len(conflicts)}, for example {example}")
    return tuple(flags), tuple(notes)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if names[10:] else "")
