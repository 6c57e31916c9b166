"""Leaderboard: every row with its figures, sortable by each column."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.report.formats import NOTHING, format_interval, format_value, metric_title
from clipadapt.core.report.notes import probability_notes
from clipadapt.core.report.page_rows import place
from clipadapt.core.report.section import section
from clipadapt.core.scoring.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable

    from clipadapt.core.report.page_rows import PageRow
    from clipadapt.core.report.section import Page
    from clipadapt.core.scoring.metrics import Metric

TEMPLATE: Final = """\
<p class="lede">Each row is one method in one setting; figures are means over seeds. Click a heading to sort.
Bold: significantly better than the runner-up of its block.
{% if same %}In all rows:
{% for title, text in same %}{{ title }} {{ text }}{{ "." if loop.last else "; " }}{% endfor %}{% endif %}</p>
<div class="scroll" tabindex="0" role="region" aria-label="Leaderboard">
<table class="sortable">
<thead><tr>
{% for c in columns %}
<th scope="col" class="{{ c.kind }}" aria-sort="none">
<button type="button"{% if c.note %} title="{{ c.note }}"{% endif %}>{{ c.title }}</button>
</th>
{% endfor %}
</tr></thead>
<tbody>
{% for r, cells in rows %}
<tr class="item"{{ attributes(r.data) }}>
{% for c in cells %}
{% if loop.first %}
<th scope="row" data-sort="{{ c.value }}">
{{ key(r.style) }}{{ c.text }} <br><span class="where">{{ c.small }}</span>
</th>
{% else %}
<td class="{{ columns[loop.index0].kind }}"
{%- if c.value is not none %} data-sort="{{ "%.7g"|format(c.value) if c.value is float else c.value }}"{% endif %}>
{% if loop.index0 == 1 and r.ranked.best %}<b>{{ c.text }}</b>{% else %}{{ c.text }}{% endif %}
{% if c.small %} <span class="where">{{ c.small }}</span>{% endif %}
{% for text, address in c.links %}
 <a href="{{ address }}">{{ text }}</a>
{% endfor %}
</td>
{% endif %}
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
<p class="none" hidden>No row matches the filters.</p>
<p><button type="button" class="more" id="csv" hidden>Save the rows shown as CSV</button></p>
<details>
<summary>How to read the figures</summary>
<ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>
</details>
"""
ALWAYS: Final = 2
"""The first columns, method and accuracy, are shown even where they are equal in all rows."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: what is shown, the value it is sorted by (None is always last), and texts with their addresses."""

    text: str
    value: float | str | None
    small: str = ""
    links: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Column:
    """One column; ``kind`` is ``text`` or ``figure``."""

    title: str
    kind: str
    note: str
    cell: Callable[[PageRow], Cell]


@section("Leaderboard", order=20, template=TEMPLATE)
def leaderboard(page: Page) -> dict[str, Any]:
    """Return the cells of each row."""
    columns = [*_HEAD, *_metric_columns(), *_TAIL]
    rows = [(r, [c.cell(r) for c in columns]) for r in page.rows]
    columns, rows, same = _without_equal(columns, rows)
    seeds = [i for i, c in enumerate(columns) if c.cell is _seeds]
    for r, cells in rows:
        for i in seeds:
            cells[i] = replace(cells[i], links=_links(page, r))
    ok = [record for r in page.rows for record in r.row.ok]
    shown = [m.name for m in METRICS.values() if m.leaderboard]
    notes = (*probability_notes(ok, shown), *page.summary.notes)
    return {"columns": columns, "rows": rows, "notes": notes, "same": same}


_Rows = list[tuple["PageRow", list["Cell"]]]


def _without_equal(
    columns: list[Column], rows: _Rows
) -> tuple[list[Column], _Rows, list[tuple[str, str]]]:
    """Return columns and rows without the columns that are equal in all rows, and titles and texts of those."""
    if len(rows) < 2:
        return columns, rows, []
    equal = {
        i
        for i in range(ALWAYS, len(columns))
        if columns[i].cell is not _seeds and len({(x[i].text, x[i].small) for _, x in rows}) == 1
    }
    shown = [
        (columns[i].title, f"{c.text} {c.small}".strip())
        for i in sorted(equal)
        if (c := rows[0][1][i]).text not in {"", NOTHING}
    ]
    kept = [i for i in range(len(columns)) if i not in equal]
    return [columns[i] for i in kept], [(r, [x[i] for i in kept]) for r, x in rows], shown


def _links(page: Page, r: PageRow) -> tuple[tuple[str, str], ...]:
    """Return each seed with the address of its run, if the page has one."""
    records = [*r.row.ok, *r.row.failed]
    return tuple((str(o.seed), address) for o in records if (address := page.link(o)))


def _metric_columns() -> list[Column]:
    """Return the columns of the metrics that are registered with one."""
    return [_metric_column(m, suffix) for m in METRICS.values() for suffix in m.leaderboard]


def _metric_column(m: Metric, suffix: str) -> Column:
    name, notes = m.name + suffix, [m.note] if m.note else []
    if m.probabilities:
        notes.append("with the temperature fitted on val" if suffix else "without calibration")

    def cell(r: PageRow) -> Cell:
        sigmoid = m.probabilities and r.row.probabilities == "sigmoid"
        value = r.row.mean(name)
        return Cell(format_value(value, m.unit), value, "sigmoid" if sigmoid else "")

    return Column(metric_title(name), "figure", ", ".join(notes), cell)


def _figure(value: float | None, unit: str) -> Cell:
    return Cell(format_value(value, unit), value)


def _method(r: PageRow) -> Cell:
    method = r.row.first.method
    settings = ", ".join([method.recipe or "no recipe", *r.row.group.settings])
    return Cell(method.name, r.label, settings)


def _accuracy(r: PageRow) -> Cell:
    value, _, interval = format_interval(r.row.accuracy).partition(" ")
    return Cell(value, r.row.accuracy.value if r.row.accuracy else None, interval)


def _shots(r: PageRow) -> Cell:
    shots = r.row.first.data.shots
    return Cell(r.shots, 0 if not r.trained else float(shots) if shots else 1e9)


def _val_accuracy(r: PageRow) -> Cell:
    return _figure(r.row.val_accuracy.value if r.row.val_accuracy else None, "fraction")


def _trainable(r: PageRow) -> Cell:
    n = r.row.n_trainable_params
    return Cell(NOTHING if n is None else f"{n:,}", n)


def _seeds(r: PageRow) -> Cell:
    n, failed = len(r.row.ok), len(r.row.failed)
    return Cell(f"{n}" + (f" ({failed} failed)" if failed else ""), n)


def _examples(r: PageRow) -> Cell:
    n = r.row.accuracy.n if r.row.accuracy else None
    return Cell(NOTHING if n is None else f"{n:,}", n)


def _flags(r: PageRow) -> Cell:
    return Cell(", ".join(r.row.flags), ", ".join(r.row.flags) or None)


_HEAD: Final = (
    Column("method", "text", "", _method),
    Column("accuracy, %", "figure", "with its 95 % interval over examples and seeds", _accuracy),
    Column("ties", "text", "rows of a block that share a letter are not significantly different at 5 % after Holm",
           lambda r: Cell(r.ranked.letters, r.ranked.letters or None)),
    Column("data", "text", "", lambda r: Cell(place(r.block), place(r.block))),
    Column("model", "text", "", lambda r: Cell(r.row.model or NOTHING, r.row.model)),
    Column("shots", "figure", "training examples per class", _shots),
    Column("val, %", "figure", "accuracy on val, if evaluated there", _val_accuracy),
)  # fmt: skip
_TAIL: Final = (
    Column("trainable", "figure", "trainable parameters", _trainable),
    Column("fit, s", "figure", "without encoding", lambda r: _figure(r.row.fit_seconds, "seconds")),
    Column("encode, s", "figure", "of the features used, including cached ones",
           lambda r: _figure(r.row.encode_seconds, "seconds")),
    Column("memory, MiB", "figure", "peak of the process",
           lambda r: _figure(r.row.peak_memory_bytes, "bytes")),
    Column("seeds", "figure", "each seed is a link to the folder of its run", _seeds),
    Column("n", "figure", "test examples", _examples),
    Column("flags", "text", "", _flags),
)  # fmt: skip
