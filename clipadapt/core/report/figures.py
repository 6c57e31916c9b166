"""Charts of runs for a notebook or a paper, drawn into matplotlib axes that the caller can restyle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from clipadapt.core.api.errors import RecordError, unknown
from clipadapt.core.api.user_input import visible
from clipadapt.core.records.confidence import confidences, score_kind
from clipadapt.core.report.curves import (
    COLOURS,
    MARKERS,
    draw_line,
    label_epochs,
    require_matplotlib,
    style_axes,
)
from clipadapt.core.report.grouping import group_records
from clipadapt.core.report.rows import Row
from clipadapt.core.scoring.calibration import reliability
from clipadapt.core.scoring.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from clipadapt.core.records.predictions import Predictions
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.report.curves import Curve
    from clipadapt.core.report.run_files import RunFiles

Value = Literal["loss", "accuracy"]
_FIELDS: Final[dict[str, tuple[tuple[str, str, bool], ...]]] = {
    "loss": (("train", "train_loss", True), ("val", "val_loss", False)),
    "accuracy": (("train", "train_accuracy", True), ("val", "val_accuracy", False)),
}


def learning_curve(curve: Curve, value: Value, ax: Axes | None) -> Axes:
    """Draw the loss or the accuracy of a run by epoch: train dashed, val solid, a ring at the selected epoch.

    Args:
        curve: The run.
        value: ``loss`` in nats or ``accuracy`` in percent.
        ax: Axes to draw into; None makes new ones.

    Raises:
        RecordError: If the run logged no epoch.
        UnknownNameError: If there is no such value.
        ClipAdaptError: If matplotlib is not installed.
    """
    if value not in _FIELDS:
        raise unknown("value of a learning curve", str(value), tuple(_FIELDS))
    if not curve.epochs:
        raise RecordError(
            f"the run of {curve.label} logged no epochs, so it has no learning curve",
            hint="methods that are trained by epochs have one, such as those with a setting 'epochs'",
        )
    axes = _axes(ax, "learning curves")
    for name, field, dashed in _FIELDS[value]:
        before = len(axes.lines)
        factor = 100.0 if value == "accuracy" else 1.0
        draw_line(axes, curve, field, COLOURS[0], MARKERS[0], dashed=dashed, factor=factor)
        if len(axes.lines) > before:
            axes.lines[before].set_label(name)
    label_epochs(axes, "loss, nats" if value == "loss" else "accuracy, %")
    _title(axes, f"{curve.label}, seed {curve.seed}")
    if axes.lines:
        axes.legend(frameon=False)
    return axes


def reliability_diagram(
    record: RunRecord, predictions: Predictions, temperature: float | None, ax: Axes | None
) -> Axes:
    """Draw accuracy against confidence in bins of equal width, with 95 % intervals; the diagonal is calibrated.

    Args:
        record: The record of the run.
        predictions: Its predictions.
        temperature: Temperature of the probabilities; None uses the scores unscaled.
        ax: Axes to draw into; None makes new ones.

    Raises:
        RecordError: If the run has no probabilities at this temperature.
        ClipAdaptError: If matplotlib is not installed.
    """
    confidence, correct = confidences(predictions, kind=score_kind(record), temperature=temperature)
    bins = [b for b in reliability(confidence, correct) if b.count]
    axes = _axes(ax, "reliability diagrams")
    axes.plot([0, 1], [0, 1], color="#888888", linestyle="--", linewidth=1.0)
    shares = [b.count / len(confidence) for b in bins]
    axes.bar(
        [b.low for b in bins], shares, width=[b.high - b.low for b in bins], align="edge",
        color="#dddddd", label="share of the examples",
    )  # fmt: skip
    found = [(b.confidence, b.accuracy) for b in bins if b.confidence is not None and b.accuracy]
    y = np.array([a.value for _, a in found])
    bounds = np.array([(a.low, a.high) for _, a in found], dtype=np.float64)
    axes.errorbar(
        [c for c, _ in found], y, yerr=np.abs(bounds.T - y), fmt="o-", color=COLOURS[0],
        markersize=4, linewidth=1.2, elinewidth=0.8, label="accuracy",
    )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    style_axes(axes)
    axes.legend(frameon=False, loc="upper left")
    at = "" if temperature is None else f", temperature {temperature:.3g}"
    _title(axes, f"{record.method.recipe or record.method.name} on {record.evaluation.dataset}{at}")
    return axes


def metric_by_shots(
    records: Sequence[RunRecord], files: RunFiles, metric: str, ax: Axes | None
) -> Axes:
    """Draw a metric against the training examples per class, one line for each method, model and dataset.

    Each point is the mean over the seeds with its 95 % interval. Methods without training are horizontal lines.

    Args:
        records: Records of any kind; failed ones are left out.
        files: Their predictions, for the intervals.
        metric: Name of the metric.
        ax: Axes to draw into; None makes new ones.

    Raises:
        RecordError: If no record has the metric.
        ClipAdaptError: If matplotlib is not installed.
    """
    rows = [Row(group, files) for group in group_records(r for r in records if r.status == "ok")]
    lines: dict[str, list[tuple[int | None, Any]]] = {}
    for row in rows:
        found, _ = row.measure(metric)
        if found is not None:
            trained = row.first.method.uses_train
            shots = row.first.data.shots if trained else None
            lines.setdefault(_line_title(row, rows), []).append((shots, found))
    if not lines:
        raise RecordError(f"no run has the metric '{metric}'")
    axes = _axes(ax, "charts")
    factor = 100.0 if metric in METRICS and METRICS[metric].unit == "fraction" else 1.0
    for i, (label, points) in enumerate(lines.items()):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        few = sorted((shots, p) for shots, p in points if shots is not None)
        for _, whole in (p for p in points if p[0] is None):
            axes.axhline(
                factor * whole.value, color=colour, linestyle="--", linewidth=1.2, label=label
            )
        if few:
            y = factor * np.array([p.value for _, p in few])
            ends = [(p.value if p.low is None else p.low, p.value if p.high is None else p.high)
                    for _, p in few]  # fmt: skip
            axes.errorbar(
                [shots for shots, _ in few], y, yerr=np.abs(factor * np.array(ends).T - y),
                fmt=f"{marker}-", color=colour, markersize=4, linewidth=1.2, elinewidth=0.8,
                label=label,
            )  # fmt: skip
    counts = sorted({s for points in lines.values() for s, _ in points if s is not None})
    if counts:
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.minorticks_off()
    axes.set(
        xlabel="training examples per class", ylabel=f"{metric}{', %' if factor == 100 else ''}"
    )
    style_axes(axes)
    for text in axes.legend(frameon=False, fontsize=8).get_texts():
        text.set_parse_math(False)
    return axes


def _line_title(row: Row, rows: Sequence[Row]) -> str:
    """Return the method of a row, with its model and dataset where they differ among the rows."""
    parts = [visible(row.label)]
    if len({r.model for r in rows if r.model}) > 1 and row.model:
        parts.append(visible(row.model))
    if len({r.first.evaluation.dataset for r in rows}) > 1:
        parts.append(visible(row.first.evaluation.dataset))
    return ", ".join(parts)


def _axes(ax: Axes | None, what: str) -> Axes:
    """Return the given axes, or those of a new figure of pyplot, which a notebook shows."""
    require_matplotlib(what)
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt

    return plt.subplots(layout="constrained")[1]


def _title(axes: Axes, text: str) -> None:
    # Without parse_math, a name with two dollar signs is not a formula.
    axes.set_title(visible(text), parse_math=False, fontsize=10)
