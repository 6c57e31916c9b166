"""Locks between processes, on top of :mod:`filelock`.

The operating system releases a lock when the process that holds it ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from filelock import BaseFileLock

log = logging.getLogger(__name__)

_TRIES: Final = 100
_UNSUPPORTED: Final = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
"""What file systems without locks answer."""


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], object] | None = None) -> Iterator[bool]:
    """Hold the lock on a file while the block runs; yield whether another process held it before.

    The file stays, empty; the holder may remove it. Where it cannot be created or the file system has no locks, the
    block runs without a lock.

    Args:
        path: The lock file; missing folders are created.
        waiting: Called before this process waits for another one.
    """
    from filelock import Timeout

    lock, waited = _lock(path), False
    with contextlib.suppress(OSError):
        try:
            _acquire(lock, timeout=0)
        except Timeout:
            waited = True
            if waiting is not None:
                waiting()
            _acquire(lock, timeout=-1)
    try:
        yield waited
    finally:
        lock.release()


def try_lock(path: Path) -> BaseFileLock | None:
    """Take the lock on a file without waiting for it; return None if another holder has it.

    Args:
        path: The lock file; missing folders are created.

    Returns:
        The lock, which is held until its ``release`` is called. On a file system without locks nothing is held.

    Raises:
        OSError: If the file cannot be created.
    """
    from filelock import Timeout

    lock = _lock(path)
    try:
        _acquire(lock, timeout=0)
    except Timeout:
        return None
    except OSError as err:
        if err.errno not in _UNSUPPORTED:
            raise
        _warn_without_locks(path.parent)
    return lock


def remove_unheld(directory: Path) -> int:
    """Remove the lock files in a folder that no process holds; return how many."""
    removed = 0
    with contextlib.suppress(OSError):  # the folder is missing, or cannot be read
        for path in directory.iterdir():
            with contextlib.suppress(OSError):
                lock = try_lock(path)
                if lock is not None:
                    path.unlink()  # a process that waits for it makes a new one
                    lock.release()
                    removed += 1
    return removed


@cache
def _warn_without_locks(folder: Path) -> None:
    log.warning(
        "the file system of '%s' has no locks: do not let two processes use the folder at the same time",
        folder,
    )


def _lock(path: Path) -> BaseFileLock:
    from filelock import FileLock

    # A soft lock would outlive its process. All users may open the file, as they may share the folder.
    return FileLock(path, mode=0o666, fallback_to_soft=False)


def _acquire(lock: BaseFileLock, timeout: float) -> None:
    """Acquire a lock whose folder other processes may remove at the same time."""
    for attempt in range(_TRIES):
        try:
            lock.acquire(timeout=timeout)
        except (FileNotFoundError, FileExistsError):  # mkdir may raise either
            if attempt == _TRIES - 1:
                raise
        else:
            return
