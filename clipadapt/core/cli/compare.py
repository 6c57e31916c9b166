"""``compare``: two folders of runs, pair by pair."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipadapt.core.api.errors import ConfigError, RecordError
from clipadapt.core.api.user_input import user_path
from clipadapt.core.cli.options import JsonOption, track_of
from clipadapt.core.cli.output import print_json
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
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.records.run_store import RECORD, RunStore
    from clipadapt.core.report.pairs import as_document, compare_folders, render_comparisons

    if examples < 0:
        raise ConfigError(
            f"--examples must be 0 or more (got {examples})", hint="0 shows none, --json lists all"
        )
    stores, found = [], []
    for folder in (a, b):
        if (folder / RECORD).is_file():  # one run, which may have been copied here
            store, records = RunStore(folder), [RunStore.load(folder)]
        else:
            store = RunStore(folder)
            records = store.load_all(on_stderr().note)
        if not records:
            program = track_of(context).program
            raise RecordError(
                f"no records in '{folder}'", hint=f"records are written by '{program} run'"
            )
        stores.append(store)
        found.append(records)
    comparisons = compare_folders(stores[0], stores[1], found[0], found[1])
    if as_json:
        print_json(as_document(comparisons))
    else:
        print_document(lambda form: render_comparisons(comparisons, examples=examples, form=form))
