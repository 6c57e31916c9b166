"""Folders of records that commands read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipadapt.core.api.errors import RecordError
from clipadapt.core.cli.options import track_of

if TYPE_CHECKING:
    from pathlib import Path

    import typer

    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.records.schema import RunRecord


def read_records(context: typer.Context, folder: Path) -> tuple[RunStore, list[RunRecord]]:
    """Return the store in a folder and its records; the folder may be that of one run, which was copied here.

    Raises:
        RecordError: If there is no such folder, or no record in it.
    """
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.records.run_store import RECORD, RunStore

    hint = f"records are written by '{track_of(context).program} run', into 'runs'"
    if not folder.is_dir():
        raise RecordError(f"there is no folder '{folder}'", hint=hint)
    store = RunStore(folder)
    found = (
        [RunStore.load(folder)] if (folder / RECORD).is_file() else store.load_all(on_stderr().note)
    )
    if not found:
        raise RecordError(f"there are no records in '{folder}'", hint=hint)
    return store, found
