"""What an earlier look found out about a model: paths, stat and sha256 of its files.

A second look then needs no framework.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapt.core._files import cache_dir, sha256_file, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class FileStamp:
    """One file as it was when it was hashed."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    sha256: str

    def current(self) -> bool:
        """Tell whether the file's stat is what it was."""
        try:
            now = Path(self.path).stat()
        except OSError:
            return False
        return (now.st_size, now.st_mtime_ns, now.st_ino) == (
            self.size,
            self.mtime_ns,
            self.inode,
        )


def recall(key: str) -> tuple[str, tuple[FileStamp, ...]] | None:
    """Return the remembered sha256 and files of ``key``, or None if a file has changed since."""
    try:
        known: Any = json.loads(_file(key).read_text(encoding="utf-8"))
        if known["schema"] != SCHEMA or known["key"] != key:
            return None
        stamps = tuple(FileStamp(**f) for f in known["files"])
        sha256 = str(known["weights_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # never written, or damaged: it is found anew
    return (sha256, stamps) if all(s.current() for s in stamps) else None


def remember(key: str, weights_sha256: str, stamps: Sequence[FileStamp] = ()) -> None:
    """Keep what was found; a cache folder that cannot be written only costs the next look."""
    # A file changed again within the clock's tick would keep its stat: such a fresh one is not remembered.
    if any(time.time_ns() - s.mtime_ns < 2_000_000_000 for s in stamps):
        return
    try:
        write_json(
            _file(key),
            {
                "schema": SCHEMA,
                "key": key,
                "weights_sha256": weights_sha256,
                "files": [asdict(s) for s in stamps],
            },
        )
    except OSError:
        return


def stamp(path: Path) -> FileStamp:
    """Hash one file and note its stat (taken before the hash, so that a change during it shows)."""
    now = path.stat()
    return FileStamp(str(path), now.st_size, now.st_mtime_ns, now.st_ino, sha256_file(path))


def combined(stamps: Sequence[FileStamp]) -> str:
    """Return the sha256 of one file, or over names and hashes of several."""
    if len(stamps) == 1:
        return stamps[0].sha256
    lines = sorted(f"{Path(s.path).name} {s.sha256}" for s in stamps)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def of_files(key: str, paths: Sequence[Path]) -> str:
    """Return the combined sha256 of ``paths``, from memory where no stat has changed."""
    known = recall(key)
    if known is not None and [s.path for s in known[1]] == [str(p) for p in paths]:
        return known[0]
    stamps = [stamp(p) for p in paths]
    sha256 = combined(stamps)
    remember(key, sha256, stamps)
    return sha256


def versions(*packages: str) -> str:
    """Return the releases of ``packages``, for identities that depend on them."""

    def of(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "none"

    return " ".join(f"{p} {of(p)}" for p in packages)


def _file(key: str) -> Path:
    return cache_dir() / "identities" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
