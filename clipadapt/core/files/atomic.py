"""Atomic writes and the cache folder.

A file or folder is built under a temporary name beside its target, flushed to disk and renamed: a reader
sees the old content or the new, never a part. What a killed process leaves behind begins with ``.tmp-`` and
names that process; readers ignore such names and :func:`remove_leftovers` clears them away.
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
from clipadapt.core.files import processes as _processes

if TYPE_CHECKING:
    from collections.abc import Iterator


TEMPORARY_PREFIX: Final = ".tmp-"


LEFTOVER_SECONDS: Final = 24 * 3600.0
"""A temporary name untouched for this long is a leftover where its process cannot be seen from here."""


_TRIES: Final = 100  # where other processes come in between


_OURS: Final = re.compile(r"(?:\.tmp-|clipadapt-)(?:(\d+-[0-9a-f]{8}-\d+)-|\d+-)?[0-9a-f]{16}")


def is_temporary(path: Path) -> bool:
    """Tell whether the name is that of an unfinished file or folder."""
    return path.name.startswith(TEMPORARY_PREFIX)


def remove_leftovers(directory: Path, *, older_than: float = LEFTOVER_SECONDS) -> int:
    """Remove what killed processes left in ``directory``; return how many entries.

    What a living process of this machine is making is never touched, and what a dead one left goes at once.

    Args:
        directory: Folder to clear, not its sub-folders.
        older_than: Seconds since the last change of an entry whose process cannot be seen from here.
    """
    removed = 0
    with contextlib.suppress(OSError):  # no such folder, or one that cannot be read
        for path in directory.iterdir():
            found = _OURS.fullmatch(path.name)
            # Another process may clear the same entry at the same time.
            with contextlib.suppress(OSError):
                if found and _is_leftover(path, found[1], older_than):
                    remove(path)
                    removed += 1
    return removed


def files_below(folder: Path, name: str | None = None) -> Iterator[Path]:
    """List the files below a folder, whatever other processes remove from it at the same time.

    Unlike ``Path.rglob``, which raises where a folder vanishes between two of its calls.

    Args:
        folder: The folder; one that is missing has no files.
        name: Only files of this name.
    """
    for parent, _, files in os.walk(folder):
        yield from (Path(parent, file) for file in files if name in {None, file})


def _is_leftover(path: Path, tag: str | None, older_than: float) -> bool:
    gone = _processes.tagged_is_gone(tag) if tag else None
    return time.time() - path.lstat().st_mtime >= older_than if gone is None else gone


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give a folder of the system's for temporary files, removed when the block ends; so are those of the killed."""
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
    """Open a file that appears under its name, whole, when the block ends without an error.

    Args:
        path: The target; its folder is made where it is missing.
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
    """Write a UTF-8 text file atomically; line ends are kept as they are."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically.

    It is ASCII with escapes: a file's name, and so an id, may hold bytes that are no UTF-8.

    Raises:
        ValueError: If a number is not finite; JSON has no word for it.
    """
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return what :func:`write_json` writes."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Give a temporary folder that takes the name ``path``, whole, when the block ends without an error.

    A folder that stands there already is replaced: set aside, then removed. A kill between the two
    renames leaves no folder of that name, never a mixture.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
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
                    file.chmod(mode | readable)  # some libraries let only the maker read
                _sync(file)
            _sync(Path(folder))
        _take_the_place(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(path.parent)


def temporary_beside(path: Path) -> Path:
    """Return a name for what will take the name ``path``; it names this process, see :func:`remove_leftovers`."""
    # The target's own name stays out: a prefix could make it longer than the file system allows.
    return path.with_name(_temporary_name(TEMPORARY_PREFIX))


def _temporary_name(prefix: str) -> str:
    return f"{prefix}{_processes.tag()}-{secrets.token_hex(8)}"


def _take_the_place(new: Path, path: Path) -> None:
    for _ in range(_TRIES):
        aside = temporary_beside(path)
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
        try:
            new.rename(path)
        except OSError:
            # Another process put its folder there in between; set that one aside as well.
            if not path.exists():
                raise
        else:
            return
        finally:
            remove(aside)
    raise RecordError(f"other processes keep replacing the folder '{path}'")


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folder; it has no such flush
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
