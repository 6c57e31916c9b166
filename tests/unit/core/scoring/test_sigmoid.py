"""Probabilities of a model with a sigmoid loss: one per class, independent of the other classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from clipadapt.core.records.confidence import confidences
from clipadapt.core.records.predictions import Predictions
from clipadapt.core.report.answers import Answers, join
from clipadapt.core.scoring.calibration import fit_temperature
from clipadapt.core.scoring.metrics import compute_metrics, example_values
from clipadapt.core.scoring.scores import LabelledScores, nll, probabilities, softmax
from clipadapt.core.scoring.statistics import t_interval

SIZE = (500, 6)


def drawn(scale: float = 3.0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, SIZE[1], SIZE[0])
    logits = np.eye(SIZE[1])[labels] * scale + rng.normal(size=SIZE) * 2 - 2.5
    return logits.astype(np.float32), labels


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_losses_equal_torchs_binary_cross_entropy(temperature: float) -> None:
    scores, labels = drawn()
    z = torch.from_numpy(scores).double() / temperature
    targets = F.one_hot(torch.from_numpy(labels), SIZE[1]).double()
    losses = F.binary_cross_entropy_with_logits(z, targets, reduction="none").sum(1)

    found = LabelledScores(labels, scores, temperature, sigmoid=True)

    np.testing.assert_allclose(found.losses, losses, rtol=1e-12)
    np.testing.assert_allclose(found.squared_errors, (z.sigmoid() - targets).square().sum(1))
    np.testing.assert_allclose(found.confidence, z.sigmoid().max(1).values)
    np.testing.assert_allclose(
        probabilities(scores, temperature, sigmoid=True), z.sigmoid(), rtol=1e-6
    )
    np.testing.assert_array_equal(probabilities(scores, temperature), softmax(scores, temperature))


def test_far_scores_neither_overflow_nor_vanish() -> None:
    scores = np.array([[-800.0, 800.0], [800.0, -800.0]])
    found = LabelledScores(np.array([1, 1]), scores, sigmoid=True)
    np.testing.assert_allclose(found.losses, [0, 1600])
    np.testing.assert_allclose(probabilities(scores, sigmoid=True), [[0, 1], [1, 0]])


@pytest.mark.parametrize("true", [0.5, 1.0, 8.0])
def test_the_temperature_recovers_the_scale(true: float) -> None:
    rng = np.random.default_rng(1)
    # The likelihood of each class alone: Bernoulli draws with exactly one success are kept.
    z = rng.normal(size=(200_000, 4)) * 2 - 1
    hits = rng.random(z.shape) < 1 / (1 + np.exp(-z))
    kept = hits.sum(1) == 1
    scores, labels = (z[kept] * true).astype(np.float32), hits[kept].argmax(1)

    found = fit_temperature(scores, labels, sigmoid=True)

    assert found is not None
    best = LabelledScores(labels, scores, found, sigmoid=True).losses.mean()
    for factor in (0.98, 1.02):
        assert best < LabelledScores(labels, scores, found * factor, sigmoid=True).losses.mean()
    unscaled = fit_temperature(scores / np.float32(true), labels, sigmoid=True)
    assert found / true == pytest.approx(unscaled, rel=1e-3)


def test_separated_classes_are_confident_but_not_certain() -> None:
    labels = np.repeat(np.arange(5), 4)
    scores = (np.eye(5)[labels] * 4 - 2).astype(np.float32)
    found = fit_temperature(scores, labels, sigmoid=True)
    assert found is not None
    confidence = LabelledScores(labels, scores, found, sigmoid=True).confidence
    assert 0.9 < confidence.mean() < 0.999
    # All scores are negative, as SigLIP's are: the largest is the label's, and the fit is no bound.
    assert fit_temperature(scores - 2.5, labels, sigmoid=True) is not None


def test_metrics_of_sigmoids_differ_in_probabilities_only() -> None:
    scores, labels = drawn()
    logit, sigmoid = (
        compute_metrics(scores, labels, score_kind=kind, temperature=2.0)
        for kind in ("logit", "sigmoid")
    )
    assert logit.keys() == sigmoid.keys()
    assert sigmoid["accuracy"] == logit["accuracy"]
    for name in ("nll", "brier", "ece", "nll_calibrated", "ece_calibrated"):
        assert sigmoid[name].value != logit[name].value


def test_the_brier_score_of_sigmoids_is_bounded_by_the_number_of_classes() -> None:
    labels = np.arange(12) % SIZE[1]
    scores = np.full((12, SIZE[1]), 40, dtype=np.float32)  # every class is certain
    scores[
        :6, 0
    ] = -40  # and one of them wrong in half of the examples, with the other label right or wrong

    found = compute_metrics(scores, labels, score_kind="sigmoid")["brier"]

    values = LabelledScores(labels, scores, sigmoid=True).squared_errors
    assert 2 < found.value == pytest.approx(values.mean())
    own = t_interval(values)
    assert (found.low, found.high) == pytest.approx((own.low, own.high))
    assert 2 < found.high < SIZE[1]
    # The worst possible forecast, once relieved, ends at the number of classes, not at 2 and not above.
    worst = np.where(np.eye(SIZE[1], dtype=bool)[labels], -40, 40).astype(np.float32)
    worst[0] *= -1
    few = compute_metrics(worst, labels, score_kind="sigmoid")["brier"]
    assert t_interval(LabelledScores(labels, worst, sigmoid=True).squared_errors).high > SIZE[1]
    assert few.value < few.high == SIZE[1]
    one = 80 * np.eye(SIZE[1], dtype=np.float32)[(labels + 1) % SIZE[1]]
    one[0] = 80 * np.eye(SIZE[1])[labels[0]]
    assert compute_metrics(one, labels)["brier"].high == 2


def test_several_seeds_keep_the_range_of_the_metric() -> None:
    scores, labels = drawn()
    found = [
        Answers(np.arange(SIZE[0]).astype(str), labels, v.values[None], (seed,), labels[None], v.weight,
                "squared error", v.largest)
        for seed in (1, 2)
        if (v := example_values("brier", LabelledScores(labels, scores + 9 * seed, sigmoid=True)))
    ]  # fmt: skip
    both = join(found)
    assert both.largest == SIZE[1]
    assert 2 < both.interval.value < both.interval.high <= SIZE[1]


def test_the_mean_loss_of_sigmoids_is_that_of_the_examples() -> None:
    scores, labels = drawn()
    expected = LabelledScores(labels, scores, 1.5, sigmoid=True).losses.mean()
    assert nll(scores, labels, 1.5, sigmoid=True) == pytest.approx(expected)
    assert nll(scores, labels, 1.5) != pytest.approx(expected)


def test_the_short_form_keeps_the_confidence_at_every_temperature() -> None:
    scores, labels = drawn()
    whole = Predictions(tuple(map(str, range(SIZE[0]))), labels, scores)
    short = whole.shortened(most=10, keep=3)
    for temperature in (None, 1.7):
        expected, right = confidences(whole, kind="sigmoid", temperature=temperature)
        found, same = confidences(short, kind="sigmoid", temperature=temperature)
        np.testing.assert_allclose(found, expected)
        np.testing.assert_array_equal(same, right)
    assert short.scored(sigmoid=True).losses is None
