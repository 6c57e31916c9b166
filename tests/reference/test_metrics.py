"""The shipped metrics give the numbers of torchmetrics, netcal and scikit-learn.

Sets, names, tolerances and what is only informational come from the fixture's spec.json.
"""

from __future__ import annotations

import re
from typing import Literal, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from clipadapt.core.scoring import metrics
from tests.reference.parity import fixture

FIXTURE = fixture("metrics")


def _value(key: str, scores: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Compute one entry of the spec's ``values`` by its name."""
    if match := re.fullmatch(r"acc(\d+)", key):
        k = int(match[1])
        return metrics.topk_accuracy(scores, labels, k) if k <= scores.shape[1] else float("nan")
    if match := re.fullmatch(r"(m|e)ce(\d+)(?:_(l1|l2|max))?_(?:torchmetrics|netcal)", key):
        default = "max" if match[1] == "m" else "l1"
        norm = cast("Literal['l1', 'l2', 'max']", match[3] or default)
        return metrics.expected_calibration_error(
            metrics.softmax(scores), labels, bins=int(match[2]), norm=norm
        )
    if key.startswith("macro_f1"):
        f1 = metrics.f1_scores(scores, labels)
        confusion = metrics.confusion_matrix(scores, labels)
        seen = confusion.sum(axis=0) + confusion.sum(axis=1) > 0  # scikit-learn's default labels
        return float(f1.mean() if key.endswith("all_classes") else f1[seen].mean())
    if key.startswith("mean_per_class_recall"):
        return metrics.mean_per_class_recall(scores, labels)
    if key == "brier_sum":
        return metrics.brier(metrics.softmax(scores), labels)
    if key == "nll":
        return metrics.nll(scores, labels)
    pytest.fail(f"spec.json names a value '{key}' that no metric here answers to")


def _informational(set_name: str, key: str) -> bool:
    """Tell whether the spec lists a value as informational: ``KEY``, or ``SET: KEY, KEY (reason)``."""
    if key.endswith("_informational"):
        return True
    for entry in FIXTURE.spec.get("informational_only", []):
        scope, _, keys = entry.split("(")[0].rpartition(":")
        if scope.strip() in {"", set_name}:
            for listed in keys.split(","):
                # "ece10" stands for all of ece10_*, not for ece100.
                if re.fullmatch(rf"{re.escape(listed.strip())}(_.*)?", key):
                    return True
    return False


@pytest.mark.parametrize("name", FIXTURE.expected)
def test_reproduces(name: str) -> None:
    set_name, _, quantity = name.rpartition(".")
    scores, labels = FIXTURE.inputs[f"{set_name}.logits"], FIXTURE.inputs[f"{set_name}.labels"]
    if quantity == "confusion":
        FIXTURE.assert_close(name, metrics.confusion_matrix(scores, labels))
    elif quantity == "per_class_recall":
        FIXTURE.assert_close(name, metrics.per_class_recall(scores, labels))
    elif quantity == "values64":
        keys = sorted(FIXTURE.spec["values"][set_name])
        compared = np.array([not _informational(set_name, key) for key in keys])
        got = [_value(k, scores, labels) if c else 0.0 for k, c in zip(keys, compared, strict=True)]
        FIXTURE.assert_close(name, got, where=compared)
        assert compared.sum() >= len(keys) / 2
    else:
        pytest.fail(f"no metric here answers to '{name}'")


@pytest.mark.parametrize("name", [n for n in FIXTURE.expected if n.endswith(".values64")])
def test_record_holds_the_same_numbers(name: str) -> None:
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
def test_a_wrong_number_is_told(wrong: float) -> None:
    name = next(n for n in FIXTURE.expected if n.endswith(".per_class_recall"))
    got = FIXTURE.expected[name].astype(np.float64)
    FIXTURE.assert_close(name, got)
    got[1] += wrong

    with pytest.raises(AssertionError, match=rf"{name}: 1 of .* the worst \[1\]: got"):
        FIXTURE.assert_close(name, got)
    with pytest.raises(AssertionError, match="shape"):
        FIXTURE.assert_close(name, got[1:])
