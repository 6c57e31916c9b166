"""One space of the feature cache: the rows of one model, layer and preprocessing, in a folder of segments."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from clipadapt.core.api.features import DIGEST_BYTES
from clipadapt.core.features.index import Index, PrefixSet
from clipadapt.core.features.segment import (
    DamagedError,
    load_segment,
    segments_in,
    storable,
    write_segment,
)
from clipadapt.core.files.atomic import remove_leftovers, write_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.features import Compute, Space
    from clipadapt.core.features.result import Result
    from clipadapt.core.features.segment import Segment

log = logging.getLogger(__name__)

SEGMENT_BYTES: Final = 16 << 20
FLUSH_SECONDS: Final = 60.0
"""A killed process loses at most this many seconds of encoding, and at most one segment."""
SMALL_BYTES: Final = 1 << 20
SMALL_SEGMENTS: Final = 64
"""Merge the segments below ``SMALL_BYTES`` once a space has this many of them."""


class SpaceFolder:
    """The folder of one space, made by :meth:`FeatureCache.open`. Not thread-safe.

    Attributes:
        folder: The folder.
        space: What it holds.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        *,
        warn: Callable[[OSError], object],
        evict: Callable[[], object],
    ) -> None:
        """Set up a folder; nothing is read or written yet.

        Args:
            folder: The folder; it is created on the first write.
            space: What it holds.
            warn: Called when rows cannot be written.
            evict: Called after rows were written.
        """
        self.folder = folder
        self.space = space
        self._warn = warn
        self._evict = evict
        self._segments: dict[str, Segment] = {}
        self._bad: set[str] = set()  # damaged or unreadable: not tried again
        self._index: Index | None = None

    def row_type(self) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
        """Return dtype and shape of one row, or None if no row is stored."""
        for segment in self._segments.values():
            return segment.header.dtype, segment.header.row_shape
        return None

    def stored(self) -> PrefixSet:
        """Return which examples have a row; the rows are not read."""
        self._refresh()
        return PrefixSet(self._indexed().prefixes)

    def seconds_each(self) -> float | None:
        """Return the mean seconds of encoding of a stored row, or None if no row is stored."""
        heads = [segment.header for segment in self._segments.values()]
        n = sum(head.n_rows for head in heads)
        return sum(head.seconds for head in heads) / n if n else None

    # ------------------------------------------------------------ read

    def fill(self, digests: NDArray[np.uint8], result: Result) -> tuple[NDArray[np.bool_], float]:
        """Copy the stored rows of examples into ``result``, verifying each of them.

        Args:
            digests: sha256 of each example, shape ``(n, 32)``.
            result: Receives the rows.

        Returns:
            Which rows were copied, shape ``(n,)``, and the seconds it took to encode them; each distinct row
            counts once.
        """
        self._refresh()
        found = np.zeros(len(digests), dtype=np.bool_)
        seconds = 0.0
        todo = np.arange(len(digests))
        while len(todo):
            index = self._indexed()
            where = index.locate(digests[todo])
            todo, where = todo[where >= 0], where[where >= 0]
            by_row = np.argsort(where, kind="stable")
            todo, where = todo[by_row], where[by_row]
            of = index.segment_of(where)
            failed = []
            spans = [
                (number, slice(*np.searchsorted(of, [number, number + 1])))
                for number in np.unique(of)
            ]
            # Rows that were stored in the order in which they are read now then arrive in this order.
            for number, span in sorted(spans, key=lambda s: int(todo[s[1].start])):
                segment = index.segments[number]
                if self._copy(segment, where[span] - index.offsets[number], todo[span], result):
                    found[todo[span]] = True
                    seconds += index.cost(where[span])
                else:
                    failed.append(todo[span])
            if not failed:
                break
            # The same keys may be in another segment: a duplicate, or one merged by another process.
            todo = np.concatenate(failed)
            self._refresh()
        result.settle()
        return found, seconds

    def _copy(
        self,
        segment: Segment,
        rows: NDArray[np.int64],
        places: NDArray[np.int64],
        result: Result,
    ) -> bool:
        """Copy rows of one segment; return whether it could be read."""
        try:
            head = segment.header
            result.fill(
                head.dtype, head.row_shape, places, lambda out, at: segment.read_into(out, rows, at)
            )
        except DamagedError as err:
            self._discard(segment.path, str(err))
            return False
        except OSError as err:
            self._skip(segment.path, err)
            return False
        with contextlib.suppress(OSError):  # removed meanwhile, or the cache is read-only
            os.utime(segment.path)
        return True

    def _indexed(self) -> Index:
        if self._index is None:
            self._index = Index(list(self._segments.values()))
            self._segments = {s.path.name: s for s in self._index.segments}
        return self._index

    def _refresh(self) -> None:
        """Load segments that other processes wrote and forget those they removed."""
        there = {e.name for e in segments_in(self.folder)} - self._bad
        for name in self._segments.keys() - there:
            self._forget(name)
        for name in sorted(there - self._segments.keys()):
            path = self.folder / name
            try:
                segment = load_segment(path)
            except DamagedError as err:
                self._discard(path, str(err))
                continue
            except OSError as err:
                self._skip(path, err)
                continue
            known = self.row_type()
            if known is not None and known != (segment.header.dtype, segment.header.row_shape):
                self._discard(path, "its rows have another shape or dtype than the others")
                continue
            self._segments[name] = segment
            self._index = None

    def _forget(self, name: str) -> None:
        if self._segments.pop(name, None) is not None:
            self._index = None

    def _discard(self, path: Path, reason: str) -> None:
        remove_damaged(path, reason)
        self._bad.add(path.name)
        self._forget(path.name)

    def _skip(self, path: Path, err: OSError) -> None:
        self._forget(path.name)
        if not isinstance(err, FileNotFoundError):  # which means pruned or merged
            self._bad.add(path.name)
            log.warning("cannot read %s (%s); its rows are recomputed", path, err)

    # ------------------------------------------------------------ write

    def write(
        self, digests: NDArray[np.uint8], rows: NDArray[Any], encode_seconds: float = 0.0
    ) -> bool:
        """Store rows, then evict old ones if the cache exceeds its bound.

        A cache that cannot be written (disk full, no permission) causes a warning, not an error.

        Args:
            digests: sha256 of each example, shape ``(n, 32)``.
            rows: One row per example, shape ``(n, ...)``, integers or floats.
            encode_seconds: Seconds it took to encode all of them.

        Returns:
            Whether they are stored.

        Raises:
            ValueError: If shapes or dtype are wrong, or differ from those of the rows already stored.
        """
        digests = checked_digests(digests)
        rows = storable(rows)
        if len(digests) != len(rows):
            raise ValueError(f"{len(digests)} digests but {len(rows)} rows")
        known = self.row_type()
        if known is not None and known != (rows.dtype, rows.shape[1:]):
            raise ValueError(
                f"the space holds rows of {known[0]} {known[1]}, got {rows.dtype} {rows.shape[1:]}"
            )
        if not len(rows):
            return True
        remove_leftovers(self.folder)
        if not self._save(digests, rows, encode_seconds):
            return False
        self._merge_small()
        self._evict()
        return True

    def _save(self, digests: NDArray[np.uint8], rows: NDArray[Any], seconds: float) -> bool:
        step = max(1, SEGMENT_BYTES // (rows.dtype.itemsize * math.prod(rows.shape[1:])))
        try:
            for i in range(0, len(rows), step):
                part = rows[i : i + step]
                self._save_one(digests[i : i + step], part, seconds * len(part) / len(rows))
        except OSError as err:
            self._warn(err)
            return False
        return True

    def _save_one(self, keys: NDArray[np.uint8], rows: NDArray[Any], seconds: float) -> None:
        for last in (False, False, True):
            try:
                if not (self.folder / "space.json").exists():
                    write_json(self.folder / "space.json", dataclasses.asdict(self.space))
                path = write_segment(self.folder, keys, rows, seconds)
                self._segments[path.name] = load_segment(path)
            except FileNotFoundError:  # another process pruned the folder meanwhile
                if last:
                    raise
            else:
                self._index = None
                return

    def _merge_small(self) -> None:
        small = [s for s in self._segments.values() if s.header.size < SMALL_BYTES]
        if len(small) < SMALL_SEGMENTS:
            return
        keys, rows, seconds = [], [], []
        for segment in small:
            try:
                rows.append(segment.read_all())
            except DamagedError as err:
                self._discard(segment.path, str(err))
                continue
            except OSError:
                return  # pruned by another process: merge another time
            keys.append(segment.keys)
            n_rows = segment.header.n_rows
            seconds.append(np.full(n_rows, segment.header.seconds / n_rows))
        if not keys:
            return
        joined = np.concatenate(keys)
        _, first = np.unique(as_strings(joined), return_index=True)
        first.sort()
        cost = float(np.concatenate(seconds)[first].sum())
        if not self._save(joined[first], np.concatenate(rows)[first], cost):
            return
        for segment in small:
            self._forget(segment.path.name)
            with contextlib.suppress(OSError):
                segment.path.unlink()


class Rows(Protocol):
    """Where computed rows are written: a :class:`SpaceFolder`, or what takes its place."""

    def write(
        self, digests: NDArray[np.uint8], rows: NDArray[Any], encode_seconds: float = 0.0
    ) -> bool:
        """Store rows, see :meth:`SpaceFolder.write`."""
        ...


class Writer:
    """Collects computed rows and writes them a segment at a time."""

    def __init__(self, folder: Rows | None, digests: NDArray[np.uint8], result: Result) -> None:
        """Set up a writer.

        Args:
            folder: Where rows are stored; None stores nothing.
            digests: sha256 of each example, shape ``(n, 32)``.
            result: Holds the rows.
        """
        self._folder = folder
        self._digests = digests
        self._result = result
        self._pending: list[NDArray[np.int64]] = []
        self._bytes = 0
        self._flushed = 0.0

    def add(self, places: NDArray[np.int64], n_bytes: int, seconds: float) -> None:
        """Note that the rows at ``places`` were computed; ``seconds`` is the total time so far."""
        self._pending.append(np.asarray(places, dtype=np.int64))
        self._bytes += n_bytes
        if self._bytes >= SEGMENT_BYTES or seconds - self._flushed >= FLUSH_SECONDS:
            self.flush(seconds)

    def flush(self, seconds: float) -> None:
        """Write the rows noted since the last flush."""
        if self._folder is not None and self._pending:
            places = np.concatenate(self._pending)
            rows = self._result.rows()[places]
            self._folder.write(self._digests[places], rows, seconds - self._flushed)
            self._result.release()
        self._pending, self._bytes, self._flushed = [], 0, seconds


def compute_rows(
    folder: Rows | None,
    digests: NDArray[np.uint8],
    wanted: NDArray[np.int64],
    compute: Compute,
    result: Result,
) -> float:
    """Compute rows into ``result`` and store them batch by batch; return the seconds it took.

    Args:
        folder: Where rows are stored; None stores nothing.
        digests: sha256 of each example, shape ``(n, 32)``.
        wanted: Positions to compute, shape ``(m,)``.
        compute: See :meth:`FeatureCache.get_or_compute`.
        result: Receives the rows.

    Raises:
        ValueError: If ``compute`` yields other positions, shapes or dtypes than requested.
    """
    due = np.zeros(len(digests), dtype=np.bool_)
    due[wanted] = True
    writer = Writer(folder, digests, result)
    seconds = 0.0
    began = time.perf_counter()
    try:
        for places, rows in compute(wanted):
            seconds += time.perf_counter() - began
            if len(places) != len(rows):
                raise ValueError(f"compute yielded {len(places)} positions but {len(rows)} rows")
            if not due[places].all() or len(np.unique(places)) != len(places):
                raise ValueError("compute yielded a position that was not requested, or twice")
            batch = storable(rows)
            result.array(batch.dtype, batch.shape[1:])[places] = batch
            due[places] = False
            writer.add(places, batch.nbytes, seconds)
            began = time.perf_counter()
        seconds += time.perf_counter() - began
    finally:
        writer.flush(seconds)
    if due.any():
        raise ValueError(f"compute left out {int(due.sum())} of {len(wanted)} rows")
    return seconds


def remove_damaged(path: Path, reason: str) -> None:
    """Remove a damaged segment with a warning."""
    try:
        path.unlink(missing_ok=True)
    except OSError as err:
        done, reason = "cannot remove", f"{reason} ({err.strerror or err})"
    else:
        done = "removed"
    log.warning("%s a damaged segment of the feature cache, %s: %s", done, path, reason)


def checked_digests(digests: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return digests as a contiguous array.

    Raises:
        ValueError: If they are not uint8 of shape ``(n, 32)``.
    """
    if digests.dtype != np.uint8 or digests.ndim != 2 or digests.shape[1] != DIGEST_BYTES:
        raise ValueError(
            f"digests must be uint8 of shape (n, {DIGEST_BYTES}), "
            f"got {digests.dtype} {digests.shape}"
        )
    return np.ascontiguousarray(digests)


def as_strings(digests: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """View each digest as one fixed-width string: strings are equal exactly if the digests are."""
    return np.ascontiguousarray(digests).view(f"S{DIGEST_BYTES}").reshape(-1)
