"""Which process made a thing, and whether it has ended."""

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
    """Return what names this process in a file name, see :func:`tagged_is_gone`."""
    pid = os.getpid()
    return f"{pid}-{_place()}-{started(pid) or 0}"


def tagged_is_gone(text: str) -> bool | None:
    """Tell whether the process whose :func:`tag` this is has ended; None where that cannot be known from here."""
    found = _TAG.fullmatch(text)
    if found is None or found[2] != _place():
        return None
    return is_gone(int(found[1]), None if found[3] == "0" else found[3])


def is_gone(pid: int, begun: str | None) -> bool | None:
    """Tell whether a process of this machine and container has ended, its number perhaps given to another.

    Args:
        pid: Its number.
        begun: What :func:`started` said of it.

    Returns:
        None where it cannot be known: another process may have the number by now.
    """
    if os.name != "posix":
        return None  # Windows has no harmless signal to ask with
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return None if begun is None else started(pid) != begun


@cache
def space() -> str:
    """Return what process numbers belong to here: this boot of the machine, and the container."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def started(pid: int) -> str | None:
    """Return when a process began, in ticks since the boot; None where it has ended or the system does not say."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    state, *rest = text.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in {"Z", "X"} else rest[18]


@cache
def _place() -> str:
    return hashlib.sha256(f"{socket.gethostname()} {space()}".encode()).hexdigest()[:8]
