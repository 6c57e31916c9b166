"""Folders of images: list image files and subfolders, and explain paths that do not exist."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import DataError, did_you_mean
from clipadapt.core.api.user_input import user_path
from clipadapt.core.files.folders import require_regular
from clipadapt.core.records.run_store import RECORD
from clipadapt.datasets._decode import EXTENSIONS, starts_like_an_image

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator, Mapping

UNSUPPORTED: Final = frozenset({
    ".heic", ".heif", ".hif", ".jxl", ".svg", ".svgz", ".eps", ".ps", ".ai", ".wmf", ".emf", ".fits", ".fit", ".exr",
    ".hdr", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".dcm", ".xcf",
    ".blp", ".djvu",
})  # fmt: skip
"""Extensions of image formats that are not supported."""
OTHER_FILES: Final = "other files"
# Files that archives and desktops leave next to images; hidden files are always ignored.
_JUNK: Final = frozenset({
    "__MACOSX", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN", "System Volume Information",
})  # fmt: skip


def list_images(folder: Path, ignored: Counter[str], *, deep: bool = True) -> list[str]:
    """Return the image files below ``folder`` as sorted relative POSIX paths.

    Links to folders are followed once, except links to a parent. Hidden files, files left by archives and desktops, and
    run folders are skipped.

    Args:
        folder: The folder to search.
        ignored: Counter of files that are not images, or that have an unsupported format.
        deep: Whether to search subfolders.

    Raises:
        DataError: If a folder cannot be listed, or a name is not valid UTF-8 and so cannot be stored in a record.
    """
    found = []
    for entry in _files_below(folder, deep=deep):
        ending = Path(entry.name).suffix.lower()
        if ending in EXTENSIONS or (ending not in UNSUPPORTED and _looks_like_an_image(entry.path)):
            found.append(as_text(Path(entry.path).relative_to(folder).as_posix()))
        elif ending in UNSUPPORTED:
            ignored[f"images in an unsupported format ({ending})"] += 1
        else:
            ignored[f"{OTHER_FILES} ({ending or 'no extension'})"] += 1
    return sorted(found)


def counts_text(left_out: Mapping[str, int]) -> str:
    """Return a readable list of what was left out."""
    return ", ".join(f"{n} {reason}" for reason, n in left_out.items() if n) or "nothing"


def _files_below(folder: Path, *, deep: bool) -> Iterator[os.DirEntry[str]]:
    """Yield the files in ``folder`` and below; links to folders come last, and each folder is visited once."""
    seen = {_identity(p) for p in folder.resolve().parents}
    stack, links = [folder], deque[Path]()
    while stack or links:
        here = stack.pop() if stack else links.popleft()
        if (identity := _identity(here)) in seen:
            continue
        seen.add(identity)
        entries = _entries(here)
        if any(entry.name == RECORD for entry in entries):
            continue  # a run folder, because --out is below the images
        below = []
        for entry in entries:
            if _is_folder(entry):
                below.append(entry)
            else:
                yield entry
        if deep:
            links += [Path(entry.path) for entry in below if entry.is_symlink()]
            stack += [Path(entry.path) for entry in reversed(below) if not entry.is_symlink()]


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder that are not ignored, sorted by name."""
    try:
        with os.scandir(folder) as found:
            return sorted(
                (e for e in found if not e.name.startswith(".") and e.name not in _JUNK),
                key=lambda entry: entry.name,
            )
    except OSError as err:
        raise DataError(
            f"cannot list the folder '{folder}': {err.strerror or err}",
            hint="make it readable, or move it elsewhere",
        ) from err


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # A circular link is not a folder; entry.is_dir() would raise for it.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and Path(entry.path).is_dir())


def _looks_like_an_image(path: str) -> bool:
    """Check by its first bytes whether a file with another extension is an image."""
    try:
        require_regular(Path(path))
        with Path(path).open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return starts_like_an_image(head)


def subfolders(folder: Path) -> list[str]:
    """Return the sorted names of the subfolders, without ignored ones and links to the folder itself or a parent.

    Raises:
        DataError: If the folder cannot be listed.
    """
    above = {_identity(p) for p in (folder, *folder.resolve().parents)}
    return [
        as_text(entry.name)
        for entry in _entries(folder)
        if _is_folder(entry) and not (entry.is_symlink() and _identity(Path(entry.path)) in above)
    ]


def existing_folder(argument: str, scheme: str, *, archive: str = "") -> Path:
    """Return the folder given after ``scheme:``.

    Args:
        argument: The folder.
        scheme: Name of the dataset.
        archive: What to do instead of giving an archive; empty for unpacking it.

    Raises:
        DataError: If it does not exist; the message suggests similar names.
    """
    if not argument.strip():
        raise DataError(f"'{scheme}:' names no folder", hint=f"write {scheme}:PATH")
    path = user_path(argument)
    try:
        if path.is_dir():
            return path
        is_file = path.exists()
    except OSError as err:
        raise DataError(f"cannot open the folder '{argument}': {err.strerror or err}") from err
    if is_file and path.suffix.lower() in {
        ".zip",
        ".tar",
        ".gz",
        ".tgz",
        ".7z",
        ".rar",
        ".bz2",
        ".xz",
    }:
        raise DataError(
            f"'{argument}' is an archive, not a folder",
            hint=archive or f"unpack it and give the unpacked folder: {scheme}:DIR",
        )
    if is_file:
        raise DataError(
            f"'{argument}' is a file, not a folder", hint=f"try {scheme}:{path.parent.as_posix()}"
        )
    raise missing(argument, path, "folder", subfolders)


def missing(
    argument: str, path: Path, what: str, names_in: Callable[[Path], list[str]]
) -> DataError:
    """Return the error for a path that does not exist; it suggests similar names."""
    if not argument.strip():
        return DataError(f"an empty name is not a {what}")
    whole = path.resolve()
    base = next(p for p in whole.parents if p.is_dir())
    missing = whole.relative_to(base).parts[0]
    names = names_in(base)
    near = did_you_mean(missing, names)
    if not near:
        near = (
            f"; it contains: {', '.join(names[:8]) or f'no {what}'}{', ...' if names[8:] else ''}"
        )
    return DataError(f"there is no {what} '{argument}': '{base}' has no '{missing}'{near}")


def names_in(folder: Path) -> list[str]:
    """Return the sorted names of the entries of a folder that are not ignored."""
    return [entry.name for entry in _entries(folder)]


def as_text(name: str) -> str:
    """Return a name that is valid UTF-8.

    Raises:
        DataError: If it is not.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"the name {name!r} is not valid UTF-8", hint="rename it") from None
    return name
