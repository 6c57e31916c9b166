"""Texts that occur more than once in a dataset, or nearly so, within a split and across splits."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations_with_replacement, product
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from clipadapt.core.api.data import SplitName
from clipadapt.core.data.duplicates import NEAR, comparisons, near_duplicates

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clipadapt.core.api.data import Dataset

MAX_COMPARISONS: Final = 50_000_000
"""Largest number of pairs of texts compared in the search for near-duplicates; about half a minute."""
N_EXAMPLES: Final = 3

Region = tuple[SplitName, ...]
"""One split, or a pair of splits."""


class _Place(NamedTuple):
    """Split, id and label of a text."""

    split: SplitName
    id: str
    label: int


def duplicates(dataset: Dataset[str], threshold: float = NEAR) -> dict[str, Any]:
    """Find texts that occur more than once, within a split and across splits.

    Args:
        dataset: Labelled texts.
        threshold: Smallest Jaccard overlap of the word sets of near-duplicates.

    Returns:
        ``threshold``; ``exact`` and ``near``, one row per split and per pair of splits with ``splits``, ``count``
        (distinct texts; for ``near`` pairs of distinct texts) and ``conflicts`` (how many of them have more than one
        label); ``examples``, conflicts first; ``comparisons``, the cost of the search. ``near`` is None if the cost is
        above :data:`MAX_COMPARISONS`.
    """
    places: dict[str, list[_Place]] = defaultdict(list)
    for split in dataset.splits:
        part = dataset.split(split)
        for text, key, label in zip(
            part.inputs.examples, part.inputs.ids, part.labels.tolist(), strict=True
        ):
            places[text].append(_Place(split, key, label))
    regions = [
        tuple(dict.fromkeys(pair)) for pair in combinations_with_replacement(dataset.splits, 2)
    ]
    exact, repeats = _exact(places, regions)
    cost = comparisons(list(places), threshold)
    searched = cost <= MAX_COMPARISONS
    near, similar = _near(places, regions, threshold) if searched else (_Tally(), [])
    return {
        "threshold": threshold,
        "exact": [exact.row(region) for region in regions],
        "near": [near.row(region) for region in regions] if searched else None,
        "comparisons": cost,
        "examples": [
            pair.described(kind, dataset.classnames)
            for kind, pairs in (("exact", repeats), ("near", similar))
            for pair in sorted(pairs, key=_Pair.rank)[:N_EXAMPLES]
        ],
    }


def _exact(
    places: Mapping[str, Sequence[_Place]], regions: Sequence[Region]
) -> tuple[_Tally, list[_Pair]]:
    """Return the counts of repeated texts, and one pair of each."""
    tally = _Tally()
    pairs = []
    for text, found in places.items():
        if len(found) < 2:
            continue
        conflict = len({p.label for p in found}) > 1
        where = Counter(p.split for p in found)
        within = [(split,) for split, n in where.items() if n > 1]
        across = [r for r in regions if len(r) == 2 and all(s in where for s in r)]
        tally.add([*within, *across], found)
        a, b = _most_different(found, found)
        pairs.append(_Pair(1.0, conflict, text, a, text, b))
    return tally, pairs


def _near(
    places: Mapping[str, Sequence[_Place]], regions: Sequence[Region], threshold: float
) -> tuple[_Tally, list[_Pair]]:
    """Return the counts of pairs of distinct, nearly equal texts, and the pairs."""
    # Only distinct texts: n copies of a text would give n squared pairs.
    texts = list(places)
    tally = _Tally()
    pairs = []
    for i, j, overlap in near_duplicates(texts, threshold):
        first, second = places[texts[i]], places[texts[j]]
        conflict = len({p.label for p in (*first, *second)}) > 1
        met = {
            frozenset(pair) for pair in product({p.split for p in first}, {p.split for p in second})
        }
        tally.add([r for r in regions if frozenset(r) in met], (*first, *second))
        a, b = _most_different(first, second)
        pairs.append(_Pair(overlap, conflict, texts[i], a, texts[j], b))
    return tally, pairs


class _Pair(NamedTuple):
    """Two places of one text, or of two nearly equal texts."""

    overlap: float
    conflict: bool
    text_a: str
    a: _Place
    text_b: str
    b: _Place

    def rank(self) -> tuple[Any, ...]:
        """Sort key: conflicts first, then pairs across splits, then by overlap."""
        return not self.conflict, self.a.split == self.b.split, -self.overlap, self.a.id, self.b.id

    def described(self, kind: str, classnames: Sequence[str]) -> dict[str, Any]:
        """Return the pair as plain data."""
        sides = {
            name: {
                "split": place.split,
                "id": place.id,
                "label": classnames[place.label],
                "text": text,
            }
            for name, text, place in (("a", self.text_a, self.a), ("b", self.text_b, self.b))
        }
        return {
            "kind": kind,
            "overlap": float(self.overlap),
            "conflict": self.conflict,
            **sides,
        }


class _Tally:
    """Counts per split and per pair of splits."""

    def __init__(self) -> None:
        self.count: Counter[Region] = Counter()
        self.conflicts: Counter[Region] = Counter()

    def add(self, regions: Sequence[Region], places: Sequence[_Place]) -> None:
        self.count.update(regions)
        self.conflicts.update(
            region for region in regions if len({p.label for p in places if p.split in region}) > 1
        )

    def row(self, region: Region) -> dict[str, Any]:
        return {
            "splits": list(region),
            "count": self.count[region],
            "conflicts": self.conflicts[region],
        }


def _most_different(first: Sequence[_Place], second: Sequence[_Place]) -> tuple[_Place, _Place]:
    """Return a place of each text: with different labels if possible, else in different splits, else the first."""
    pairs = [(a, b) for a, b in product(_few(first), _few(second)) if a != b]
    return max(pairs, key=lambda p: (p[0].label != p[1].label, p[0].split != p[1].split))


def _few(places: Sequence[_Place]) -> list[_Place]:
    """Return at most two places per split and label, as a text may occur thousands of times."""
    seen: Counter[tuple[SplitName, int]] = Counter()
    kept = []
    for place in places:
        seen[place.split, place.label] += 1
        if seen[place.split, place.label] <= 2:
            kept.append(place)
    return kept
