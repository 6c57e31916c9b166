"""Calibration: reliability, selective accuracy and the metrics of probabilities, one card per row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.api.errors import RecordError
from clipadapt.core.records.confidence import confidences, score_kind
from clipadapt.core.report import svg
from clipadapt.core.report.charts import accuracy_axis
from clipadapt.core.report.formats import format_value, metric_title
from clipadapt.core.report.section import section
from clipadapt.core.scoring.calibration import reliability, selective
from clipadapt.core.scoring.metrics import CALIBRATED, METRICS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from clipadapt.core.report.page_rows import PageRow
    from clipadapt.core.report.section import Page
    from clipadapt.core.scoring.calibration import Bin

TEMPLATE: Final = """\
<p class="lede">First chart: accuracy against confidence; a calibrated classifier is on the diagonal. Bins of equal
width, seeds pooled, whiskers: 95 % intervals; bars: number of examples. Second chart: accuracy if only the most
confident examples are answered. Dashed: scores without calibration; colour: at T, the temperature fitted on val. AURC:
mean error over all coverages.</p>
<div class="list">
{% for c in cards %}
<details class="card item"{{ attributes(c.row.data) }}{% if loop.index <= 2 %} open{% endif %}>
<summary>{{ key(c.row.style) }}{{ of_row(c.row) }}</summary>
{% if c.note %}<p class="note">{{ c.note }}</p>{% endif %}
{% if c.reliability %}
<div class="side">
<div>{{ svg(c.reliability) }}</div>
<div>{{ svg(c.selective) }}</div>
<table class="small">
<thead><tr>
<th></th><th class="figure">uncalibrated</th>
<th class="figure">{% if c.temperatures %}at T{% else %}no T{% endif %}</th>
</tr></thead>
<tbody>
{% for name, before, after in c.figures %}
<tr><th scope="row">{{ name }}</th><td class="figure">{{ before }}</td><td class="figure">{{ after }}</td></tr>
{% endfor %}
<tr>
<th scope="row">T{% if c.row.row.ok|length > 1 %}, by seed{% endif %}</th>
<td class="figure">{{ "-" if c.figures[0][1] == "-" else "1" }}</td>
<td class="figure">{{ c.temperatures or "-" }}</td>
</tr>
</tbody>
</table>
</div>
{% endif %}
</details>
{% endfor %}
</div>
"""
FIFTHS: Final = tuple(k / 5 for k in range(6))


@dataclass(frozen=True, slots=True)
class Card:
    """Charts and figures of a row; without probabilities a note says why there are none."""

    row: PageRow
    note: str
    reliability: str
    selective: str
    figures: Sequence[tuple[str, str, str]]
    temperatures: str


@dataclass(slots=True)
class _Charts:
    """Series of the two charts of a card."""

    reliability: list[svg.Series] = field(default_factory=list)
    selective: list[svg.Series] = field(default_factory=list)
    bars: list[tuple[float, float, float, str]] = field(default_factory=list)

    def add(
        self, name: str, style: int, confidence: NDArray[np.float64], correct: NDArray[np.bool_]
    ) -> None:
        """Add the series of one temperature; the bars are those of the last one."""
        bins = [b for b in reliability(confidence, correct) if b.count]
        points = [_bin_point(b, name) for b in bins]
        self.reliability.append(svg.Series(style, points, dashed=style < 0))
        top = max(b.count for b in bins)
        self.bars = [(b.low, b.high, b.count / top, f"{b.count} examples, {name}") for b in bins]
        answered = [
            svg.Point(c.coverage, c.accuracy, title=(
                f"{100 * c.coverage:.0f} % answered (confidence from {c.threshold:.3f}): "
                f"{100 * c.accuracy:.1f} % correct, {name}"
            ))
            for c in selective(confidence, correct)
        ]  # fmt: skip
        # Without calibration the order of the confidences, and so the line, is nearly the same.
        self.selective.append(svg.Series(style, answered, dashed=style < 0, marks=style >= 0))


@section("Calibration", order=60, template=TEMPLATE, details=True)
def calibration(page: Page) -> dict[str, Any] | None:
    """Return a card for each row."""
    cards = [_card(r) for r in page.detailed]
    return {"cards": cards} if cards else None


def _card(r: PageRow) -> Card:
    kind = score_kind(r.row.ok[0])
    temperatures = [x.calibration.temperature if x.calibration else None for x in r.row.ok]
    fitted = [t for t in temperatures if t is not None]
    stages: list[tuple[str, int, list[float | None]]] = []
    notes = []
    if kind == "sigmoid":
        notes.append("The probabilities are one sigmoid per class and need not sum to 1.")
    if kind != "margin":
        stages.append(("uncalibrated", -1, [None] * len(r.row.ok)))
    else:
        notes.append(
            "The scores are margins, not logits; without a temperature they have no probabilities."
        )
    if len(fitted) == len(r.row.ok):
        stages.append(("at T", r.style, temperatures))
    charts = _Charts()
    for name, style, values in stages:
        try:
            pairs = [
                confidences(p, kind=kind, temperature=t)
                for p, t in zip(r.row.predictions, values, strict=True)
            ]
        except RecordError as err:
            notes.append(f"{err.problem}.")
            continue
        confidence, correct = (np.concatenate(x) for x in zip(*pairs, strict=True))
        charts.add(name, style, confidence, correct)
    if not charts.reliability and kind == "margin":
        notes.append("No temperature was fitted on val, so calibration cannot be computed.")
    shown = ", ".join(f"{t:.3g}" for t in fitted)
    return Card(r, " ".join(notes), *_plots(r.title, charts), _figures(r), shown)


def _plots(title: str, charts: _Charts) -> tuple[str, str]:
    """Return the charts of reliability and of selective accuracy, empty if there is no confidence."""
    if not charts.reliability:
        return "", ""
    percent = [(x, f"{100 * x:.0f}") for x in FIFTHS]
    confidence = svg.Axis("confidence", (0, 1), [(x, f"{x:.1f}") for x in FIFTHS])
    accuracy = svg.Axis("accuracy, %", (0, 1), percent)
    answered = svg.Axis("answered, % (most confident first)", (0, 1.02), percent)
    return (
        svg.plot(f"Reliability of {title}", confidence, accuracy, charts.reliability,
                 diagonal=True, bars=charts.bars),
        svg.plot(f"Selective accuracy of {title}", answered, accuracy_axis(charts.selective),
                 charts.selective),
    )  # fmt: skip


def _figures(r: PageRow) -> list[tuple[str, str, str]]:
    """Return the metrics of probabilities, before and after calibration."""
    return [
        (
            metric_title(m.name),
            format_value(r.row.mean(m.name), m.unit),
            format_value(r.row.mean(m.name + CALIBRATED), m.unit),
        )
        for m in METRICS.values()
        if m.probabilities
    ]


def _bin_point(b: Bin, name: str) -> svg.Point:
    assert b.accuracy is not None
    assert b.confidence is not None
    title = f"confidence {b.confidence:.3f}, accuracy {100 * b.accuracy.value:.1f} %, {b.count} examples, {name}"
    return svg.Point(b.confidence, b.accuracy.value, b.accuracy.low, b.accuracy.high, title)
