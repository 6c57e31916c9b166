"""``compare``: two folders of runs, pair by pair."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.user_input import user_path
from clipadapt.core.cli.options import JsonOption
from clipadapt.core.cli.output import print_json
from clipadapt.core.cli.record_folders import read_records
from clipadapt.core.cli.terminal import print_document


def compare(
    context: typer.Context,
    a: Annotated[
        Path,
        typer.Argument(metavar="A", help="Folder of records, or of one run.", parser=user_path),
    ],
    b: Annotated[
        Path,
        typer.Argument(metavar="B", help="Folder of records, or of one run.", parser=user_path),
    ],
    examples: Annotated[
        int, typer.Option("--examples", help="Changed examples to show for each pair.")
    ] = 10,
    as_json: JsonOption = False,
) -> None:
    """Compare two folders of runs: paired tests, which examples changed, which setting differs."""
    from clipadapt.core.report.pairs import as_document, compare_folders, render_comparisons

    if examples < 0:
        raise ConfigError(
            f"--examples must be 0 or more (got {examples})", hint="0 shows none, --json lists all"
        )
    (store_a, of_a), (store_b, of_b) = (read_records(context, folder) for folder in (a, b))
    comparisons = compare_folders(store_a, store_b, of_a, of_b)
    if as_json:
        print_json(as_document(comparisons))
    else:
        print_document(lambda form: render_comparisons(comparisons, examples=examples, form=form))
