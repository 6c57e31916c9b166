from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from clipadapt.core.api.errors import RecordError
from clipadapt.core.records.confidence import confidences
from clipadapt.core.records.predictions import Predictions
from clipadapt.core.scoring import calibration, metrics
from clipadapt.core.scoring.scores import softmax
from clipadapt.core.scoring.statistics import wilson


@pytest.fixture
def predictions() -> Predictions:
    rng = np.random.default_rng(7)
    n, n_classes = 400, 6
    labels = rng.integers(n_classes, size=n)
    scores = rng.normal(0, 2, size=(n, n_classes))
    scores[np.arange(n), labels] += 2
    return Predictions(tuple(map(str, range(n))), labels, scores.astype(np.float32))


def gap(bins) -> float:
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.confidence - b.accuracy.value) for b in bins if b.count) / total


@pytest.mark.parametrize("temperature", [None, 2.5])
def test_the_bins_are_those_of_the_calibration_error(predictions, temperature):
    p = softmax(predictions.scores.astype(np.float64), temperature or 1.0)

    confidence, right = confidences(predictions, kind="logit", temperature=temperature)
    width = calibration.reliability(confidence, right)
    mass = calibration.reliability(confidence, right, binning="mass", bins=10)

    np.testing.assert_allclose(confidence, p.max(axis=1), rtol=1e-12)
    oracle = multiclass_calibration_error(
        torch.tensor(p), torch.tensor(predictions.labels), num_classes=6, n_bins=15, norm="l1"
    )
    assert gap(width) == pytest.approx(float(oracle), abs=1e-6)
    assert gap(mass) == pytest.approx(
        calibration.calibration_error(confidence, right, bins=10, binning="mass")
    )
    assert sum(b.count for b in width) == 400
    assert {b.count for b in mass} == {40}
    assert [b.low for b in width] == pytest.approx(np.arange(15) / 15)
    filled = next(b for b in width if b.count > 5)
    inside = (confidence >= filled.low) & (confidence < filled.high)
    assert filled.accuracy == wilson(int(right[inside].sum()), int(inside.sum()))
    empty = [b for b in calibration.reliability(confidence[:1], right[:1]) if not b.count]
    assert len(empty) == 14
    assert all(b.confidence is None and b.accuracy is None for b in empty)


def test_the_record_holds_the_same_figures(predictions):
    record = metrics.compute_metrics(predictions.scores, predictions.labels, temperature=2.5)

    for suffix, temperature in (("", None), ("_calibrated", 2.5)):
        confidence, right = confidences(predictions, kind="logit", temperature=temperature)
        assert record[f"ece{suffix}"].value == pytest.approx(
            gap(calibration.reliability(confidence, right))
        )
        assert record[f"ece_mass{suffix}"].value == pytest.approx(
            gap(calibration.reliability(confidence, right, binning="mass"))
        )
        assert record[f"aurc{suffix}"].value == calibration.area_under_risk_coverage(
            confidence, right
        )


def test_selective_accuracy_by_hand():
    confidence = np.array([0.9, 0.5, 0.8, 0.7])
    right = np.array([True, False, True, False])

    found = calibration.selective(confidence, right, (0.25, 0.5, 0.6, 1.0))

    assert [(c.count, c.accuracy, c.threshold) for c in found] == [
        (1, 1.0, 0.9), (2, 1.0, 0.8), (3, pytest.approx(2 / 3), 0.7), (4, 0.5, 0.5),
    ]  # fmt: skip
    assert calibration.area_under_risk_coverage(confidence, right) == pytest.approx(
        (0 + 0 + 1 / 3 + 1 / 2) / 4
    )


def test_the_order_of_equal_confidences_does_not_matter():
    right = np.array([True, False, False, True, False, False])
    same = np.full(6, 0.4)

    for order in (np.arange(6), np.arange(6)[::-1]):
        assert calibration.area_under_risk_coverage(same, right[order]) == pytest.approx(1 - 1 / 3)
        assert [c.accuracy for c in calibration.selective(same, right[order])] == pytest.approx(
            [1 / 3] * len(calibration.COVERAGES)
        )


def test_aurc_is_between_the_best_and_the_worst_order(predictions):
    confidence, right = confidences(predictions, kind="logit")
    error = 1 - right.mean()

    best = calibration.area_under_risk_coverage(right.astype(float), right)
    worst = calibration.area_under_risk_coverage(-right.astype(float), right)

    assert best < calibration.area_under_risk_coverage(confidence, right) < error < worst


def test_margins_have_no_probabilities_without_a_temperature(predictions):
    with pytest.raises(RecordError, match="margins, not logits"):
        confidences(predictions, kind="margin")

    fitted, _ = confidences(predictions, kind="margin", temperature=2.0)
    assert fitted.max() <= 1


def test_shortened_predictions_keep_their_confidence_at_temperature_one(predictions):
    short = predictions.shortened(most=10, keep=3)

    whole, right = confidences(predictions, kind="logit")
    kept, right_kept = confidences(short, kind="logit")

    np.testing.assert_allclose(kept, whole, rtol=1e-5)
    np.testing.assert_array_equal(right_kept, right)
    with pytest.raises(RecordError, match="another temperature"):
        confidences(short, kind="logit", temperature=2.0)
