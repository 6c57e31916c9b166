"""Find a run: a folder on this machine, or ``hf:ORG/NAME[@REVISION]``, a run that was pushed to the hub.

A pushed run is downloaded once into the hub's own cache, at the commit that its revision has at that time; afterwards
no network is needed. All its files are checked against its record.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import DamagedError, RecordError
from clipadapt.core.files import hub
from clipadapt.core.records.reading import check_files, read_record
from clipadapt.core.records.run_store import RECORD

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from clipadapt.core.api.progress import Progress

SCHEME: Final = "hf:"


def find_run(run_dir: Path | str, progress: Progress | None = None) -> Path:
    """Return the folder of a run.

    Args:
        run_dir: A folder, which is returned unchanged, or ``hf:ORG/NAME[@REVISION]``. A folder of that name is
            preferred.
        progress: Where it is reported which commit is used.

    Raises:
        RecordError: If the repository does not exist, cannot be downloaded, or is not a run that was pushed.
        DamagedError: If one of its files does not match its record.
    """
    name = str(run_dir)
    if not name.startswith(SCHEME) or Path(run_dir).exists():
        return Path(run_dir)
    repo, _, revision = name.removeprefix(SCHEME).partition("@")
    found = hub.snapshot(
        "model",
        repo,
        revision or None,
        wanted=_wanted,
        error=RecordError,
        way_out="download it once with a network, or name the folder of a run",
    )
    record = read_record(found.folder / RECORD)
    for file in (RECORD, *record.files):
        if (found.folder / file).is_file():
            hub.refuse_damaged(found.folder / file)
    try:
        check_files(found.folder, record)
    except DamagedError as err:
        raise DamagedError(
            f"{found.repo} at commit {found.revision} is not as it was pushed: {err.problem}",
            hint=f"push it again, or name an earlier commit: hf:{repo}@COMMIT",
        ) from None
    if progress is not None and not found.repo.is_commit:
        progress.note(
            f"'{repo}' is commit {found.revision}, also in later runs; "
            f"for another version write hf:{repo}@COMMIT"
        )
    return found.folder


def _wanted(names: Sequence[str], read: Callable[[str], Path]) -> list[str]:
    """Return patterns of the files that the record of a pushed run lists."""
    if RECORD not in names:
        raise RecordError(
            f"the repository is not a run that was pushed: it has no {RECORD}",
            hint="name a repository that 'push' wrote",
        )
    record = read_record(read(RECORD))
    return [RECORD, *(glob.escape(name) for name in record.files)]
