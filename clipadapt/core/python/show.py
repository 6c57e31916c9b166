"""How results show themselves: one line as text, a small table in a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clipadapt.core.report.formats import escape_html, format_interval
from clipadapt.core.scoring.statistics import Interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.scoring.metrics import MetricValue


def html_facts(facts: Mapping[str, str]) -> str:
    """Return a table of names and values; empty values are left out."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape_html(name)}</th>'
        f'<td style="text-align:left">{escape_html(value)}</td></tr>\n'
        for name, value in facts.items()
        if value
    )
    return f"<table>\n{rows}</table>"


def metric_text(metric: MetricValue) -> str:
    """Return a metric with its interval for a reader; a fraction is in percent."""
    found = Interval(metric.value, metric.low, metric.high, 0.95, metric.n)
    text = format_interval(found, metric.unit)
    return f"{text} %" if metric.unit == "fraction" else text


def title_of(record: RunRecord) -> str:
    """Return what a run is: method, dataset, model, shots and seed."""
    name = record.method.recipe or record.method.name
    model = f", {record.model.name}" if record.model else ""
    shots = "" if record.data.shots is None else f", {record.data.shots} shots"
    where = record.evaluation.dataset
    if where != record.data.name:
        where = f"{where} (trained on {record.data.name})"
    split = "" if record.evaluation.split == "test" else f" ({record.evaluation.split})"
    return f"{name} on {where}{split}{model}{shots}, seed {record.seed}"


def folder(path: Path) -> str:
    """Return a folder as it is called from the working directory, or whole if it lies elsewhere."""
    whole, here = path.resolve(), Path.cwd().resolve()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else path)
