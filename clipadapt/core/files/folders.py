"""Folders and files named by the user: the cache folder, output files, and whether they are writable."""

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

_NO_SPACE: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_ALLOWED: Final = {errno.EACCES, errno.EPERM, errno.EROFS}


def check_writable(directory: Path, hint: str = "choose a writable folder with --out DIR") -> None:
    """Check that files can be written in ``directory`` before any work starts; nothing is left behind.

    Args:
        directory: The folder; it may not exist yet.
        hint: Next step for the user if it is not writable.

    Raises:
        RecordError: If it is not writable; the message names the folder and the reason.
    """
    try:
        # The folder itself is not created: another process may be about to, and a kill would leave it behind.
        # A broken link exists, but is not a folder.
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
    """Return the path to write for an output file named by the user, following links.

    Args:
        path: The file.
        option: Command-line option that named it.

    Raises:
        RecordError: If it is not a regular file, or its folder is not writable.
    """
    hint = f"choose another file with {option} FILE"
    try:
        target = path.resolve()  # the link is kept and its target replaced
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG
    except (OSError, RuntimeError) as err:  # RuntimeError: circular links
        raise RecordError(
            f"cannot write '{path}': {getattr(err, 'strerror', None) or err}", hint=hint
        ) from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"
        raise RecordError(f"'{path}' is {kind}, not a file", hint=hint)
    check_writable(target.parent, hint=hint)
    return target


def refusal(err: BaseException) -> RecordError | None:
    """Return a user error for an OSError about disk space or permissions, or None for other errors."""
    if not isinstance(err, OSError) or err.errno not in _NO_SPACE | _NOT_ALLOWED:
        return None
    where = f" '{os.fsdecode(err.filename)}'" if err.filename else " a file"
    if err.errno in _NO_SPACE:
        hint = "free some space, for example with 'clipadapt cache prune --max-bytes N', and run the same command again"
        return RecordError(f"cannot write{where}: {err.strerror}", hint=hint)
    hint = "check owner and permissions; CLIPADAPT_CACHE sets the cache folder, --out the folder of the records"
    return RecordError(f"cannot use{where}: {err.strerror}", hint=hint)


def cache_dir() -> Path:
    """Return the cache folder: ``CLIPADAPT_CACHE``, or the platform's cache folder of the user."""
    given = os.environ.get("CLIPADAPT_CACHE")
    if given:
        return user_path(given).absolute()
    import platformdirs

    return platformdirs.user_cache_path("clipadapt", appauthor=False)


def require_regular(path: Path) -> None:
    """Check that a path is a regular file: reading a FIFO, a socket or a device may never end.

    Raises:
        OSError: If it is not, or cannot be accessed; ``strerror`` says what it is.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a FIFO", stat.S_ISSOCK: "a socket"}
        what = next((name for test, name in kinds.items() if test(mode)), "a device")
        raise OSError(errno.EINVAL, f"it is {what}, not a regular file", str(path))
