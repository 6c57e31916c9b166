"""Checks of user input: text, names and paths are checked where they enter, and are valid everywhere else."""

from __future__ import annotations

import errno
import os
import re
import stat
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_NAME: Final = 1000
MAX_IDENTIFIER: Final = 100
MAX_SHOWN: Final = 120
_NONBLOCK: Final = getattr(os, "O_NONBLOCK", 0)

# Control characters, lone surrogates, and marks that change the text direction.
_INVISIBLE: Final = (
    r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
)
_NOT_IN_NAMES: Final = re.compile(f"[{_INVISIBLE}]")
_NOT_IN_TEXT: Final = re.compile(f"[{_INVISIBLE}]".replace(r"\x00-\x1f", r"\x00-\x08\x0b-\x1f"))
_MARKS: Final = " _.+-,:;()=@%/~&"


def visible(text: str, *, lines: bool = False) -> str:
    """Return text with escapes in place of control characters and of characters that a terminal cannot show.

    Args:
        text: Any text.
        lines: Keep line breaks and tabs.
    """
    return (_NOT_IN_TEXT if lines else _NOT_IN_NAMES).sub(
        lambda m: m[0].encode("unicode_escape").decode("ascii"), text
    )


def shown(value: Any) -> str:
    """Return ``repr(value)`` for a message, truncated if it is long."""
    text = visible(repr(value))
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def name(text: str) -> str:
    """Check the name of a dataset or model: one line without invisible characters.

    Raises:
        ValueError: Saying what is accepted.
    """
    if len(text) > MAX_NAME:
        raise ValueError(f"a name has at most {MAX_NAME} characters, not {len(text):,}")
    if _NOT_IN_NAMES.search(text):
        raise ValueError(
            "a name must not contain control characters, line breaks or lone surrogates"
        )
    return text


def identifier(text: str) -> str:
    """Check the name of an evaluation protocol, a recipe or a sweep.

    Raises:
        ValueError: Saying what is accepted.
    """
    if (
        not 0 < len(text) <= MAX_IDENTIFIER
        or text != text.strip()
        or not any(c.isalnum() for c in text)
        or not all(c.isalnum() or c in _MARKS or unicodedata.category(c)[0] == "M" for c in text)
    ):
        raise ValueError(
            f"a name has 1 to {MAX_IDENTIFIER} letters, digits, spaces and the marks {_MARKS.strip()}"
        )
    return text


def text_faults(data: Any, key: str = "") -> Iterator[str]:
    """Yield the dotted key of each text in plain data that contains a character not allowed in settings."""
    if isinstance(data, str):
        if _NOT_IN_TEXT.search(data):
            yield key
    elif isinstance(data, dict | list | tuple):
        items = data.items() if isinstance(data, dict) else enumerate(data)
        for part, value in items:
            inner = f"{key}.{part}" if key else str(part)
            if isinstance(part, str) and _NOT_IN_TEXT.search(part):
                yield inner
            yield from text_faults(value, inner)


def user_path(text: str | Path) -> Path:
    """Return a path given by a user, with ``~`` expanded; it need not exist.

    Raises:
        ConfigError: If it cannot be a path: an unknown user, a name that is too long, a folder without permission.
    """
    given = str(text)
    if not given.strip():
        raise ConfigError("a path is empty", hint="write . for the current folder")
    try:
        path = Path(given).expanduser()
        path.lstat()
    except RuntimeError:
        raise ConfigError(
            f"'{shortened(given)}': there is no user '{given.partition('/')[0]}'",
            hint=f"write ./{given} for a file or folder whose name begins with '~'",
        ) from None
    except ValueError:  # NUL or a lone surrogate
        raise ConfigError(f"{shown(given)} contains a character that a path cannot have") from None
    except OSError as err:
        if err.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            raise ConfigError(f"cannot use the path '{shortened(given)}': {err.strerror}") from None
    return path


def read_text(path: Path, what: str, most: int) -> str:
    """Return the text of a small UTF-8 file, with Unix line ends and without a byte order mark.

    Args:
        path: The file.
        what: Kind of file, for messages.
        most: Maximum size in bytes.

    Raises:
        ConfigError: If it is not a regular file, too large, cannot be read or is not UTF-8.
    """
    try:
        # Non-blocking: it may be a pipe that nobody writes to.
        with open(path, "rb", opener=lambda p, flags: os.open(p, flags | _NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"the {what} '{shortened(path)}' is not a regular file")
            raw = file.read(most + 1)
    except OSError as err:
        raise ConfigError(f"cannot read the {what} '{shortened(path)}': {err.strerror}") from None
    if len(raw) > most:
        raise ConfigError(f"the {what} '{shortened(path)}' has more than {most:,} bytes")
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as err:
        raise ConfigError(
            f"the {what} '{shortened(path)}' is not UTF-8 text: byte {err.start:,} is "
            f"0x{raw[err.start]:02x}",
            hint="save it as UTF-8",
        ) from None


def shortened(text: str | Path, most: int = MAX_SHOWN) -> str:
    """Return a text of the user for a message or a table, truncated if it is long."""
    text = str(text)
    return text if len(text) <= most else f"{text[: most - 3]}..."
