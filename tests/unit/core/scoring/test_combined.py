"""The mean over datasets: fixed datasets, random seeds and examples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from clipadapt.core.scoring.combined import (
    harmonic_interval,
    harmonic_mean_interval,
    mean_interval,
)
from clipadapt.core.scoring.statistics import fraction_interval, wilson
from tests.unit.core.scoring.test_statistics import bounds, hits

SIZES = (60, 100, 200, 400)
ACCURACIES = (0.55, 0.7, 0.85, 0.95)


def test_one_dataset_has_the_interval_of_its_accuracy():
    rng = np.random.default_rng(1)
    table = rng.random((3, 200)) < rng.random((1, 200))

    assert bounds(mean_interval([table])) == pytest.approx(
        bounds(fraction_interval(table)), abs=2e-3
    )
    assert bounds(mean_interval([hits(70)])) == pytest.approx(bounds(wilson(70, 100)), abs=1e-3)


def test_every_dataset_has_the_same_weight_whatever_its_size():
    found = mean_interval([hits(9, n=10), hits(500, n=1000)])

    assert found.value == pytest.approx((0.9 + 0.5) / 2)
    assert found.n == 1010


def test_with_one_seed_it_agrees_with_a_bootstrap_within_each_dataset():
    rng = np.random.default_rng(2)
    tables = [rng.random((1, n)) < p for n, p in zip(SIZES, ACCURACIES, strict=True)]

    draws = np.mean(
        [rng.binomial(n, t.mean(), 4000) / n for t, n in zip(tables, SIZES, strict=True)], axis=0
    )

    assert bounds(mean_interval(tables)) == pytest.approx(
        np.quantile(draws, [0.025, 0.975]), abs=0.006
    )


@pytest.mark.parametrize("shared", [0.0, 0.15])
@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_it_covers_the_mean_over_fixed_datasets(seeds, shared):
    """Seeds have an effect of their own on each dataset and, with ``shared``, one on all of them."""
    if seeds == 1 and shared:
        pytest.skip("one seed cannot show how seeds differ")
    rng, times, own = np.random.default_rng(3), 400, 0.1 if seeds > 1 else 0.0
    spread = np.sqrt(2 + own**2 + shared**2)
    covered = 0
    for _ in range(times):
        common = rng.normal(size=(seeds, 1)) * shared
        tables = [
            stats.norm.ppf(p) * spread
            + rng.normal(size=(1, n))  # how difficult an example is
            + rng.normal(size=(seeds, 1)) * own
            + common
            + rng.normal(size=(seeds, n))
            > 0
            for n, p in zip(SIZES, ACCURACIES, strict=True)
        ]
        low, high = bounds(mean_interval(tables))
        covered += low <= np.mean(ACCURACIES) <= high

    assert 0.91 <= covered / times <= 0.99


def test_seeds_that_are_better_on_all_datasets_widen_it():
    """The same tables, once with the seeds in the same order on all datasets, once as if they had nothing in common."""
    tables = [hits(60, 70, 80) for _ in range(4)]

    joint = mean_interval(tables)
    apart = mean_interval(tables, same_seeds=False)

    assert np.subtract(*bounds(joint)[::-1]) > 1.5 * np.subtract(*bounds(apart)[::-1])


def test_seeds_of_different_number_are_not_paired():
    mixed = mean_interval([hits(60, 70, 80), hits(90)])

    assert mixed.value == pytest.approx(0.8)
    assert bounds(mixed) == bounds(mean_interval([hits(60, 70, 80), hits(90)], same_seeds=False))


@pytest.mark.parametrize("k", [0, 100])
def test_a_perfect_or_hopeless_mean_has_a_width_and_stays_in_range(k):
    low, high = bounds(mean_interval([hits(k, k), hits(k, k)]))

    assert 0 <= low <= k / 100 <= high <= 1
    assert high > low


def test_the_harmonic_mean_of_one_dataset_is_that_of_its_two_accuracies():
    base, new = hits(80, 85), hits(60, 55)

    assert harmonic_mean_interval([base], [new]) == harmonic_interval(base, new)
    two = harmonic_mean_interval([base, hits(60, 65)], [new, hits(80, 85)])
    assert two.value == pytest.approx(2 * 0.725 * 0.7 / 1.425)
    assert np.subtract(*bounds(two)[::-1]) < np.subtract(
        *bounds(harmonic_interval(base, new))[::-1]
    )


def test_a_metric_without_an_upper_bound_has_an_interval_of_t():
    rng = np.random.default_rng(4)
    values = [rng.exponential(1.0, (1, 50)), rng.exponential(3.0, (1, 80))]
    found = mean_interval(values, unit="nats")

    variance = sum(v.var(ddof=1) / v.size for v in values)
    df = variance**2 / sum((v.var(ddof=1) / v.size) ** 2 / (v.size - 1) for v in values)  # Welch
    half = stats.t.ppf(0.975, df) * np.sqrt(variance) / 2
    assert bounds(found) == pytest.approx((found.value - half, found.value + half))
    assert mean_interval([np.ones((1, 5)), np.ones((1, 5))], unit="nats").low is None
    assert mean_interval([np.ones((2, 1)), rng.random((2, 9))], unit="nats").low is None


def test_no_table_is_refused():
    for unit in ("fraction", "nats"):
        with pytest.raises(ValueError, match="no table"):
            mean_interval([], unit=unit)
