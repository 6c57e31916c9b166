"""Prediction sets: thresholds, ties, odd inputs, too few examples, and the coverage on real scores."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin

from clipadapt.core.api.errors import DataError, RecordError
from clipadapt.core.scoring.calibration import fit_temperature
from clipadapt.core.scoring.prediction_sets import (
    KINDS,
    CalibrationExamples,
    SetScore,
    by_class,
    examples_needed,
    nonconformity,
    prediction_sets,
    quantile,
    require_examples,
    set_figures,
)
from clipadapt.core.scoring.scores import probabilities, softmax

REAL = Path(__file__).parent / "data" / "pacs_scores.npz"
SPLITS = 200


def random_case(seed, n=60, n_classes=5):
    rng = np.random.default_rng(seed)
    p = softmax(rng.normal(0, 2, (n, n_classes)))
    return p, rng.integers(n_classes, size=n)


# ---------------------------------------------------------------- thresholds


def test_the_threshold_is_the_kth_smallest_score():
    scores = np.random.default_rng(1).permutation(np.arange(1.0, 20.0))  # 1 ... 19

    assert quantile(scores, 0.9) == 18  # ceil(20 * 0.9)
    assert quantile(scores, 0.95) == 19
    assert quantile(scores, 0.951) == math.inf
    assert quantile(np.arange(99.0), 0.95) == 94  # 100 * 0.95 is not rounded up to 96
    assert quantile(np.array([]), 0.5) == math.inf


@pytest.mark.parametrize("coverage", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_coverage_that_is_no_probability_is_refused(coverage):
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile(np.arange(9.0), coverage)
    with pytest.raises(ValueError, match="between 0 and 1"):
        examples_needed(coverage)


@pytest.mark.parametrize(
    ("coverage", "needed"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99), (0.999, 999)]
)
def test_the_examples_needed_are_the_fewest_with_a_finite_threshold(coverage, needed):
    assert examples_needed(coverage) == needed
    assert math.isfinite(quantile(np.arange(float(needed)), coverage))
    assert math.isinf(quantile(np.arange(needed - 1.0), coverage))
    require_examples(needed, coverage)
    with pytest.raises(DataError, match=f"needs at least {needed} calibration examples"):
        require_examples(needed - 1, coverage)


def test_too_few_examples_are_reported_with_what_is_possible():
    with pytest.raises(DataError) as caught:
        require_examples(5, 0.9)

    assert caught.value.problem == (
        "a coverage of 0.9 needs at least 9 calibration examples, and there are 5"
    )
    assert "at most 0.833" in caught.value.hint
    with pytest.raises(DataError) as caught:
        require_examples(0, 0.9)
    assert caught.value.hint == "calibrate on more labelled examples"


def test_class_thresholds_cover_each_class():
    p, labels = random_case(3, n=20_000)
    labels = np.where(labels == 0, p.argmin(axis=1), p.argmax(axis=1))  # class 0 is hard
    calibration, test = slice(0, 10_000), slice(10_000, None)
    examples = CalibrationExamples.of(p[calibration], labels[calibration])

    thresholds = examples.class_thresholds(SetScore(), 0.9, 6)
    sets = prediction_sets(p[test], thresholds[:5], SetScore())

    assert math.isinf(thresholds[5])  # no example
    covered = sets[np.arange(10_000), labels[test]]
    assert min(x for x in by_class(covered, labels[test], 5) if x is not None) > 0.87


# ---------------------------------------------------------------- scores and sets


def by_hand(p, label, kind, u):
    """Return the nonconformity of one class as the papers write it."""
    order = sorted(range(len(p)), key=lambda c: (-p[c], c))
    rank = order.index(label) + 1
    if kind == "lac":
        return 1 - p[label]
    found = sum(p[c] for c in order[:rank]) - (0 if u is None else u * p[label])
    return found + (0.3 * max(rank - 2, 0) if kind == "raps" else 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("randomised", [False, True])
def test_scores_of_all_classes_and_of_labels(kind, randomised):
    p, labels = random_case(5)
    u = np.random.default_rng(6).random(len(p)) if randomised else None
    score = SetScore(kind, penalty=0.3, k_reg=2)

    found = nonconformity(p, score, u)

    want = [
        [by_hand(row, c, kind, None if u is None else u[i]) for c in range(5)]
        for i, row in enumerate(p)
    ]
    np.testing.assert_allclose(found, want, atol=1e-12)
    own = CalibrationExamples.of(p, labels).scores(score, u)
    np.testing.assert_array_equal(own, found[np.arange(60), labels])


@pytest.mark.parametrize("kind", KINDS)
def test_equal_probabilities_and_one_class(kind):
    score = SetScore(kind)
    tied = np.full((50, 4), 0.25)
    examples = CalibrationExamples.of(tied, np.arange(50) % 4)
    threshold = examples.threshold(score, 0.9)

    sets = prediction_sets(tied, threshold, score)

    assert (sets == sets[0]).all()
    assert set_figures(sets, np.arange(50) % 4).coverage >= 0.9
    one = CalibrationExamples.of(np.ones((20, 1)), np.zeros(20, dtype=np.int64))
    assert prediction_sets(np.ones((3, 1)), one.threshold(score, 0.9), score).all()


def test_an_empty_set_may_be_given_the_predicted_class():
    p = np.array([[0.4, 0.35, 0.25], [0.9, 0.05, 0.05]])

    exact = prediction_sets(p, 0.3, SetScore())
    filled = prediction_sets(p, 0.3, SetScore(), at_least_one=True)

    assert exact.tolist() == [[False] * 3, [True, False, False]]
    assert filled.tolist() == [[True, False, False]] * 2
    assert set_figures(exact, np.array([0, 0])) == (0.5, 0.5, 0.5)


def test_values_that_are_not_finite_are_refused():
    p, labels = random_case(1)
    p[3, 2] = np.nan

    with pytest.raises(RecordError, match="nan or infinity"):
        CalibrationExamples.of(p, labels)


def test_by_class_leaves_classes_without_examples_out():
    assert by_class(np.array([1, 0, 1]), np.array([0, 0, 2]), 4) == [0.5, None, 1.0, None]


# ---------------------------------------------------------------- none of the classes


def test_the_rejection_threshold_holds_its_rate():
    confidence = np.random.default_rng(2).random((2000, 100))  # 2000 draws of 99 + 1
    zeros = np.zeros(99)
    rejected = []
    for row in confidence:
        examples = CalibrationExamples(zeros.astype(np.int64), zeros, zeros, zeros, row[:99])
        rejected.append(row[99] < examples.least_confidence(0.05))

    assert np.mean(rejected) == pytest.approx(0.05, abs=0.015)
    few = CalibrationExamples(*[zeros[:5]] * 5)
    with pytest.raises(DataError, match=r"rate of 0\.05 needs at least 19 calibration examples"):
        few.least_confidence(0.05)


# ---------------------------------------------------------------- coverage


@pytest.fixture(scope="module")
def real():
    """Scores of a linear probe on features of ``stitched`` for the photos and sketches of PACS, and labels.

    It was trained on 4 images per class and domain; these are the other images.
    """
    with np.load(REAL, allow_pickle=False) as stored:
        return stored["scores"].astype(np.float64), stored["labels"].astype(np.int64)


def mean_coverage(p, labels, score, coverage, *, randomised, n_calibration=300):
    """Return the coverage over random splits, and the mean size."""
    found = []
    for seed in range(SPLITS):
        rng = np.random.default_rng(seed)
        rows = rng.permutation(len(p))
        a, b = rows[:n_calibration], rows[n_calibration:]
        u = rng.random(len(p)) if randomised else None
        u_a, u_b = (None, None) if u is None else (u[a], u[b])
        threshold = CalibrationExamples.of(p[a], labels[a]).threshold(score, coverage, u_a)
        found.append(set_figures(prediction_sets(p[b], threshold, score, u_b), labels[b]))
    return np.mean(found, axis=0)


@pytest.mark.parametrize("randomised", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_coverage_is_nominal_over_random_splits(real, kind, coverage, randomised):
    scores, labels = real
    p = probabilities(scores, fit_temperature(scores, labels))

    covered, size, _ = mean_coverage(p, labels, SetScore(kind), coverage, randomised=randomised)

    assert abs(covered - coverage) < 0.02
    assert 0.5 < size < p.shape[1]


@pytest.mark.parametrize("kind", KINDS)
def test_coverage_holds_for_sigmoids_and_without_a_temperature(real, kind):
    scores, labels = real
    for p in (probabilities(scores - 2, sigmoid=True), probabilities(3 * scores)):
        covered, _, _ = mean_coverage(p, labels, SetScore(kind), 0.9, randomised=True)
        assert abs(covered - 0.9) < 0.02


def test_a_temperature_fitted_on_the_calibration_examples_costs_little(real):
    scores, labels = real
    covered = []
    for seed in range(SPLITS):
        rows = np.random.default_rng(seed).permutation(len(scores))
        a, b = rows[:50], rows[50:]
        temperature = fit_temperature(scores[a], labels[a])
        p = probabilities(scores, temperature or 1.0)
        threshold = CalibrationExamples.of(p[a], labels[a]).threshold(SetScore(), 0.9)
        covered.append(set_figures(prediction_sets(p[b], threshold, SetScore()), labels[b])[0])

    assert abs(np.mean(covered) - 0.9) < 0.02


class GivenProbabilities(ClassifierMixin, BaseEstimator):
    """A fitted scikit-learn classifier whose inputs are its probabilities."""

    def __init__(self, n_classes=7):
        self.n_classes = n_classes
        self.classes_ = np.arange(n_classes)

    def fit(self, X, y):
        return self

    def predict_proba(self, X):
        return X

    def predict(self, X):
        return X.argmax(axis=1)


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_sets_of_real_scores_are_mapies(real, coverage):
    mapie = pytest.importorskip("mapie.classification", reason="MAPIE is not installed")
    scores, labels = real
    p = softmax(scores)
    reference = mapie.SplitConformalClassifier(
        GivenProbabilities(), confidence_level=coverage, prefit=True, conformity_score="lac"
    )
    reference.conformalize(p[:400], labels[:400])

    threshold = CalibrationExamples.of(p[:400], labels[:400]).threshold(SetScore(), coverage)
    sets = prediction_sets(p[400:], threshold, SetScore())

    np.testing.assert_array_equal(sets, reference.predict_set(p[400:])[1][:, :, 0])
