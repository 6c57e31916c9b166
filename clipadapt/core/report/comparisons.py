"""Paired tests between the rows that compete, plus tie letters and the best row.

Two methods are tested on the examples that both were evaluated on, joined by id. One seed each: McNemar's exact test.
Several: the crossed model of :func:`~clipadapt.core.scoring.statistics.crossed_interval` on the differences, in its
cautious form for p-value and interval alike. Holm's method adjusts the p-values of a block. An inductive, a
transductive and an online method are never compared with one another.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Final

import numpy as np

from clipadapt.core.report.answers import LEVEL, shared
from clipadapt.core.scoring.statistics import (
    crossed_p_value,
    difference_interval,
    examples_needed,
    holm,
    letters_of_ties,
    mcnemar_exact,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from clipadapt.core.report.answers import Answers
    from clipadapt.core.report.rows import Row
    from clipadapt.core.scoring.statistics import Interval

SIGNIFICANT: Final = 1 - LEVEL
"""A p-value below it is called significant."""


@dataclass(frozen=True, slots=True)
class RankedRow:
    """A row in its block.

    Attributes:
        row: Runs and their figures.
        label: Label of the row, with its model if the block has several.
        best: Whether it is significantly better than the runner-up.
        letters: Rows of a block that share a letter were compared and are not significantly different.
    """

    row: Row
    label: str
    best: bool
    letters: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two rows on the same examples.

    Attributes:
        first: Label of the row with the higher accuracy.
        second: Label of the other.
        difference: Accuracy of the first minus that of the second.
        p_value: Two-sided.
        p_adjusted: The p-value after Holm over the block.
        test: ``McNemar`` or ``crossed``, with the number of seeds.
        n_examples: Examples that both were evaluated on.
        n_needed: Examples with which a difference of this size would be significant at 5 % with a power of 80 %; None
            if there is no difference, or if more seeds rather than examples are needed.
    """

    first: str
    second: str
    difference: Interval
    p_value: float
    p_adjusted: float
    test: str
    n_examples: int
    n_needed: int | None = None


def rank(rows: Sequence[Row]) -> tuple[tuple[RankedRow, ...], tuple[Comparison, ...]]:
    """Return the rows of a block, best first, and every pair of them that can be tested."""
    several = len({row.model for row in rows}) > 1
    named = [
        (f"{row.label} on {row.model or 'no model'}" if several else row.label, row)
        for row in sorted(rows, key=_descending)
    ]
    comparisons = compare(named)
    labels = [label for label, row in named if row.accuracy is not None]
    best = _best(labels, comparisons)
    alike = {(c.first, c.second) for c in comparisons if c.p_adjusted >= SIGNIFICANT}
    different = {pair for pair in combinations(labels, 2) if pair not in alike}
    letters = dict(zip(labels, letters_of_ties(labels, different), strict=True))
    ranked = (RankedRow(row, x, x == best, letters.get(x, "")) for x, row in named)
    return tuple(ranked), comparisons


def compare(named: Sequence[tuple[str, Row]]) -> tuple[Comparison, ...]:
    """Test every pair of labelled rows that have seeds and examples in common."""
    found = [c for one, two in combinations(named, 2) if (c := compare_rows(one, two)) is not None]
    adjusted = holm([c.p_value for c in found])
    return tuple(
        dataclasses.replace(c, p_adjusted=float(p)) for c, p in zip(found, adjusted, strict=True)
    )


def compare_rows(one: tuple[str, Row], two: tuple[str, Row]) -> Comparison | None:
    """Test one pair; None if it has no seed or no example in common, or if the settings differ."""
    (first, row_a), (second, row_b) = one, two
    if row_a.setting != row_b.setting:
        return None
    matched = in_common(row_a, row_b)
    if matched is None:
        return None
    correct_a, correct_b = matched[0].values, matched[1].values  # (S, n)
    difference = correct_a.astype(np.int8) - correct_b
    correct_a, correct_b = _without_copies(correct_a, correct_b)
    if len(correct_a) == 1:
        test, p_value = "McNemar", mcnemar_exact(correct_a[0], correct_b[0]).p_value
    else:
        test = f"crossed, {len(difference)} seeds"
        p_value = crossed_p_value(difference, cautious=True)
        if min(len(row_a.ok), len(row_b.ok)) == 1:
            test += " against 1"
    needed = examples_needed(difference[: len(correct_a)], LEVEL)
    interval = difference_interval(difference, LEVEL, cautious=True)
    return Comparison(first, second, interval, p_value, p_value, test, difference.shape[1], needed)


def in_common(row_a: Row, row_b: Row) -> tuple[Answers, Answers] | None:
    """Return the answers of both rows for the seeds and examples to compare, in the same order; None if there are none.

    Raises:
        RecordError: If predictions cannot be read, or an example has two labels.
    """
    a, b = row_a.answers, row_b.answers
    if a is None or b is None:
        return None
    in_a, in_b = shared(a, b)
    trained = row_a.first.method.uses_train and row_b.first.method.uses_train
    pairs = _seed_pairs(a.seeds, b.seeds, any_seed=not trained)
    if not in_a.size or not pairs:
        return None
    seeds_a, seeds_b = zip(*pairs, strict=True)
    if a.ids is b.ids:  # all of them, in the same order
        return _restricted(a, seeds_a, slice(None)), _restricted(b, seeds_b, slice(None))
    return _restricted(a, seeds_a, in_a), _restricted(b, seeds_b, in_b)


def _restricted(
    answers: Answers, seeds: Sequence[int], examples: NDArray[np.intp] | slice
) -> Answers:
    """Return the answers of some seeds, by index, on some examples."""
    rows = list(seeds)
    return dataclasses.replace(
        answers,
        ids=answers.ids[examples],
        labels=answers.labels[examples],
        values=answers.values[rows][:, examples],
        seeds=tuple(answers.seeds[i] for i in rows),
        predicted=answers.predicted[rows][:, examples],
    )


def _seed_pairs(a: Sequence[int], b: Sequence[int], *, any_seed: bool) -> list[tuple[int, int]]:
    """Return the indices of the seeds to compare: those in common, because the seed determines the few-shot draw.

    A single seed that the other method has too, or with ``any_seed``, is compared with every seed of the other.
    """
    if min(len(a), len(b)) == 1 and (any_seed or set(a) & set(b)):
        return [
            (i if len(a) > 1 else 0, i if len(b) > 1 else 0) for i in range(max(len(a), len(b)))
        ]
    return [(i, b.index(seed)) for i, seed in enumerate(a) if seed in b]


def _without_copies(*tables: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Return the first seed of each table if no table's seeds differ; copies add no information."""
    if all((table == table[0]).all() for table in tables):
        return [table[:1] for table in tables]
    return list(tables)


def _descending(row: Row) -> tuple[bool, float, str]:
    accuracy = row.accuracy
    return accuracy is None, -accuracy.value if accuracy else 0.0, row.label


def _best(labels: Sequence[str], comparisons: Sequence[Comparison]) -> str | None:
    """Return the first label if its row is significantly better than the second, or None."""
    if len(labels) < 2:
        return None
    pair = set(labels[:2])
    won = any(
        {c.first, c.second} == pair and c.p_adjusted < SIGNIFICANT and c.difference.value > 0
        for c in comparisons
    )
    return labels[0] if won else None
