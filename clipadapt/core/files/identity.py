"""The identity of a model: the sha256 of its files, cached with the facts found with them.

The hash of a file is cached with its path and stat, so an unchanged file is not read again to name a run. When a model
is loaded, its files are read and hashed again, once per process, and compared with the identity of the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import ModelError
from clipadapt.core.files import hub
from clipadapt.core.files.checksums import read_sealed_json, sha256_file, write_sealed_json
from clipadapt.core.files.folders import cache_dir

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clipadapt.core.api.model import Backbone, ModelIdentity

SCHEMA: Final = 2
TICK_NS: Final = 2_000_000_000
"""A file changed twice within one tick of the clock keeps its stat, so the hash of so recent a file is not cached."""


@dataclass(frozen=True, slots=True)
class FileStamp:
    """The stat of a file when it was hashed, and its hash."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    sha256: str

    def current(self) -> bool:
        """Return whether the stat of the file is unchanged."""
        try:
            now = Path(self.path).stat()
        except OSError:
            return False
        return (now.st_size, now.st_mtime_ns, now.st_ino) == (
            self.size,
            self.mtime_ns,
            self.inode,
        )


_read_here: dict[str, FileStamp] = {}
"""Files that this process itself has read and hashed."""


def stamp(path: Path, *, read: bool = False) -> FileStamp:
    """Return the hash of one file with its stat.

    Args:
        path: The file.
        read: Whether this process must have read the bytes; if not, a cached hash is enough.

    Raises:
        ModelError: If it is a damaged file of the hub cache.
    """
    known = _read_here.get(str(path)) or (None if read else _known_file(path))
    if known is not None and known.current():
        return known
    try:
        now = path.stat()  # before hashing, so that a change while hashing is noticed
        found = FileStamp(str(path), now.st_size, now.st_mtime_ns, now.st_ino, sha256_file(path))
    except OSError as err:
        raise ModelError(f"'{path}' cannot be read: {err.strerror or err}") from err
    _read_here.pop(str(path), None)
    hub.refuse_damaged(path, found.sha256)
    if time.time_ns() - found.mtime_ns >= TICK_NS:
        _read_here[str(path)] = found
        _write(f"file|{path}", asdict(found))
    return found


def of_files(paths: Sequence[Path], *, read: bool = False) -> str:
    """Return the sha256 of one file, or over the names and hashes of several; see :func:`stamp`."""
    return combined([stamp(p, read=read) for p in paths])


def combined(stamps: Sequence[FileStamp]) -> str:
    """Return the sha256 of one file, or over the names and hashes of several."""
    if len(stamps) == 1:
        return stamps[0].sha256
    lines = sorted(f"{Path(s.path).name} {s.sha256}" for s in stamps)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def recall(key: str) -> dict[str, Any] | None:
    """Return the facts cached under ``key``, or None if one of their files has changed since."""
    known = _read(key)
    try:
        files = [FileStamp(**f) for f in known["files"]]
        facts: dict[str, Any] = known["facts"]
    except (KeyError, TypeError):
        return None
    for file in files:
        path = Path(file.path)
        # The file may have been hashed again since, and ``main`` of the hub cache may have become another commit.
        if not file.current() or not hub.is_current(path) or stamp(path).sha256 != file.sha256:
            return None
    return facts


def remember(key: str, facts: Mapping[str, Any], paths: Sequence[Path] = ()) -> None:
    """Cache facts found with these files; a cache folder that cannot be written is no error."""
    stamps = [stamp(p) for p in paths]
    if all(time.time_ns() - s.mtime_ns >= TICK_NS for s in stamps):
        _write(key, {"facts": dict(facts), "files": [asdict(s) for s in stamps]})


def require_same(backbone: Backbone, expected: ModelIdentity) -> None:
    """Check that a model was loaded from the files that identify the run.

    Args:
        backbone: The model; one without an ``identity`` passes.
        expected: The identity found before the model was loaded.

    Raises:
        ModelError: If the files differ.
    """
    loaded: ModelIdentity | None = getattr(backbone, "identity", None)
    if loaded is not None:
        _require(loaded.weights_sha256, expected)


def require_files(paths: Sequence[Path], expected: ModelIdentity) -> None:
    """Check that files are still those of a model; of a file that this process has read, only the stat is compared.

    Raises:
        ModelError: If they have changed.
    """
    _require(of_files(paths, read=True), expected)


def _require(sha256: str, expected: ModelIdentity) -> None:
    if sha256 != expected.weights_sha256:
        raise ModelError(
            f"the files of '{expected.name}' changed while it was loaded: sha256 {sha256[:16]}, and "
            f"{expected.weights_sha256[:16]} before; they were replaced, or are damaged",
            hint="start the run again: it then uses and records the current files",
        )


def versions(*packages: str) -> str:
    """Return the versions of ``packages``, for identities that depend on them."""

    def of(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "none"

    return " ".join(f"{p} {of(p)}" for p in packages)


def _known_file(path: Path) -> FileStamp | None:
    try:
        return FileStamp(**_read(f"file|{path}"))
    except TypeError:
        return None


def _read(key: str) -> dict[str, Any]:
    """Return the value cached under a key; empty if there is none, or it is damaged."""
    try:
        known = read_sealed_json(_file(key))
    except (OSError, ValueError):
        return {}
    same = known.get("schema") == SCHEMA and known.get("key") == key
    return dict(known["value"]) if same else {}


def _write(key: str, value: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):
        write_sealed_json(_file(key), {"schema": SCHEMA, "key": key, "value": dict(value)})


def _file(key: str) -> Path:
    return (
        cache_dir()
        / "identities"
        / f"{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:32]}.json"
    )
