"""TODO."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import RecordError
from clipadapt.core.api.user_input import user_path
from clipadapt.core.files.atomic import TEMPORARY_PREFIX, remove_leftovers

if TYPE_CHECKING:
    from pathlib import Path


def check_writable(
    directory: Path, hint: str = "name a folder that can be written with --out DIR"
) -> None:
    """Prove that a file can be written in ``directory``, before any work is done; leave nothing behind.

    Args:
        directory: The folder; it need not exist yet.
        hint: The next step, where it cannot.

    Raises:
        RecordError: If it cannot; the message names the folder and the reason.
    """
    try:
        # Nothing is made that another process may be about to use, nor anything that a kill would leave behind.
        # A link to nowhere is there, and is no folder.
        there = next(p for p in (directory, *directory.parents) if os.path.lexists(p))
        remove_leftovers(there)
        with tempfile.TemporaryFile(dir=there, prefix=TEMPORARY_PREFIX) as probe:
            probe.write(b"0")
    except OSError as err:
        raise RecordError(
            f"cannot write to the folder '{directory}': {err.strerror or err}",
            hint=hint,
        ) from err


def output_file(path: Path, option: str) -> Path:
    """Return where a file that a user named for output is to be written; a link is followed to what it means.

    Raises:
        RecordError: If it is a folder, a device or the like, or the folder of it cannot be written.
    """
    hint = f"name another file with {option} FILE"
    try:
        target = path.resolve()  # a link is kept, and what it leads to is replaced
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG
    except (OSError, RuntimeError) as err:  # RuntimeError: links that lead to one another
        raise RecordError(
            f"cannot write '{path}': {getattr(err, 'strerror', None) or err}", hint=hint
        ) from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"
        raise RecordError(f"'{path}' is {kind}, not a file", hint=hint)
    check_writable(target.parent, hint=hint)
    return target


_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


_NOT_ALLOWED: Final = {errno.EACCES, errno.EPERM, errno.EROFS}


def refusal(err: BaseException) -> RecordError | None:
    """Return what to say where the system refuses a file for want of room or of permission; None for other errors."""
    if not isinstance(err, OSError) or err.errno not in _NO_ROOM | _NOT_ALLOWED:
        return None
    where = f" '{os.fsdecode(err.filename)}'" if err.filename else " a file"
    if err.errno in _NO_ROOM:
        hint = "make room, for example with 'clipadapt cache prune --max-bytes N', and start the same command again"
        return RecordError(f"cannot write{where}: {err.strerror}", hint=hint)
    hint = "check owner and mode; CLIPADAPT_CACHE names the cache folder, --out that of the records"
    return RecordError(f"cannot use{where}: {err.strerror}", hint=hint)


def cache_dir() -> Path:
    """Return the cache folder: ``CLIPADAPT_CACHE``, or the user's cache folder of the platform."""
    given = os.environ.get("CLIPADAPT_CACHE")
    if given:
        return user_path(given).absolute()
    import platformdirs

    return platformdirs.user_cache_path("clipadapt", appauthor=False)


def require_regular(path: Path) -> None:
    """Check that a path leads to a regular file: reading a FIFO, a socket or a device may never end.

    Raises:
        OSError: If it does not, or cannot be looked at; ``strerror`` says what it is.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a FIFO", stat.S_ISSOCK: "a socket"}
        what = next((name for test, name in kinds.items() if test(mode)), "a device")
        raise OSError(errno.EINVAL, f"it is {what}, not a regular file", str(path))
