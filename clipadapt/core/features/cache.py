"""The feature cache: features of frozen models, computed once and read from disk afterwards.

A :class:`~clipadapt.core.api.features.Space` names everything that determines a feature apart from the example itself
(weights, activation, layer, preprocessing, dtype, view, tower). Each space is a folder whose rows, keyed by the sha256
of the example, are stored in segments::

    <cache>/features/<key[:2]>/<key>/space.json            the space, for people to read
    <cache>/features/<key[:2]>/<key>/<name>.safetensors    keys (m, 32) uint8, rows (m, ...)

A segment is written atomically and never changed, so any number of processes can read and write at the same time
without a lock. Every block is verified when it is read; damaged segments are removed and their rows recomputed. When
the cache exceeds its bound, the least recently used segments (by mtime) are removed.

If two processes need the same missing rows, one computes them while the other waits and then reads them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.features import Space, StoredFeatures
from clipadapt.core.features.result import Result
from clipadapt.core.features.segment import DamagedError, load_segment, read_header, segments_in
from clipadapt.core.features.space import (
    SpaceFolder,
    as_strings,
    checked_digests,
    compute_rows,
    remove_damaged,
)
from clipadapt.core.files.atomic import remove_leftovers
from clipadapt.core.files.folders import cache_dir
from clipadapt.core.files.locks import locked

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from clipadapt.core.api.features import Compute

log = logging.getLogger(__name__)

MAX_BYTES: Final = 20 << 30


@dataclass(frozen=True, slots=True)
class SpaceSummary:
    """One space, as ``cache ls`` shows it.

    Attributes:
        key: Key of the space.
        space: Its fields, or None if ``space.json`` cannot be read.
        segments: Number of segments.
        rows: Number of rows.
        bytes: Bytes on disk.
        last_used: Last time a row was read or written (UTC), or None if there is no segment.
    """

    key: str
    space: Space | None
    segments: int
    rows: int
    bytes: int
    last_used: datetime | None


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Result of ``cache verify``.

    Attributes:
        segments: Intact segments.
        rows: Rows in them.
        bytes: Bytes in them.
        damaged: Damaged segments; they are removed if permissions allow.
        unreadable: Segments and folders that cannot be read; they are kept.
    """

    segments: int
    rows: int
    bytes: int
    damaged: tuple[Path, ...]
    unreadable: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class PruneReport:
    """Result of ``cache prune``.

    Attributes:
        segments: Segments removed.
        bytes: Bytes removed.
        left: Bytes left.
        unreadable: Folders and segments that cannot be read or removed; they are kept.
    """

    segments: int
    bytes: int
    left: int
    unreadable: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class _Request:
    """One call of :meth:`FeatureCache.get_or_compute`."""

    digests: NDArray[np.uint8]
    compute: Compute
    result: Result

    def complete(
        self,
        folder: SpaceFolder | None,
        found: NDArray[np.bool_],
        read_seconds: float,
        waited: float = 0.0,
    ) -> StoredFeatures:
        """Compute the rows that were not found.

        Args:
            folder: Where new rows are stored; None stores nothing.
            found: Which rows were read, shape ``(n,)``.
            read_seconds: Seconds it once took to encode them.
            waited: Seconds spent waiting for another process.
        """
        missing = np.flatnonzero(~found)
        _, first, inverse = np.unique(
            as_strings(self.digests[missing]), return_index=True, return_inverse=True
        )
        spent = 0.0
        if len(missing):
            wanted = missing[np.sort(first)]
            spent = compute_rows(folder, self.digests, wanted, self.compute, self.result)
            twin = missing[first[inverse]]  # the equal example that was computed
            copies = twin != missing
            rows = self.result.rows()
            rows[missing[copies]] = rows[twin[copies]]
        elif not len(self.digests) and folder is not None and (known := folder.row_type()):
            self.result.array(*known)
        rows = self.result.rows()
        return StoredFeatures(rows, read_seconds + spent, len(first), spent + waited)


class FeatureCache:
    """Feature rows on disk: memory-mapped, checksummed, bounded, safe for several processes.

    Attributes:
        directory: Folder of all spaces, ``<root>/features``.
        max_bytes: Bound on the bytes of all segments.
        enabled: If False, nothing is read or written and every row is computed.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        max_bytes: int | None = None,
        enabled: bool = True,
        unwritable: Callable[[OSError], object] | None = None,
    ) -> None:
        """Set up a cache; nothing is read or written yet.

        Args:
            root: Cache folder; None uses :func:`~clipadapt.core.files.folders.cache_dir`.
            max_bytes: Bound; None uses ``CLIPADAPT_CACHE_BYTES``, or 20 GiB.
            enabled: False disables the cache.
            unwritable: Called when rows cannot be written; None warns once.

        Raises:
            ConfigError: If ``CLIPADAPT_CACHE_BYTES`` is not a whole number of bytes.
        """
        self.directory = (cache_dir() if root is None else root) / "features"
        self.max_bytes = _default_bound() if max_bytes is None else max_bytes
        self.enabled = enabled
        self._unwritable = unwritable or self._warn_unwritable
        self._open: dict[str, SpaceFolder] = {}
        self._warned = False

    def open(self, space: Space) -> SpaceFolder:
        """Return the folder of a space; the same object every time."""
        if space.key not in self._open:
            folder = self.directory / space.key[:2] / space.key
            self._open[space.key] = SpaceFolder(
                folder, space, warn=self._unwritable, evict=self.evict
            )
        return self._open[space.key]

    def get_or_compute(
        self,
        space: Space,
        digests: NDArray[np.uint8],
        compute: Compute,
        *,
        out: NDArray[Any] | None = None,
    ) -> StoredFeatures:
        """Return one row per example, computing only the missing ones.

        Rows are written a segment at a time while they are computed, so rows computed before an error or an
        interruption are kept.

        Args:
            space: What determines the features apart from the examples.
            digests: sha256 of each example, shape ``(n, 32)``.
            compute: Called with the positions ``(m,)`` of the missing examples, ascending, each distinct example
                once; yields ``(positions, rows)`` batches in any order. The time spent in it counts as encoding.
            out: Array to fill instead of a new one.

        Raises:
            ValueError: If ``compute`` yields other positions, shapes or dtypes than requested.
        """
        digests = checked_digests(digests)
        request = _Request(digests, compute, Result(len(digests), self._scratch, out))
        if not self.enabled:
            return request.complete(None, np.zeros(len(digests), dtype=np.bool_), 0.0)
        folder = self.open(space)
        found, seconds = folder.fill(digests, request.result)
        if found.all():
            return request.complete(folder, found, seconds)
        begun = time.perf_counter()
        path = self._lock_of(space, digests)
        with locked(path) as had_to_wait:
            waited = 0.0
            if had_to_wait:  # another process computed these rows
                waited = time.perf_counter() - begun
                found, seconds = folder.fill(digests, request.result)
            try:
                return request.complete(folder, found, seconds, waited)
            finally:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    @property
    def _scratch(self) -> Path | None:
        """Folder for large results, or None for the system's temporary folder."""
        there = os.path.isdir(self.directory)  # noqa: PTH112  does not raise without permission
        return self.directory if self.enabled and there else None

    def _lock_of(self, space: Space, digests: NDArray[np.uint8]) -> Path:
        """Return the lock of one request: only equal requests wait for each other."""
        name = hashlib.sha256(space.key.encode() + digests.tobytes()).hexdigest()[:32]
        return self.directory.parent / "locks" / name

    def evict(self, max_bytes: int | None = None) -> PruneReport:
        """Remove the least recently used segments until the cache is within its bound.

        Args:
            max_bytes: Bound; None uses ``self.max_bytes``.
        """
        bound = self.max_bytes if max_bytes is None else max_bytes
        files = []
        unreadable = []
        for folder in self._folders():
            for entry in segments_in(folder):
                with contextlib.suppress(OSError):
                    status = entry.stat()
                    files.append((status.st_mtime_ns, entry.path, status.st_size))
        total = sum(size for _, _, size in files)
        segments = freed = 0
        for _, path, size in sorted(files):
            if total - freed <= bound:
                break
            try:
                Path(path).unlink()
            except FileNotFoundError:
                freed += size
            except OSError as err:
                self._warn_unwritable(err)
                unreadable.append(Path(path))
            else:
                freed += size
                segments += 1
        return PruneReport(segments, freed, total - freed, tuple(unreadable))

    def prune(self, max_bytes: int | None = None, *, everything: bool = False) -> PruneReport:
        """Reduce the cache to its bound, and remove leftovers and empty spaces.

        Args:
            max_bytes: Bound; None uses ``self.max_bytes``.
            everything: Remove every row.
        """
        report = self.evict(-1 if everything else max_bytes)
        unreadable = []
        remove_leftovers(self.directory)
        for folder in self._folders():
            remove_leftovers(folder)
            try:
                empty = {p.name for p in folder.iterdir()} <= {"space.json"}
            except OSError:  # belongs to another user
                unreadable.append(folder)
                continue
            if empty:
                with contextlib.suppress(OSError):  # another process started writing there
                    (folder / "space.json").unlink(missing_ok=True)
                    folder.rmdir()
                    folder.parent.rmdir()
        return dataclasses.replace(report, unreadable=(*report.unreadable, *unreadable))

    def verify(self) -> VerifyReport:
        """Read and verify every row; damaged segments are removed."""
        segments = rows = size = 0
        damaged, unreadable = [], []
        for folder in self._folders():
            if not os.access(folder, os.R_OK | os.X_OK):  # belongs to another user
                unreadable.append(folder)
            for path in sorted(Path(e.path) for e in segments_in(folder)):
                try:
                    segment = load_segment(path)
                    segment.read_all()
                except DamagedError as err:
                    remove_damaged(path, str(err))
                    damaged.append(path)
                except FileNotFoundError:
                    continue
                except OSError:
                    unreadable.append(path)
                else:
                    segments += 1
                    rows += segment.header.n_rows
                    size += segment.header.size
        return VerifyReport(segments, rows, size, tuple(damaged), tuple(unreadable))

    def ls(self) -> list[SpaceSummary]:
        """Return one summary per space, most recently used first; only headers are read."""
        out = []
        for folder in self._folders():
            segments = rows = size = 0
            used = 0.0
            for entry in segments_in(folder):
                try:
                    with Path(entry.path).open("rb", buffering=0) as file:
                        rows += read_header(file, Path(entry.path)).n_rows
                    status = entry.stat()
                except (DamagedError, OSError):
                    continue
                segments += 1
                size += status.st_size
                used = max(used, status.st_mtime)
            last = datetime.fromtimestamp(used, UTC) if segments else None
            out.append(SpaceSummary(folder.name, _read_space(folder), segments, rows, size, last))
        never = datetime.min.replace(tzinfo=UTC)
        return sorted(out, key=lambda s: (s.last_used or never, s.key), reverse=True)

    def _warn_unwritable(self, err: OSError) -> None:
        """Warn once that nothing can be stored."""
        if not self._warned:
            self._warned = True
            log.warning(
                "cannot write to the feature cache %s (%s); features are recomputed each time, "
                "unless CLIPADAPT_CACHE is set to a writable folder",
                self.directory,
                err.strerror or err,
            )

    def _folders(self) -> list[Path]:
        """Return the folders of all spaces; a parent that cannot be listed stands for those inside it.

        Raises:
            ConfigError: If the cache itself cannot be listed.
        """
        try:
            tops = [p for p in self.directory.iterdir() if re.fullmatch("[0-9a-f]{2}", p.name)]
        except FileNotFoundError:
            return []
        except OSError as err:
            raise ConfigError(
                f"cannot read the feature cache '{self.directory}': {err.strerror or err}",
                hint="set CLIPADAPT_CACHE to a folder of your own",
            ) from err
        found = []
        for top in tops:
            try:
                found += list(top.iterdir())
            except NotADirectoryError:
                continue
            except OSError:
                found.append(top)
        return sorted(p for p in found if os.path.isdir(p))  # noqa: PTH112  does not raise without permission


def _default_bound() -> int:
    given = os.environ.get("CLIPADAPT_CACHE_BYTES", "")
    if not given:
        return MAX_BYTES
    if not given.isdecimal():
        raise ConfigError(
            f"CLIPADAPT_CACHE_BYTES is '{given}', expected a whole number of bytes",
            hint=f"for 20 GiB: export CLIPADAPT_CACHE_BYTES={MAX_BYTES}",
        )
    return int(given)


def _read_space(folder: Path) -> Space | None:
    try:
        return Space(**json.loads((folder / "space.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
