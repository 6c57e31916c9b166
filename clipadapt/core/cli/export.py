"""``export``: write a trained classifier in the format of another library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipadapt.core.api.user_input import user_path
from clipadapt.core.cli.options import RunDirArgument
from clipadapt.core.cli.output import say


def export(
    run_dir: RunDirArgument,
    form: Annotated[str, typer.Option("--format", help="One of the method's formats.")],
    output: Annotated[
        Path,
        typer.Option(metavar="PATH", help="A path that does not exist yet.", parser=user_path),
    ],
) -> None:
    """Write a run's classifier in the format of another library, with a README that loads it."""
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.runs.inference import export_run

    say(str(export_run(run_dir, form, output, on_stderr())))
