"""Two folders of runs compared row by row: paired tests, which examples changed, and which settings differ.

Rows that agree in what they evaluate, method, recipe, shots and model are a pair. What then remains is paired where
each folder has exactly one row left for the same data, split, protocol and classes: two methods, or two settings.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.report.comparisons import compare_rows, in_common
from clipadapt.core.report.formats import (
    MARKDOWN,
    Column,
    format_count,
    format_difference,
    format_interval,
    format_p_value,
    method_title,
    split_title,
)
from clipadapt.core.report.grouping import group_records, unlike
from clipadapt.core.report.rows import Row
from clipadapt.core.report.run_files import RunFiles
from clipadapt.core.scoring.statistics import holm

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.report.comparisons import Comparison
    from clipadapt.core.report.formats import Form
    from clipadapt.core.scoring.statistics import Interval

SHOWN: Final = 10
"""Changed examples that are printed for a pair; JSON has all."""
NOTES: Final = (
    "Intervals are 95 %. B - A is over the seeds and examples that both have, and its interval is of that pair alone. "
    "Gained: examples that more seeds of B than of A predict correctly; lost: the reverse."
)


@dataclass(frozen=True, slots=True)
class Changed:
    """An example that is predicted correctly by more seeds of one side than of the other.

    Attributes:
        id: Its id.
        label: Its class.
        first: Class predicted by the first seed of A.
        second: Class predicted by the first seed of B.
        change: Share of the seeds in which B is correct, minus that of A; in [-1, 1].
    """

    id: str
    label: str
    first: str
    second: str
    change: float


@dataclass(frozen=True, slots=True)
class Pair:
    """A row of folder A and its counterpart in folder B.

    Attributes:
        a: The row of A.
        b: The row of B.
        comparison: B against A on common seeds and examples; None if they have none, or if their settings differ.
        changed: Examples that changed, those that B gained first, the largest changes first.
        differences: Settings, versions and data that differ, as (name, value of A, value of B).
    """

    a: Row
    b: Row
    comparison: Comparison | None
    changed: tuple[Changed, ...]
    differences: tuple[tuple[str, str, str], ...]

    @property
    def title(self) -> str:
        """What was evaluated, and by which methods."""
        first, second = _name(self.a), _name(self.b)
        names = first if first == second else f"{first} against {second}"
        return f"{_place_title(self.a)}: {names}"


@dataclass(frozen=True, slots=True)
class Comparisons:
    """What two folders have in common.

    Attributes:
        pairs: By data and method.
        only_a: Rows of A without a counterpart, by title.
        only_b: Rows of B without a counterpart, by title.
    """

    pairs: tuple[Pair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def compare_folders(
    a: RunStore, b: RunStore, first: Sequence[RunRecord], second: Sequence[RunRecord]
) -> Comparisons:
    """Pair the rows of two stores and compare each pair.

    Args:
        a: The first store.
        b: The second store.
        first: Records of the first.
        second: Records of the second.

    Raises:
        RecordError: If runs of one row differ in more than their seed, predictions cannot be read, or an example has
            two labels.
    """
    rows_a, rows_b = _rows(a, first), _rows(b, second)
    matched: list[tuple[Row, Row]] = []
    for key in (_exact, _like, _place):
        found = _match(rows_a, rows_b, key)
        matched += found
        rows_a = [r for r in rows_a if all(r is not x for x, _ in found)]
        rows_b = [r for r in rows_b if all(r is not x for _, x in found)]
    pairs = [_pair(*rows) for rows in matched]
    tested = [p.comparison for p in pairs if p.comparison is not None]
    adjusted = iter(holm([c.p_value for c in tested]) if tested else ())
    pairs = [
        dataclasses.replace(
            p, comparison=dataclasses.replace(p.comparison, p_adjusted=float(next(adjusted)))
        )
        if p.comparison is not None
        else p
        for p in pairs
    ]
    return Comparisons(
        tuple(sorted(pairs, key=lambda p: p.title)),
        *(tuple(f"{_place_title(r)}: {_name(r)}" for r in rest) for rest in (rows_a, rows_b)),
    )


def _rows(store: RunStore, records: Sequence[RunRecord]) -> list[Row]:
    files = RunFiles(store)
    return [Row(group, files) for group in group_records(records) if group.ok]


def _match(
    rows_a: Sequence[Row], rows_b: Sequence[Row], key: Callable[[Row], Hashable]
) -> list[tuple[Row, Row]]:
    """Return the pairs of rows whose key occurs once in each folder."""
    sides: defaultdict[Hashable, tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
    for side, rows in enumerate((rows_a, rows_b)):
        for row in rows:
            sides[key(row)][side].append(row)
    return [(x[0], y[0]) for x, y in sides.values() if len(x) == len(y) == 1]


def _place(row: Row) -> tuple[Any, ...]:
    e = row.first.evaluation
    return e.dataset, e.split, e.protocol, e.classes


def _like(row: Row) -> tuple[Any, ...]:
    method = row.first.method
    return (*_place(row), method.name, method.recipe, row.first.data.shots, row.model)


def _exact(row: Row) -> tuple[Any, ...]:
    return (*_like(row), row.label)


def _pair(a: Row, b: Row) -> Pair:
    comparison = compare_rows(("B", b), ("A", a))
    differences = _differences(a, b)
    return Pair(a, b, comparison, tuple(_changed(a, b)) if comparison else (), differences)


def _differences(a: Row, b: Row) -> tuple[tuple[str, str, str], ...]:
    one, two = a.ok[0], b.ok[0]
    seeds = [", ".join(str(r.seed) for r in row.ok) for row in (a, b)]
    found = [("seeds", seeds[0], seeds[1])] if seeds[0] != seeds[1] else []
    return (*found, *((k, str(x), str(y)) for k, x, y in unlike(one, two)))


def _changed(a: Row, b: Row) -> Iterable[Changed]:
    matched = in_common(a, b)
    if matched is None:
        return
    one, two = matched
    change = two.values.mean(axis=0) - one.values.mean(axis=0)  # (n,)
    names = a.classnames or b.classnames

    def name(index: int) -> str:
        return names[index] if index < len(names) else str(index)

    for i in np.lexsort((np.arange(change.size), -change)):
        if change[i]:
            before, after = one.predicted[0, i], two.predicted[0, i]
            yield Changed(
                str(one.ids[i]), name(int(one.labels[i])), name(int(before)), name(int(after)),
                float(change[i]),
            )  # fmt: skip


def _name(row: Row) -> str:
    record = row.first
    shots = "" if record.data.shots is None else f", {record.data.shots}-shot"
    return f"{method_title(record.method.name, record.method.recipe)}{shots}"


def _place_title(row: Row) -> str:
    evaluation = row.first.evaluation
    parts = [evaluation.dataset, split_title(evaluation.split, evaluation.classes)]
    if evaluation.protocol != "standard":
        parts.append(evaluation.protocol)
    return ", ".join(parts)


# ---------------------------------------------------------------- formats


def as_document(found: Comparisons) -> dict[str, Any]:
    """Return the comparison as plain data for JSON: fractions, every changed example."""
    return {
        "pairs": [
            {
                "title": p.title,
                "run_ids": {"a": list(p.a.run_ids), "b": list(p.b.run_ids)},
                "accuracy": {"a": _plain(p.a.accuracy), "b": _plain(p.b.accuracy)},
                "difference": None if p.comparison is None else _plain(p.comparison.difference),
                "p_value": None if p.comparison is None else p.comparison.p_value,
                "p_adjusted": None if p.comparison is None else p.comparison.p_adjusted,
                "test": None if p.comparison is None else p.comparison.test,
                "n_examples": 0 if p.comparison is None else p.comparison.n_examples,
                "changed": [dataclasses.asdict(c) for c in p.changed],
                "settings": [{"name": k, "a": x, "b": y} for k, x, y in p.differences],
            }
            for p in found.pairs
        ],
        "only_a": list(found.only_a),
        "only_b": list(found.only_b),
    }


def _plain(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else dataclasses.asdict(interval)


def render_comparisons(found: Comparisons, *, examples: int = SHOWN, form: Form = MARKDOWN) -> str:
    """Return the comparison as text: a table of all pairs, then what differs in each.

    Args:
        found: The comparison.
        examples: Largest number of changed examples shown for each pair.
        form: How headings, tables and text are written.
    """
    rows = [_cells(p) for p in found.pairs]
    head = [
        Column("pair", text=True, given=True), Column("A, %", figure=True),
        Column("B, %", figure=True), Column("B - A, points", figure=True), Column("p", rank=2),
        Column("p, Holm"), Column("test", text=True, given=True), Column("n", rank=1, given=True),
        Column("gained", figure=True), Column("lost", figure=True),
    ]  # fmt: skip
    nothing = "No row of A has a counterpart in B."
    parts = [form.grid(head, rows, ()) if rows else form.paragraph(nothing)]
    for p in found.pairs:
        parts += [form.heading(2, p.title), *_details(p, examples, form)]
    for side, rest in (("A", found.only_a), ("B", found.only_b)):
        if rest:
            parts += [form.heading(2, f"Only in {side}"), form.items(rest)]
    return "\n".join([*parts, form.paragraph(NOTES)])


def _cells(p: Pair) -> list[str]:
    gained = sum(c.change > 0 for c in p.changed)
    cells = [p.title, format_interval(p.a.accuracy), format_interval(p.b.accuracy)]
    if p.comparison is None:
        return [*cells, "-", "-", "-", _not_compared(p), "0", "-", "-"]
    c = p.comparison
    return [
        *cells, format_difference(c.difference), format_p_value(c.p_value), format_p_value(c.p_adjusted),
        c.test, format_count(c.n_examples), str(gained), str(len(p.changed) - gained),
    ]  # fmt: skip


def _not_compared(p: Pair) -> str:
    if p.a.setting != p.b.setting:
        return f"not compared: {p.a.setting} against {p.b.setting}"
    return "no common seed or example"


def _details(p: Pair, examples: int, form: Form) -> Iterable[str]:
    if p.differences:
        columns = [Column(name, text=True) for name in ("differs", "A", "B")]
        yield form.grid(columns, [list(d) for d in p.differences], ())
    else:
        yield form.paragraph("No setting, version or data differs.")
    if not p.changed:
        return
    gained = [c for c in p.changed if c.change > 0]
    lost = [c for c in reversed(p.changed) if c.change < 0]
    half = max(examples - min(len(lost), examples // 2), 0)
    shown = [*gained[:half], *lost[: examples - min(half, len(gained))]]
    if not shown:
        return
    columns = [
        Column("example", text=True), Column("class", text=True), Column("A predicts", text=True),
        Column("B predicts", text=True), Column("change", figure=True),
    ]  # fmt: skip
    yield form.grid(
        columns, [[c.id, c.label, c.first, c.second, f"{c.change:+.2f}"] for c in shown], ()
    )
    if left := len(p.changed) - len(shown):
        yield form.paragraph(f"{left} more changed; --json lists all.")
