"""The feature store: what a frozen model computed once, never computed twice.

A :class:`Space` names everything that decides a feature beside the example itself (weights, activation,
layer, preprocessing, dtype, view, tower). A space is a folder; its rows are keyed by the sha256 of the
example and lie in segments, ordinary ``.safetensors`` files of at most 16 MiB with two tensors::

    <cache>/features/<key[:2]>/<key>/space.json            for people
    <cache>/features/<key[:2]>/<key>/<name>.safetensors    keys (m, 32) uint8, rows (m, ...)

A segment is written atomically and never changed, and its name is the sha256 of its own header, which
holds a CRC-32 of the keys and of each block of about 1 MiB of rows. So any number of processes may read and
write at once without a lock, a half-written file cannot exist, and a flipped bit or a truncated file is
found: every block is checked whenever it is read. Damaged segments are removed and their rows computed
anew. The least recently used segments (by mtime) go when the store outgrows its bound.

Two processes that want the same missing rows do not both compute them: the second waits for the first, and reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import mmap
import os
import re
import shutil
import tempfile
import time
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.features import DIGEST_BYTES, FORMAT, Space, StoredFeatures
from clipadapt.core.files.atomic import atomic_file, remove_leftovers, write_json
from clipadapt.core.files.folders import cache_dir
from clipadapt.core.files.locks import locked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from clipadapt.core.api.features import Compute


log = logging.getLogger(__name__)


SEGMENT_BYTES: Final = 16 << 20


BLOCK_BYTES: Final = 1 << 20


FLUSH_SECONDS: Final = 60.0
"""A slow encoder loses at most this much work, and at most one segment, when it is killed."""


MAX_BYTES: Final = 20 << 30


SCRATCH_BYTES: Final = 256 << 20
"""A result above this lies in an unnamed file, mapped: the system may page it out."""


SMALL_BYTES: Final = 1 << 20


SMALL_SEGMENTS: Final = 64
"""So many segments below ``SMALL_BYTES`` in one space are merged."""


_SEGMENT_NAME: Final = re.compile(r"[0-9a-f]{32}\.safetensors")


_MAX_HEADER: Final = 16 << 20


_DTYPES: Final = {
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "I8": "|i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "U8": "|u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
}


_CODES: Final = {np.dtype(numpy_name): code for code, numpy_name in _DTYPES.items()}


class _DamagedError(Exception):
    """A segment whose content is not what was written."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """What the store holds of a list of examples.

    Attributes:
        found: Whether a row is there, shape ``(n,)``; it is checked only when it is read.
        encode_seconds: What the rows found cost, each counted once.
    """

    found: NDArray[np.bool_]
    encode_seconds: float


@dataclass(frozen=True, slots=True)
class SpaceSummary:
    """One space as ``cache ls`` shows it.

    Attributes:
        key: Key of the space.
        space: Its fields, or None where ``space.json`` cannot be read.
        segments: Number of segments.
        rows: Number of rows.
        bytes: Bytes on disk.
        last_used: Last time a row was read or written (UTC), or None where there is no segment.
    """

    key: str
    space: Space | None
    segments: int
    rows: int
    bytes: int
    last_used: datetime | None


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Outcome of ``cache verify``.

    Attributes:
        segments: Sound segments.
        rows: Rows in them.
        bytes: Bytes of them.
        damaged: Segments that were not sound; they are removed where the system allows it.
        unreadable: Segments and folders that the system would not read; they are left.
    """

    segments: int
    rows: int
    bytes: int
    damaged: tuple[Path, ...]
    unreadable: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class PruneReport:
    """Outcome of ``cache prune``.

    Attributes:
        segments: Segments removed.
        bytes: Bytes of them.
        left: Bytes left.
        unreadable: Folders and segments that the system would not read or remove; they are left.
    """

    segments: int
    bytes: int
    left: int
    unreadable: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class _Header:
    n_rows: int
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    start: int  # of the keys, in bytes; the rows follow them
    keys_crc: int
    block_crcs: tuple[int, ...]
    block_rows: int
    seconds: float
    size: int

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.row_shape)


@dataclass(frozen=True, slots=True)
class _Segment:
    path: Path
    header: _Header
    keys: NDArray[np.uint8]  # (m, 32)

    def read_into(
        self, out: NDArray[Any], rows: NDArray[np.int64], places: NDArray[np.int64]
    ) -> None:
        """Copy rows to ``out[places]``; every block touched is checked first.

        Args:
            out: Target, shape ``(n, ...)``.
            rows: Row numbers in this segment, ascending.
            places: Where each row goes.

        Raises:
            _DamagedError: If a block is not what was written.
            OSError: If the file cannot be read.
        """
        head = self.header
        rows_start = head.start + DIGEST_BYTES * head.n_rows
        blocks = rows // head.block_rows
        cuts = np.flatnonzero(np.diff(blocks, prepend=-1))
        with self.path.open("rb", buffering=0) as file:
            for begin, end in zip(cuts, [*cuts[1:], len(rows)], strict=True):
                block = int(blocks[begin])
                first = block * head.block_rows
                size = (min(first + head.block_rows, head.n_rows) - first) * head.row_bytes
                file.seek(rows_start + first * head.row_bytes)
                raw = _read(file, size)
                if zlib.crc32(raw) != head.block_crcs[block]:
                    raise _DamagedError(f"block {block} fails its checksum")
                values = np.frombuffer(raw, head.dtype).reshape(-1, *head.row_shape)
                out[places[begin:end]] = values[rows[begin:end] - first]

    def read_all(self) -> NDArray[Any]:
        out = np.empty((self.header.n_rows, *self.header.row_shape), self.header.dtype)
        every = np.arange(self.header.n_rows)
        self.read_into(out, every, every)
        return out


def _read(file: IO[bytes], size: int) -> bytearray:
    raw = bytearray(size)
    view = memoryview(raw)
    got = 0
    while got < size:
        more = file.readinto(view[got:])  # type: ignore[attr-defined]
        if not more:
            raise _DamagedError("truncated")
        got += more
    return raw


def _read_header(file: IO[bytes], path: Path) -> _Header:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(_read(file, 8), "little")
    if length > min(_MAX_HEADER, size - 8):
        raise _DamagedError(f"its header claims {length} bytes, the file has {size}")
    raw = _read(file, length)
    if _segment_name(raw) != path.name:
        raise _DamagedError("its header is not the one its name was made of")
    try:
        fields = json.loads(raw)
        meta, keys, rows = fields["__metadata__"], fields["keys"], fields["rows"]
        n_rows, *row_shape = rows["shape"]
        crcs = meta["block_crc32"]
        head = _Header(
            n_rows=n_rows,
            dtype=np.dtype(_DTYPES[rows["dtype"]]),
            row_shape=tuple(row_shape),
            start=8 + length,
            keys_crc=int(meta["keys_crc32"], 16),
            block_crcs=tuple(int(crcs[i : i + 8], 16) for i in range(0, len(crcs), 8)),
            block_rows=int(meta["block_rows"]),
            seconds=float(meta["encode_seconds"]),
            size=size,
        )
        keys_end = DIGEST_BYTES * n_rows
        rows_end = keys_end + head.row_bytes * n_rows
        sound = (
            keys == {"dtype": "U8", "shape": [n_rows, DIGEST_BYTES], "data_offsets": [0, keys_end]}
            and rows["data_offsets"] == [keys_end, rows_end]
            and n_rows > 0
            and len(head.block_crcs) == -(-n_rows // head.block_rows)
        )
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as err:
        raise _DamagedError("its header makes no sense") from err
    if not sound:
        raise _DamagedError("its header makes no sense")
    if size != head.start + rows_end:
        raise _DamagedError(f"it has {size} bytes, its header says {head.start + rows_end}")
    return head


def _load_segment(path: Path) -> _Segment:
    """Read header and keys.

    Raises:
        _DamagedError: If either is not what was written, or the file has the wrong length.
        OSError: If the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        head = _read_header(file, path)
        raw = _read(file, DIGEST_BYTES * head.n_rows)
    if zlib.crc32(raw) != head.keys_crc:
        raise _DamagedError("its keys fail their checksum")
    return _Segment(path, head, np.frombuffer(raw, np.uint8).reshape(-1, DIGEST_BYTES))


def _write_segment(
    folder: Path, keys: NDArray[np.uint8], rows: NDArray[Any], seconds: float
) -> Path:
    row_bytes = rows.dtype.itemsize * math.prod(rows.shape[1:])
    block_rows = max(1, BLOCK_BYTES // row_bytes)
    key_bytes = np.ascontiguousarray(keys).data
    # numpy gives no buffer of a float16 array that crc32 would take as plain bytes.
    row_data = rows.reshape(-1).view(np.uint8).data
    step = block_rows * row_bytes
    crcs = [zlib.crc32(row_data[i : i + step]) for i in range(0, len(row_data), step)]
    header = {
        "__metadata__": {
            "format": f"clipadapt-features-{FORMAT}",
            "created": datetime.now(UTC).isoformat(),
            "encode_seconds": repr(seconds),
            "block_rows": str(block_rows),
            "block_crc32": "".join(f"{crc:08x}" for crc in crcs),
            "keys_crc32": f"{zlib.crc32(key_bytes):08x}",
        },
        "keys": {
            "dtype": "U8",
            "shape": list(keys.shape),
            "data_offsets": [0, keys.size],
        },
        "rows": {
            "dtype": _CODES[rows.dtype],
            "shape": list(rows.shape),
            "data_offsets": [keys.size, keys.size + len(row_data)],
        },
    }
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # the tensors begin at a multiple of eight bytes
    path = folder / _segment_name(raw)
    with atomic_file(path) as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.write(key_bytes)
        file.write(row_data)
    return path


def _segment_name(header: bytes | bytearray) -> str:
    return f"{hashlib.sha256(header).hexdigest()[:32]}.safetensors"


def _segments_in(folder: Path) -> Iterator[os.DirEntry[str]]:
    """List the segments of a space; other files and unfinished ones are passed over."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        yield from [e for e in entries if _SEGMENT_NAME.fullmatch(e.name)]


class _Index:
    """Where each key of a space lies: sorted 8-byte prefixes, then the whole key compared."""

    def __init__(self, segments: list[_Segment]) -> None:
        self.segments = segments
        self.offsets = np.cumsum([0, *(s.header.n_rows for s in segments)])
        keys = [s.keys for s in segments] or [np.empty((0, DIGEST_BYTES), np.uint8)]
        self.words = np.concatenate(keys).view("<u8")  # (N, 4)
        self.order = np.argsort(self.words[:, 0], kind="stable")
        self.prefixes = self.words[self.order, 0]
        per_row = [s.header.seconds / s.header.n_rows for s in segments]
        self.seconds = np.asarray(per_row, dtype=np.float64)  # of one row, by segment

    def locate(self, digests: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the row number of each digest, counted over all segments, or -1; shape ``(n,)``."""
        wanted = digests.view("<u8")  # (n, 4)
        where = np.full(len(wanted), -1, dtype=np.int64)
        at = np.searchsorted(self.prefixes, wanted[:, 0])
        left = np.arange(len(wanted))
        # One pass finds nearly all; equal prefixes of unequal keys take one more pass each.
        while True:
            inside = at < len(self.prefixes)
            at, left = at[inside], left[inside]
            same = self.prefixes[at] == wanted[left, 0]
            at, left = at[same], left[same]
            if not len(left):
                return where
            rows = self.order[at]
            equal = (self.words[rows] == wanted[left]).all(axis=1)
            where[left[equal]] = rows[equal]
            at, left = at[~equal] + 1, left[~equal]

    def segment_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self.offsets, rows, side="right") - 1

    def cost(self, rows: NDArray[np.int64]) -> float:
        """Return the seconds that distinct rows cost."""
        return float(self.seconds[self.segment_of(np.unique(rows))].sum())


class SpaceHandle:
    """One space, open; made by :meth:`FeatureCache.open`. Not for several threads at once."""

    def __init__(self, store: FeatureCache, space: Space) -> None:
        self.space = space
        self.folder = store.directory / space.key[:2] / space.key
        self.store = store
        self._segments: dict[str, _Segment] = {}
        self._bad: set[str] = set()  # damaged or unreadable: never tried again
        self._index: _Index | None = None

    def lookup(self, digests: NDArray[np.uint8]) -> Lookup:
        """Tell which examples have a row.

        Args:
            digests: sha256 of each example, shape ``(n, 32)``.
        """
        digests = _checked(digests)
        self._refresh()
        index = self._indexed()
        where = index.locate(digests)
        return Lookup(where >= 0, index.cost(where[where >= 0]))

    def read(self, digests: NDArray[np.uint8], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the rows of examples, in order, every one checked; shape ``(n, ...)``.

        Args:
            digests: sha256 of each example, shape ``(n, 32)``.
            out: Where to put the rows, in place of a new array.

        Raises:
            KeyError: If a row is missing or damaged; :meth:`FeatureCache.get_or_compute` computes it.
        """
        digests = _checked(digests)
        target = _Target(len(digests), self.store.scratch, out)
        found, _ = self.fill(digests, target)
        if not found.all():
            raise KeyError(f"{int((~found).sum())} of {len(found)} rows are not in the store")
        return target.result()

    def write(
        self, digests: NDArray[np.uint8], rows: NDArray[Any], encode_seconds: float = 0.0
    ) -> None:
        """Store rows, then bring the whole store back under its bound.

        A store that cannot be written (disk full, no permission) is a warning, not an error: the rows are
        computed anew next time.

        Args:
            digests: sha256 of each example, shape ``(n, 32)``.
            rows: One row per example, shape ``(n, ...)``, integers or floats.
            encode_seconds: What all of them cost.

        Raises:
            ValueError: If shapes or dtype are wrong, or differ from the rows that the space holds.
        """
        digests = _checked(digests)
        rows = _storable(rows)
        if len(digests) != len(rows):
            raise ValueError(f"{len(digests)} digests but {len(rows)} rows")
        known = self.row_type()
        if known is not None and known != (rows.dtype, rows.shape[1:]):
            raise ValueError(
                f"the space holds rows of {known[0]} {known[1]}, got {rows.dtype} {rows.shape[1:]}"
            )
        if not self.store.enabled or not len(rows):
            return
        remove_leftovers(self.folder)
        if self._save(digests, rows, encode_seconds):
            self._merge_small()
            self.store.evict()

    def row_type(self) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
        """Return dtype and shape of one row, or None before the first write."""
        for segment in self._segments.values():
            return segment.header.dtype, segment.header.row_shape
        return None

    def fill(self, digests: NDArray[np.uint8], target: _Target) -> tuple[NDArray[np.bool_], float]:
        """Copy the rows there are into ``target``, each checked.

        Returns:
            Which rows were copied, shape ``(n,)``, and what they cost, each distinct one counted once.
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
            for number in np.unique(of):
                span = slice(*np.searchsorted(of, [number, number + 1]))
                segment = index.segments[number]
                if self._copy(segment, where[span] - index.offsets[number], todo[span], target):
                    found[todo[span]] = True
                    seconds += index.cost(where[span])
                else:
                    failed.append(todo[span])
            if not failed:
                break
            # The same keys may lie in another segment: a duplicate, or a merger by another process.
            todo = np.concatenate(failed)
            self._refresh()
        return found, seconds

    def _copy(
        self,
        segment: _Segment,
        rows: NDArray[np.int64],
        places: NDArray[np.int64],
        target: _Target,
    ) -> bool:
        try:
            out = target.array(segment.header.dtype, segment.header.row_shape)
            segment.read_into(out, rows, places)
        except _DamagedError as err:
            self._discard(segment.path, str(err))
            return False
        except OSError as err:
            self._pass_over(segment.path, err)
            return False
        target.release()
        with contextlib.suppress(OSError):  # removed since, or a store that one may only read
            os.utime(segment.path)
        return True

    def _indexed(self) -> _Index:
        if self._index is None:
            self._index = _Index(list(self._segments.values()))
        return self._index

    def _forget(self, name: str) -> None:
        if self._segments.pop(name, None) is not None:
            self._index = None

    def _discard(self, path: Path, why: str) -> None:
        _remove_damaged(path, why)
        self._bad.add(path.name)
        self._forget(path.name)

    def _pass_over(self, path: Path, err: OSError) -> None:
        self._forget(path.name)
        if not isinstance(err, FileNotFoundError):  # that one was pruned or merged
            self._bad.add(path.name)
            log.warning("cannot read %s (%s); its rows are computed anew", path, err)

    def _refresh(self) -> None:
        """Follow what other processes wrote and removed."""
        if not self.store.enabled:
            return
        there = {e.name for e in _segments_in(self.folder)} - self._bad
        for name in self._segments.keys() - there:
            self._forget(name)
        for name in sorted(there - self._segments.keys()):
            path = self.folder / name
            try:
                segment = _load_segment(path)
            except _DamagedError as err:
                self._discard(path, str(err))
                continue
            except OSError as err:
                self._pass_over(path, err)
                continue
            known = self.row_type()
            if known is not None and known != (segment.header.dtype, segment.header.row_shape):
                self._discard(path, "its rows have another shape or dtype than the space's")
                continue
            self._segments[name] = segment
            self._index = None

    def _save(self, digests: NDArray[np.uint8], rows: NDArray[Any], seconds: float) -> bool:
        step = max(1, SEGMENT_BYTES // (rows.dtype.itemsize * math.prod(rows.shape[1:])))
        try:
            for i in range(0, len(rows), step):
                part = rows[i : i + step]
                self._save_one(digests[i : i + step], part, seconds * len(part) / len(rows))
        except OSError as err:
            self.store.warn_unwritable(err)
            return False
        return True

    def _save_one(self, keys: NDArray[np.uint8], rows: NDArray[Any], seconds: float) -> None:
        for last in (False, False, True):
            try:
                if not (self.folder / "space.json").exists():
                    write_json(self.folder / "space.json", dataclasses.asdict(self.space))
                path = _write_segment(self.folder, keys, rows, seconds)
                self._segments[path.name] = _load_segment(path)
            except FileNotFoundError:  # another process pruned the folder in between
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
            except _DamagedError as err:
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
        _, first = np.unique(_as_strings(joined), return_index=True)
        first.sort()
        cost = float(np.concatenate(seconds)[first].sum())
        if not self._save(joined[first], np.concatenate(rows)[first], cost):
            return
        for segment in small:
            self._forget(segment.path.name)
            with contextlib.suppress(OSError):
                segment.path.unlink()


class FeatureCache:
    """Feature rows on disk: memory-saving, checked, bounded, safe for several processes.

    Attributes:
        directory: Folder of all spaces, ``<root>/features``.
        max_bytes: Bound on the bytes of all segments.
        enabled: False reads and writes nothing and computes everything.
    """

    def __init__(
        self, root: Path | None = None, *, max_bytes: int | None = None, enabled: bool = True
    ) -> None:
        """Set up a store; nothing is read or written yet.

        Args:
            root: Cache folder; None takes :func:`~clipadapt.core.files.folders.cache_dir`.
            max_bytes: Bound; None takes ``CLIPADAPT_CACHE_BYTES``, or 20 GiB.
            enabled: False switches the store off.

        Raises:
            ConfigError: If ``CLIPADAPT_CACHE_BYTES`` is not a whole number of bytes.
        """
        self.directory = (cache_dir() if root is None else root) / "features"
        self.max_bytes = _default_bound() if max_bytes is None else max_bytes
        self.enabled = enabled
        self._handles: dict[str, SpaceHandle] = {}
        self._warned = False

    @property
    def scratch(self) -> Path | None:
        """Folder for large results, or None for the system's own."""
        there = os.path.isdir(self.directory)  # noqa: PTH112  never raises, whoever it belongs to
        return self.directory if self.enabled and there else None

    def open(self, space: Space) -> SpaceHandle:
        """Return the handle of a space; the same one every time."""
        return self._handles.setdefault(space.key, SpaceHandle(self, space))

    def get_or_compute(
        self,
        space: Space,
        digests: NDArray[np.uint8],
        compute: Compute,
        *,
        out: NDArray[Any] | None = None,
    ) -> StoredFeatures:
        """Return one row per example, computing only those that are missing.

        Rows are written as they come, a segment at a time; what was computed before an error or an
        interruption is kept.

        Args:
            space: What decides the features beside the examples.
            digests: sha256 of each example, shape ``(n, 32)``.
            compute: Called with the positions ``(m,)`` of the missing examples, each distinct one once
                and ascending; yields ``(positions, rows)`` batches in any order. Time spent waiting for
                it counts as encoding.
            out: Where to put the rows, in place of a new array.

        Raises:
            ValueError: If ``compute`` yields other positions, shapes or dtypes than it should.
        """
        digests = _checked(digests)
        handle = self.open(space)
        target = _Target(len(digests), self.scratch, out)
        found, used = handle.fill(digests, target)
        if not self.enabled or found.all():
            return self._computed(handle, digests, compute, target, (found, used, 0.0))
        begun = time.perf_counter()
        path = self._lock_of(space, digests)
        with locked(path) as waited:
            waiting = 0.0
            if waited:  # another process computed these rows
                waiting = time.perf_counter() - begun
                found, used = handle.fill(digests, target)
            try:
                return self._computed(handle, digests, compute, target, (found, used, waiting))
            finally:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def _lock_of(self, space: Space, digests: NDArray[np.uint8]) -> Path:
        """Return the lock of one request: equal requests wait for each other, others do not."""
        name = hashlib.sha256(space.key.encode() + digests.tobytes()).hexdigest()[:32]
        return self.directory.parent / "locks" / name

    @staticmethod
    def _computed(
        handle: SpaceHandle,
        digests: NDArray[np.uint8],
        compute: Compute,
        target: _Target,
        read: tuple[NDArray[np.bool_], float, float],
    ) -> StoredFeatures:
        """Compute what was not found; ``read`` is what was, its cost, and the seconds waited for it."""
        found, used, waiting = read
        missing = np.flatnonzero(~found)
        _, first, inverse = np.unique(
            _as_strings(digests[missing]), return_index=True, return_inverse=True
        )
        spent = 0.0
        if len(missing):
            wanted = missing[np.sort(first)]
            spent = _compute_missing(handle, digests, wanted, compute, target)
            twin = missing[first[inverse]]  # the equal example that was computed
            copies = twin != missing
            rows = target.result()
            rows[missing[copies]] = rows[twin[copies]]
        elif not len(digests) and (known := handle.row_type()) is not None:
            target.array(*known)
        return StoredFeatures(target.result(), used + spent, len(first), spent + waiting)

    def evict(self, max_bytes: int | None = None) -> PruneReport:
        """Remove the least recently used segments until the store is within its bound.

        Args:
            max_bytes: Bound; None takes the store's own.
        """
        bound = self.max_bytes if max_bytes is None else max_bytes
        files = []
        unreadable = []
        for folder in self._folders():
            for entry in _segments_in(folder):
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
                self.warn_unwritable(err)
                unreadable.append(Path(path))
            else:
                freed += size
                segments += 1
        return PruneReport(segments, freed, total - freed, tuple(unreadable))

    def prune(self, max_bytes: int | None = None, *, everything: bool = False) -> PruneReport:
        """Bring the store under a bound and clear leftovers and empty spaces away.

        Args:
            max_bytes: Bound; None takes the store's own.
            everything: Remove every row.
        """
        report = self.evict(-1 if everything else max_bytes)
        unreadable = []
        remove_leftovers(self.directory)
        for folder in self._folders():
            remove_leftovers(folder)
            try:
                empty = {p.name for p in folder.iterdir()} <= {"space.json"}
            except OSError:  # of another user
                unreadable.append(folder)
                continue
            if empty:
                with contextlib.suppress(OSError):  # another process began to write there
                    (folder / "space.json").unlink(missing_ok=True)
                    folder.rmdir()
                    folder.parent.rmdir()
        return dataclasses.replace(report, unreadable=(*report.unreadable, *unreadable))

    def verify(self) -> VerifyReport:
        """Read and check every row; damaged segments are removed, for they cost only time."""
        segments = rows = size = 0
        damaged, unreadable = [], []
        for folder in self._folders():
            if not os.access(folder, os.R_OK | os.X_OK):  # of another user
                unreadable.append(folder)
            for path in sorted(Path(e.path) for e in _segments_in(folder)):
                try:
                    segment = _load_segment(path)
                    segment.read_all()
                except _DamagedError as err:
                    _remove_damaged(path, str(err))
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
        """Return one summary per space, the last used first; only headers are read."""
        out = []
        for folder in self._folders():
            segments = rows = size = 0
            used = 0.0
            for entry in _segments_in(folder):
                try:
                    with Path(entry.path).open("rb", buffering=0) as file:
                        rows += _read_header(file, Path(entry.path)).n_rows
                    status = entry.stat()
                except (_DamagedError, OSError):
                    continue
                segments += 1
                size += status.st_size
                used = max(used, status.st_mtime)
            last = datetime.fromtimestamp(used, UTC) if segments else None
            out.append(SpaceSummary(folder.name, _read_space(folder), segments, rows, size, last))
        never = datetime.min.replace(tzinfo=UTC)
        return sorted(out, key=lambda s: (s.last_used or never, s.key), reverse=True)

    def warn_unwritable(self, err: OSError) -> None:
        """Say once that nothing can be stored."""
        if not self._warned:
            self._warned = True
            log.warning(
                "cannot write to the feature store %s (%s); features are recomputed each time, "
                "unless CLIPADAPT_CACHE is set to a folder that can be written",
                self.directory,
                err.strerror or err,
            )

    def _folders(self) -> list[Path]:
        """Return the folders of all spaces; one that cannot be listed stands for those in it.

        Raises:
            ConfigError: If the store itself cannot be listed.
        """
        try:
            tops = [p for p in self.directory.iterdir() if re.fullmatch("[0-9a-f]{2}", p.name)]
        except FileNotFoundError:
            return []
        except OSError as err:
            raise ConfigError(
                f"cannot read the feature store '{self.directory}': {err.strerror or err}",
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
        return sorted(p for p in found if os.path.isdir(p))  # noqa: PTH112  never raises


def _compute_missing(
    handle: SpaceHandle,
    digests: NDArray[np.uint8],
    wanted: NDArray[np.int64],
    compute: Compute,
    target: _Target,
) -> float:
    """Compute rows into ``target`` and store them as they come; return the seconds it took."""
    due = np.zeros(len(digests), dtype=np.bool_)
    due[wanted] = True
    pending: list[NDArray[np.int64]] = []
    pending_bytes = 0
    seconds = flushed = 0.0

    def flush() -> None:
        nonlocal pending, pending_bytes, flushed
        if handle.store.enabled and pending:
            places = np.concatenate(pending)
            handle.write(digests[places], target.result()[places], seconds - flushed)
            target.release()
        pending, pending_bytes, flushed = [], 0, seconds

    began = time.perf_counter()
    try:
        for places, rows in compute(wanted):
            seconds += time.perf_counter() - began
            if len(places) != len(rows):
                raise ValueError(f"compute yielded {len(places)} positions but {len(rows)} rows")
            if not due[places].all() or len(np.unique(places)) != len(places):
                raise ValueError("compute yielded a position that is not asked for, or twice")
            batch = _storable(rows)
            target.array(batch.dtype, batch.shape[1:])[places] = batch
            due[places] = False
            pending.append(np.asarray(places, dtype=np.int64))
            pending_bytes += batch.nbytes
            if pending_bytes >= SEGMENT_BYTES or seconds - flushed >= FLUSH_SECONDS:
                flush()
            began = time.perf_counter()
        seconds += time.perf_counter() - began
    finally:
        flush()
    if due.any():
        raise ValueError(f"compute left out {int(due.sum())} of {len(wanted)} rows")
    return seconds


class _Target:
    """The result array, made when dtype and shape of a row are known."""

    def __init__(self, n: int, scratch: Path | None, out: NDArray[Any] | None) -> None:
        self._n = n
        self._scratch = scratch
        self._array = out
        self._mapping: mmap.mmap | None = None
        if out is not None and len(out) != n:
            raise ValueError(f"'out' has {len(out)} rows, expected {n}")

    def array(self, dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> NDArray[Any]:
        if self._array is None:
            self._array = self._allocate(dtype, (self._n, *row_shape))
        if (self._array.dtype, self._array.shape[1:]) != (dtype, row_shape):
            raise ValueError(
                f"rows of {dtype} {row_shape} do not go into "
                f"{self._array.dtype} {self._array.shape[1:]}"
            )
        return self._array

    def result(self) -> NDArray[Any]:
        return np.empty((self._n, 0), np.float32) if self._array is None else self._array

    def release(self) -> None:
        """Let go of the pages of a mapped result; their content stays in its file."""
        if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def _allocate(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        size = dtype.itemsize * math.prod(shape)
        if size > SCRATCH_BYTES:
            with (
                contextlib.suppress(OSError),  # no room on disk: memory then
                tempfile.TemporaryFile(dir=self._scratch) as file,
            ):
                if shutil.disk_usage(self._scratch or tempfile.gettempdir()).free > 2 * size:
                    file.truncate(size)
                    self._mapping = mmap.mmap(file.fileno(), size)
                    return np.frombuffer(self._mapping, dtype).reshape(shape)
        return np.empty(shape, dtype)


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


def _remove_damaged(path: Path, why: str) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as err:
        done, why = "cannot remove", f"{why} ({err.strerror or err})"
    else:
        done = "removed"
    log.warning("%s a damaged segment of the feature store, %s: %s", done, path, why)


def _read_space(folder: Path) -> Space | None:
    try:
        return Space(**json.loads((folder / "space.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _checked(digests: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if digests.dtype != np.uint8 or digests.ndim != 2 or digests.shape[1] != DIGEST_BYTES:
        raise ValueError(
            f"digests must be uint8 of shape (n, {DIGEST_BYTES}), "
            f"got {digests.dtype} {digests.shape}"
        )
    return np.ascontiguousarray(digests)


def _storable(rows: NDArray[Any]) -> NDArray[Any]:
    """Return rows little-endian and contiguous.

    Raises:
        ValueError: If they are no array of non-empty rows of integers or floats.
    """
    out = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<"))
    if out.ndim < 1 or out.dtype not in _CODES or not math.prod(out.shape[1:]):
        raise ValueError(f"rows of {rows.dtype} and shape {rows.shape} cannot be stored")
    return out


def _as_strings(digests: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """View each digest as one string: fixed width, so that equal strings are equal digests."""
    return np.ascontiguousarray(digests).view(f"S{DIGEST_BYTES}").reshape(-1)
