"""Tables for a terminal: they fit its width, and what is equal in all rows stands below them once.

A table that is too wide first breaks its headings and names over lines and then leaves columns out, those with the
highest ``rank`` first (costs before counts). A line below it names them. Figures and methods are never left out. Bold
and dim are the only styles, because both can be read on light and on dark backgrounds.
"""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from clipadapt.core.api.user_input import visible
from clipadapt.core.report import summary as summaries
from clipadapt.core.report.formats import NOTHING, Form
from clipadapt.core.report.tables import cells_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from rich.box import Box
    from rich.console import Console, RenderableType

    from clipadapt.core.report.formats import Column
    from clipadapt.core.report.summary import Summary
    from clipadapt.core.report.tables import Table

GAP: Final = 2
"""Spaces between columns."""
LONGEST_WORD: Final = 24
"""A word of a name that is longer may be broken."""


@dataclass(frozen=True, slots=True)
class Screen:
    """Where a table is shown.

    Attributes:
        width: Characters of a line.
        styled: Whether bold and dim may be used.
        unicode: Whether lines may be drawn with characters outside ASCII.
    """

    width: int
    styled: bool = True
    unicode: bool = True


def render(table: Table, screen: Screen) -> str:
    """Return a table of one metric with its notes, ending with a newline."""
    columns, rows, n_means = cells_of(table)
    shown = grid(columns, rows, (), screen, n_last=n_means)
    return shown + "".join(f"\n{_paragraph(note, screen)}" for note in table.notes)


def render_summary(summary: Summary, screen: Screen) -> str:
    """Return the summary of a sweep, ending with a newline."""
    return summaries.document(summary, form(screen))


def form(screen: Screen) -> Form:
    """Return how a document of several tables is written for a screen."""
    return Form(
        heading=lambda level, text: _styled(
            visible(text), screen, "bold" if level == 2 else "underline"
        ),
        grid=lambda columns, rows, bold: grid(columns, rows, bold, screen),
        paragraph=lambda text: _paragraph(text, screen),
        items=lambda texts: "".join(_paragraph(f"- {text}", screen, dim=False) for text in texts),
    )


def grid(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    bold: Collection[tuple[int, int]],
    screen: Screen,
    *,
    n_last: int = 0,
) -> str:
    """Return a table that fits a screen, with what is equal in all rows, and what was left out, below it.

    Args:
        columns: One for each cell of a row.
        rows: Unescaped cells.
        bold: Row and column indices of the cells in bold.
        screen: Where it is shown.
        n_last: Rows at the end that a line separates from the others, which say nothing about what is equal.
    """
    cells = [[visible(cell) for cell in row] for row in rows]
    same = _same(columns, cells[: len(cells) - n_last], bold)
    kept = [j for j in range(len(columns)) if j not in same]
    left_out: list[int] = []
    while _least(columns, cells, kept) > screen.width:
        rank, j = max((columns[j].rank, j) for j in kept)
        if rank == 0:
            break
        kept.remove(j)
        left_out.append(j)
    if _least(columns, cells, kept) > screen.width:
        text = _listed(columns, cells, kept, screen)
    else:
        text = _table(columns, cells, kept, bold, screen, n_last)
    equal = [_with_unit(columns[j], x) for j, x in same.items() if x not in {"", NOTHING}]
    if equal:
        head = "Equal in all rows: " if len(rows) - n_last > 1 else ""
        text += "\n" + _paragraph(head + "; ".join(equal), screen, dim=False)
    if left_out:
        names = "; ".join(columns[j].title for j in sorted(left_out))
        text += _paragraph(f"Not shown at this width: {names}.", screen)
    return text


def _same(
    columns: Sequence[Column], cells: Sequence[Sequence[str]], bold: Collection[tuple[int, int]]
) -> dict[int, str]:
    """Return the columns that are equal in all rows, with their value; a single row keeps its figures and its name."""
    marked = {j for _, j in bold}
    found = {
        j: cells[0][j]
        for j, column in enumerate(columns)
        if cells and not column.figure and j not in marked and len({row[j] for row in cells}) == 1
    }
    if len(cells) == 1:
        found = {j: v for j, v in found.items() if columns[j].given or v in {"", NOTHING}}
    return found


# ---------------------------------------------------------------- widths


def _least(columns: Sequence[Column], cells: Sequence[Sequence[str]], kept: Sequence[int]) -> int:
    """Return the width in which the kept columns fit."""
    widths = [_narrowest(columns[j], [row[j] for row in cells]) for j in kept]
    return sum(widths) + GAP * (len(widths) - 1)


def _narrowest(column: Column, cells: Sequence[str]) -> int:
    """Return the width that a column needs at least: that of its words, or of its figures, which are not broken.

    Text that may be left out is not broken either.
    """
    from rich.cells import cell_len

    words = [cell_len(word) for word in column.title.split()]
    if column.text and not column.rank:
        words += [min(cell_len(word), LONGEST_WORD) for cell in cells for word in cell.split()]
        return max(words, default=1)
    return max([*words, *map(cell_len, cells)])


def _widths(
    columns: Sequence[Column], cells: Sequence[Sequence[str]], kept: Sequence[int], width: int
) -> dict[int, int]:
    """Return the width of each kept column: text gets what the figures leave, until nothing is broken."""
    from rich.cells import cell_len

    found = {j: _narrowest(columns[j], [row[j] for row in cells]) for j in kept}
    wanted = {j: max(cell_len(x) for x in (columns[j].title, *(r[j] for r in cells))) for j in kept}
    spare = width - sum(found.values()) - GAP * (len(kept) - 1)
    growing = sorted(kept, key=lambda j: (not columns[j].text, wanted[j] - found[j]))
    for k, j in enumerate(growing):
        alike = sum(columns[i].text == columns[j].text for i in growing[k:])
        more = min(wanted[j] - found[j], spare // alike)
        found[j] += more
        spare -= more
    return found


def _table(
    columns: Sequence[Column],
    cells: Sequence[Sequence[str]],
    kept: Sequence[int],
    bold: Collection[tuple[int, int]],
    screen: Screen,
    n_last: int,
) -> str:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(
        box=box.SIMPLE_HEAD if screen.unicode else _ascii_head(),
        show_edge=False,
        pad_edge=False,
        padding=(0, GAP - 1, 0, 0),
        header_style="bold",
    )
    for j, width in _widths(columns, cells, kept, screen.width).items():
        title = "\n".join(textwrap.wrap(columns[j].title, width))
        justify: Literal["left", "right"] = "left" if columns[j].text else "right"
        table.add_column(Text(title), justify=justify, overflow="fold", width=width)
    for i, row in enumerate(cells):
        if n_last and i == len(cells) - n_last:
            table.add_section()
        table.add_row(*(Text(row[j], style="bold" if (i, j) in bold else "") for j in kept))
    return _printed(table, screen)


def _ascii_head() -> Box:
    from rich.box import Box

    return Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)


def _listed(
    columns: Sequence[Column], cells: Sequence[Sequence[str]], kept: Sequence[int], screen: Screen
) -> str:
    """Return a block of lines for each row, for a screen in which not even names and figures fit beside each other."""
    blocks = [
        "".join(
            _paragraph(f"{columns[j].title}: {row[j]}", screen, dim=False) for j in kept if row[j]
        )
        for row in cells
    ]
    return "\n".join(blocks)


def _with_unit(column: Column, value: str) -> str:
    """Return name and value, with the unit of the heading behind the value: ``fit 1.50 s``."""
    name, comma, unit = column.title.partition(", ")
    return f"{name} {value} {unit}" if comma and " " not in unit else f"{column.title} {value}"


# ---------------------------------------------------------------- text


def _paragraph(text: str, screen: Screen, *, dim: bool = True) -> str:
    return _styled(visible(" ".join(text.split())), screen, "dim" if dim else "")


def _styled(text: str, screen: Screen, style: str) -> str:
    from rich.text import Text

    return _printed(Text(text, style=style), screen)


def _printed(what: RenderableType, screen: Screen) -> str:
    """Return what rich prints, without spaces at the ends of lines."""
    out = io.StringIO()
    console: Console = _console(out, screen)
    console.print(what)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def _console(out: io.StringIO, screen: Screen) -> Console:
    from rich.console import Console

    return Console(
        file=out,
        width=screen.width,
        force_terminal=screen.styled,
        color_system="standard" if screen.styled else None,
        no_color=True,
        markup=False,
        highlight=False,
        emoji=False,
        legacy_windows=False,
    )
