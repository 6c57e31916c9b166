"""The shipped metrics give the numbers of torchmetrics, netcal and scikit-learn.

Sets, names, tolerances and what is only informational come from the fixture's spec.json.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from numpy.typing import NDArray

from clipadapt.core.records.predictions import Predictions
from clipadapt.core.scoring import metrics
from clipadapt.core.scoring.calibration import calibration_error
from clipadapt.core.scoring.scores import (
    LabelledScores,
    class_counts,
    class_figures,
    nll,
    topk_accuracy,
)
from tests.reference.parity import fixture

FIXTURE = fixture("metrics")


def _value(key: str, scores: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Compute one entry of the spec's ``values`` by its name."""
    if match := re.fullmatch(r"acc(\d+)", key):
        k = int(match[1])
        return topk_accuracy(scores, labels, k) if k <= scores.shape[1] else float("nan")
    if match := re.fullmatch(r"ece(\d+)(?:_l1)?_(?:torchmetrics|netcal)", key):
        scored = LabelledScores(labels, scores)
        assert scored.confidence is not None
        return calibration_error(scored.confidence, scored.correct, bins=int(match[1]))
    if key.startswith("macro_f1"):
        support, predicted, hits = class_counts(scores.argmax(axis=1), labels, scores.shape[1])
        f1 = class_figures(support, predicted, hits)[2]
        seen = support + predicted > 0  # scikit-learn's default labels
        return float(f1.mean() if key.endswith("all_classes") else f1[seen].mean())
    if key.startswith("mean_per_class_recall"):
        return metrics.measure("mean_per_class_recall", scores, labels).value
    if key == "brier_sum":
        return metrics.measure("brier", scores, labels).value
    if key == "nll":
        return nll(scores, labels)
    pytest.fail(f"spec.json names a value '{key}' that no metric here answers to")


def _informational(set_name: str, key: str) -> bool:
    """Return whether a value is not compared.

    It is informational (the spec lists it: ``KEY``, or ``SET: KEY, KEY (reason)``), or an error that is not offered.
    """
    if key.endswith("_informational") or re.match(r"mce|ece\d+_(l2|max)", key):
        return True
    for entry in FIXTURE.spec.get("informational_only", []):
        scope, _, keys = entry.split("(")[0].rpartition(":")
        if scope.strip() in {"", set_name}:
            for listed in keys.split(","):
                # "ece10" matches ece10_*, not ece100.
                if re.fullmatch(rf"{re.escape(listed.strip())}(_.*)?", key):
                    return True
    return False


@pytest.mark.parametrize("name", FIXTURE.expected)
def test_reproduces(name: str) -> None:
    set_name, _, quantity = name.rpartition(".")
    scores, labels = FIXTURE.inputs[f"{set_name}.logits"], FIXTURE.inputs[f"{set_name}.labels"]
    if quantity == "confusion":
        given = Predictions(tuple(map(str, range(len(labels)))), labels.astype(np.int64), scores)
        true, predicted, counts = given.confusions()
        confusion = np.zeros((scores.shape[1],) * 2, dtype=np.int64)
        confusion[true, predicted] = counts
        FIXTURE.assert_close(name, confusion)
    elif quantity == "per_class_recall":
        counts = class_counts(scores.argmax(axis=1), labels, scores.shape[1])
        FIXTURE.assert_close(name, class_figures(*counts)[0])
    elif quantity == "values64":
        keys = sorted(FIXTURE.spec["values"][set_name])
        compared = np.array([not _informational(set_name, key) for key in keys])
        got = [_value(k, scores, labels) if c else 0.0 for k, c in zip(keys, compared, strict=True)]
        FIXTURE.assert_close(name, got, where=compared)
        assert compared.sum() >= len(keys) / 2
    else:
        pytest.fail(f"no metric here answers to '{name}'")


@pytest.mark.parametrize("name", [n for n in FIXTURE.expected if n.endswith(".values64")])
def test_record_contains_the_same_numbers(name: str) -> None:
    set_name = name.rpartition(".")[0]
    scores, labels = FIXTURE.inputs[f"{set_name}.logits"], FIXTURE.inputs[f"{set_name}.labels"]
    keys = sorted(FIXTURE.spec["values"][set_name])
    names = {
        "acc1": "accuracy",
        "acc5": "top5_accuracy",
        "brier_sum": "brier",
        "ece15_l1_torchmetrics": "ece",
        "macro_f1_sklearn_default": "macro_f1",
        "mean_per_class_recall_sklearn_balanced_accuracy": "mean_per_class_recall",
        "nll": "nll",
    }
    record = metrics.compute_metrics(scores, labels)
    got = {key: record[names[key]].value for key in keys if names.get(key) in record}
    assert len(got) >= 6

    compared = np.array([key in got for key in keys])
    FIXTURE.assert_close(name, [got.get(key, 0.0) for key in keys], where=compared)


@pytest.mark.parametrize("wrong", [3e-6, -3e-6, float("nan"), float("inf")])
def test_wrong_number_is_reported(wrong: float) -> None:
    name = next(n for n in FIXTURE.expected if n.endswith(".per_class_recall"))
    got = FIXTURE.expected[name].astype(np.float64)
    FIXTURE.assert_close(name, got)
    got[1] += wrong

    with pytest.raises(AssertionError, match=rf"{name}: 1 of .* the worst \[1\]: got"):
        FIXTURE.assert_close(name, got)
    with pytest.raises(AssertionError, match="shape"):
        FIXTURE.assert_close(name, got[1:])
