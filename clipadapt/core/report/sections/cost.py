"""Cost against accuracy: parameters, seconds and memory, with the rows that no other row dominates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.report import svg
from clipadapt.core.report.charts import Legend, Panel, accuracy_axis, row_point
from clipadapt.core.report.page_rows import by_size, place
from clipadapt.core.report.section import section

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from clipadapt.core.report.page_rows import PageRow
    from clipadapt.core.report.rows import Row
    from clipadapt.core.report.section import Page

TEMPLATE: Final = """\
<p class="lede">Rings: with this number of shots, no method has the same accuracy at a lower cost; the dashed line
connects them.</p>
<form class="choice" aria-label="Cost">
{% for kind in kinds %}
<label><input type="radio" name="cost" value="{{ kind }}"{% if loop.first %} checked{% endif %}> {{ kind }}</label>
{% endfor %}
</form>
<div class="grid-cards">
{% for p in panels %}
<figure class="card panel" data-kind="{{ p.kind }}">
<figcaption>{{ p.title }}</figcaption>{{ svg(p.chart) }}{{ legend(p.legend) }}
</figure>
{% endfor %}
</div>
"""


def _mebibytes(row: Row) -> float | None:
    return None if row.peak_memory_bytes is None else row.peak_memory_bytes / 2**20


@dataclass(frozen=True, slots=True)
class Cost:
    """One kind of cost: name in the choice of charts, title of the axis, value of a row."""

    kind: str
    title: str
    of: Callable[[Row], float | None]


COSTS: Final = (
    Cost("parameters", "trainable parameters", lambda row: row.n_trainable_params),
    Cost("seconds", "seconds without a cache, fitting to scores", lambda row: row.cold_seconds),
    Cost("memory", "peak memory, MiB", _mebibytes),
)


@section("Cost against accuracy", nav="Cost", order=50, template=TEMPLATE)
def cost(page: Page) -> dict[str, Any] | None:
    """Return a panel for each dataset and kind of cost."""
    panels = []
    for title in dict.fromkeys(place(r.block) for r in page.finished):
        rows = [r for r in page.finished if place(r.block) == title and r.row.accuracy]
        for kind in COSTS:
            known = [(r, c) for r in rows if (c := kind.of(r.row)) is not None]
            if len(known) > 1:
                panels.append(_panel(title, kind, known))
    return {"panels": panels, "kinds": [c.kind for c in COSTS]} if panels else None


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other point dominates by a lower cost, by ascending cost.

    Args:
        points: Cost and accuracy of each.
    """
    best, front = -np.inf, []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            front.append(i)
            best = points[i][1]
    return front


def _panel(title: str, cost: Cost, known: Sequence[tuple[PageRow, float]]) -> Panel:
    x, at = svg.log_axis(cost.title, [c for _, c in known])
    series, on_front = [], set()
    for shots, front in _fronts(known):
        on_front |= {r.number for r, _ in front}
        if len(front) > 1:
            note = f"no method has this accuracy at a lower cost; shots: {shots}"
            points = [svg.Point(at[c], r.accuracy, title=note) for r, c in front]
            data = {"data": title, "shots": shots}
            series.append(svg.Series(-1, points, data, dashed=True, marks=False))
    several = len({r.row.model for r, _ in known if r.row.model}) > 1
    legend: dict[str, Legend] = {}
    for r, c in known:
        shown = f"{c:,.0f}" if c >= 10 else f"{c:.3g}"
        point = row_point(
            at[c], r, note=f"{shown} {cost.title}", ring=r.number in on_front, seeds=False
        )
        series.append(svg.Series(r.style, [point], r.data))
        data = {k: v for k, v in r.data.items() if k in {"method", "model"}}
        label = r.label_with_model if several else r.label
        legend.setdefault(label, Legend(label, r.style, data))
    chart = svg.plot(f"Accuracy against {cost.title}, {title}", x, accuracy_axis(series), series)
    return Panel(title, chart, list(legend.values()), cost.kind)


def _fronts(
    known: Sequence[tuple[PageRow, float]],
) -> list[tuple[str, list[tuple[PageRow, float]]]]:
    """Return the Pareto front of each number of shots; zero-shot competes at every one."""
    found = []
    for shots in sorted({r.shots for r, _ in known if r.trained}, key=by_size):
        rivals = [(r, c) for r, c in known if not r.trained or r.shots == shots]
        front = pareto([(c, r.accuracy) for r, c in rivals])
        found.append((shots, [rivals[i] for i in front]))
    return found
