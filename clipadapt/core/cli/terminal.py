"""What a terminal gets instead of Markdown: tables that fit its width."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Final

import typer

from clipadapt.core.api.user_input import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from clipadapt.core.records.predictions import Predictions
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.report.formats import Column, Form
    from clipadapt.core.report.summary import Summary
    from clipadapt.core.report.tables import Table
    from clipadapt.core.report.terminal import Screen

NARROWEST: Final = 20
"""A terminal that says it is narrower is treated as this wide."""


def no_colour() -> bool:
    """Return whether the user asked for output without colours (https://no-color.org)."""
    return bool(os.environ.get("NO_COLOR"))


def screen() -> Screen | None:
    """Return the terminal that is the standard output, None if that is a file or a pipe."""
    if not sys.stdout.isatty():
        return None
    from clipadapt.core.report.terminal import Screen

    return Screen(
        width=max(shutil.get_terminal_size().columns, NARROWEST),
        styled=not no_colour() and os.environ.get("TERM") != "dumb",
        unicode=(sys.stdout.encoding or "").lower().startswith("utf"),
    )


def print_table(table: Table, form: str | None = None) -> None:
    """Print a table in a format; None is one that fits the terminal, or Markdown where there is none."""
    from clipadapt.core.report import tables, terminal

    where = screen() if form is None else None
    if where is None:
        _echo(tables.render(table, form or "markdown"))
    else:
        typer.echo(terminal.render(table, where), nl=False)


def print_rows(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a list for the terminal, or with tabs between the cells where there is none."""
    from clipadapt.core.report import terminal

    where = screen()
    if where is None:
        _echo("".join("\t".join(map(visible, row)).rstrip("\t") + "\n" for row in rows))
    else:
        typer.echo(terminal.grid(columns, rows, (), where), nl=False)


def print_summary(summary: Summary) -> None:
    """Print the summary of a sweep for the terminal, or as Markdown where there is none."""
    from clipadapt.core.report.summary import document

    print_document(lambda form: document(summary, form))
    if screen() is None:
        typer.echo()  # Markdown ends with an empty line


def print_document(write: Callable[[Form], str]) -> None:
    """Print a document of several tables for the terminal, or as Markdown where there is none."""
    from clipadapt.core.report import terminal
    from clipadapt.core.report.formats import MARKDOWN

    where = screen()
    if where is None:
        _echo(write(MARKDOWN))
    else:
        typer.echo(write(terminal.form(where)), nl=False)


def print_per_class(found: Sequence[tuple[RunRecord, Predictions]]) -> None:
    """Print the recall per class of each record for the terminal, or as Markdown where there is none."""
    from clipadapt.core.report import tables, terminal

    where = screen()
    for record, predictions in found:
        if where is None:
            _echo(f"\n{tables.render_per_class(record, predictions)}")
        else:
            shown = terminal.grid(*tables.per_class_cells(record, predictions), (), where)
            typer.echo(f"\n{shown}", nl=False)


def _echo(text: str) -> None:
    typer.echo(visible(text, lines=True), nl=False)
