"""Segment files: the format in which the feature cache stores rows.

A segment is an ordinary ``.safetensors`` file of at most 16 MiB with two tensors::

    keys  (m, 32) uint8    sha256 of each example
    rows  (m, ...)         the feature row of each example

The metadata in its header hold a CRC-32 of the keys and of each block of about 1 MiB of rows, and the file name is the
sha256 of the header. A flipped bit or a truncated file is therefore always detected when a block is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.api.features import DIGEST_BYTES, FORMAT
from clipadapt.core.files.atomic import atomic_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

BLOCK_BYTES: Final = 1 << 20

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


class DamagedError(Exception):
    """The content of a segment is not what was written."""


@dataclass(frozen=True, slots=True)
class Header:
    """Header of a segment.

    Attributes:
        n_rows: Number of rows.
        dtype: Dtype of the rows.
        row_shape: Shape of one row.
        start: Position of the keys in bytes; the rows follow them.
        keys_crc: CRC-32 of the keys.
        block_crcs: CRC-32 of each block of rows.
        block_rows: Rows per block.
        seconds: Seconds it took to encode all rows.
        size: Size of the file in bytes.
    """

    n_rows: int
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    start: int
    keys_crc: int
    block_crcs: tuple[int, ...]
    block_rows: int
    seconds: float
    size: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * math.prod(self.row_shape)


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment whose header and keys are in memory; rows are read on request.

    Attributes:
        path: The file.
        header: Its header.
        keys: Its keys, shape ``(m, 32)``.
    """

    path: Path
    header: Header
    keys: NDArray[np.uint8]

    def read_into(
        self, out: NDArray[Any], rows: NDArray[np.int64], places: NDArray[np.int64]
    ) -> None:
        """Copy rows to ``out[places]``, verifying the checksum of every block read.

        Args:
            out: Target array, shape ``(n, ...)``.
            rows: Row numbers in this segment, ascending.
            places: Index in ``out`` for each row.

        Raises:
            DamagedError: If a block is damaged.
            OSError: If the file cannot be read.
        """
        head = self.header
        rows_start = head.start + DIGEST_BYTES * head.n_rows
        blocks = rows // head.block_rows
        bounds = np.flatnonzero(np.diff(blocks, prepend=-1))
        with self.path.open("rb", buffering=0) as file:
            for begin, end in zip(bounds, [*bounds[1:], len(rows)], strict=True):
                block = int(blocks[begin])
                first = block * head.block_rows
                size = (min(first + head.block_rows, head.n_rows) - first) * head.row_bytes
                file.seek(rows_start + first * head.row_bytes)
                raw = _read(file, size)
                if zlib.crc32(raw) != head.block_crcs[block]:
                    raise DamagedError(f"wrong checksum in block {block}")
                values = np.frombuffer(raw, head.dtype).reshape(-1, *head.row_shape)
                out[places[begin:end]] = values[rows[begin:end] - first]

    def read_all(self) -> NDArray[Any]:
        """Return all rows, shape ``(m, ...)``; raises like :meth:`read_into`."""
        out = np.empty((self.header.n_rows, *self.header.row_shape), self.header.dtype)
        every = np.arange(self.header.n_rows)
        self.read_into(out, every, every)
        return out


def segments_in(folder: Path) -> Iterator[os.DirEntry[str]]:
    """List the segments in a folder, ignoring other files and unfinished ones."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        yield from [e for e in entries if _SEGMENT_NAME.fullmatch(e.name)]


def load_segment(path: Path) -> Segment:
    """Read header and keys of a segment.

    Raises:
        DamagedError: If either is damaged, or the file has the wrong length.
        OSError: If the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        head = read_header(file, path)
        raw = _read(file, DIGEST_BYTES * head.n_rows)
    if zlib.crc32(raw) != head.keys_crc:
        raise DamagedError("wrong checksum of the keys")
    return Segment(path, head, np.frombuffer(raw, np.uint8).reshape(-1, DIGEST_BYTES))


def read_header(file: IO[bytes], path: Path) -> Header:
    """Read the header of an open segment.

    Raises:
        DamagedError: If it is damaged, or the file has the wrong length.
        OSError: If the file cannot be read.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(_read(file, 8), "little")
    if length > min(_MAX_HEADER, size - 8):
        raise DamagedError(f"the header claims {length} bytes, but the file has {size}")
    raw = _read(file, length)
    if segment_name(raw) != path.name:
        raise DamagedError("the header does not match the file name")
    try:
        head = _parsed(json.loads(raw), 8 + length, size)
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as err:
        raise DamagedError("the header is invalid") from err
    expected = head.start + (DIGEST_BYTES + head.row_bytes) * head.n_rows
    if size != expected:
        raise DamagedError(f"the file has {size} bytes, the header claims {expected}")
    return head


def _parsed(fields: dict[str, Any], start: int, size: int) -> Header:
    """Parse a header; ValueError, KeyError, TypeError or ZeroDivisionError if it is invalid."""
    meta, keys, rows = fields["__metadata__"], fields["keys"], fields["rows"]
    n_rows, *row_shape = rows["shape"]
    crcs = meta["block_crc32"]
    head = Header(
        n_rows=n_rows,
        dtype=np.dtype(_DTYPES[rows["dtype"]]),
        row_shape=tuple(row_shape),
        start=start,
        keys_crc=int(meta["keys_crc32"], 16),
        block_crcs=tuple(int(crcs[i : i + 8], 16) for i in range(0, len(crcs), 8)),
        block_rows=int(meta["block_rows"]),
        seconds=float(meta["encode_seconds"]),
        size=size,
    )
    keys_end = DIGEST_BYTES * n_rows
    rows_end = keys_end + head.row_bytes * n_rows
    valid = (
        keys == {"dtype": "U8", "shape": [n_rows, DIGEST_BYTES], "data_offsets": [0, keys_end]}
        and rows["data_offsets"] == [keys_end, rows_end]
        and n_rows > 0
        and len(head.block_crcs) == -(-n_rows // head.block_rows)
    )
    if not valid:
        raise ValueError("inconsistent shapes")
    return head


def write_segment(
    folder: Path, keys: NDArray[np.uint8], rows: NDArray[Any], seconds: float
) -> Path:
    """Write a segment atomically and return its path.

    Args:
        folder: Folder of the space.
        keys: sha256 of each example, shape ``(m, 32)``.
        rows: One row per example, shape ``(m, ...)``, see :func:`storable`.
        seconds: Seconds it took to encode all rows.
    """
    row_bytes = rows.dtype.itemsize * math.prod(rows.shape[1:])
    block_rows = max(1, BLOCK_BYTES // row_bytes)
    key_bytes = np.ascontiguousarray(keys).data
    # crc32 does not accept numpy's buffer of a float16 array.
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
    raw += b" " * (-len(raw) % 8)  # align the tensors to eight bytes
    path = folder / segment_name(raw)
    with atomic_file(path) as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.write(key_bytes)
        file.write(row_data)
    return path


def segment_name(header: bytes | bytearray) -> str:
    """Return the file name of a segment with this header."""
    return f"{hashlib.sha256(header).hexdigest()[:32]}.safetensors"


def storable(rows: NDArray[Any]) -> NDArray[Any]:
    """Return rows as a contiguous little-endian array.

    Raises:
        ValueError: If they are not non-empty rows of integers or floats.
    """
    out = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<"))
    if out.ndim < 1 or out.dtype not in _CODES or not math.prod(out.shape[1:]):
        raise ValueError(f"rows of {rows.dtype} and shape {rows.shape} cannot be stored")
    return out


def _read(file: IO[bytes], size: int) -> bytearray:
    raw = bytearray(size)
    view = memoryview(raw)
    n_read = 0
    while n_read < size:
        more = file.readinto(view[n_read:])  # type: ignore[attr-defined]
        if not more:
            raise DamagedError("truncated")
        n_read += more
    return raw
