"""Intervals and tests: what an accuracy is worth, and whether one method beats another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

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
    from statsmodels.stats.multitest import multipletests

    return np.asarray(multipletests(p, method="holm")[1], dtype=np.float64)


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

    y = table.astype(np.float64)
    mean = float(y.mean())
    of_seed, of_example = y.mean(axis=1), y.mean(axis=0)  # (S,), (N,)
    df = np.array([seeds - 1, examples - 1, (seeds - 1) * (examples - 1)], dtype=np.float64)
    ms_seed = examples * float(of_seed.var(ddof=1))
    ms_example = seeds * float(of_example.var(ddof=1))
    y -= of_seed[:, None]
    y -= of_example - mean
    ms_residual = float(np.einsum("se,se->", y, y)) / float(df[2])

    use_seed, use_example = ms_seed > ms_residual, ms_example > ms_residual
    terms = np.array([
        use_seed * ms_seed,
        use_example * ms_example,
        (1 - use_seed - use_example) * ms_residual,
    ])
    total = float(terms.sum())
    if total <= 0:
        return Interval(mean, mean, mean, level, examples)
    half = _t_half_width(total / y.size, total**2 / float((terms**2 / df).sum()), level)
    low, high = mean - half, mean + half
    if proportion:
        low, high = max(low, 0.0), min(high, 1.0)
    return Interval(mean, low, high, level, examples)


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
