"""The array that the feature cache returns; a large one is mapped from an unnamed file.

Only a few windows of a mapped array are in memory while it is filled. Rows in random order would touch all its pages
with every segment. So each row first goes to the next free place of its window, in the order of arrival, and each
window is put in order at the end. Every page is then touched twice, whatever the order and the size.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

SCRATCH_BYTES: Final = 256 << 20
"""A larger result is mapped from an unnamed file, so that the system can page it out."""
WINDOW_BYTES: Final = 32 << 20
"""Bytes of a mapped result that are put in order at a time, and that are in memory before they are released."""
_POPULATE_WRITE: Final = 23
"""``MADV_POPULATE_WRITE`` of Linux 5.14, which mmap does not name."""


class Result:
    """A result array of ``n`` rows, allocated when dtype and shape of a row are known."""

    def __init__(
        self, n: int, scratch: Path | None = None, out: NDArray[Any] | None = None
    ) -> None:
        """Set up a result; nothing is allocated yet.

        Args:
            n: Number of rows.
            scratch: Folder for a mapped file; None uses the system's temporary folder.
            out: Array to fill instead of a new one.

        Raises:
            ValueError: If ``out`` does not have ``n`` rows.
        """
        self._n = n
        self._scratch = scratch
        self._array = out
        self._mapping: mmap.mmap | None = None
        self._windows: _Windows | None = None
        if out is not None and len(out) != n:
            raise ValueError(f"'out' has {len(out)} rows, expected {n}")

    def array(self, dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the array for rows of this dtype and shape.

        Raises:
            ValueError: If it was allocated for another dtype or shape.
        """
        if self._array is None:
            self._array = self._allocate(dtype, (self._n, *row_shape))
        if (self._array.dtype, self._array.shape[1:]) != (dtype, row_shape):
            raise ValueError(
                f"rows of {dtype} {row_shape} do not fit an array of "
                f"{self._array.dtype} {self._array.shape[1:]}"
            )
        return self._array

    def rows(self) -> NDArray[Any]:
        """Return the array, or an empty one of shape ``(n, 0)`` before it is allocated."""
        return np.empty((self._n, 0), np.float32) if self._array is None else self._array

    def fill(
        self,
        dtype: np.dtype[Any],
        row_shape: tuple[int, ...],
        places: NDArray[np.int64],
        read: Callable[[NDArray[Any], NDArray[np.int64]], object],
    ) -> None:
        """Read rows to ``places``; those of a mapped result are there after :meth:`settle`.

        Args:
            dtype: Their dtype.
            row_shape: Shape of a row.
            places: Index of each row, distinct, shape ``(m,)``.
            read: Called with an array and the index in it for each row; nothing is changed if it raises.

        Raises:
            ValueError: If the array was allocated for another dtype or shape.
        """
        array = self.array(dtype, row_shape)
        if self._mapping is None:
            read(array, places)
            return
        if self._windows is None:
            self._windows = _Windows(array, self._mapping)
        self._windows.fill(places, read)

    def settle(self) -> None:
        """Put the rows of a mapped result in order, and drop its pages from memory."""
        if self._windows is not None:
            self._windows.settle()
        self._windows = None

    def release(self) -> None:
        """Drop the pages of a mapped result from memory; the file keeps their content."""
        if self._mapping is not None:
            _release(self._mapping)

    def _allocate(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        size = dtype.itemsize * math.prod(shape)
        if size > SCRATCH_BYTES:
            with (
                contextlib.suppress(OSError),  # not enough disk space: fall back to memory
                tempfile.TemporaryFile(dir=self._scratch) as file,
            ):
                if shutil.disk_usage(self._scratch or tempfile.gettempdir()).free > 2 * size:
                    file.truncate(size)
                    self._mapping = mmap.mmap(file.fileno(), size)
                    return np.frombuffer(self._mapping, dtype).reshape(shape)
        return np.empty(shape, dtype)


class _Windows:
    """The windows of a mapped array while it is filled."""

    def __init__(self, array: NDArray[Any], mapping: mmap.mmap) -> None:
        self._array = array
        self._mapping = mapping
        self._row_bytes = array.nbytes // len(array)
        self._n = max(1, WINDOW_BYTES // self._row_bytes)  # rows of a window
        self._places: dict[int, list[NDArray[np.int64]]] = {}  # by window, in the order of arrival
        self._next: dict[int, int] = {}  # the next free place of each window
        self._touched = 0

    def fill(
        self,
        places: NDArray[np.int64],
        read: Callable[[NDArray[Any], NDArray[np.int64]], object],
    ) -> None:
        """Append rows to the windows of their places."""
        order = np.argsort(places, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        rows = np.empty((len(places), *self._array.shape[1:]), self._array.dtype)
        read(rows, rank)
        places = places[order]
        windows = places // self._n
        for window in np.unique(windows).tolist():
            span = slice(*np.searchsorted(windows, [window, window + 1]))
            begin = self._next.get(window, window * self._n)
            self._write(begin, rows[span])
            self._places.setdefault(window, []).append(places[span])
            self._next[window] = begin + len(places[span])

    def settle(self) -> None:
        """Move the rows of each window to their places."""
        for window, there in self._places.items():
            begin = window * self._n
            places = np.concatenate(there) - begin
            if not np.array_equal(places, np.arange(len(places))):
                arrived = self._array[begin : begin + len(places)].copy()
                self._populate(begin, self._n)
                self._array[begin : begin + self._n][places] = arrived
            _release(self._mapping)

    def _write(self, begin: int, rows: NDArray[Any]) -> None:
        self._populate(begin, len(rows))
        self._array[begin : begin + len(rows)] = rows
        self._touched += rows.nbytes
        if self._touched >= WINDOW_BYTES:
            self._touched = 0
            _release(self._mapping)

    def _populate(self, begin: int, n: int) -> None:
        """Ask for the pages of rows at once, which costs less than a fault for each of them."""
        if sys.platform != "linux":
            return
        first = begin * self._row_bytes // mmap.PAGESIZE * mmap.PAGESIZE
        end = min((begin + n) * self._row_bytes, len(self._mapping))
        with contextlib.suppress(OSError):  # an older kernel
            self._mapping.madvise(_POPULATE_WRITE, first, end - first)


def _release(mapping: mmap.mmap) -> None:
    if hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)
