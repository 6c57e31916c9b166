from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from clipadapt.core.scoring.combined import harmonic_interval, mean_interval
from clipadapt.core.scoring.statistics import (
    Interval,
    crossed_interval,
    crossed_p_value,
    difference_interval,
    examples_needed,
    fraction_interval,
    holm,
    letters_of_ties,
    mcnemar_exact,
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
def test_wilson_rejects_wrong_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        wilson(successes, n)


def test_t_interval_agrees_with_scipy() -> None:
    values = np.array([0.71, 0.74, 0.69])
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)

    got = t_interval(values)

    assert bounds(got) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert got.n == 3


def test_t_interval_of_one_value_or_of_equal_values_has_no_bounds() -> None:
    assert t_interval([0.5]) == Interval(0.5, None, None, 0.95, 1)
    assert t_interval([0.5, 0.5, 0.5]) == Interval(0.5, None, None, 0.95, 3)
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


def test_holm_agrees_with_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(13).random(20) ** 3

    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


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
    # All right in every seed: as sure as the examples allow, not certain.
    assert crossed_interval(np.ones((3, 20), dtype=bool)) == wilson(20, 20)
    assert crossed_interval(np.zeros((3, 20), dtype=bool)) == wilson(0, 20)
    assert crossed_interval(np.zeros((3, 20))) == Interval(0.0, None, None, 0.95, 20)
    for shape in ((3,), (0, 4), (4, 0)):
        with pytest.raises(ValueError, match="seeds, examples"):
            crossed_interval(np.zeros(shape))


# ---------------------------------------------------------------- against independent computations


def test_crossed_interval_agrees_with_the_anova_of_statsmodels() -> None:
    import pandas as pd
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    rng = np.random.default_rng(8)
    y = rng.normal(size=(3, 1)) * 0.4 + rng.normal(size=(1, 20)) + rng.normal(size=(3, 20)) * 0.5
    seed, example = np.indices(y.shape)
    frame = pd.DataFrame({"y": y.ravel(), "seed": seed.ravel(), "example": example.ravel()})
    table = anova_lm(ols("y ~ C(seed) + C(example)", frame).fit())
    ms, df = table["mean_sq"].to_numpy(), table["df"].to_numpy()
    variance = (ms[0] + ms[1] - ms[2]) / y.size
    dof = (ms[0] + ms[1] - ms[2]) ** 2 / (ms**2 / df).sum()

    low, high = stats.t.interval(0.95, dof, y.mean(), np.sqrt(variance))

    assert bounds(crossed_interval(y)) == pytest.approx((low, high))
    assert crossed_p_value(y) == pytest.approx(
        2 * stats.t.sf(abs(y.mean()) / np.sqrt(variance), dof)
    )


def test_the_cautious_p_value_has_the_degrees_of_freedom_of_the_seeds_if_they_matter() -> None:
    rng = np.random.default_rng(9)
    noise = rng.normal(size=(3, 50)) + 2 * rng.normal(size=(1, 50))
    noise -= noise.mean(axis=1, keepdims=True)
    apart = noise + np.array([[0.35], [0.5], [0.65]])
    plain, cautious = crossed_p_value(apart), crossed_p_value(apart, cautious=True)

    assert cautious > plain
    # The same statistic, with S - 1 = 2 degrees of freedom.
    a, b, e = table_of_variances(apart)
    statistic = apart.mean() / np.sqrt((max(a, e) + max(b, e) - e) / apart.size)
    assert cautious == pytest.approx(2 * stats.t.sf(statistic, 2))
    seeds_alike = noise + 0.2
    assert crossed_p_value(seeds_alike, cautious=True) == crossed_p_value(seeds_alike)
    assert crossed_p_value(seeds_alike[:2], cautious=True) > crossed_p_value(seeds_alike[:2])


def test_harmonic_interval_agrees_with_a_bootstrap() -> None:
    rng = np.random.default_rng(10)
    base = rng.random((1, 300)) < 0.8
    new = rng.random((1, 200)) < 0.6

    got = harmonic_interval(base, new)

    draws = np.array([
        [
            base[0, rng.integers(300, size=300)].mean(),
            new[0, rng.integers(200, size=200)].mean(),
        ]
        for _ in range(4000)
    ])
    of_draws = 2 * draws.prod(axis=1) / draws.sum(axis=1)
    b, n = base.mean(), new.mean()
    assert got.value == pytest.approx(2 * b * n / (b + n))
    assert got.value == pytest.approx(stats.hmean([b, n]))
    assert bounds(got) == pytest.approx(np.quantile(of_draws, [0.025, 0.975]), abs=0.01)
    assert harmonic_interval(np.zeros((2, 5), bool), np.zeros((2, 5), bool)).value == 0
    with pytest.raises(ValueError, match="seeds, examples"):
        harmonic_interval(base, np.ones((2, 5), bool))


def test_examples_needed_give_mcnemar_its_power() -> None:
    """Exact power by enumeration: with the number returned the test is significant in four of five experiments."""
    only_a, only_b = 0.10, 0.05
    pattern = np.repeat([1.0, -1.0, 0.0], [100, 50, 850])[None]

    n = examples_needed(pattern)

    assert n is not None
    power = 0.0
    for discordant in range(1, n + 1):
        weight = stats.binom.pmf(discordant, n, only_a + only_b)
        if weight < 1e-9:
            continue
        k = np.arange(discordant + 1)
        p = 2 * np.minimum(
            stats.binom.cdf(k, discordant, 0.5), stats.binom.sf(k - 1, discordant, 0.5)
        )
        power += weight * stats.binom.pmf(k, discordant, only_a / (only_a + only_b))[p < 0.05].sum()
    assert power == pytest.approx(0.8, abs=0.04)


def test_examples_needed_is_none_if_no_number_is_enough() -> None:
    seeds = np.array([[0.5], [-0.5], [0.6]]) * np.ones((1, 100))
    rng = np.random.default_rng(11)

    assert examples_needed(np.zeros((1, 10))) is None
    assert examples_needed(seeds + rng.normal(size=(3, 100)) * 0.1) is None
    alike = rng.normal(size=(3, 400)) + 0.05
    few, many = examples_needed(alike + 0.3), examples_needed(alike)
    assert few is not None
    assert many is None or many > few


def test_letters_of_ties() -> None:
    names = ["a", "b", "c", "d"]

    assert letters_of_ties(names, []) == ["a", "a", "a", "a"]
    assert letters_of_ties(names, [("a", "d")]) == ["a", "ab", "ab", "b"]
    assert letters_of_ties(names, [("d", "a"), ("a", "c"), ("b", "d")]) == ["a", "ab", "bc", "c"]
    everyone = [(x, y) for i, x in enumerate(names) for y in names[i + 1 :]]
    assert letters_of_ties(names, everyone) == ["a", "b", "c", "d"]
    assert letters_of_ties([], []) == []


def test_more_methods_may_share_a_letter_than_calls_can_be_nested() -> None:
    names = [str(i) for i in range(sys.getrecursionlimit() + 200)]

    assert letters_of_ties(names, [(names[0], names[-1])]) == ["a", *["ab"] * (len(names) - 2), "b"]


def test_names_share_a_letter_exactly_if_they_do_not_differ() -> None:
    rng = np.random.default_rng(12)
    for _ in range(50):
        names = [str(i) for i in range(7)]
        apart = {(x, y) for i, x in enumerate(names) for y in names[i + 1 :] if rng.random() < 0.4}
        letters = letters_of_ties(names, apart)
        for i, x in enumerate(names):
            for j, y in enumerate(names):
                if i < j:
                    assert bool(set(letters[i]) & set(letters[j])) == ((x, y) not in apart)


# ---------------------------------------------------------------- simulated: what the words promise

# Seeds, examples, spread of the examples' difficulty and of the seeds' skill, in units of a run's own noise; with
# skill 0.2 the seeds of one method are about two points of accuracy around their mean.
REGIMES = {
    "examples alone": (3, 200, 1.5, 0.0),
    "a small test split": (3, 100, 1.0, 0.1),
    "seeds and examples": (3, 500, 2.0, 0.1),
    "a large test split": (3, 2000, 1.5, 0.1),
    "seeds rule": (3, 1000, 1.0, 0.2),
    "five seeds": (5, 300, 2.0, 0.15),
}
ACCURACY = 0.8


def simulate(
    rng: np.random.Generator, regime: str, times: int, methods: int, accuracy: float = ACCURACY
) -> NDArray[np.bool_]:
    """Return which examples ``methods`` equal methods predict correctly, shape ``(times, methods, S, N)``."""
    seeds, examples, difficulty, skill = REGIMES[regime]
    mean = stats.norm.ppf(accuracy) * np.sqrt(1 + difficulty**2 + skill**2)
    level = mean + rng.normal(size=(times, 1, 1, examples)) * difficulty
    level = level + rng.normal(size=(times, methods, seeds, 1)) * skill
    right: NDArray[np.bool_] = level + rng.normal(size=(times, methods, seeds, examples)) > 0
    return right


@pytest.mark.parametrize("regime", REGIMES)
def test_95_percent_intervals_cover_91_to_98(regime: str) -> None:
    rng, times = np.random.default_rng(20), 600
    right = simulate(rng, regime, times, 2)
    other = simulate(rng, regime, times, 1, accuracy=0.7)
    harmonic = 2 * ACCURACY * 0.7 / (ACCURACY + 0.7)
    covered = np.zeros(3)
    for both, new in zip(right, other, strict=True):
        for i, (interval, truth) in enumerate((
            (crossed_interval(both[0]), ACCURACY),
            (difference_interval(both[0].astype(float) - both[1]), 0.0),
            (harmonic_interval(both[0], new[0]), harmonic),
        )):
            low, high = bounds(interval)
            covered[i] += low <= truth <= high

    assert ((covered / times >= 0.91) & (covered / times <= 0.98)).all(), covered / times


@pytest.mark.parametrize("n", [100, 1000])
@pytest.mark.parametrize("p", [0.5, 0.84, 0.97])
def test_one_accuracy_is_covered_too(n: int, p: float) -> None:
    counts = np.arange(n + 1)
    inside = [bounds(wilson(int(k), n))[0] <= p <= bounds(wilson(int(k), n))[1] for k in counts]

    assert 0.91 <= stats.binom.pmf(counts, n, p)[inside].sum() <= 0.98  # exact, not simulated


@pytest.mark.parametrize("regime", REGIMES)
def test_equal_methods_are_marked_better_in_at_most_5_percent(regime: str) -> None:
    """The best of three equal methods against the runner-up, after Holm over the pairs, as in a summary."""
    rng, times, methods = np.random.default_rng(21), 400, 3
    marked = 0
    for right in simulate(rng, regime, times, methods):
        first, second, *_ = np.argsort(-right.mean(axis=(1, 2)))
        pairs = [(i, j) for i in range(methods) for j in range(i + 1, methods)]
        p = holm([
            crossed_p_value(right[i].astype(float) - right[j], cautious=True) for i, j in pairs
        ])
        marked += p[pairs.index((min(first, second), max(first, second)))] < 0.05

    assert marked / times <= 0.05


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_cautious_test_of_two_equal_methods_keeps_its_level(seeds: int) -> None:
    rng, times = np.random.default_rng(22), 1000
    level = 1.5 + rng.normal(size=(times, 1, 1, 300)) + rng.normal(size=(times, 2, seeds, 1)) * 0.15
    right = level + rng.normal(size=(times, 2, seeds, 300)) > 0

    small = [crossed_p_value(a.astype(float) - b, cautious=True) < 0.05 for a, b in right]

    assert np.mean(small) <= 0.05


def test_mcnemar_of_equal_methods_keeps_its_level() -> None:
    """Exact, over every possible count of discordant examples."""
    for n in range(1, 200):
        k = np.arange(n + 1)
        p = np.minimum(1, 2 * np.minimum(stats.binom.cdf(k, n, 0.5), stats.binom.sf(k - 1, n, 0.5)))
        assert stats.binom.pmf(k, n, 0.5)[p < 0.05].sum() <= 0.05
        middle = int(k[len(k) // 3])
        a = np.repeat([True, False], [middle, n - middle])
        assert mcnemar_exact(a, ~a).p_value == pytest.approx(p[middle])


# ---------------------------------------------------------------- the limits: perfect, equal, nearly equal


def hits(*counts: int, n: int = 100) -> NDArray[np.bool_]:
    """Return seeds of which the last ``counts`` examples are correct."""
    return np.array([np.arange(n) >= n - k for k in counts])


@pytest.mark.parametrize("k", [0, 1, 50, 90, 99, 100])
@pytest.mark.parametrize("step", [-1, 1])
def test_one_example_more_or_less_in_one_seed_changes_an_interval_little(k: int, step: int) -> None:
    equal = bounds(crossed_interval(hits(k, k, k)))
    near = bounds(crossed_interval(hits(k, k, min(max(k + step, 0), 100))))

    assert equal == bounds(wilson(k, 100))
    assert near == pytest.approx(equal, abs=0.012)


@pytest.mark.parametrize("seeds", [1, 2, 5])
@pytest.mark.parametrize("n", [1, 2, 10, 1000])
def test_a_perfect_score_has_an_interval_with_a_width(seeds: int, n: int) -> None:
    ones = np.ones((seeds, n), dtype=bool)
    for interval in (
        crossed_interval(ones),
        crossed_interval(~ones),
        harmonic_interval(ones, ones),
        harmonic_interval(~ones, ones),
        harmonic_interval(~ones, ~ones),
        fraction_interval(ones.astype(float), weight=3.0),
    ):
        low, high = bounds(interval)
        assert 0 <= low <= interval.value <= high <= 1
        assert high > low
    for difference in (ones * 1.0, ones * 0.0, ones * -1.0):
        interval = difference_interval(difference)
        low, high = bounds(interval)
        assert -1 <= low <= interval.value <= high <= 1
        assert high > low


def test_no_interval_leaves_its_range() -> None:
    rng = np.random.default_rng(30)
    for _ in range(300):
        seeds, n = int(rng.integers(1, 4)), int(rng.integers(1, 8))
        a, b = (rng.random((seeds, n)) < rng.random((seeds, 1)) for _ in "ab")
        low, high = bounds(crossed_interval(a))
        assert 0 <= low <= a.mean() <= high <= 1
        low, high = bounds(harmonic_interval(a, b))
        assert 0 <= low <= high <= 1
        low, high = bounds(difference_interval(a.astype(float) - b))
        assert -1 <= low <= a.mean() - b.mean() + 1e-12
        assert a.mean() - b.mean() - 1e-12 <= high <= 1


@pytest.mark.parametrize("accuracy", [0.5, 0.9, 0.98])
@pytest.mark.parametrize(("seeds", "n", "skill"), [(2, 40, 0.0), (3, 100, 0.1), (3, 30, 0.0)])
def test_intervals_of_small_test_splits_and_high_accuracies_cover(
    accuracy: float, seeds: int, n: int, skill: float
) -> None:
    """At least 93 %: near 1 few examples are wrong, and the interval is conservative."""
    rng, times = np.random.default_rng(31), 500
    level = stats.norm.ppf(accuracy) * np.sqrt(2 + skill**2)
    level = level + rng.normal(size=(times, 1, 1, n))
    level = level + rng.normal(size=(times, 2, seeds, 1)) * skill
    right = level + rng.normal(size=(times, 2, seeds, n)) > 0
    covered = np.zeros(2)
    for a, b in right:
        low, high = bounds(crossed_interval(a))
        covered[0] += low <= accuracy <= high
        low, high = bounds(difference_interval(a.astype(float) - b))
        covered[1] += low <= 0 <= high

    assert (covered / times >= 0.93).all(), covered / times


@pytest.mark.parametrize("seeds", [1, 2, 5])
@pytest.mark.parametrize("accuracy", [0.0, 0.5, 0.97, 1.0])
def test_exact_sums_of_whole_numbers_are_those_of_floats(seeds: int, accuracy: float) -> None:
    rng = np.random.default_rng(seeds)
    hard = rng.normal(size=300)
    a, b = (
        (hard + rng.normal(size=(seeds, 300)) < np.quantile(hard, accuracy)) | (accuracy == 1)
        for _ in range(2)
    )
    difference = a.astype(np.int8) - b
    floats = difference.astype(np.float64)

    for cautious in (False, True):
        found, plain = (difference_interval(d, cautious=cautious) for d in (difference, floats))
        assert dataclasses.astuple(found) == pytest.approx(
            dataclasses.astuple(plain), rel=1e-9, abs=1e-12
        )
        found, plain = (crossed_p_value(d, cautious=cautious) for d in (difference, floats))
        assert found == pytest.approx(plain, rel=1e-9)
    assert examples_needed(difference) == examples_needed(floats)
    if not (a == a[0]).all():  # copies of one fit have Wilson's interval, which needs bool
        found, plain = fraction_interval(a), fraction_interval(a.astype(np.float64))
        assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(plain), rel=1e-9)
        means = [mean_interval([t, t[:, :200]]) for t in (a, a.astype(np.float64))]
        assert dataclasses.astuple(means[0]) == pytest.approx(
            dataclasses.astuple(means[1]), rel=1e-9
        )
