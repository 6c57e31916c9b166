"""``table``: one table of the records in a folder."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from clipadapt.core.cli.options import RecordsArgument
from clipadapt.core.cli.record_folders import read_records
from clipadapt.core.cli.terminal import print_table


class TableFormat(StrEnum):
    """Format of a table."""

    markdown = "markdown"
    csv = "csv"
    latex = "latex"
    html = "html"


def table(
    context: typer.Context,
    directory: RecordsArgument,
    form: Annotated[
        TableFormat | None,
        typer.Option(
            "--format",
            help="Default: a table that fits the terminal; Markdown in a file or a pipe.",
        ),
    ] = None,
    metric: Annotated[str, typer.Option(help="Metric of the table.")] = "accuracy",
    reference: Annotated[
        bool, typer.Option("--reference", help="Add published numbers to the rows they match.")
    ] = False,
) -> None:
    """Print one table of the records in a folder."""
    from clipadapt.core.report import tables

    store, found = read_records(context, directory)
    built = tables.build_table(found, metric=metric, reference=reference, store=store)
    print_table(built, form.value if form else None)
