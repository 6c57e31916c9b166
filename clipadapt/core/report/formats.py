"""How figures, names and tables are written, once for `table`, summary and page.

Records hold fractions in [0, 1], seconds and bytes. For a reader, a fraction is a percentage with one decimal and its
95 % interval in the same unit: ``72.3 [68.1, 76.0]``. CSV keeps the raw values.
"""

from __future__ import annotations

import csv
import html
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.user_input import visible
from clipadapt.core.scoring.metrics import find_metric

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from clipadapt.core.scoring.statistics import Interval

NOTHING: Final = "-"
"""Shown for an unknown value."""

# ---------------------------------------------------------------- values


def format_value(value: float | None, unit: str) -> str:
    """Return a value for a reader: percent for a fraction, MiB for bytes, ``-`` for None."""
    if value is None:
        return NOTHING
    if unit == "fraction":
        return f"{100 * value:.1f}"
    if unit == "bytes":
        return f"{value / 2**20:.0f}"
    if unit == "seconds":
        return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
    return f"{value:.3f}"


def format_interval(interval: Interval | None, unit: str = "fraction") -> str:
    """Return a value with the bounds of its interval, where it has one."""
    if interval is None:
        return NOTHING
    value = format_value(interval.value, unit)
    if interval.low is None or interval.high is None:
        return value
    return f"{value} [{format_value(interval.low, unit)}, {format_value(interval.high, unit)}]"


def format_signed(value: float | None, factor: float, digits: int) -> str:
    """Return a value times a factor with its sign."""
    return NOTHING if value is None else f"{factor * value:+.{digits}f}"


def format_difference(interval: Interval) -> str:
    """Return a difference of fractions in percentage points, with the bounds of its interval."""
    value = format_signed(interval.value, 100, 1)
    if interval.low is None or interval.high is None:
        return value
    return (
        f"{value} [{format_signed(interval.low, 100, 1)}, {format_signed(interval.high, 100, 1)}]"
    )


def format_p_value(value: float) -> str:
    """Return a p-value with four decimals."""
    return "below 0.0001" if value < 1e-4 else f"{value:.4f}"


def format_count(n: int | None) -> str:
    """Return a whole number with its thousands separated."""
    return NOTHING if n is None else f"{n:,}"


def format_rate(value: float | None) -> str:
    """Return a rate, with one decimal below 10."""
    return NOTHING if value is None else f"{value:,.{0 if value >= 10 else 1}f}"


def format_mebibytes(n: int | None) -> str:
    """Return a file size in MiB, with two decimals below 10 MiB."""
    return NOTHING if n is None else f"{n / 2**20:,.{0 if n >= 10 << 20 else 2}f}"


def format_set(classes: Sequence[str], most: int = 10) -> str:
    """Return the classes of a prediction set in braces; only the first ``most`` are named."""
    more = [f"and {len(classes) - most} more"] if len(classes) > most else []
    return f"{{{', '.join([*map(visible, classes[:most]), *more])}}}"


# ---------------------------------------------------------------- names


def method_title(name: str, recipe: str | None) -> str:
    """Return a method with its recipe."""
    return f"{name} ({recipe})" if recipe else name


def split_title(split: str, classes: str) -> str:
    """Return a split with the classes evaluated; ``H`` is the harmonic mean of base and new."""
    if classes == "H":
        return f"{split}, H of base and new"
    return split if classes == "all" else f"{split}, {classes} classes"


def metric_title(name: str, unit: str | None = None) -> str:
    """Return the heading of a metric's column: its registered title and its unit.

    Args:
        name: Name of the metric; one that is not registered is its own title.
        unit: Unit of its values, None for the registered one.
    """
    known = find_metric(name)
    title = known.title if known else name
    if known and name != known.name:
        title = f"calibrated {title}"
    unit = known.unit if known and unit is None else unit or ""
    return title + {"fraction": ", %", "bytes": ", MiB", "": ""}.get(unit, f", {unit}")


# ---------------------------------------------------------------- escaping


def escape_markdown(text: str) -> str:
    """Return text on one line that Markdown shows unchanged."""
    text = (
        visible(" ".join(text.split()))
        .replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
    )
    return re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", text)


def escape_html(text: str) -> str:
    """Return text that HTML shows unchanged, in an element or an attribute."""
    return html.escape(visible(text, lines=True))


_LATEX: Final = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after a line break LaTeX would read it as an option
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def escape_latex(text: str) -> str:
    """Return text on one line that LaTeX shows unchanged."""
    return "".join(_LATEX.get(c, c) for c in visible(" ".join(text.split())))


_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def escape_csv(cell: Any) -> Any:
    """Return text that neither a spreadsheet nor a terminal executes; numbers stay numbers."""
    if not isinstance(cell, str):
        return cell
    text = visible(cell, lines=True)
    return f"'{text}" if text.startswith(_FORMULA) else text


# ---------------------------------------------------------------- grids


@dataclass(frozen=True, slots=True)
class Column:
    """Heading of a column.

    Attributes:
        title: The heading.
        text: Whether cells are text, which is escaped and left-aligned; figures are right-aligned.
        rank: How early a narrow terminal leaves the column out, the highest first; 0 for never.
        given: Whether it says what was run, rather than what came of it.
        figure: Whether it is what the table is about.
    """

    title: str
    text: bool = False
    rank: int = 0
    given: bool = False
    figure: bool = False


def markdown_grid(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    bold: Collection[tuple[int, int]] = (),
) -> str:
    """Return a Markdown table.

    Args:
        columns: One for each cell of a row.
        rows: Unescaped cells.
        bold: Row and column indices of the cells in bold.
    """
    lines = [
        [escape_markdown(c.title) for c in columns],
        ["---" if c.text else "---:" for c in columns],
    ]
    for i, row in enumerate(rows):
        cells = [
            escape_markdown(cell) if c.text else cell for cell, c in zip(row, columns, strict=True)
        ]
        lines.append([f"**{cell}**" if (i, j) in bold else cell for j, cell in enumerate(cells)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def html_grid(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    bold: Collection[tuple[int, int]] = (),
) -> str:
    """Return an HTML table; see :func:`markdown_grid`."""

    def line(tag: str, cells: Sequence[str]) -> str:
        joined = "".join(
            f"<{tag}>{cell}</{tag}>"
            if c.text
            else f'<{tag} style="text-align:right">{cell}</{tag}>'
            for cell, c in zip(cells, columns, strict=True)
        )
        return f"<tr>{joined}</tr>"

    body = []
    for i, row in enumerate(rows):
        cells = [escape_html(cell) for cell in row]
        marked = [
            f"<strong>{cell}</strong>" if (i, j) in bold else cell for j, cell in enumerate(cells)
        ]
        body.append(line("td", marked))
    head = line("th", [escape_html(c.title) for c in columns])
    lines = ["<table>", f"<thead>{head}</thead>", "<tbody>", *body, "</tbody>", "</table>"]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- documents


@dataclass(frozen=True, slots=True)
class Form:
    """How the parts of a document of several tables are written; each part ends with a newline.

    Attributes:
        heading: A heading of a level, 2 for a section.
        grid: A table: columns, rows, and the row and column indices of the cells in bold.
        paragraph: Text.
        items: A list.
    """

    heading: Callable[[int, str], str]
    grid: Callable[[Sequence[Column], Sequence[Sequence[str]], Collection[tuple[int, int]]], str]
    paragraph: Callable[[str], str]
    items: Callable[[Sequence[str]], str]


MARKDOWN: Final = Form(
    heading=lambda level, text: f"{'#' * level} {escape_markdown(text)}\n",
    grid=markdown_grid,
    paragraph=lambda text: f"{escape_markdown(text)}\n",
    items=lambda texts: "".join(f"- {escape_markdown(text)}\n" for text in texts),
)
HTML: Final = Form(
    heading=lambda level, text: f"<h{level}>{escape_html(text)}</h{level}>\n",
    grid=html_grid,
    paragraph=lambda text: f"<p>{escape_html(text)}</p>\n",
    items=lambda texts: "".join([
        "<ul>\n",
        *(f"<li>{escape_html(text)}</li>\n" for text in texts),
        "</ul>\n",
    ]),
)


# ---------------------------------------------------------------- files of one table


def latex_grid(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, n_last: int = 0) -> str:
    """Return a LaTeX table, which needs the booktabs package; a rule separates the last ``n_last`` rows."""
    escaped = [
        [escape_latex(cell) if c.text else cell for cell, c in zip(row, columns, strict=True)]
        for row in rows
    ]
    body = [" & ".join(cells) + r" \\" for cells in escaped]
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{{''.join('l' if c.text else 'r' for c in columns)}}}",
        "\\toprule",
        " & ".join(escape_latex(c.title) for c in columns) + r" \\",
        "\\midrule",
        *body[: len(body) - n_last],
        *(["\\midrule", *body[len(body) - n_last :]] if n_last else []),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def csv_grid(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return CSV; None is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([escape_csv(cell) for cell in row])
    return out.getvalue()
