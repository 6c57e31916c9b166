"""The index of a space: which row of which segment belongs to a key."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from clipadapt.core.api.features import DIGEST_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipadapt.core.features.segment import Segment


class Index:
    """Key lookup by sorted 8-byte prefixes, followed by a comparison of the whole key.

    Attributes:
        segments: The indexed segments; their keys are views of one array, so that no key is in memory twice.
        offsets: Number of the first row of each segment, counted over all segments.
        prefixes: First eight bytes of every key, ascending, shape ``(N,)``.
    """

    def __init__(self, segments: list[Segment]) -> None:
        self.offsets = np.cumsum([0, *(s.header.n_rows for s in segments)])
        keys = np.concatenate([np.empty((0, DIGEST_BYTES), np.uint8), *(s.keys for s in segments)])
        bounds = zip(segments, self.offsets, self.offsets[1:], strict=False)
        self.segments = [replace(s, keys=keys[begin:end]) for s, begin, end in bounds]
        self._words = keys.view("<u8")  # (N, 4)
        self._order = np.argsort(self._words[:, 0], kind="stable")
        self.prefixes = self._words[self._order, 0]
        per_row = [s.header.seconds / s.header.n_rows for s in segments]
        self._seconds = np.asarray(per_row, dtype=np.float64)  # seconds per row, by segment

    def locate(self, digests: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the row number of each digest, counted over all segments, or -1; shape ``(n,)``."""
        wanted = digests.view("<u8")  # (n, 4)
        where = np.full(len(wanted), -1, dtype=np.int64)
        at = np.searchsorted(self.prefixes, wanted[:, 0])
        left = np.arange(len(wanted))
        # The first pass finds nearly all keys; each collision of prefixes needs one more pass.
        while True:
            inside = at < len(self.prefixes)
            at, left = at[inside], left[inside]
            same = self.prefixes[at] == wanted[left, 0]
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


class PrefixSet:
    """A set of digests, by their first eight bytes; adding to it costs little, whatever its size.

    Two digests with equal prefixes count as equal. Among a billion digests, one is taken for another with a
    probability of 3 %.
    """

    def __init__(self, prefixes: NDArray[np.uint64] | None = None) -> None:
        """Make a set.

        Args:
            prefixes: Prefixes in it, ascending.
        """
        self._runs = [] if prefixes is None or not len(prefixes) else [prefixes]

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def contains(self, digests: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return which digests of shape ``(n, 32)`` are in the set, shape ``(n,)``."""
        wanted = _first_words(digests)
        found = np.zeros(len(wanted), dtype=np.bool_)
        for run in self._runs:
            at = np.searchsorted(run, wanted)
            at[at == len(run)] = 0
            found |= run[at] == wanted
        return found

    def add(self, digests: NDArray[np.uint8]) -> None:
        """Add digests of shape ``(n, 32)``."""
        if not len(digests):
            return
        self._runs.append(np.sort(_first_words(digests)))
        # Runs at least double in length, so there are few, and each prefix is merged a few times.
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.sort(np.concatenate([self._runs[-1], last]), kind="stable")


def _first_words(digests: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the first eight bytes of each digest, shape ``(n,)``."""
    return np.ascontiguousarray(digests).view("<u8").reshape(-1, DIGEST_BYTES // 8)[:, 0]
