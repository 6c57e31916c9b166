"""Claims: which process runs which fit, so that several processes can share one output folder.

A claim is a lock on the file ``<out>/.claims/<fit id>.lock``. The operating system releases it when the process
ends, however it ends. ``<fit id>.txt`` beside it names the holder, for messages only.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import RecordError
from clipadapt.core.files.atomic import remove
from clipadapt.core.files.locks import try_lock

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from filelock import BaseFileLock

FOLDER: Final = ".claims"
_LOCK: Final = ".lock"
_HOLDER: Final = re.compile(r"process \d{1,10} on [!-~]{1,255}")


class Claims:
    """The claims of this process in one output folder; use it as a context manager.

    Args:
        root: The output folder.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / FOLDER
        self._held: dict[str, BaseFileLock] = {}

    def acquire(self, key: str) -> bool:
        """Claim a fit for this process; return False if another one (or this one) has claimed it.

        Raises:
            RecordError: If the claim cannot be written.
        """
        if key in self._held:
            return False
        try:
            lock = try_lock(self._lock(key))
        except OSError as err:
            hint = "free some space, or choose another folder with --out DIR"
            if isinstance(err, FileExistsError | NotADirectoryError):
                hint = f"remove the file '{self.folder}', or choose another folder with --out DIR"
            elif isinstance(err, PermissionError):
                hint = f"check owner and permissions of '{self.folder}', or choose another folder with --out DIR"
            raise RecordError(
                f"cannot claim a run in '{self.folder}': {err.strerror or err}", hint=hint
            ) from err
        if lock is None:
            return False
        self._held[key] = lock
        with contextlib.suppress(OSError):  # it only serves messages
            self._note(key).write_text(f"process {os.getpid()} on {socket.gethostname()}")
        return True

    def release(self, key: str) -> None:
        """Give a claim back."""
        lock = self._held.get(key)
        if lock is None:
            return
        with contextlib.suppress(OSError):
            remove(self._note(key))
            self._lock(key).unlink(missing_ok=True)
        lock.release()
        self._held.pop(key, None)  # last, so that close() finishes what an interruption cut off

    def holder(self, key: str) -> str:
        """Return who holds a claim, such as ``process 12 on node3``."""
        path = self._note(key)
        with contextlib.suppress(OSError, ValueError):
            # Only a regular file: reading a pipe would block.
            if stat.S_ISREG(path.lstat().st_mode) and path.stat().st_size < 1000:
                text = path.read_text(encoding="ascii")
                if _HOLDER.fullmatch(text):
                    return text
        return "another process"

    def tidy(self) -> None:
        """Remove the files of claims that no process holds, and those of versions that used other files."""
        for path in children(self.folder):
            key = path.name.removesuffix(_LOCK)
            with contextlib.suppress(OSError, RecordError):
                if path == self._lock(key) and key:
                    if self.acquire(key):
                        self.release(key)
                elif path.suffix != ".txt" or not self._lock(path.stem).exists():
                    remove(path)

    def close(self) -> None:
        """Give back every claim and remove the folder if no other process uses it."""
        for key in list(self._held):
            self.release(key)
        self.tidy()
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self, key: str) -> Path:
        return self.folder / f"{key}{_LOCK}"

    def _note(self, key: str) -> Path:
        return self.folder / f"{key}.txt"


def children(folder: Path) -> list[Path]:
    """Return what is in a folder; nothing if it is missing or cannot be read."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []
