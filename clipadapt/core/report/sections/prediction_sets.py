"""Prediction sets: measured coverage against mean size, one chart per dataset and model."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.report import svg
from clipadapt.core.report.charts import Legend, Panel
from clipadapt.core.report.formats import NOTHING, format_interval, format_value
from clipadapt.core.report.page_rows import place
from clipadapt.core.report.section import section
from clipadapt.core.scoring.prediction_sets import CAVEATS, HEADLINE, KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipadapt.core.records.schema import PredictionSets, SetPoint
    from clipadapt.core.report.page_rows import PageRow
    from clipadapt.core.report.section import Page

TEMPLATE: Final = """\
<p class="lede">A prediction set holds the classes that are plausible for an input: at a nominal coverage of 90 % it
should contain the true class of nine in ten inputs. Chart: sets of the score lac at nominal coverages from 70 to 99 %,
mean over seeds; at equal coverage, smaller sets are better.</p>
<div class="grid-cards">
{% for p in panels %}
<figure class="card panel"><figcaption>{{ p.title }}</figcaption>{{ svg(p.chart) }}{{ legend(p.legend) }}</figure>
{% endfor %}
</div>
<h3>Sets at a nominal coverage of {{ level }} %</h3>
<div class="scroll" tabindex="0" role="region" aria-label="Prediction sets">
<table>
<thead><tr>
<th>method</th><th>data</th><th>score</th><th class="figure">coverage, %</th><th class="figure">classes in a set</th>
<th class="figure">empty, %</th><th class="figure">calibration examples</th><th>note</th>
</tr></thead>
<tbody>
{% for line in lines %}
<tr class="item"{{ attributes(line.row.data) }}>
<th scope="row">{{ line.row.label_with_model }}</th><td>{{ line.place }}</td><td>{{ line.score }}</td>
<td class="figure">{{ line.coverage }}</td><td class="figure">{{ line.size }}</td>
<td class="figure">{{ line.empty }}</td>
<td class="figure">{{ line.n }}</td><td>{{ line.note }}</td>
</tr>
{% endfor %}
</tbody>
</table>
</div>
<div class="list">
{% for c in cards %}
<details class="card item"{{ attributes(c.row.data) }}>
<summary>{{ key(c.row.style) }}Sets by class: {{ of_row(c.row) }}</summary>
<div class="scroll" tabindex="0" role="region" aria-label="Sets by class of {{ c.row.title }}">
<table class="small">
<thead><tr><th>class</th><th class="figure">coverage, %</th><th class="figure">classes in a set</th></tr></thead>
<tbody>
{% for name, coverage, size in c.classes %}
<tr><th scope="row">{{ name }}</th><td class="figure">{{ coverage }}</td><td class="figure">{{ size }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
{% if c.left_out %}
<p class="where">The {{ c.classes|length }} classes with the largest sets; {{ c.left_out }} others are left out.</p>
{% endif %}
</details>
{% endfor %}
</div>
"""
MOST_CLASSES: Final = 20
"""With more classes, only those with the largest sets are listed."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table: a row of the page with one score."""

    row: PageRow
    place: str
    score: str
    coverage: str
    size: str
    empty: str
    n: str
    note: str


@dataclass(frozen=True, slots=True)
class Card:
    """The sets of a row by class: name, coverage and size, means over seeds, the largest sets first."""

    row: PageRow
    classes: Sequence[tuple[str, str, str]]
    left_out: int


@section("Prediction sets", order=65, template=TEMPLATE, details=True)
def prediction_sets(page: Page) -> dict[str, Any] | None:
    """Return a chart per dataset and model, and the table; None if no run has calibration examples."""
    rows = [r for r in page.detailed if any(x.prediction_sets for x in r.row.ok)]
    if not rows:
        return None
    found = [_panel(key, members) for key, members in _by_place(rows).items()]
    return {
        "level": f"{100 * HEADLINE[1]:g}",
        "panels": [p for p in found if p is not None],
        "lines": [line for r in rows for line in _lines(r)],
        "cards": [card for r in rows if (card := _card(r)) is not None],
    }


def _by_place(rows: Sequence[PageRow]) -> dict[str, list[PageRow]]:
    found: dict[str, list[PageRow]] = {}
    for r in rows:
        where = place(r.block) + (f", {r.row.model}" if r.row.model else "")
        found.setdefault(where, []).append(r)
    return found


def _sets(r: PageRow) -> list[PredictionSets]:
    return [x.prediction_sets for x in r.row.ok if x.prediction_sets]


def _points(r: PageRow, kind: str) -> dict[float, list[SetPoint]]:
    """Return the points of every seed by nominal coverage."""
    found: dict[float, list[SetPoint]] = {}
    for sets in _sets(r):
        for p in sets.points:
            if p.score == kind:
                found.setdefault(p.nominal, []).append(p)
    return found


def _panel(title: str, rows: Sequence[PageRow]) -> Panel | None:
    series, legend = [], []
    for r in sorted(rows, key=lambda r: r.style):
        points = [
            svg.Point(
                fmean(p.coverage for p in of_seeds),
                fmean(p.size for p in of_seeds),
                title=f"{r.title}: {100 * nominal:g} % asked for, "
                f"{100 * fmean(p.coverage for p in of_seeds):.1f} % measured, "
                f"{fmean(p.size for p in of_seeds):.2f} classes",
            )
            for nominal, of_seeds in sorted(_points(r, HEADLINE[0].kind).items())
        ]
        if points:
            series.append(svg.Series(r.style, points, r.data))
            legend.append(Legend(r.title, r.style, r.data))
    if not series:
        return None
    x = svg.linear_axis("measured coverage, %", [p.x for s in series for p in s.points], factor=100)
    y = svg.linear_axis("classes in a set", [0.0, *(p.y for s in series for p in s.points)])
    return Panel(
        title, svg.plot(f"Coverage and size of prediction sets, {title}", x, y, series), legend
    )


def _lines(r: PageRow) -> list[Line]:
    """Return one line per score; a row with too few calibration examples has one that says so."""
    sets = _sets(r)
    n = sorted({s.n_calibration for s in sets})
    shown = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
    note = "; ".join(CAVEATS[c] for c in dict.fromkeys(c for s in sets for c in s.caveats))
    lines: list[Line] = []
    for kind in KINDS:
        points = _points(r, kind).get(HEADLINE[1], [])
        if not points:
            continue
        coverage = format_value(fmean(p.coverage for p in points), "fraction")
        if kind == HEADLINE[0].kind:
            coverage = format_interval(r.row.measure("set_coverage")[0])
        lines.append(
            Line(
                r, place(r.block), kind, coverage,
                f"{fmean(p.size for p in points):.2f}",
                format_value(fmean(p.empty for p in points), "fraction"), shown, "" if lines else note,
            )
        )  # fmt: skip
    few = f"{shown} calibration examples are too few"
    return lines or [Line(r, place(r.block), NOTHING, NOTHING, NOTHING, NOTHING, shown, few)]


def _card(r: PageRow) -> Card | None:
    """Return the sets by class, None with too few calibration examples."""
    sets = [s for s in _sets(r) if s.size_by_class]
    found = []
    for c, name in enumerate(r.row.classnames) if sets else ():
        sizes = [x for s in sets if (x := s.size_by_class[c]) is not None]
        coverages = [x for s in sets if (x := s.coverage_by_class[c]) is not None]
        if sizes:
            found.append((fmean(sizes), name, format_value(fmean(coverages), "fraction")))
    found.sort(key=lambda x: (-x[0], x[1]))
    shown = [(name, coverage, f"{size:.2f}") for size, name, coverage in found[:MOST_CLASSES]]
    return Card(r, shown, len(found) - len(shown)) if shown else None
