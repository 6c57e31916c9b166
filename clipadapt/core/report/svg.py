"""Charts as inline SVG, without scripts or requests. The page's style sheet sets the colours, for light and dark.

A series is a group of class ``s`` and ``c0`` to ``c7``, drawn in the page's colour of that number. Each series also has
its own shape, for readers who cannot distinguish the colours. All text is escaped here.
"""

from __future__ import annotations

import base64
import math
import re
import struct
import zlib
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from clipadapt.core.report.formats import escape_html as escape

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

WIDTH: Final = 400
HEIGHT: Final = 270
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 42
FLOOR: Final = HEIGHT - BOTTOM
COLOURS: Final = 8
SHAPES: Final = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.6-3.6h7.2v7.2h-7.2z",
    "M0-4.8L4.6 3.4H-4.6z",
    "M0-5L5 0 0 5-5 0z",
    "M0 4.8L4.6-3.4H-4.6z",
    "M-1.6-4.6h3.2v3h3v3.2h-3v3h-3.2v-3h-3v-3.2h3z",
    "M0-5L1.5-1.5 5 0 1.5 1.5 0 5-1.5 1.5-5 0-1.5-1.5z",
)
LEVELS: Final = 8
CELL: Final = 22
MOST_NAMED: Final = 20
INK: Final = (47, 128, 208)
"""Colour of matrices drawn as pictures, with transparency; it works on light and dark backgrounds."""

_AXES: Final = re.compile('<g class="axes">.*?</g>')
_MARK: Final = re.compile(
    r'<path class="m" transform="translate\((\S+) (\S+)\)" d="('
    + "|".join(map(re.escape, SHAPES))
    + ')"/>'
)

Tick = tuple[float, str]
Range = tuple[float, float]
Bar = tuple[float, float, float, str]
"""Start, end, share of the tallest bar, and tooltip."""


@dataclass(frozen=True, slots=True)
class Point:
    """One mark.

    Attributes:
        x: Horizontal value.
        y: Vertical value.
        low: Lower end of its interval, or None.
        high: Upper end, or None.
        title: Tooltip.
        ring: Whether a ring is drawn around it.
        seeds: Vertical values of single seeds, drawn beside the mark.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    title: str = ""
    ring: bool = False
    seeds: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one colour and shape.

    Attributes:
        style: Number of the colour and shape; -1 is plain ink.
        points: In the order of the line.
        data: ``data-`` attributes for the page's filters.
        line: Whether a line connects the points.
        dashed: Whether that line is dashed.
        marks: Whether the points are drawn.
    """

    style: int
    points: Sequence[Point]
    data: Mapping[str, str] = field(default_factory=dict)
    line: bool = True
    dashed: bool = False
    marks: bool = True


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis.

    Attributes:
        title: Title with the unit.
        range: Values at its ends.
        ticks: Values and their labels.
    """

    title: str
    range: Range
    ticks: Sequence[Tick]


def linear_axis(title: str, values: Sequence[float], *, factor: float = 1.0) -> Axis:
    """Return an axis with round ticks that includes some values.

    Args:
        title: Title with the unit.
        values: Values to include.
        factor: Multiplies the tick labels: 100 shows fractions in percent.
    """
    low, high = min(values, default=0.0), max(values, default=1.0)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1 / factor
    low, high = low - pad, high + pad
    step = _round_step((high - low) * factor / 5) / factor
    first = math.ceil(low / step - 1e-9)
    ticks = [first * step]
    while ticks[-1] + step <= high + 1e-12:
        ticks.append(ticks[-1] + step)
    digits = _decimals(step * factor)
    return Axis(title, (low, high), [(t, f"{t * factor + 0.0:.{digits}f}") for t in ticks])


def log_axis(title: str, values: Sequence[float]) -> tuple[Axis, dict[float, float]]:
    """Return a logarithmic axis and the position of each value on it; zero is at its lower end."""
    positive = [math.log10(v) for v in values if v > 0]
    low, high = min(positive, default=0.0), max(positive, default=1.0)
    pad = max(0.08 * (high - low), 0.12)
    places = {v: math.log10(v) for v in values if v > 0}
    decades = range(math.floor(low - pad), math.ceil(high + pad) + 1)
    ticks: list[Tick] = [(float(d), _power(d)) for d in decades if low - pad <= d <= high + pad]
    if len(ticks) < 2:
        ticks = [
            (math.log10(m * 10.0**d), _power(d, m))
            for d in decades
            for m in (1, 2, 5)
            if low - pad <= math.log10(m * 10.0**d) <= high + pad
        ]
    elif len(ticks) > 7:
        ticks = ticks[:: -(-len(ticks) // 7)]
    start = low - pad
    if any(v <= 0 for v in values):
        zero = low - max(0.15 * (high - low), 0.5)
        places.update({v: zero for v in values if v <= 0})
        start = zero - pad
        ticks = [(zero, "0"), *(t for t in ticks if t[0] > zero + 0.1)]
    return Axis(title, (start, high + pad), ticks), places


def step_axis(title: str, names: Sequence[str]) -> Axis:
    """Return an axis of named steps at 0, 1, 2 ..."""
    return Axis(title, (-0.5, len(names) - 0.5), [(float(i), n) for i, n in enumerate(names)])


@dataclass(frozen=True, slots=True)
class _Frame:
    """The axes of a chart, and where values are on it."""

    x: Axis
    y: Axis

    def across(self, value: float) -> float:
        low, high = self.x.range
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def up(self, value: float) -> float:
        low, high = self.y.range
        return round(FLOOR - (value - low) / (high - low) * (FLOOR - TOP), 1)


def plot(
    label: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    *,
    diagonal: bool = False,
    bars: Sequence[Bar] = (),
) -> str:
    """Return a chart.

    Args:
        label: Description for screen readers.
        x: Horizontal axis.
        y: Vertical axis.
        series: Drawn in this order.
        diagonal: Draw the line where ``y`` equals ``x``.
        bars: Bars along the lower edge.
    """
    frame = _Frame(x, y)
    out = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
    ]
    out += ['<g class="axes">', *_axes(frame), "</g>"]
    out += [_bar(frame, bar) for bar in bars]
    if diagonal:
        low, high = max(x.range[0], y.range[0]), min(x.range[1], y.range[1])
        start, end = (f"{frame.across(v)} {frame.up(v)}" for v in (low, high))
        out.append(f'<path class="ideal" d="M{start}L{end}"/>')
    out += [_group(frame, one) for one in series]
    return "".join([*out, "</svg>"])


def _axes(frame: _Frame) -> list[str]:
    """Return grid, ticks and titles of both axes."""
    out, right = [], WIDTH - RIGHT
    for value, name in frame.y.ticks:
        y = frame.up(value)
        out.append(f'<path class="grid" d="M{LEFT} {y}H{right}"/>')
        out.append(
            f'<text class="tick" x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{escape(name)}</text>'
        )
    for value, name in frame.x.ticks:
        x = frame.across(value)
        out.append(f'<path class="axis" d="M{x} {FLOOR}v4"/>')
        out.append(
            f'<text class="tick" x="{x}" y="{FLOOR + 17}" text-anchor="middle">{escape(name)}</text>'
        )
    out.append(f'<path class="axis" d="M{LEFT} {TOP}V{FLOOR}H{right}"/>')
    centre, half = (LEFT + right) / 2, (TOP + FLOOR) / 2
    out.append(
        f'<text class="name" x="{centre}" y="{HEIGHT - 6}" text-anchor="middle">{escape(frame.x.title)}</text>'
    )
    out.append(
        f'<text class="name" transform="translate(12 {half})rotate(-90)" text-anchor="middle">'
        f"{escape(frame.y.title)}</text>"
    )
    return out


def _bar(frame: _Frame, bar: Bar) -> str:
    start, end, share, title = bar
    height = round(0.22 * share * (FLOOR - TOP), 1)
    width = max(frame.across(end) - frame.across(start) - 1, 0.5)
    return (
        f'<rect class="bar pt" x="{frame.across(start)}" y="{FLOOR - height}" width="{width:.1f}" height="{height}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _group(frame: _Frame, series: Series) -> str:
    """Return line and marks of a series."""
    out = [f'<g class="{_classes(series)}"{attributes(series.data)}>']
    places = [(frame.across(p.x), frame.up(p.y), p) for p in series.points]
    if series.line and len(places) > 1:
        path = _line([(x, y) for x, y, _ in places])
        title = "" if series.marks else f"<title>{escape(series.points[0].title)}</title>"
        kinds = (" dash" if series.dashed else "") + (" pt" if title else "")
        out.append(f'<path class="line{kinds}" d="{path}">{title}</path>')
    if series.marks:
        out += [_mark(x, y, p, series.style, frame.up) for x, y, p in places]
    return "".join([*out, "</g>"])


def _line(places: Sequence[tuple[float, float]]) -> str:
    """Return a path through points; steps are relative, which takes a third less space."""
    tenths = [(round(10 * x), round(10 * y)) for x, y in places]
    steps = [(u - x, v - y) for (x, y), (u, v) in pairwise(tenths)]
    (x, y), *_ = places
    return f"M{x} {y}l" + " ".join(f"{u / 10:g} {v / 10:g}" for u, v in steps).replace(" -", "-")


def key(style: int, *, dashed: bool = False) -> str:
    """Return the small mark of a series for a legend."""
    dash = " dash" if dashed else ""
    mark = "" if dashed else f'<path class="m" transform="translate(14 7)" d="{_shape(style)}"/>'
    return (
        f'<svg class="key s {_colour(style)}" viewBox="0 0 28 14" aria-hidden="true">'
        f'<path class="line{dash}" d="M1 7H27"/>{mark}</svg>'
    )


def heat(label: str, names: Sequence[str], counts: NDArray[np.float64]) -> str:
    """Return a confusion matrix, true classes in rows, predicted ones in columns; shades are shares of a row.

    Args:
        label: Description for screen readers.
        names: ``C`` class names; with more than :data:`MOST_NAMED` the matrix is a picture without names and counts.
        counts: Shape ``(C, C)``.
    """
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-12)
    level = np.where(counts > 0, np.ceil(share * (LEVELS - 1)), 0).astype(np.uint8)
    if len(names) > MOST_NAMED:
        data = base64.b64encode(_png(level)).decode()
        return f'<img class="heat" alt="{escape(label)}" src="data:image/png;base64,{data}">'
    size = len(names) * CELL
    left = round(min(6 + 6.2 * max(len(s) for s in names), 150))
    width, height = left + size, size + left
    head = (
        f'<svg class="heat" viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img"'
    )
    out = [f'{head} aria-label="{escape(label)}">']
    for depth in range(LEVELS):
        cells = "".join(
            f"M{left + j * CELL} {i * CELL}h{CELL}v{CELL}h-{CELL}z"
            for i, j in zip(*np.nonzero(level == depth), strict=True)
        )
        if cells:
            out.append(f'<path class="h{depth}" d="{cells}"/>')
    for i, j in zip(*np.nonzero(counts), strict=True):
        x, y, count = left + (j + 0.5) * CELL, (i + 0.5) * CELL + 4, short_count(counts[i, j])
        out.append(
            f'<text class="count k{level[i, j]}" x="{x:.0f}" y="{y:.0f}" text-anchor="middle">{count}</text>'
        )
    for i, name in enumerate(names):
        text = escape(name if len(name) <= 24 else f"{name[:23]}…")
        at = (i + 0.5) * CELL + 4
        out.append(
            f'<text class="tick" x="{left - 5}" y="{at:.0f}" text-anchor="end">{text}</text>'
        )
        out.append(
            f'<text class="tick" transform="translate({left + at:.0f} {size + 5})rotate(-90)" '
            f'text-anchor="end">{text}</text>'
        )
    out.append("</svg>")
    return "".join(out)


def shared(html: str) -> tuple[str, str]:
    """Return a page whose charts refer to marks and to axes that several of them have, and a picture of those."""
    times = Counter(_AXES.findall(html))
    names = {axes: f"a{i}" for i, axes in enumerate(k for k, n in times.items() if n > 1)}

    def refer(found: re.Match[str]) -> str:
        name = names.get(found[0])
        return f'<use href="#{name}"/>' if name else found[0]

    kept = "".join(axes.replace("<g", f'<g id="{name}"', 1) for axes, name in names.items())
    kept += "".join(f'<path id="m{i}" d="{shape}"/>' for i, shape in enumerate(SHAPES))
    html = _MARK.sub(
        lambda m: f'<use class="m" href="#m{SHAPES.index(m[3])}" x="{m[1]}" y="{m[2]}"/>',
        _AXES.sub(refer, html),
    )
    return html, f'<svg class="shared" aria-hidden="true"><defs>{kept}</defs></svg>'


def short_count(value: float) -> str:
    """Return a mean count, with one decimal if it is small and not whole."""
    return f"{value:.0f}" if value >= 9.95 or abs(value - round(value)) < 0.05 else f"{value:.1f}"


def attributes(data: Mapping[str, str]) -> str:
    """Return ``data-`` attributes with a space before each."""
    return "".join(f' data-{name}="{escape(value)}"' for name, value in data.items())


def _mark(x: float, y: float, point: Point, style: int, up: Callable[[float], float]) -> str:
    bar = ""
    if point.low is not None and point.high is not None:
        low, high = up(point.low), up(point.high)
        bar = f'<path class="whisker" d="M{round(x - 3, 1)} {low}h6m-3 0V{high}m-3 0h6"/>'
    ring = f'<circle class="ring" cx="{x}" cy="{y}" r="8"/>' if point.ring else ""
    dots = "".join(f"M{round(x + 6, 1)} {up(value)}h0" for value in point.seeds)
    seeds = f'<path class="seed" d="{dots}"/>' if dots else ""  # lines of no length with round ends
    return (
        f'<g class="pt"><title>{escape(point.title)}</title>{bar}{ring}'
        f'<path class="m" transform="translate({x} {y})" d="{_shape(style)}"/>{seeds}</g>'
    )


def _classes(series: Series) -> str:
    return f"s {_colour(series.style)}" + (" item" if series.data else "")


def _colour(style: int) -> str:
    return "ink" if style < 0 else f"c{style % COLOURS}"


def _shape(style: int) -> str:
    return SHAPES[max(style, 0) % len(SHAPES)]


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= step * 0.999)


def _decimals(step: float) -> int:
    """Return the decimals that a tick needs: 2.5 needs one although it is above 1."""
    least = max(0, -math.floor(math.log10(step) + 1e-9))
    return least if math.isclose(round(step, least), step, rel_tol=1e-6) else least + 1


def _power(exponent: int, times: int = 1) -> str:
    if exponent < 3:
        return f"{times * 10.0**exponent:g}"
    least, unit = next((e, u) for e, u in ((9, "G"), (6, "M"), (3, "k")) if exponent >= e)
    return f"{times * 10 ** (exponent - least)}{unit}"


def _png(level: NDArray[np.uint8]) -> bytes:
    """Return a picture with one pixel per cell, whose opacity is the level."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows, columns = level.shape
    lines = np.pad(level, ((0, 0), (1, 0))).astype(np.uint8)  # a filter byte of 0 begins each line
    return b"".join([
        b"\x89PNG\r\n\x1a\n",
        chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
        chunk(b"PLTE", bytes(INK) * LEVELS),
        chunk(b"tRNS", bytes(round(255 * k / (LEVELS - 1)) for k in range(LEVELS))),
        chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
        chunk(b"IEND", b""),
    ])
