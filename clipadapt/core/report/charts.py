"""Charts that several sections of the page share: points of rows, legends and panels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipadapt.core.report import svg
from clipadapt.core.report.formats import format_interval, format_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from clipadapt.core.report.page_rows import PageRow


@dataclass(frozen=True, slots=True)
class Legend:
    """One line of a legend; see :class:`~clipadapt.core.report.svg.Series`."""

    label: str
    style: int
    data: Mapping[str, str]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart with its heading and legend; of several kinds one is shown at a time."""

    title: str
    chart: str
    legend: Sequence[Legend]
    kind: str = ""


def row_point(
    x: float, r: PageRow, *, note: str = "", ring: bool = False, seeds: bool = True
) -> svg.Point:
    """Return the accuracy of a row with its interval and, if asked for, its single seeds."""
    accuracy = r.row.accuracy
    low, high = (accuracy.low, accuracy.high) if accuracy else (None, None)
    model = f" on {r.row.model}" if r.row.model else ""
    of_seeds = _seeds(r) if seeds else {}
    listed = ", ".join(f"seed {n}: {format_value(v, 'fraction')}" for n, v in of_seeds.items())
    more = "; ".join(filter(None, (note, listed)))
    title = f"{r.title}{model}: {format_interval(accuracy)} %" + (f"; {more}" if more else "")
    return svg.Point(x, r.accuracy, low, high, title, ring, tuple(of_seeds.values()))


def _seeds(r: PageRow) -> dict[int, float]:
    """Return the accuracy of each seed, if there are several."""
    if len(r.row.ok) < 2:
        return {}
    return {o.seed: o.metrics["accuracy"].value for o in r.row.ok if "accuracy" in o.metrics}


def accuracy_axis(series: Iterable[svg.Series]) -> svg.Axis:
    """Return a vertical axis in percent for the points of some series."""
    return svg.linear_axis("accuracy, %", heights(series), factor=100)


def heights(series: Iterable[svg.Series]) -> list[float]:
    """Return the heights that an axis must include, with the ends of intervals and single seeds."""
    points = [p for s in series for p in s.points]
    ends = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    return ends + [value for p in points for value in p.seeds]
