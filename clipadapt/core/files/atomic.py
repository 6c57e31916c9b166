"""Atomic writes: a reader sees the old content or the new content, never a part of it.

A file or folder is written under a temporary name next to its target, flushed to disk and renamed. Temporary names
begin with ``.tmp-`` and identify the process, so that readers ignore them and :func:`remove_leftovers` can remove those
of killed processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import RecordError
from clipadapt.core.files import processes

if TYPE_CHECKING:
    from collections.abc import Iterator


TEMPORARY_PREFIX: Final = ".tmp-"


LEFTOVER_SECONDS: Final = 24 * 3600.0
"""A temporary entry unchanged for this long is a leftover, if its process runs on another machine."""


_TRIES: Final = 100  # if other processes interfere


_OURS: Final = re.compile(r"(?:\.tmp-|clipadapt-)(?:(\d+-[0-9a-f]{8}-\d+)-|\d+-)?[0-9a-f]{16}")


_tidied: set[Path] = set()
"""Folders whose leftovers this process has removed before it wrote a folder there."""


def is_temporary(path: Path) -> bool:
    """Return whether the name is that of an unfinished file or folder."""
    return path.name.startswith(TEMPORARY_PREFIX)


def remove_leftovers(directory: Path, *, older_than: float = LEFTOVER_SECONDS) -> int:
    """Remove temporary entries that killed processes left in ``directory``; return their number.

    Entries of running processes on this machine are never removed; those of dead processes always are.

    Args:
        directory: Folder to clean, without its sub-folders.
        older_than: Minimum age in seconds for an entry of a process on another machine.
    """
    removed = 0
    with contextlib.suppress(OSError):  # the folder is missing or unreadable
        for path in directory.iterdir():
            found = _OURS.fullmatch(path.name)
            # Another process may remove the same entry at the same time.
            with contextlib.suppress(OSError):
                if found and _is_leftover(path, found[1], older_than):
                    remove(path)
                    removed += 1
    return removed


def files_below(folder: Path, name: str | None = None) -> Iterator[Path]:
    """List the files below a folder.

    Unlike ``Path.rglob``, this does not raise if another process removes a folder at the same time.

    Args:
        folder: The folder; a missing one has no files.
        name: If given, list only files with this name.
    """
    for parent, _, files in os.walk(folder):
        yield from (Path(parent, file) for file in files if name in {None, file})


def _is_leftover(path: Path, tag: str | None, older_than: float) -> bool:
    gone = processes.tagged_is_gone(tag) if tag else None
    return time.time() - path.lstat().st_mtime >= older_than if gone is None else gone


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a new folder in the system's temporary folder; it is removed when the block ends."""
    top = Path(tempfile.gettempdir())
    remove_leftovers(top)
    path = top / _temporary_name("clipadapt-")
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name when the block ends without an error.

    Args:
        path: The target; its folder is created if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with atomic_file(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, without changing line ends."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically.

    Non-ASCII characters are escaped, because file names, and so ids, may not be valid UTF-8.

    Raises:
        ValueError: If a number is not finite, which JSON cannot express.
    """
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return the text that :func:`write_json` writes."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to ``path`` when the block ends without an error.

    An existing folder is renamed, then removed. If the process is killed between the two renames, there is no folder
    of that name, but never a mixture of old and new.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if (
        path.parent not in _tidied
    ):  # once: a folder with thousands of runs would be listed for each of them
        _tidied.add(path.parent)
        remove_leftovers(path.parent)
    temporary = temporary_beside(path)
    temporary.mkdir()
    try:
        yield temporary
        readable = stat.S_IMODE(temporary.stat().st_mode) & 0o666
        for folder, _, files in os.walk(temporary):
            for file in (Path(folder, name) for name in files):
                mode = stat.S_IMODE(file.lstat().st_mode)
                if mode | readable != mode and not file.is_symlink():
                    file.chmod(
                        mode | readable
                    )  # some libraries make files readable only by their owner
                _sync(file)
            _sync(Path(folder))
        _take_the_place(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(path.parent)


def temporary_beside(path: Path) -> Path:
    """Return a temporary name next to ``path`` that identifies this process, see :func:`remove_leftovers`."""
    # The target's own name is not part of it, because the result could exceed the file system's limit.
    return path.with_name(_temporary_name(TEMPORARY_PREFIX))


def _temporary_name(prefix: str) -> str:
    return f"{prefix}{processes.tag()}-{secrets.token_hex(8)}"


def _take_the_place(new: Path, path: Path) -> None:
    for _ in range(_TRIES):
        aside = temporary_beside(path)
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
        try:
            new.rename(path)
        except OSError:
            # Another process put its folder there meanwhile; rename that one, too.
            if not path.exists():
                raise
        else:
            return
        finally:
            remove(aside)
    raise RecordError(f"other processes keep replacing the folder '{path}'")


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with its content; a missing path is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot flush a folder
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
