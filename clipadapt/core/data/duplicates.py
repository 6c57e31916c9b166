"""Near-duplicate texts: texts that are equal except for case, punctuation and a few words."""

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

MAX_COMPARISONS = 20_000_000
"""Limit on the compared pairs if the search is only one step of a command; about ten seconds."""

_NOT_WORD = re.compile(r"[\W_]+")


def normalise(text: str) -> str:
    """Normalise case and Unicode forms, and replace runs of punctuation and white space by one space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _NOT_WORD.sub(" ", folded).strip() or folded.strip()


def near_duplicates(
    texts: Sequence[str], threshold: float = NEAR
) -> Iterator[tuple[int, int, float]]:
    """Yield every pair whose word sets overlap by ``threshold`` or more.

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
    holders: dict[str, list[int]] = defaultdict(list)
    words: list[frozenset[str]] = []
    for j, (row, prefix) in enumerate(_prefixes(texts, threshold)):
        words.append(row)
        for i in sorted({i for w in prefix for i in holders[w]}):
            shared = len(row & words[i])
            overlap = shared / (len(row) + len(words[i]) - shared)
            if overlap >= threshold:
                yield i, j, overlap
        for w in prefix:
            holders[w].append(j)


def comparisons(texts: Sequence[str], threshold: float = NEAR) -> int:
    """Return the maximum number of pairs that :func:`near_duplicates` compares, in linear time.

    Long texts with a large vocabulary need few comparisons; short texts with a small one nearly ``n * n / 2``.
    """
    holders: Counter[str] = Counter()
    total = 0
    for _, prefix in _prefixes(texts, threshold):
        total += sum(holders[w] for w in prefix)
        holders.update(prefix)
    return total


def _prefixes(texts: Sequence[str], threshold: float) -> Iterator[tuple[frozenset[str], list[str]]]:
    """Yield the word set of each text, and its rarest words, which are used for the look-up."""
    words = [frozenset(normalise(text).split()) for text in texts]
    frequency = Counter(w for row in words for w in row)
    for row in words:
        rare = sorted(row, key=lambda w: (frequency[w], w))
        least = math.ceil(threshold * len(row) - 1e-9)  # 0.55 * 20 is 11.000000000000002
        yield row, rare[: len(row) - least + 1]


def duplicate_groups(texts: Sequence[str], threshold: float = NEAR) -> NDArray[np.int64]:
    """Return the group of each text, shape ``(n,)``: the connected components of near-duplicates."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = [(i, j) for i, j, _ in near_duplicates(texts, threshold)]
    rows, columns = np.asarray(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(texts), len(texts)))
    _, groups = connected_components(graph, directed=False)
    return np.asarray(groups, dtype=np.int64)
