"""The index of a space: which row of which segment belongs to a key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from clipadapt.core.api.features import DIGEST_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipadapt.core.features.segment import Segment


class Index:
    """Key lookup by sorted 8-byte prefixes, followed by a comparison of the whole key.

    Attributes:
        segments: The indexed segments.
        offsets: Number of the first row of each segment, counted over all segments.
    """

    def __init__(self, segments: list[Segment]) -> None:
        self.segments = segments
        self.offsets = np.cumsum([0, *(s.header.n_rows for s in segments)])
        keys = [s.keys for s in segments] or [np.empty((0, DIGEST_BYTES), np.uint8)]
        self._words = np.concatenate(keys).view("<u8")  # (N, 4)
        self._order = np.argsort(self._words[:, 0], kind="stable")
        self._prefixes = self._words[self._order, 0]
        per_row = [s.header.seconds / s.header.n_rows for s in segments]
        self._seconds = np.asarray(per_row, dtype=np.float64)  # seconds per row, by segment

    def locate(self, digests: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the row number of each digest, counted over all segments, or -1; shape ``(n,)``."""
        wanted = digests.view("<u8")  # (n, 4)
        where = np.full(len(wanted), -1, dtype=np.int64)
        at = np.searchsorted(self._prefixes, wanted[:, 0])
        left = np.arange(len(wanted))
        # The first pass finds nearly all keys; each collision of prefixes needs one more pass.
        while True:
            inside = at < len(self._prefixes)
            at, left = at[inside], left[inside]
            same = self._prefixes[at] == wanted[left, 0]
            at, left = at[same], left[same]
            if not len(left):
                return where
            rows = self._order[at]
            equal = (self._words[rows] == wanted[left]).all(axis=1)
            where[left[equal]] = rows[equal]
            at, left = at[~equal] + 1, left[~equal]

    def segment_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the segment number of each row number."""
        return np.searchsorted(self.offsets, rows, side="right") - 1

    def cost(self, rows: NDArray[np.int64]) -> float:
        """Return the encoding seconds of rows, counting repeated rows once."""
        return float(self._seconds[self.segment_of(np.unique(rows))].sum())
