"""Tags that identify a process in file names, so that others can find out whether it has ended."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
from functools import cache
from pathlib import Path
from typing import Final

_TAG: Final = re.compile(r"([1-9]\d{0,9})-([0-9a-f]{8})-(\d{1,20})")


def tag() -> str:
    """Return the tag of this process; see :func:`tagged_is_gone`."""
    pid = os.getpid()
    return f"{pid}-{_place()}-{_started(pid) or 0}"


def tagged_is_gone(text: str) -> bool | None:
    """Return whether the process with a tag has ended; None if that cannot be determined from here."""
    found = _TAG.fullmatch(text)
    if found is None or found[2] != _place() or os.name != "posix":
        return None  # Windows has no harmless signal to test a process with
    pid, started = int(found[1]), found[3]
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    # Another process may have the same number by now.
    return None if started == "0" else _started(pid) != started


def _started(pid: int) -> str | None:
    """Return when a process started, in ticks since boot; None if it has ended or the system does not say."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    state, *rest = text.rpartition(")")[2].split()  # the name before it may contain anything
    return None if state in {"Z", "X"} else rest[18]


@cache
def _place() -> str:
    """Return a hash of host, boot and container: within one of them, process numbers are unique."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    space = " ".join(parts)
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]
