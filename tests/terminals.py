"""A pseudo-terminal of a given width."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
from collections.abc import Sequence

STYLE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def on_terminal(
    arguments: Sequence[object], *, width: int = 80, **environment: str
) -> tuple[int, str]:
    """Run a program on a terminal; return its exit code and everything it wrote."""
    words = [str(a) for a in arguments]
    size = struct.pack("HHHH", 40, width, 0, 0)
    env = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES", "NO_COLOR"}}
    pid, fd = pty.fork()
    if pid == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, size)
        os.execve(words[0], words, env | {"TERM": "xterm", **environment})
    out = b""
    while True:
        try:
            more = os.read(fd, 1 << 16)
        except OSError:  # the program has ended
            break
        if not more:
            break
        out += more
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(fd)
    return code, out.decode().replace("\r\n", "\n")


def lines(text: str) -> list[str]:
    """Return the lines that were on the screen at some time, without styles."""
    return [x.rstrip() for x in re.split(r"[\r\n]+", STYLE.sub("", text)) if x.strip()]
