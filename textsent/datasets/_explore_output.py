"""What ``textsent explore`` shows: aligned tables and a histogram of text lengths."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.api.errors import ClipAdaptError
from clipadapt.core.api.user_input import visible
from clipadapt.core.files.atomic import write_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.data import SplitName
    from textsent.datasets._explore import Lengths

UNITS: Final = {
    "characters": "characters",
    "words": "words",
    "tokens": "tokens, special tokens included",
}
BINS: Final = 40
SHOWN: Final = 100
"""Characters of a text in a table."""
COLOURS: Final = {"train": "#4c72b0", "val": "#dd8452", "test": "#2a7f3e"}
LINES: Final = {"train": "-", "val": "--", "test": "-"}


def render(found: Mapping[str, Any]) -> str:
    """Return the facts of :func:`~textsent.datasets._explore.explore` as aligned tables."""
    tables = [
        _provenance(found),
        _sizes(found),
        _length_table(found["splits"]),
        _tokenised(found["splits"]),
        *_duplicate_tables(found["duplicates"]),
        [
            ["first texts", "label", "text"],
            *(_example_row(e) for facts in found["splits"].values() for e in facts["examples"]),
        ],
    ]
    return "\n\n".join(_aligned(rows) for rows in tables if rows) + "\n"


def _provenance(found: Mapping[str, Any]) -> list[list[str]]:
    return [
        ["dataset", found["dataset"]],
        *([key, found[key]] for key in ("source", "licence", "citation")),
        ["flags", ", ".join(found["flags"]) or "none"],
        ["rows left out", str(found["skipped"])],
        *([f"column {name}", kind] for name, kind in found["features"].items()),
    ]


def _sizes(found: Mapping[str, Any]) -> list[list[str]]:
    rows = [["split", "texts", *found["classnames"]]]
    for split, facts in found["splits"].items():
        balance = [f"{c['count']:,} ({c['share']:.1%})" for c in facts["classes"].values()]
        rows.append([split, f"{facts['size']:,}", *balance])
    return rows


def _length_table(splits: Mapping[str, Any]) -> list[list[str]]:
    names = {"min": "min", "mean": "mean", "median": "median", "p90": "90 %", "p95": "95 %"}
    names |= {"p99": "99 %", "max": "max"}
    units = list(next(iter(splits.values()))["lengths"])
    rows = [["length in", "split", *names.values()]]
    for unit in units:
        for split, facts in splits.items():
            numbers = (facts["lengths"][unit][name] for name in names)
            rows.append([unit, split, *(f"{x:,.1f}".removesuffix(".0") for x in numbers)])
    return rows


def _tokenised(splits: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for split, facts in splits.items():
        if "columns" in facts:
            rows.append([f"columns of {split}", ", ".join(facts["columns"])])
    for split, facts in splits.items():
        if "truncation" in facts:
            cut = facts["truncation"]
            longer = f"{cut['count']:,} ({cut['share']:.1%}) longer than {cut['max_length']} tokens"
            rows.append([f"truncated in {split}", longer])
    return rows


def _duplicate_tables(found: Mapping[str, Any]) -> list[list[list[str]]]:
    near = f"near-duplicate pairs (overlap >= {found['threshold']})"
    rows = [["duplicates", "equal texts", "with two labels", near, "with two labels"]]
    unknown = {"count": None, "conflicts": None}
    for exact, alike in zip(
        found["exact"], found["near"] or [unknown] * len(found["exact"]), strict=True
    ):
        counts = (exact["count"], exact["conflicts"], alike["count"], alike["conflicts"])
        shown = ("not searched" if n is None else f"{n:,}" for n in counts)
        rows.append([" and ".join(exact["splits"]), *shown])
    pairs = []
    for pair in found["examples"]:
        kind = "equal" if pair["kind"] == "exact" else f"overlap {pair['overlap']:.2f}"
        pairs.append([kind, *_example_row(pair["a"])])
        pairs.append(["", *_example_row(pair["b"])])
    return [rows, pairs]


def _example_row(example: Mapping[str, str]) -> list[str]:
    line = " ".join(example["text"].split())
    text = line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"
    return [example["id"], example["label"], text]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def histogram_png(
    path: Path, lengths: Lengths, *, title: str, max_length: int | None = None
) -> None:
    """Draw the lengths of every split, one panel per unit, and write the picture atomically.

    The height is the percentage of the texts of a split, so that splits of different sizes can be compared. If a few
    texts are far longer than the others, the last bin holds them.

    Args:
        path: PNG file.
        lengths: Result of :func:`~textsent.datasets._explore.text_lengths`.
        title: Title of the picture.
        max_length: Number of tokens at which texts are truncated, drawn as a line; None draws no line.

    Raises:
        ClipAdaptError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ClipAdaptError(
            "the histogram needs matplotlib, which is not installed",
            hint="pip install 'clipadapt[report]'",
        ) from None

    units = list(next(iter(lengths.values())))
    figure = Figure(figsize=(5 * len(units), 4.2), layout="constrained")
    axes = figure.subplots(1, len(units), squeeze=False, sharey=False)[0]
    for ax, unit in zip(axes, units, strict=True):
        by_split = {split: of[unit] for split, of in lengths.items()}
        _panel(ax, unit, by_split, max_length if unit == "tokens" else None)
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())


def _panel(
    ax: Any, unit: str, by_split: Mapping[SplitName, NDArray[np.int64]], max_length: int | None
) -> None:
    """Draw the lengths in one unit."""
    width, upper, clipped = _bins(np.concatenate(list(by_split.values())))
    edges = np.arange(0, upper + width, width)
    for split, values in by_split.items():
        counts = np.bincount(np.minimum(values, upper - 1) // width, minlength=len(edges) - 1)
        ax.stairs(
            100 * counts / len(values),
            edges,
            label=f"{split} (n = {len(values):,})",
            fill=split == "train",
            alpha=0.35 if split == "train" else 1.0,
            color=COLOURS[split],
            linestyle=LINES[split],
            linewidth=1.6,
        )
    if max_length is not None and max_length <= upper:
        longer = sum(int((values > max_length).sum()) for values in by_split.values())
        ax.axvline(
            max_length,
            color="black",
            linestyle=":",
            label=f"max length {max_length} ({longer:,} truncated)",
        )
    tail = f"; the last bin holds all of {upper - width} and more" if clipped else ""
    ax.set_xlabel(f"length in {UNITS[unit]}{tail}")
    ax.set_ylabel(f"texts of the split, % per {width} {unit if width > 1 else unit[:-1]}")
    ax.set_xlim(0, upper)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(framealpha=0.9, edgecolor="none")


def _bins(values: NDArray[np.int64]) -> tuple[int, int, bool]:
    """Return the width of a bin, the upper end of the last one, and whether it also holds longer texts."""
    longest, usual = int(values.max()), float(np.percentile(values, 99))
    clipped = longest > max(2 * usual, BINS)
    width = max(1, math.ceil((1.25 * usual if clipped else longest + 1) / BINS))
    upper = width * math.ceil((1.25 * usual if clipped else longest + 1) / width)
    return width, upper, clipped
