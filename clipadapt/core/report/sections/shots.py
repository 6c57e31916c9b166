"""Accuracy against shots, one chart per dataset and model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.report import svg
from clipadapt.core.report.charts import Legend, Panel, accuracy_axis, row_point
from clipadapt.core.report.page_rows import by_size, place
from clipadapt.core.report.section import section

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from clipadapt.core.report.page_rows import PageRow
    from clipadapt.core.report.section import Page

TEMPLATE: Final = """\
<p class="lede">Whiskers: 95 % intervals over examples and seeds. Small dots: single seeds. Dashed: zero-shot, without
training examples.</p>
<div class="grid-cards">
{% for p in panels %}
<figure class="card panel"><figcaption>{{ p.title }}</figcaption>{{ svg(p.chart) }}{{ legend(p.legend) }}</figure>
{% endfor %}
</div>
"""


@section("Accuracy against shots", nav="Shots", order=40, template=TEMPLATE)
def shots(page: Page) -> dict[str, Any] | None:
    """Return a panel for each dataset and model with several numbers of shots."""
    panels = [
        panel
        for title, rows in _by_model(page.finished)
        if (panel := _panel(title, rows)) is not None
    ]
    return {"panels": panels} if panels else None


def _by_model(rows: Sequence[PageRow]) -> Iterator[tuple[str, list[PageRow]]]:
    """Yield title and rows of every chart; a method without a model is in the charts of all models."""
    for where in dict.fromkeys(place(r.block) for r in rows):
        members = [r for r in rows if place(r.block) == where]
        models: list[str | None] = [*sorted({r.row.model for r in members if r.row.model})]
        for model in models or [None]:
            title = f"{where}, {model}" if model else where
            yield title, [r for r in members if r.row.model in {model, None}]


def _panel(title: str, rows: Sequence[PageRow]) -> Panel | None:
    trained = sorted((r for r in rows if r.trained), key=lambda r: r.style)
    names = sorted({r.shots for r in trained}, key=by_size)
    if len(names) < 2:
        return None
    series, legend = [], []
    for label in dict.fromkeys(r.label for r in trained):
        line = sorted((r for r in trained if r.label == label), key=lambda r: by_size(r.shots))
        points = [row_point(names.index(r.shots) + _offset(r, trained), r) for r in line]
        data = {k: v for k, v in line[0].data.items() if k != "shots"}
        series.append(svg.Series(line[0].style, points, data))
        legend.append(Legend(label, line[0].style, data))
    for r in (r for r in rows if not r.trained and r.row.accuracy):
        level = row_point(-0.5, r)
        ends = [level, svg.Point(len(names) - 0.5, level.y)]
        series.append(svg.Series(r.style, ends, r.data, dashed=True, marks=False))
        legend.append(Legend(r.label, r.style, r.data, dashed=True))
    x = svg.step_axis("training examples per class", names)
    label = f"Accuracy against shots, {title}"
    return Panel(title, svg.plot(label, x, accuracy_axis(series), series), legend)


def _offset(row: PageRow, rows: Sequence[PageRow]) -> float:
    """Return the horizontal offset of a point, so that whiskers at one number of shots do not overlap."""
    beside = [r.number for r in sorted(rows, key=lambda r: r.style) if r.shots == row.shots]
    step = min(0.08, 0.6 / len(beside))
    return (beside.index(row.number) - (len(beside) - 1) / 2) * step
