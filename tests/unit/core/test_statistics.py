from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from clipadapt.core.statistics import (
    Interval,
    crossed_interval,
    holm,
    mcnemar_exact,
    paired_crossed_bootstrap,
    t_interval,
    wilson,
)


def bounds(interval: Interval) -> tuple[float, float]:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 1), (1, 1), (0, 20), (7, 20), (20, 20), (843, 1066)]
)
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_agrees_with_scipy(successes: int, n: int, level: float) -> None:
    expected = stats.binomtest(successes, n).proportion_ci(level, method="wilson")

    got = wilson(successes, n, level)

    assert bounds(got) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= bounds(got)[0] <= got.value <= bounds(got)[1] <= 1
    assert (got.value, got.level, got.n) == (successes / n, level, n)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_wilson_refuses_what_is_no_proportion(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        wilson(successes, n)


def test_t_interval_agrees_with_scipy() -> None:
    values = np.array([0.71, 0.74, 0.69])
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)

    got = t_interval(values)

    assert bounds(got) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert got.n == 3


def test_t_interval_of_one_value_has_no_bounds_and_of_equal_values_no_width() -> None:
    assert t_interval([0.5]) == Interval(0.5, None, None, 0.95, 1)
    assert t_interval([0.5, 0.5, 0.5]) == Interval(0.5, 0.5, 0.5, 0.95, 3)
    with pytest.raises(ValueError, match="n >= 1"):
        t_interval([])


def test_mcnemar_agrees_with_statsmodels() -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    rng = np.random.default_rng(0)
    a, b = rng.random(300) < 0.8, rng.random(300) < 0.7
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]

    got = mcnemar_exact(a, b)

    assert (got.n01, got.n10) == (table[1][0], table[0][1])
    assert got.p_value == pytest.approx(mcnemar(table, exact=True).pvalue, rel=1e-9)
    swapped = mcnemar_exact(b, a)
    assert (swapped.n01, swapped.n10) == (got.n10, got.n01)
    assert swapped.p_value == pytest.approx(got.p_value)


def test_mcnemar_without_a_difference() -> None:
    assert mcnemar_exact([True, False], [True, False]).p_value == 1.0
    assert mcnemar_exact([True, False], [False, True]).p_value == 1.0
    with pytest.raises(ValueError, match="equal shapes"):
        mcnemar_exact([True], [True, False])


def test_holm() -> None:
    # Smallest times 4, next times 3, ...; never below the one before; at most 1.
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]).shape == (0,)
    with pytest.raises(ValueError, match="p-values"):
        holm([0.1, float("nan")])


def table_of_variances(y: NDArray[Any]) -> tuple[float, float, float]:
    """Return the mean squares of a two-way table, by the textbook's sums over cells."""
    seeds, examples = y.shape
    grand, rows, columns = y.mean(), y.mean(axis=1), y.mean(axis=0)
    ms_rows = sum(examples * (r - grand) ** 2 for r in rows) / (seeds - 1)
    ms_columns = sum(seeds * (c - grand) ** 2 for c in columns) / (examples - 1)
    residual = sum(
        (y[s, e] - rows[s] - columns[e] + grand) ** 2 for s in range(seeds) for e in range(examples)
    )
    return float(ms_rows), float(ms_columns), float(residual / ((seeds - 1) * (examples - 1)))


def test_crossed_interval_follows_the_formula() -> None:
    rng = np.random.default_rng(1)
    y = rng.normal(size=(4, 1)) * 0.5 + rng.normal(size=(1, 30)) + rng.normal(size=(4, 30)) * 0.3
    a, b, e = table_of_variances(y)
    assert min(a, b) > e
    variance = (a + b - e) / 120
    df = (a + b - e) ** 2 / (a**2 / 3 + b**2 / 29 + e**2 / 87)
    half = stats.t.ppf(0.975, df) * np.sqrt(variance)

    got = crossed_interval(y)

    assert bounds(got) == pytest.approx((y.mean() - half, y.mean() + half), abs=1e-12)
    assert got.n == 30


def test_crossed_interval_of_identical_seeds_is_that_of_the_examples() -> None:
    examples = np.random.default_rng(2).normal(size=50)

    got = crossed_interval(np.tile(examples, (5, 1)))

    assert bounds(got) == pytest.approx(bounds(t_interval(examples)), abs=1e-12)


def test_crossed_interval_of_identical_examples_is_that_of_the_seeds() -> None:
    seeds = np.array([0.2, 0.5, 0.3])

    got = crossed_interval(np.tile(seeds[:, None], (1, 40)))

    assert bounds(got) == pytest.approx(bounds(t_interval(seeds)), abs=1e-12)


def test_crossed_interval_is_wider_than_either_source_alone() -> None:
    rng = np.random.default_rng(3)
    skill = rng.normal(size=(1, 200)) + rng.normal(size=(3, 1)) * 0.3
    correct = skill + rng.normal(size=(3, 200)) * 0.5 > -0.8

    low, high = bounds(crossed_interval(correct))

    assert high - low > np.ptp(bounds(wilson(int(correct.sum()), correct.size)))
    assert 0 <= low < correct.mean() < high <= 1


@pytest.mark.parametrize("seed_sd", [0.0, 0.03])
def test_crossed_interval_covers_at_its_level(seed_sd: float) -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(400):
        seeds, examples = rng.normal(size=(3, 1)) * seed_sd, rng.normal(size=(1, 100)) * 0.4
        low, high = bounds(crossed_interval(seeds + examples + rng.normal(size=(3, 100)) * 0.2))
        covered += low <= 0 <= high

    assert 0.92 <= covered / 400 <= 0.98


def test_crossed_interval_degenerate_shapes() -> None:
    bits = np.array([[True, False, True, True]])
    numbers = bits.astype(np.float64)

    assert crossed_interval(bits) == wilson(3, 4)
    assert crossed_interval(bits.T) == wilson(3, 4)
    assert crossed_interval(numbers) == t_interval(numbers[0])
    assert crossed_interval(numbers.T) == t_interval(numbers[0])
    assert crossed_interval(np.array([[0.5]])) == Interval(0.5, None, None, 0.95, 1)
    # All right in every seed: as sure as the examples allow, not certain; a difference of 0 is just that.
    assert crossed_interval(np.ones((3, 20), dtype=bool)) == wilson(20, 20)
    assert crossed_interval(np.zeros((3, 20), dtype=bool)) == wilson(0, 20)
    assert crossed_interval(np.zeros((3, 20))) == Interval(0.0, 0.0, 0.0, 0.95, 20)
    for shape in ((3,), (0, 4), (4, 0)):
        with pytest.raises(ValueError, match="seeds, examples"):
            crossed_interval(np.zeros(shape))


def test_bootstrap_agrees_with_the_variance_it_estimates() -> None:
    rng = np.random.default_rng(5)
    b = rng.normal(size=(12, 150))
    a = b + 0.2 + rng.normal(size=(12, 1)) * 0.2 + rng.normal(size=(1, 150)) * 0.8

    got = paired_crossed_bootstrap(a, b, 4000, np.random.default_rng(0))

    assert got.interval.value == pytest.approx(float((a - b).mean()))
    crossed = crossed_interval(a - b)
    assert np.ptp(bounds(got.interval)) == pytest.approx(np.ptp(bounds(crossed)), rel=0.15)


def test_bootstrap_p_value_agrees_with_its_interval() -> None:
    rng = np.random.default_rng(6)
    for shift in (0.0, 0.03, 0.06, 0.09, 0.3):
        base = rng.random((3, 200))
        a, b = base < 0.6 + shift, base + rng.normal(size=(3, 200)) * 0.2 < 0.6
        got = paired_crossed_bootstrap(a, b, 2000, np.random.default_rng(0))
        low, high = bounds(got.interval)
        if got.p_value < 0.045:
            assert low > 0 or high < 0
        if got.p_value > 0.055:
            assert low <= 0 <= high
        reverse = paired_crossed_bootstrap(b, a, 2000, np.random.default_rng(0))
        assert reverse.p_value == got.p_value
        assert bounds(reverse.interval) == pytest.approx((-high, -low))


def test_bootstrap_of_one_seed_draws_examples_only() -> None:
    rng = np.random.default_rng(7)
    d = rng.normal(size=(1, 400)) + 0.1

    got = paired_crossed_bootstrap(d, np.zeros_like(d), 4000, rng)

    assert bounds(got.interval) == pytest.approx(bounds(t_interval(d[0])), abs=0.01)


def test_bootstrap_extremes_and_repeatability(monkeypatch: pytest.MonkeyPatch) -> None:
    ones, zeros = np.ones((3, 10), dtype=bool), np.zeros((3, 10), dtype=bool)

    assert paired_crossed_bootstrap(ones, ones, 99, np.random.default_rng(0)).p_value == 1.0
    far = paired_crossed_bootstrap(ones, zeros, 99, np.random.default_rng(0))
    assert far.p_value == pytest.approx(2 / 100)
    assert bounds(far.interval) == (1.0, 1.0)

    noisy = np.random.default_rng(1).random((3, 10))
    runs = [
        paired_crossed_bootstrap(noisy, noisy[::-1], 50, np.random.default_rng(2)) for _ in "ab"
    ]
    assert runs[0] == runs[1]
    monkeypatch.setattr("clipadapt.core.statistics._BLOCK", 70)
    blocked = paired_crossed_bootstrap(noisy, noisy[::-1], 50, np.random.default_rng(2))
    assert blocked.interval.value == runs[0].interval.value

    with pytest.raises(ValueError, match="two equal shapes"):
        paired_crossed_bootstrap(ones, zeros[:2], 10, np.random.default_rng(0))
    with pytest.raises(ValueError, match="n_resamples"):
        paired_crossed_bootstrap(ones, zeros, 0, np.random.default_rng(0))
