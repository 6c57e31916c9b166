"""TODO."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from clipadapt.core.files.atomic import _TRIES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock of a name while the block runs; give whether it had to be waited for.

    The system lets go of a lock when its process ends, however it ends. The file stays, empty; whoever holds the
    lock may remove it. Where there are no such locks (some network file systems, Windows) nothing is held.

    Args:
        path: The file of the lock; its folder is made where it is missing.
    """
    descriptor, waited = _lock(path)
    try:
        yield waited
    finally:
        if descriptor is not None:
            os.close(descriptor)


def remove_unheld(directory: Path) -> int:
    """Remove the files of locks that no process holds; return how many."""
    removed = 0
    with contextlib.suppress(OSError, ImportError):
        import fcntl

        for path in directory.iterdir():
            with contextlib.suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()  # a process that waits for it makes a new one
                removed += 1
    return removed


def _lock(path: Path) -> tuple[int | None, bool]:
    try:
        import fcntl
    except ImportError:
        return None, False
    waited = False
    absent = 0
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            absent += 1
            if absent == _TRIES:  # not removed in between: it can never be made
                return None, waited
            continue
        except OSError:
            return None, waited
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waited = True
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_same(path, descriptor):
                return descriptor, waited
        except OSError:
            os.close(descriptor)
            return None, waited
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # who held it removed the file: the lock now goes with a new one


def _is_same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
