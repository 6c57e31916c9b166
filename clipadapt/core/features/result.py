"""The array that the feature cache returns; a large one is mapped from an unnamed file."""

from __future__ import annotations

import contextlib
import math
import mmap
import shutil
import tempfile
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SCRATCH_BYTES: Final = 256 << 20
"""A larger result is mapped from an unnamed file, so that the system can page it out."""


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

    def release(self) -> None:
        """Drop the pages of a mapped result from memory; the file keeps their content."""
        if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)

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
