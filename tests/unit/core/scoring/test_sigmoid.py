"""Probabilities of a model with a sigmoid loss: one per class, independent of the other classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from clipadapt.core.records.confidence import confidences
from clipadapt.core.records.predictions import Predictions
from clipadapt.core.scoring.calibration import fit_temperature
from clipadapt.core.scoring.metrics import compute_metrics
from clipadapt.core.scoring.scores import LabelledScores, probabilities, softmax

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
    high = compute_metrics(scores + 30, labels, score_kind="sigmoid")["brier"]
    assert high.value > 2
    assert high.low <= high.value <= high.high


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
