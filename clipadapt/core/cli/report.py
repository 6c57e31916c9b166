"""``report``: one HTML page of the records in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipadapt.core.api.user_input import user_path
from clipadapt.core.cli.options import RecordsArgument
from clipadapt.core.cli.output import say


def report(
    directory: RecordsArgument,
    output: Annotated[
        Path,
        typer.Option("--output", metavar="FILE", help="HTML file to write.", parser=user_path),
    ] = Path("report.html"),
    examples: Annotated[
        bool,
        typer.Option(help="Show images and texts; their datasets are opened by name."),
    ] = True,
    detail: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Rows of each block, from the best, that have charts and tables of their own. "
            "Default: all of a page with up to 120 rows; of a larger one about 120, and at least 2 of each block.",
        ),
    ] = None,
) -> None:
    """Write one self-contained page: leaderboard, charts, calibration, confusion, examples, recipes."""
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.report.page import write_report

    page = write_report(directory, output, examples=examples, detail=detail, progress=on_stderr())
    say(f"{len(page.records)} runs: {output}")
