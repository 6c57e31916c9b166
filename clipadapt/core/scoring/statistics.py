"""Confidence intervals of metrics, and significance tests between two methods.

All seeds of a method are evaluated on the same examples, so the design is crossed: seeds and examples are both random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

_SMALLEST_P: Final = 1e-12
_SEEDS_MATTER: Final = 0.5
_WHOLE: Final = "bi"
"""Kinds of bool and signed whole numbers."""
_PLUS_FOUR: Final = (1.0, 1.0, 0.0, 0.0)
"""Two correct and two wrong examples, the same in every seed, added when the variance of a fraction is estimated."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its two-sided confidence interval.

    Attributes:
        value: The estimate.
        low: Lower bound, None if the variance cannot be estimated.
        high: Upper bound, None with ``low``.
        level: Nominal coverage.
        n: Number of observations; in a crossed design, the examples.
    """

    value: float
    low: float | None
    high: float | None
    level: float
    n: int


@dataclass(frozen=True, slots=True)
class McNemar:
    """Exact McNemar test of two classifiers on the same examples.

    Attributes:
        n01: Examples that only the second classifier predicts correctly.
        n10: Examples that only the first classifier predicts correctly.
        p_value: Two-sided; 1 if they never differ.
    """

    n01: int
    n10: int
    p_value: float


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Return the Wilson score interval of a proportion.

    Raises:
        ValueError: If ``successes`` is not in ``[0, n]``, or ``n`` is 0.

    References:
        E. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"no proportion: {successes} successes of {n}")
    value = successes / n
    return Interval(value, *_score_bounds(value, n, _normal_quantile(level)), level, n)


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Return the Student t interval of a mean, with the sample standard deviation (ddof=1).

    Args:
        values: Independent observations, shape ``(n,)``. With a single observation, or equal ones, the variance cannot
            be estimated and the bounds are None.
        level: Nominal coverage.

    Raises:
        ValueError: If there is no value.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not x.size:
        raise ValueError(f"a mean needs values of shape (n,), n >= 1; got {x.shape}")
    mean = float(x.mean())
    if (x == x[0]).all():
        return Interval(mean, None, None, level, x.size)
    half = t_half_width(float(x.var(ddof=1)) / x.size, x.size - 1, level)
    return Interval(mean, mean - half, mean + half, level, x.size)


def mcnemar_exact(correct_a: ArrayLike, correct_b: ArrayLike) -> McNemar:
    """Test whether two classifiers differ on the same examples.

    Args:
        correct_a: Whether the first is correct, shape ``(n,)``.
        correct_b: Whether the second is correct, in the same order.

    Raises:
        ValueError: If the shapes differ.

    References:
        Q. McNemar, "Note on the Sampling Error of the Difference between Correlated Proportions or
        Percentages", Psychometrika 1947; the exact (binomial) form.
    """
    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"paired examples need equal shapes (n,); got {a.shape} and {b.shape}")
    n01, n10 = int((~a & b).sum()), int((a & ~b).sum())
    if n01 + n10 == 0:
        return McNemar(n01, n10, 1.0)
    from scipy.stats import binomtest

    return McNemar(n01, n10, float(binomtest(n01, n01 + n10, 0.5).pvalue))


def holm(p_values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p-values adjusted for the number of tests, which may depend on each other.

    Args:
        p_values: ``m`` p-values, in any order.

    Returns:
        ``m`` adjusted p-values in the same order, shape ``(m,)``.

    Raises:
        ValueError: If one is not in ``[0, 1]``.

    References:
        S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scand. J. Statistics 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must be in [0, 1], got {p.tolist()}")
    if not p.size:
        return p
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    return np.minimum(adjusted, 1.0)


def crossed_interval(values: NDArray[Any], level: float = 0.95) -> Interval:
    """Return the interval of a mean over seeds and examples, where every seed has the same examples.

    The model is ``y[s, e] = mean + seed[s] + example[e] + residual[s, e]``, all three random. With ``S`` seeds,
    ``N`` examples and the mean squares ``MS`` of the two-way table, the variance of the grand mean is
    estimated without bias by ``(MS_seed + MS_example - MS_residual) / (S N)``; its degrees of freedom are
    Satterthwaite's ``(sum c MS)^2 / sum((c MS)^2 / df)`` with ``df = S - 1, N - 1, (S - 1)(N - 1)`` and the
    coefficients ``c = 1, 1, -1``. A component with a negative estimate counts as zero.

    With one seed (or one example), the interval is over the examples (the seeds) alone. Bool values are passed to
    :func:`fraction_interval`; for the difference of two methods, use :func:`difference_interval`.

    Args:
        values: Bool or unbounded numbers, shape ``(S, N)``. Equal numbers have no interval.
        level: Nominal coverage.

    Raises:
        ValueError: If the shape is not ``(S, N)`` with at least one entry.

    References:
        F. Satterthwaite, "An Approximate Distribution of Estimates of Variance Components", Biometrics
        Bulletin 2(6), 1946. R. Burdick and F. Graybill, "Confidence Intervals on Variance Components", 1992.
    """
    table = two_way(values)
    if table.dtype == np.bool_:
        return fraction_interval(table, level)
    if min(table.shape) == 1:
        return t_interval(table.ravel(), level)
    mean, variance, df = _crossed_moments(table)
    if variance <= 0:
        return Interval(mean, None, None, level, table.shape[1])
    half = t_half_width(variance, df, level)
    return Interval(mean, mean - half, mean + half, level, table.shape[1])


def fraction_interval(
    values: NDArray[Any], level: float = 0.95, *, weight: float = 1.0
) -> Interval:
    """Return the interval of a fraction over seeds and examples: Wilson's with the variance of the crossed model.

    Wilson's interval is computed with an effective number of examples and, if seeds differ, with a quantile of t. The
    examples' part of the variance is that of :func:`crossed_interval`, estimated with two correct and two wrong
    examples added ("plus four"), on which all seeds agree. It is expressed as a design effect: 1 if the seeds are
    copies of each other, less if they fail on different examples. One seed, or several that never differ, therefore
    have exactly Wilson's interval; seeds that nearly agree have nearly that one; and the interval of a perfect score
    has a width. The seeds' part of the variance is added, with Satterthwaite's degrees of freedom.

    Args:
        values: Values whose mean is the fraction, shape ``(S, N)``: bool, or those of an average over classes to first
            order (see :class:`~clipadapt.core.scoring.metrics.ExampleValues`).
        level: Nominal coverage.
        weight: Mean weight of an example, above 1 if some count more than others.

    Raises:
        ValueError: If the shape is not ``(S, N)`` with at least one entry.

    References:
        E. Korn and B. Graubard, "Confidence Intervals for Proportions with Small Expected Number of Positive Counts
        Estimated from Survey Data", Survey Methodology 1998. A. Agresti and B. Coull, "Approximate is Better than
        Exact for Interval Estimation of Binomial Proportions", The American Statistician 1998.
    """
    table = two_way(values)
    seeds, examples = table.shape
    if table.dtype == np.bool_ and (examples == 1 or (table == table[0]).all()):
        n = examples if examples > 1 else seeds
        return wilson(round(float(table.mean()) * n), n, level)
    mean = min(max(float(table.mean()), 0.0), 1.0)  # rounding may exceed a bound
    n_examples = effective_examples(table, mean, weight)[0]
    of_seeds, dfs = seeds_part(table)
    return wilson_with_seeds(mean, n_examples, of_seeds, dfs, level, examples)


def difference_interval(
    difference: NDArray[Any], level: float = 0.95, *, cautious: bool = False
) -> Interval:
    """Return the interval of the difference of two accuracies on the same examples.

    It is in ``[-1, 1]`` and its width is never 0. The model is that of :func:`crossed_interval`, with two examples
    added, one that only the first method predicts correctly and one that only the second does, as Bonett and Price do
    for one seed: methods that never differ on ten examples may still differ on others.

    Args:
        difference: Bool of one method minus bool of the other, shape ``(S, N)``.
        level: Nominal coverage.
        cautious: Limit the degrees of freedom as the cautious :func:`crossed_p_value` does.

    Raises:
        ValueError: If the shape is not ``(S, N)`` with at least one entry.

    References:
        D. Bonett and R. Price, "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on
        Paired Data", J. Educational and Behavioral Statistics 2012.
    """
    table = two_way(difference)
    padded = _with_examples(table, (1.0, -1.0))
    of_examples, (of_seeds, dfs) = examples_part(padded), seeds_part(table)
    centre, variance = float(padded.mean()), of_examples + of_seeds
    df = variance**2 / sum(x**2 / d for x, d in [(of_examples, padded.shape[1] - 1.0), *dfs])
    if cautious:
        df = _cautious(table, df)
    half = t_half_width(variance, df, level)
    value = float(table.mean())
    low, high = max(centre - half, -1.0), min(centre + half, 1.0)
    return Interval(value, min(low, value), max(high, value), level, table.shape[1])


def crossed_p_value(difference: NDArray[Any], *, cautious: bool = False) -> float:
    """Return the two-sided p-value of no difference in the model of :func:`crossed_interval`.

    With two to five seeds, Satterthwaite's degrees of freedom are often too many if the seeds matter: a true null
    hypothesis is rejected in up to 8 % of tests at 5 % (15 % with two seeds). The cautious form stays below 5 % in
    simulation: it uses at most ``S - 1`` degrees of freedom with two seeds, and whenever the mean square of the seeds
    is above half that of the residual.

    Args:
        difference: One method minus the other, shape ``(S, N)``. A single observation gives 1.
        cautious: Use the cautious form.

    Raises:
        ValueError: If the shape is not ``(S, N)`` with at least one entry.
    """
    table = two_way(difference)
    if table.size == 1:
        return 1.0
    mean, variance, df = _crossed_moments(table)
    if mean == 0:
        return 1.0
    if cautious:
        df = _cautious(table, df)
    if variance <= 0:  # every entry is the same: the p-value of the sign test with these examples
        return max(_SMALLEST_P, 2 * math.pow(0.5, table.shape[1]))
    from scipy.special import stdtr  # as in _t_quantile

    return max(_SMALLEST_P, 2 * float(stdtr(df, -abs(mean) / np.sqrt(variance))))


def examples_needed(
    difference: NDArray[Any], level: float = 0.95, power: float = 0.8
) -> int | None:
    """Return the number of examples with which the observed difference of two methods would be significant.

    With one seed, it follows from the paired discordance: ``n = ((z_a sqrt(psi) + z_b sqrt(psi - d^2)) / d)^2``, where
    ``psi`` is the share of examples that exactly one method predicts correctly and ``d`` the difference. With several
    seeds, the variance of a mean over ``n`` examples is ``v_seed / S + v_example / n``; if the seeds' part alone is too
    large, no number of examples is enough.

    Args:
        difference: Bool of one method minus bool of the other, shape ``(S, N)``.
        level: One minus the two-sided level of the test.
        power: Probability of a significant result.

    Returns:
        Examples, with the same number of seeds; None if there is no difference or more seeds are needed.

    References:
        R. Connor, "Sample Size for Testing Differences in Proportions for the Paired-Sample Design", Biometrics 1987.
    """
    table = two_way(difference)
    d = abs(float(table.mean()))
    z_a, z_b = _normal_quantile(level), NormalDist().inv_cdf(power)
    if d == 0:
        return None
    if len(table) == 1:
        psi = float(np.square(table, dtype=np.float64).mean())
        n = ((z_a * np.sqrt(psi) + z_b * np.sqrt(max(psi - d**2, 0.0))) / d) ** 2
        return int(np.ceil(n))
    seeds, examples = table.shape
    if examples < 2:
        return None
    ms_seed, ms_example, ms_residual, _ = mean_squares(table)
    of_seed = max(ms_seed - ms_residual, 0.0) / examples / seeds
    of_example = max(ms_example, ms_residual) / seeds
    left = (d / (z_a + z_b)) ** 2 - of_seed
    return None if left <= 0 else max(2, int(np.ceil(of_example / left)))


def letters_of_ties(names: Sequence[str], different: Collection[tuple[str, str]]) -> list[str]:
    """Return letters for each name: two names share a letter if and only if they do not differ.

    Args:
        names: Best first; the best has the letter ``a``.
        different: Pairs of names that differ, in either order.

    References:
        H.-P. Piepho, "An Algorithm for a Letter-Based Representation of All-Pairwise Comparisons", JCGS 2004.
    """
    place = {name: i for i, name in enumerate(names)}
    everything = (1 << len(names)) - 1
    alike = [everything & ~(1 << i) for i in range(len(names))]  # names as bits
    for first, second in different:
        i, j = place[first], place[second]
        alike[i] &= ~(1 << j)
        alike[j] &= ~(1 << i)
    sets = sorted(map(_members, _cliques(alike, everything))) if names else []
    return ["".join(_letter(k) for k, s in enumerate(sets) if i in s) for i in range(len(names))]


def _cliques(alike: Sequence[int], everything: int) -> Iterator[int]:
    """Yield the largest sets of members that are all alike, as bits (the algorithm of Bron and Kerbosch with a pivot).

    The algorithm of Piepho yields the same sets, but between its steps there may be very many of them. What is left to
    do is a list, because a set may have more members than calls can be nested.
    """
    left = [(everything, 0, 0)]  # candidates, clique, members of cliques found before
    while left:
        candidates, clique, seen = left.pop()
        if not candidates:
            if not seen:
                yield clique
            continue
        pivot, most = 0, -1
        for k in _members(candidates | seen):
            if (shared := (candidates & alike[k]).bit_count()) > most:
                pivot, most = k, shared
        for k in _members(candidates & ~alike[pivot]):
            left.append((candidates & alike[k], clique | 1 << k, seen & alike[k]))
            candidates &= ~(1 << k)
            seen |= 1 << k


def _members(bits: int) -> list[int]:
    return [k for k in range(bits.bit_length()) if bits >> k & 1]


def _letter(k: int) -> str:
    """Return a, b, ... z, a1, b1, ..."""
    return chr(ord("a") + k % 26) + (str(k // 26) if k >= 26 else "")


def two_way(values: NDArray[Any]) -> NDArray[Any]:
    """Return values of shape ``(S, N)``: bool and whole numbers, which have exact and fast sums, or else float64.

    Raises:
        ValueError: If they are not of that shape, or empty.
    """
    table = np.asarray(values)
    if table.dtype.kind not in _WHOLE:
        table = table.astype(np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"expected (seeds, examples), at least one each; got {table.shape}")
    return table


def _with_examples(table: NDArray[Any], more: Sequence[float]) -> NDArray[Any]:
    """Return the table with more examples, on which every seed has the same value."""
    added = np.asarray(more).astype(table.dtype)
    if not np.array_equal(added, more):
        added = np.asarray(more, dtype=np.float64)
    return np.hstack([table, np.broadcast_to(added, (len(table), len(added)))])


def examples_part(table: NDArray[Any]) -> float:
    """Return the part of the variance of a mean that is due to the examples, of which there are at least two."""
    if len(table) == 1:
        return float(table.var(ddof=1)) / table.size
    _, ms_example, ms_residual, _ = mean_squares(table)
    return max(ms_example, ms_residual) / table.size


def seeds_part(table: NDArray[Any]) -> tuple[float, list[tuple[float, float]]]:
    """Return the part of the variance of a mean that is due to the seeds, and its terms with degrees of freedom."""
    seeds, examples = table.shape
    if seeds == 1:
        return 0.0, []
    if examples == 1:
        variance = float(table.var(ddof=1)) / seeds
        return variance, [(variance, seeds - 1.0)]
    ms_seed, _, ms_residual, df = mean_squares(table)
    if ms_seed <= ms_residual:
        return 0.0, []
    terms = [(ms_seed / table.size, df[0]), (-ms_residual / table.size, df[2])]
    return (ms_seed - ms_residual) / table.size, terms


def effective_examples(table: NDArray[Any], mean: float, weight: float) -> tuple[float, float]:
    """Return the effective number of examples of a fraction, and the fraction with the four examples added."""
    four = _PLUS_FOUR if weight == 1 else [mean + weight * (x - mean) for x in _PLUS_FOUR]
    padded = _with_examples(table, four)
    p = min(max(float(padded.mean()), 1e-9), 1 - 1e-9)
    of_one_fit: float = p * (1 - p) / (padded.shape[1] - 1)
    return table.shape[1] * of_one_fit / examples_part(padded), p


def wilson_with_seeds(
    value: float,
    n: float,
    of_seeds: float,
    dfs: Sequence[tuple[float, float]],
    level: float,
    examples: int,
) -> Interval:
    """Return Wilson's interval of ``n`` effective examples with the seeds' part of the variance added.

    The examples' part is a function of the fraction, so it has no degrees of freedom.
    """
    spread = value * (1 - value)
    quantile = _normal_quantile(level)
    if of_seeds > 0 and spread > 0:
        total = spread / n + of_seeds
        quantile = _t_quantile(total**2 / sum(x**2 / df for x, df in dfs), level)
        n = spread / total
    return Interval(value, *_score_bounds(value, n, quantile), level, examples)


def _score_bounds(value: float, n: float, quantile: float) -> tuple[float, float]:
    z2 = quantile * quantile / n
    centre = (value + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * value * (1 - value) + z2 * z2 / 4) / (1 + z2)
    # At 0 and at 1, rounding may move a bound beyond the value.
    return min(max(centre - half, 0.0), value), max(min(centre + half, 1.0), value)


def _normal_quantile(level: float) -> float:
    # Every run needs this; importing scipy for it would take seconds.
    return NormalDist().inv_cdf(0.5 + level / 2)


def mean_squares(
    table: NDArray[Any],
) -> tuple[float, float, float, tuple[float, float, float]]:
    """Return the mean squares of seeds, examples and residual of a two-way table, and their degrees of freedom."""
    seeds, examples = table.shape
    df = (seeds - 1.0, examples - 1.0, (seeds - 1.0) * (examples - 1.0))
    if table.dtype.kind in _WHOLE:
        sums = _sums_of_squares(table)
        return sums[0] / df[0], sums[1] / df[1], sums[2] / df[2], df
    y = table.copy()
    of_seed, of_example = y.mean(axis=1), y.mean(axis=0)  # (S,), (N,)
    ms_seed = examples * float(of_seed.var(ddof=1))
    ms_example = seeds * float(of_example.var(ddof=1))
    mean = float(y.mean())
    y -= of_seed[:, None]
    y -= of_example - mean
    return ms_seed, ms_example, float(np.einsum("se,se->", y, y)) / df[2], df


def _sums_of_squares(table: NDArray[Any]) -> tuple[float, float, float]:
    """Return the sums of squares of seeds, examples and residual of whole numbers, from their exact sums."""
    cells = table.size
    of_seed, of_example = table.sum(axis=1, dtype=np.int64), table.sum(axis=0, dtype=np.int64)
    total = int(of_seed.sum())
    flat = table.ravel()
    entries = total if table.dtype == np.bool_ else int(flat.astype(np.int64) @ flat)
    seeds, examples = (
        len(table) * int(of_seed @ of_seed),
        len(of_example) * int(of_example @ of_example),
    )
    residual = entries * cells - seeds - examples + total**2
    return (seeds - total**2) / cells, (examples - total**2) / cells, residual / cells


def _crossed_moments(y: NDArray[Any]) -> tuple[float, float, float]:
    """Return mean, variance of the mean, and its degrees of freedom, from at least two entries."""
    mean = float(y.mean())
    if min(y.shape) == 1:
        return mean, float(y.var(ddof=1)) / y.size, y.size - 1.0
    ms_seed, ms_example, ms_residual, df = mean_squares(y)
    use_seed, use_example = ms_seed > ms_residual, ms_example > ms_residual
    terms = (
        use_seed * ms_seed,
        use_example * ms_example,
        (1 - use_seed - use_example) * ms_residual,
    )
    total = sum(terms)
    if total <= 0:
        return mean, 0.0, 1.0
    return mean, total / y.size, total**2 / sum(x**2 / d for x, d in zip(terms, df, strict=True))


def _cautious(table: NDArray[Any], df: float) -> float:
    """Return the degrees of freedom, at most ``S - 1`` where the seeds matter."""
    if min(table.shape) == 1:
        return df
    ms_seed, _, ms_residual, dfs = mean_squares(table)
    matter = len(table) == 2 or ms_seed > _SEEDS_MATTER * ms_residual
    return min(df, dfs[0]) if matter else df


def t_half_width(variance_of_mean: float, df: float, level: float) -> float:
    """Return half the width of a Student t interval."""
    return _t_quantile(df, level) * float(np.sqrt(variance_of_mean))


def _t_quantile(df: float, level: float) -> float:
    from scipy.special import stdtrit  # importing scipy.stats would take ten times as long

    return float(stdtrit(df, (1 + level) / 2))
