"""Find and remove what killed processes left in output folders, in the cache and in the system's temporary folder.

A temporary name identifies its process, and the work folder of a fit its claim; what a running process uses is never
touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import RecordError
from clipadapt.core.files.atomic import (
    files_below,
    is_temporary,
    remove,
    remove_leftovers,
    write_bytes,
)
from clipadapt.core.files.folders import cache_dir
from clipadapt.core.files.locks import remove_unheld
from clipadapt.core.runs.claims import Claims, children

if TYPE_CHECKING:
    from collections.abc import Collection

WORK: Final = ".work"
"""Folder of the checkpoints of unfinished fits, in an output folder."""
KEEP_SECONDS: Final = 7 * 24 * 3600.0
"""How long a checkpoint is kept for its command to be started again."""
_OUTS: Final = "outs"  # in the cache: the paths of the output folders, for prune


def clear(out: Path, claims: Claims, finished: Collection[str] = ()) -> None:
    """Remove what killed runs left, before new ones start.

    Args:
        out: Output folder.
        claims: Claims on it.
        finished: Ids of fits that have nothing left to do; their checkpoints are removed now.
    """
    if (out / WORK).exists():
        make_work(out)
    cache = cache_dir()
    with contextlib.suppress(OSError):  # the only effect is that prune does not find this folder
        path = cache / _OUTS / hashlib.sha256(os.fsencode(out.absolute())).hexdigest()[:32]
        if not path.exists():
            write_bytes(path, os.fsencode(out.absolute()))
    for folder in (cache, *_folders_in(cache), *_folders_in(cache / "datasets")):
        remove_leftovers(folder)
    remove_leftovers(Path(tempfile.gettempdir()))
    _clear_out(out, claims, KEEP_SECONDS, finished)


def make_work(out: Path, fit_id: str = "") -> Path:
    """Create the work folder of a fit in an output folder, or the folder that holds them all; return it.

    Raises:
        RecordError: If a file is in its place, or it cannot be created.
    """
    folder = out / WORK / fit_id
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        taken = [p for p in (folder, folder.parent) if p.exists() and not p.is_dir()]
        raise RecordError(
            f"cannot create the folder '{folder}': {err.strerror or err}",
            hint=f"remove the file '{taken[0]}', or name another folder with --out DIR"
            if taken
            else "free some space, or choose another folder with --out DIR",
        ) from err
    return folder


def remove_work(folder: Path) -> None:
    """Remove the work folder of a complete fit."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # another process may still use it
        folder.parent.rmdir()


def prune() -> int:
    """Remove everything that killed processes left; return how many files and folders.

    Unlike :func:`clear` this includes all checkpoints of fits that no process works on.
    """
    cache = cache_dir()
    removed = remove_leftovers(Path(tempfile.gettempdir()))
    for folder, folders, _ in os.walk(cache):
        removed += remove_leftovers(Path(folder))
        folders[:] = [name for name in folders if not is_temporary(Path(name))]
    removed += remove_unheld(cache / "locks")
    for note in children(cache / _OUTS):
        with contextlib.suppress(OSError):
            out = Path(os.fsdecode(note.read_bytes()))
            if not out.is_dir():
                note.unlink()
                continue
            with contextlib.suppress(RecordError), Claims(out) as claims:  # a read-only one
                removed += _clear_out(out, claims, 0.0)
    return removed


def _clear_out(out: Path, claims: Claims, older_than: float, finished: Collection[str] = ()) -> int:
    """Remove leftovers of an output folder; return how many."""
    runs = [folder for dataset in _folders_in(out) for folder in (dataset, *_folders_in(dataset))]
    removed = sum(remove_leftovers(folder) for folder in (out, *runs))
    work = _folders_in(out / WORK)
    dead = {p.name for p in work if p.name in finished or _age(p) >= older_than}
    for key in dead:
        if claims.acquire(key):
            remove(out / WORK / key)
            removed += 1
            claims.release(key)
    claims.tidy()
    with contextlib.suppress(OSError):  # another process may still use it
        (out / WORK).rmdir()
    return removed


def _age(folder: Path) -> float:
    """Return the seconds since a file in a folder last changed; the current time if it has none."""
    newest = 0.0
    for path in files_below(folder):
        with contextlib.suppress(OSError):  # removed in the meantime
            newest = max(newest, path.lstat().st_mtime)
    return time.time() - newest


def _folders_in(folder: Path) -> list[Path]:
    # Unlike the methods of Path these never raise, whatever the permissions.
    return [p for p in children(folder) if os.path.isdir(p) and not os.path.islink(p)]  # noqa: PTH112, PTH114
