"""Intervals of functions of several accuracies: the harmonic mean of two, and means over datasets.

The examples of different datasets, or of base and new classes, are independent. The seeds are those of the same fits,
or of fits on different datasets.
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from clipadapt.core.scoring.metrics import BOUNDS
from clipadapt.core.scoring.statistics import (
    Interval,
    effective_examples,
    examples_part,
    mean_squares,
    seeds_part,
    t_half_width,
    two_way,
    wilson_with_seeds,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


def harmonic_interval(
    base: NDArray[Any],
    new: NDArray[Any],
    level: float = 0.95,
    *,
    weights: tuple[float, float] = (1.0, 1.0),
) -> Interval:
    """Return the interval of the harmonic mean of two fractions of the same fits on different examples.

    ``H = 2 b n / (b + n)`` of the means over seeds and examples, as in publications. To first order its error is
    ``g_b (b - E b) + g_n (n - E n)`` with ``g_b = 2 n^2 / (b + n)^2`` and ``g_n = 2 b^2 / (b + n)^2``. The seeds'
    part of its variance is the variance of ``g_b b_s + g_n n_s`` over the seeds, which includes their covariance. The
    examples' parts are added, because the two sets of examples are independent. The form of the interval is that of
    :func:`fraction_interval`.

    Args:
        base: Shape ``(S, N_b)``.
        new: Of the same seeds, shape ``(S, N_n)``.
        level: Nominal coverage.
        weights: Weight of each, see :func:`fraction_interval`.

    Raises:
        ValueError: If the shapes are not ``(S, N)`` with the same ``S`` and at least one entry each.
    """
    if len(base) != len(new):
        raise ValueError(
            f"expected (seeds, examples) twice, with equal seeds; got {np.shape(base)}, {np.shape(new)}"
        )
    return harmonic_mean_interval([base], [new], level, weights=weights)


def harmonic_mean_interval(
    base: Sequence[NDArray[Any]],
    new: Sequence[NDArray[Any]],
    level: float = 0.95,
    *,
    weights: Sequence[float] | None = None,
    same_seeds: bool = True,
) -> Interval:
    """Return the interval of the harmonic mean of two means over the same datasets; see :func:`mean_interval`.

    Args:
        base: One table for each dataset.
        new: As ``base``, of the same datasets.
        level: Nominal coverage.
        weights: Weight of each table, those of ``base`` first.
        same_seeds: As for :func:`mean_interval`.
    """
    n = len(base)

    def value(means: Sequence[float]) -> float:
        return harmonic(fmean(means[:n]), fmean(means[n:]))

    def gradient(means: Sequence[float]) -> list[float]:
        of_base, of_new = _gradient(fmean(means[:n]), fmean(means[n:]))
        return [of_base / n] * n + [of_new / n] * n

    return _of_fractions(
        [*base, *new], value, gradient, level, weights=weights, same_seeds=same_seeds
    )


def mean_interval(
    tables: Sequence[NDArray[Any]],
    level: float = 0.95,
    *,
    unit: str = "fraction",
    weights: Sequence[float] | None = None,
    same_seeds: bool = True,
    largest: float = math.inf,
) -> Interval:
    """Return the interval of the mean of a metric over datasets, each with the same weight.

    The datasets are fixed, and seeds and examples are random: the interval says how much the mean would differ with
    other seeds and other examples of the same datasets, not with other datasets. The examples' parts of the variance
    are added, because the datasets have no example in common. With the same seeds on all datasets, the seeds' part is
    the variance over the seeds of the mean over datasets. It includes their covariance, because a seed is one
    initialization and one stream of random numbers on every dataset. Otherwise the seeds' parts are added. The form of
    the interval is that of :func:`~clipadapt.core.scoring.statistics.fraction_interval`; for other units it is that of
    :func:`~clipadapt.core.scoring.statistics.crossed_interval`, with Satterthwaite's degrees of freedom.

    Args:
        tables: One for each dataset, shape ``(S, N)``; see :func:`fraction_interval`.
        level: Nominal coverage.
        unit: Unit of the metric.
        weights: Weight of an example in each, see :func:`fraction_interval`.
        same_seeds: Whether row ``s`` of every table is the same seed.
        largest: Largest possible value of the mean, if it is below that of the unit.

    Raises:
        ValueError: If there is no table, or one has no entry.
    """
    share = 1 / max(len(tables), 1)
    if unit != "fraction":
        bounds = BOUNDS[unit][0], min(BOUNDS[unit][1], largest)
        return _number_interval([two_way(t) for t in tables], level, bounds, same_seeds=same_seeds)
    return _of_fractions(
        tables,
        fmean,
        lambda _: [share] * len(tables),
        level,
        weights=weights,
        same_seeds=same_seeds,
    )


def _number_interval(
    tables: Sequence[NDArray[np.float64]],
    level: float,
    bounds: tuple[float, float],
    *,
    same_seeds: bool,
) -> Interval:
    """Return the interval of the mean over datasets of a metric that is no fraction, within its bounds."""
    if not tables:
        raise ValueError("there is no table of (seeds, examples)")
    share, n = 1 / len(tables), sum(t.shape[1] for t in tables)
    value = fmean(float(t.mean()) for t in tables)
    if any(t.shape[1] < 2 for t in tables):
        return Interval(value, None, None, level, n)
    _, terms = _seeds_terms(tables, [share] * len(tables), same_seeds=same_seeds)
    of_seeds = max(sum(x for x, _ in terms), 0.0)
    all_terms = [(share**2 * examples_part(t), t.shape[1] - 1.0) for t in tables]
    variance = sum(x for x, _ in all_terms) + of_seeds
    if variance <= 0:
        return Interval(value, None, None, level, n)
    all_terms += terms if of_seeds else []
    df = variance**2 / sum(x**2 / d for x, d in all_terms)
    half = t_half_width(variance, df, level)
    least, most = bounds
    return Interval(value, max(value - half, least), min(value + half, max(most, value)), level, n)


def _of_fractions(
    given: Sequence[NDArray[Any]],
    value_of: Callable[[Sequence[float]], float],
    gradient_of: Callable[[Sequence[float]], Sequence[float]],
    level: float,
    *,
    weights: Sequence[float] | None,
    same_seeds: bool,
) -> Interval:
    """Return the interval of a function of fractions, of which the gradient is known, to first order."""
    if not given:
        raise ValueError("there is no table of (seeds, examples)")
    tables = [two_way(t) for t in given]
    means = [min(max(float(t.mean()), 0.0), 1.0) for t in tables]
    ones = [1.0] * len(tables)
    parts = [effective_examples(*x) for x in zip(tables, means, weights or ones, strict=True)]
    padded = [p for _, p in parts]
    spread = sum(
        g**2 * p * (1 - p) / n for g, (n, p) in zip(gradient_of(padded), parts, strict=True)
    )
    centre = value_of(padded)
    of_seeds, terms = 0.0, list[tuple[float, float]]()
    if sum(means) > 0:
        of_seeds, terms = _seeds_terms(tables, gradient_of(means), same_seeds=same_seeds)
    examples = sum(t.shape[1] for t in tables)
    n = centre * (1 - centre) / spread
    return wilson_with_seeds(value_of(means), n, of_seeds, terms, level, examples)


def _seeds_terms(
    tables: Sequence[NDArray[Any]], gradient: Sequence[float], *, same_seeds: bool
) -> tuple[float, list[tuple[float, float]]]:
    """Return the seeds' part of the variance of a weighted sum of means, and its terms with degrees of freedom."""
    terms: list[tuple[float, float]] = []
    seeds = len(tables[0])
    if not same_seeds or len({len(t) for t in tables}) > 1:
        for g, table in zip(gradient, tables, strict=True):
            terms += [(g**2 * x, df) for x, df in seeds_part(table)[1]]
    elif seeds > 1:
        of_seed = sum(g * t.mean(axis=1) for g, t in zip(gradient, tables, strict=True))
        terms = [(float(np.var(of_seed, ddof=1)) / seeds, seeds - 1.0)]
        for g, table in zip(gradient, tables, strict=True):
            if table.shape[1] > 1:
                _, _, ms_residual, df = mean_squares(table)
                terms.append((-(g**2) * ms_residual / table.size, df[2]))
    return sum(x for x, _ in terms), terms


def harmonic(a: float, b: float) -> float:
    """Return the harmonic mean of two fractions, 0 if both are 0."""
    return 2 * a * b / (a + b) if a + b else 0.0


def _gradient(b: float, n: float) -> tuple[float, float]:
    return 2 * n**2 / (b + n) ** 2, 2 * b**2 / (b + n) ** 2
