"""Atomic writes and the cache folder.

A file or folder is built under a temporary name beside its target, flushed to disk and renamed: a reader
sees the old content or the new, never a part. What a killed process leaves behind begins with ``.tmp-`` and
names that process; readers ignore such names and :func:`remove_leftovers` clears them away.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
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

from clipadapt.core import _processes
from clipadapt.core._given import user_path
from clipadapt.core.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TEMPORARY_PREFIX: Final = ".tmp-"
LEFTOVER_SECONDS: Final = 24 * 3600.0
"""A temporary name untouched for this long is a leftover where its process cannot be seen from here."""
_TRIES: Final = 100  # where other processes come in between
_OURS: Final = re.compile(r"(?:\.tmp-|clipadapt-)(?:(\d+-[0-9a-f]{8}-\d+)-|\d+-)?[0-9a-f]{16}")
_SEAL: Final = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"\n}\n\Z')


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


def sealed(text: str) -> bytes:
    """Return the JSON of a mapping with the sha256 of its own bytes as the last member, on a line of its own.

    Every byte counts: a file that was cut short, or in which one bit is another, no longer fits its seal.

    Args:
        text: JSON of a mapping that is not empty and has no member ``sha256``; ASCII.
    """
    body = text.rstrip().removesuffix("}").rstrip().encode("ascii")
    return body + f',\n  "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode("ascii")


def has_seal(content: bytes) -> bool:
    """Tell whether the content is what :func:`sealed` returned.

    Raises:
        ValueError: If it has a seal that does not fit it.
    """
    found = _SEAL.search(content)
    if found is None:
        return False
    if hashlib.sha256(content[: found.start()]).hexdigest() != found[1].decode("ascii"):
        raise ValueError("its content is not what was written (its sha256 differs)")
    return True


def write_sealed_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping atomically, as :func:`sealed` JSON; see :func:`write_json`."""
    write_bytes(path, sealed(json.dumps(value, indent=2, allow_nan=False)))


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Read what :func:`write_sealed_json` wrote.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not, byte for byte, what was written.
    """
    content = path.read_bytes()
    if not has_seal(content):
        raise ValueError("it does not end in the sha256 of its content")
    value: dict[str, Any] = json.loads(content)
    del value["sha256"]
    return value


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


def check_writable(
    directory: Path, hint: str = "name a folder that can be written with --out DIR"
) -> None:
    """Prove that a file can be written in ``directory``, before any work is done; leave nothing behind.

    Args:
        directory: The folder; it need not exist yet.
        hint: The next step, where it cannot.

    Raises:
        RecordError: If it cannot; the message names the folder and the reason.
    """
    try:
        # Nothing is made that another process may be about to use, nor anything that a kill would leave behind.
        # A link to nowhere is there, and is no folder.
        there = next(p for p in (directory, *directory.parents) if os.path.lexists(p))
        remove_leftovers(there)
        with tempfile.TemporaryFile(dir=there, prefix=TEMPORARY_PREFIX) as probe:
            probe.write(b"0")
    except OSError as err:
        raise RecordError(
            f"cannot write to the folder '{directory}': {err.strerror or err}",
            hint=hint,
        ) from err


def output_file(path: Path, option: str) -> Path:
    """Return where a file that a user named for output is to be written; a link is followed to what it means.

    Raises:
        RecordError: If it is a folder, a device or the like, or the folder of it cannot be written.
    """
    hint = f"name another file with {option} FILE"
    try:
        target = path.resolve()  # a link is kept, and what it leads to is replaced
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG
    except (OSError, RuntimeError) as err:  # RuntimeError: links that lead to one another
        raise RecordError(
            f"cannot write '{path}': {getattr(err, 'strerror', None) or err}", hint=hint
        ) from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"
        raise RecordError(f"'{path}' is {kind}, not a file", hint=hint)
    check_writable(target.parent, hint=hint)
    return target


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


_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_ALLOWED: Final = {errno.EACCES, errno.EPERM, errno.EROFS}


def refusal(err: BaseException) -> RecordError | None:
    """Return what to say where the system refuses a file for want of room or of permission; None for other errors."""
    if not isinstance(err, OSError) or err.errno not in _NO_ROOM | _NOT_ALLOWED:
        return None
    where = f" '{os.fsdecode(err.filename)}'" if err.filename else " a file"
    if err.errno in _NO_ROOM:
        hint = "make room, for example with 'clipadapt cache prune --max-bytes N', and start the same command again"
        return RecordError(f"cannot write{where}: {err.strerror}", hint=hint)
    hint = "check owner and mode; CLIPADAPT_CACHE names the cache folder, --out that of the records"
    return RecordError(f"cannot use{where}: {err.strerror}", hint=hint)


def cache_dir() -> Path:
    """Return the cache folder: ``CLIPADAPT_CACHE``, or the user's cache folder of the platform."""
    given = os.environ.get("CLIPADAPT_CACHE")
    if given:
        return user_path(given).absolute()
    import platformdirs

    return platformdirs.user_cache_path("clipadapt", appauthor=False)


def require_regular(path: Path) -> None:
    """Check that a path leads to a regular file: reading a FIFO, a socket or a device may never end.

    Raises:
        OSError: If it does not, or cannot be looked at; ``strerror`` says what it is.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a FIFO", stat.S_ISSOCK: "a socket"}
        what = next((name for test, name in kinds.items() if test(mode)), "a device")
        raise OSError(errno.EINVAL, f"it is {what}, not a regular file", str(path))


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(directory: Path) -> dict[str, str]:
    """Return the sha256 of every file in a folder, by its path there."""
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {p.relative_to(directory).as_posix(): sha256_file(p) for p in files}


def first_changed(directory: Path, expected: Mapping[str, str], besides: str) -> str:
    """Return the first file of a folder that is not as it was, or an empty string.

    Args:
        directory: The folder.
        expected: What :func:`checksums` said of it.
        besides: Name of a file written after that.
    """
    there = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if not p.is_dir()}
    for name in sorted(there.symmetric_difference({*expected, besides})):
        return name
    for name, known in expected.items():
        try:
            if not (directory / name).is_file() or sha256_file(directory / name) != known:
                return name
        except OSError:  # one that cannot be read is as good as lost
            return name
    return ""


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
