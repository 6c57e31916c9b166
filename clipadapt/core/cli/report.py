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
) -> None:
    """Write one self-contained page: leaderboard, charts, calibration, confusion, examples, recipes."""
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.report.page import write_report

    page = write_report(directory, output, examples=examples, progress=on_stderr())
    say(f"{len(page.records)} runs: {output}")
