"""Intervals and tests: what an accuracy is worth, and whether one method beats another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import ArrayLike, NDArray

_SMALLEST_P: Final = 1e-12
_SEEDS_MATTER: Final = 0.5
_BLOCK: Final = 1 << 21
"""Entries of a bootstrap's weight matrix held at once, 16 MiB."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its two-sided confidence interval.

    Attributes:
        value: The estimate.
        low: Lower bound, None where one observation says nothing about the spread.
        high: Upper bound, None with ``low``.
        level: Nominal coverage.
        n: Observations behind the value; of a crossed design, the examples.
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
        n01: Examples that only the second classifier gets right.
        n10: Examples that only the first classifier gets right.
        p_value: Two-sided; 1 where they never differ.
    """

    n01: int
    n10: int
    p_value: float


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of ``a - b`` with its interval.

    Attributes:
        interval: The difference.
        p_value: Two-sided p-value of no difference.
    """

    interval: Interval
    p_value: float


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion.

    Raises:
        ValueError: If ``successes`` is not within ``[0, n]``, or there is no observation.

    References:
        E. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"no proportion: {successes} successes of {n}")
    # Every run needs this one, and the library that has it takes seconds to import.
    z = NormalDist().inv_cdf(0.5 + level / 2)
    value = successes / n
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + (z / (2 * n)) ** 2)
    # Rounding may push a bound past the value at 0 and at 1.
    return Interval(
        value, min(max(centre - half, 0.0), value), max(min(centre + half, 1.0), value), level, n
    )


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student t interval of a mean, with the sample standard deviation (ddof=1).

    Args:
        values: Independent observations, shape ``(n,)``. One observation has no interval: its bounds are None.
        level: Nominal coverage.

    Raises:
        ValueError: If there is no value.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not x.size:
        raise ValueError(f"a mean needs values of shape (n,), n >= 1; got {x.shape}")
    mean = float(x.mean())
    if x.size == 1:
        return Interval(mean, None, None, level, 1)
    half = _t_half_width(float(x.var(ddof=1)) / x.size, x.size - 1, level)
    return Interval(mean, mean - half, mean + half, level, x.size)


def mcnemar_exact(correct_a: ArrayLike, correct_b: ArrayLike) -> McNemar:
    """Compare two classifiers on the same examples.

    Args:
        correct_a: Whether the first is right, shape ``(n,)``.
        correct_b: Whether the second is right, in the same order.

    Raises:
        ValueError: If the shapes differ.

    References:
        Q. McNemar, "Note on the Sampling Error of the Difference between Correlated Proportions or
        Percentages", Psychometrika 1947; exact, that is binomial, form.
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
    """Adjust p-values for the number of tests; any dependence among them is allowed.

    Args:
        p_values: ``m`` p-values, in any order.

    Returns:
        ``m`` adjusted p-values in the same order, shape ``(m,)``.

    Raises:
        ValueError: If one is not within ``[0, 1]``.

    References:
        S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scand. J. Statistics 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must lie in [0, 1], got {p.tolist()}")
    if not p.size:
        return p
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    return np.minimum(adjusted, 1.0)


def crossed_interval(correct: NDArray[Any], level: float = 0.95) -> Interval:
    """Interval of a mean over seeds and examples, where every seed meets the same examples.

    The model is ``y[s, e] = mean + seed[s] + example[e] + residual[s, e]``, all three random. With ``S`` seeds,
    ``N`` examples and the mean squares ``MS`` of the two-way table, the variance of the grand mean is
    estimated without bias by ``(MS_seed + MS_example - MS_residual) / (S N)``; its degrees of freedom are
    Satterthwaite's ``(sum c MS)^2 / sum((c MS)^2 / df)`` with ``df = S - 1, N - 1, (S - 1)(N - 1)`` and the
    coefficients ``c = 1, 1, -1``. A component whose estimate is negative counts as zero.

    Degenerate cases: with one seed (or one example) the interval is that of the examples (the seeds) alone,
    Wilson's for bool and t for numbers; so it is, over the examples, where every bool is the same.

    Args:
        correct: ``S`` seeds by ``N`` examples. Bool: a proportion, bounds clipped to ``[0, 1]``. Numbers:
            any value per example; ``a - b`` of two methods gives the interval of their difference.
        level: Nominal coverage.

    Raises:
        ValueError: If the shape is not ``(S, N)`` with at least one entry.

    References:
        F. Satterthwaite, "An Approximate Distribution of Estimates of Variance Components", Biometrics
        Bulletin 2(6), 1946. R. Burdick and F. Graybill, "Confidence Intervals on Variance Components", 1992.
    """
    table = np.asarray(correct)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"expected (seeds, examples), at least one each; got {table.shape}")
    seeds, examples = table.shape
    proportion = table.dtype == np.bool_
    if proportion and (min(table.shape) == 1 or table.all() or not table.any()):
        n = examples if examples > 1 else seeds
        return wilson(round(float(table.mean()) * n), n, level)
    if min(table.shape) == 1:
        return t_interval(table.ravel(), level)

    mean, variance, df = _crossed_moments(table)
    if variance <= 0:
        return Interval(mean, mean, mean, level, examples)
    half = _t_half_width(variance, df, level)
    low, high = mean - half, mean + half
    if proportion:
        low, high = max(low, 0.0), min(high, 1.0)
    return Interval(mean, low, high, level, examples)


def crossed_p_value(difference: NDArray[Any], *, cautious: bool = False) -> float:
    """Two-sided p-value of no difference in the model of :func:`crossed_interval`: where its interval meets zero.

    With two to five seeds Satterthwaite's degrees of freedom are often too many where the seeds matter, and a true
    null is then rejected in up to 8 % of tests at 5 % (15 % with two seeds). The cautious form keeps below 5 % in
    simulation: its degrees of freedom are at most ``S - 1`` with two seeds, and wherever the mean square of the
    seeds is above half the residual's.

    Args:
        difference: ``S`` seeds by ``N`` examples, the one method minus the other. One observation tells nothing: 1.
        cautious: Whether a mark in a table depends on it.

    Raises:
        ValueError: If the shape is not ``(S, N)`` with at least one entry.
    """
    table = np.asarray(difference, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"expected (seeds, examples), at least one each; got {table.shape}")
    if table.size == 1:
        return 1.0
    mean, variance, df = _crossed_moments(table)
    if mean == 0:
        return 1.0
    if cautious and min(table.shape) > 1:
        ms_seed, _, ms_residual, dfs = _mean_squares(table)
        if len(table) == 2 or ms_seed > _SEEDS_MATTER * ms_residual:
            df = min(df, dfs[0])
    if variance <= 0:
        return _SMALLEST_P
    from scipy.stats import t

    return max(_SMALLEST_P, 2 * float(t.sf(abs(mean) / np.sqrt(variance), df)))


def harmonic_interval(base: NDArray[Any], new: NDArray[Any], level: float = 0.95) -> Interval:
    """Interval of the harmonic mean of two accuracies of the same fits on different examples.

    ``H = 2 b n / (b + n)`` of the means over seeds and examples, as it is published. To first order its error is
    ``g_b (b - E b) + g_n (n - E n)`` with ``g_b = 2 n^2 / (b + n)^2`` and ``g_n = 2 b^2 / (b + n)^2``. The seeds'
    part of its variance is that of the seeds' own ``g_b b_s + g_n n_s``, so it holds their covariance; the examples'
    parts add up, for the two sets of examples are drawn apart. Degrees of freedom as in :func:`crossed_interval`.

    Args:
        base: ``S`` seeds by ``N_b`` examples, bool.
        new: The same seeds by ``N_n`` examples, bool.
        level: Nominal coverage; bounds are clipped to ``[0, 1]``.

    Raises:
        ValueError: If the shapes are not ``(S, N)`` with the same ``S`` and two examples at least.
    """
    tables = [np.asarray(t, dtype=np.float64) for t in (base, new)]
    if any(t.ndim != 2 or t.shape[1] < 2 for t in tables) or len(tables[0]) != len(tables[1]):
        raise ValueError(f"expected (seeds, examples) twice; got {np.shape(base)}, {np.shape(new)}")
    b, n = (float(t.mean()) for t in tables)
    examples = tables[0].shape[1] + tables[1].shape[1]
    if b + n == 0:
        return Interval(0.0, 0.0, 0.0, level, examples)
    weights = (2 * n**2 / (b + n) ** 2, 2 * b**2 / (b + n) ** 2)
    seeds = len(tables[0])
    terms, dfs = [], []
    for g, table in zip(weights, tables, strict=True):
        size = table.size
        if seeds == 1:
            terms.append(g**2 * float(table.var(ddof=1)) / size)
            dfs.append(size - 1.0)
            continue
        _, ms_example, ms_residual, df = _mean_squares(table)
        if ms_example > ms_residual:
            terms += [g**2 * ms_example / size, -(g**2) * ms_residual / size]
            dfs += [df[1], df[2]]
    if seeds > 1:
        of_seed = sum(g * t.mean(axis=1) for g, t in zip(weights, tables, strict=True))
        terms.append(float(np.var(of_seed, ddof=1)) / seeds)
        dfs.append(seeds - 1.0)
    value, variance = 2 * b * n / (b + n), sum(terms)
    if variance <= 0:
        return Interval(value, value, value, level, examples)
    df_total = variance**2 / sum(x**2 / d for x, d in zip(terms, dfs, strict=True))
    half = _t_half_width(variance, df_total, level)
    return Interval(value, max(value - half, 0.0), min(value + half, 1.0), level, examples)


def examples_needed(
    difference: NDArray[Any], level: float = 0.95, power: float = 0.8
) -> int | None:
    """Return how many examples would tell two methods apart whose true difference is the one seen.

    From the paired discordance: with one seed, ``psi`` the share of examples on which exactly one method is right and
    ``d`` the difference, ``n = ((z_a sqrt(psi) + z_b sqrt(psi - d^2)) / d)^2``. With several seeds, the variance of a
    mean over ``n`` examples is ``v_seed / S + v_example / n``; where the seeds' part alone is too large, no number of
    examples is enough.

    Args:
        difference: ``S`` seeds by ``N`` examples, the one method's bool minus the other's.
        level: One minus the two-sided level of the test.
        power: Probability of finding the difference.

    Returns:
        Examples, at the same number of seeds; None where there is no difference or seeds are what is lacking.

    References:
        R. Connor, "Sample Size for Testing Differences in Proportions for the Paired-Sample Design", Biometrics 1987.
    """
    from scipy.stats import norm

    table = np.asarray(difference, dtype=np.float64)
    d = abs(float(table.mean()))
    z_a, z_b = float(norm.ppf((1 + level) / 2)), float(norm.ppf(power))
    if d == 0:
        return None
    if len(table) == 1:
        psi = float((table**2).mean())
        n = ((z_a * np.sqrt(psi) + z_b * np.sqrt(max(psi - d**2, 0.0))) / d) ** 2
        return int(np.ceil(n))
    seeds, examples = table.shape
    if examples < 2:
        return None
    ms_seed, ms_example, ms_residual, _ = _mean_squares(table)
    of_seed = max(ms_seed - ms_residual, 0.0) / examples / seeds
    of_example = max(ms_example, ms_residual) / seeds
    left = (d / (z_a + z_b)) ** 2 - of_seed
    return None if left <= 0 else max(2, int(np.ceil(of_example / left)))


def letters_of_ties(names: Sequence[str], told_apart: Collection[tuple[str, str]]) -> list[str]:
    """Return letters for each name: two names share one where, and only where, they are not told apart.

    Args:
        names: Best first; the letter ``a`` goes to the best.
        told_apart: Pairs of names that differ, in either order.

    References:
        H.-P. Piepho, "An Algorithm for a Letter-Based Representation of All-Pairwise Comparisons", JCGS 2004.
    """
    place = {name: i for i, name in enumerate(names)}
    sets: list[frozenset[int]] = [frozenset(place.values())] if names else []
    for first, second in told_apart:
        i, j = place[first], place[second]
        split = [s - {k} for s in sets if {i, j} <= s for k in (i, j)]
        kept = [s for s in sets if not {i, j} <= s]
        sets = _without_subsets([*kept, *split])
    sets.sort(key=sorted)
    return ["".join(_letter(k) for k, s in enumerate(sets) if i in s) for i in range(len(names))]


def _without_subsets(sets: Sequence[frozenset[int]]) -> list[frozenset[int]]:
    distinct = list(dict.fromkeys(sets))
    return [s for s in distinct if not any(s < other for other in distinct)]


def _letter(k: int) -> str:
    """Return a, b, ... z, a1, b1, ..."""
    return chr(ord("a") + k % 26) + (str(k // 26) if k >= 26 else "")


def paired_crossed_bootstrap(
    a: NDArray[Any],
    b: NDArray[Any],
    n_resamples: int,
    rng: np.random.Generator,
    level: float = 0.95,
) -> PairedDifference:
    """Bootstrap the mean of ``a - b`` over seeds and examples at once.

    Each resample draws seeds and examples independently, with replacement, and takes the same ones from both
    methods. The interval is the percentile one; the p-value is twice the smaller tail beyond zero, plus one
    resample, so it agrees with the interval and is never below ``2 / (n_resamples + 1)``.

    With few seeds, resampling shows too little of their spread (by the factor ``(S - 1) / S`` in variance, and no
    t tails): where the seeds' noise rules, ``crossed_interval(a - b)`` is the wider and the safer.

    Args:
        a: First method, ``S`` seeds by ``N`` examples, bool or numbers. One seed: only examples are drawn.
        b: Second method, same seeds, examples and order.
        n_resamples: Resamples, 2000 or more for a p-value near 0.01.
        rng: Source of the draws.
        level: Nominal coverage.

    Raises:
        ValueError: If the shapes differ or are not ``(S, N)``, or there is no resample.

    References:
        A. Owen, "The Pigeonhole Bootstrap", Annals of Applied Statistics 1(2), 2007.
    """
    if np.ndim(a) != 2 or np.shape(a) != np.shape(b) or not np.size(a):
        raise ValueError(
            f"expected two equal shapes (seeds, examples); got {np.shape(a)} and {np.shape(b)}"
        )
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)  # (S, N)
    seeds, examples = difference.shape
    rows = max(1, _BLOCK // max(seeds, examples))
    means = np.concatenate([
        np.einsum(
            "rn,rn->r",
            _bootstrap_weights(rng, min(rows, n_resamples - start), seeds) @ difference,
            _bootstrap_weights(rng, min(rows, n_resamples - start), examples),
        )
        for start in range(0, n_resamples, rows)
    ])
    means /= difference.size
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p_value = min(1.0, 2 * (tail + 1) / (n_resamples + 1))
    return PairedDifference(
        Interval(float(difference.mean()), float(low), float(high), level, examples), p_value
    )


def _mean_squares(
    table: NDArray[np.float64],
) -> tuple[float, float, float, tuple[float, float, float]]:
    """Return the mean squares of seeds, examples and residual of a two-way table, and their degrees of freedom."""
    seeds, examples = table.shape
    y = table.copy()
    of_seed, of_example = y.mean(axis=1), y.mean(axis=0)  # (S,), (N,)
    df = (seeds - 1.0, examples - 1.0, (seeds - 1.0) * (examples - 1.0))
    ms_seed = examples * float(of_seed.var(ddof=1))
    ms_example = seeds * float(of_example.var(ddof=1))
    mean = float(y.mean())
    y -= of_seed[:, None]
    y -= of_example - mean
    return ms_seed, ms_example, float(np.einsum("se,se->", y, y)) / df[2], df


def _crossed_moments(table: NDArray[Any]) -> tuple[float, float, float]:
    """Return mean, variance of the mean, and its degrees of freedom; two entries at least."""
    y = table.astype(np.float64)
    mean = float(y.mean())
    if min(y.shape) == 1:
        return mean, float(y.var(ddof=1)) / y.size, y.size - 1.0
    ms_seed, ms_example, ms_residual, df = _mean_squares(y)
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


def _t_half_width(variance_of_mean: float, df: float, level: float) -> float:
    from scipy.special import (
        stdtrit,
    )  # scipy.stats has it too, and takes ten times as long to import

    return float(stdtrit(df, (1 + level) / 2)) * float(np.sqrt(variance_of_mean))


def _bootstrap_weights(rng: np.random.Generator, rows: int, n: int) -> NDArray[np.float64]:
    """Return how often each of ``n`` units is drawn in each resample, shape ``(rows, n)``."""
    drawn = rng.integers(n, size=(rows, n))
    drawn += n * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
