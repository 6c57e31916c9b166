"""Near-duplicate texts: equal up to case, punctuation and a few words."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

NEAR = 0.7
"""Jaccard overlap of the word sets from which two texts count as near-duplicates."""

_NOT_WORD = re.compile(r"[\W_]+")


def normalise(text: str) -> str:
    """Fold case and Unicode forms; runs of punctuation and white space become one space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _NOT_WORD.sub(" ", folded).strip() or folded.strip()


def near_duplicates(
    texts: Sequence[str], threshold: float = NEAR
) -> Iterator[tuple[int, int, float]]:
    """Yield every pair whose word sets overlap by ``threshold`` or more, none left out.

    Two sets with a Jaccard overlap of ``t`` share one of their ``|s| - ceil(t |s|) + 1`` rarest words, so
    only texts that share such a word are compared.

    Args:
        texts: ``n`` texts.
        threshold: Jaccard overlap in (0, 1].

    Yields:
        ``(i, j, overlap)`` with ``i < j``, in the order of ``j``.

    References:
        R. Bayardo et al., "Scaling Up All Pairs Similarity Search", WWW 2007.
    """
    words = [frozenset(normalise(text).split()) for text in texts]
    frequency = Counter(w for row in words for w in row)
    holders: dict[str, list[int]] = defaultdict(list)
    for j, row in enumerate(words):
        rare = sorted(row, key=lambda w: (frequency[w], w))
        least = math.ceil(threshold * len(row) - 1e-9)  # 0.55 * 20 is 11.000000000000002
        prefix = rare[: len(row) - least + 1]
        for i in sorted({i for w in prefix for i in holders[w]}):
            shared = len(row & words[i])
            overlap = shared / (len(row) + len(words[i]) - shared)
            if overlap >= threshold:
                yield i, j, overlap
        for w in prefix:
            holders[w].append(j)


def duplicate_groups(texts: Sequence[str], threshold: float = NEAR) -> NDArray[np.int64]:
    """Return the group of every text, shape ``(n,)``: near-duplicates, and theirs in turn, share one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = [(i, j) for i, j, _ in near_duplicates(texts, threshold)]
    rows, columns = np.asarray(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(texts), len(texts)))
    _, groups = connected_components(graph, directed=False)
    return np.asarray(groups, dtype=np.int64)
