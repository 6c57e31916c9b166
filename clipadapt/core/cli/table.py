"""``table``: one table of the records in a folder."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from clipadapt.core.api.errors import RecordError
from clipadapt.core.cli.options import RecordsArgument, track_of
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
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.report import tables

    program = track_of(context).program
    if not directory.is_dir():
        raise RecordError(
            f"no folder '{directory}'",
            hint=f"records are written by '{program} run', into 'runs'",
        )
    store = RunStore(directory)
    found = store.load_all(on_stderr().note)
    if not found:
        raise RecordError(
            f"no records in '{directory}'", hint=f"records are written by '{program} run'"
        )
    built = tables.build_table(found, metric=metric, reference=reference, store=store)
    print_table(built, form.value if form else None)
