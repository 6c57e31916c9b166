"""Processes that end, as by ``kill -9``, at an operation on files that a test has chosen.

A test that kills after a random time kills where the machine's load decides. This counts operations instead:
``killed_at(tmp_path, 7)`` is the environment of a process that calls :func:`arm` first and ends before its seventh
operation below the folder.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

VARIABLE = "KILLED_AT"
# What changes a folder; files are opened for reading all the time.
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir"}


def killed_at(folder: Path, operation: int, *, after: str = "") -> dict[str, str]:
    """Return the environment variable for :func:`arm`.

    Args:
        folder: Only operations on paths below it count.
        operation: The process ends before this operation; the first one is 1.
        after: If given, operations are counted from the first one on a path that ends with it.
    """
    return {VARIABLE: json.dumps([str(folder), operation, after])}


def arm() -> None:
    """Let this process end at the operation that its environment names."""
    if VARIABLE in os.environ:
        sys.addaudithook(_Countdown(*json.loads(os.environ[VARIABLE])))


class _Countdown:
    def __init__(self, folder: str, left: int, after: str) -> None:
        self.folder, self.left, self.after = folder, left, after

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            paths = args[:1] if writes else ()
        else:
            paths = args[:2] if event in CHANGES else ()
        names = [os.fsdecode(p) for p in paths if isinstance(p, str | bytes | os.PathLike)]
        if not any(name.startswith(self.folder) for name in names):
            return
        if self.after:
            if not any(name.endswith(self.after) for name in names):
                return
            self.after = ""
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
