"""``clip/linear_probe`` against scikit-learn, CoOp's lpclip and CLIP_benchmark, through ``fit`` itself."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.api.data import Inputs, Split, Task
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.scoring import metrics
from clipadapt.core.scoring.scores import softmax, topk_accuracy
from clipadapt.methods.linear_probe import BISECT_START, LinearProbe, LinearProbeConfig
from tests.reference.parity import fixture

LPCLIP = sorted({
    n.split(".")[1] for n in fixture("linear_probe").inputs if n.startswith("lpclip.")
})
CB_TRAIN = sorted({
    n.split(".")[0] for n in fixture("linear_probe").expected if n.startswith("cb_train")
})


class GivenFeatures:
    """A backbone with the features of the fixture; ids are row numbers."""

    def __init__(self, features: np.ndarray) -> None:
        self.features = features

    def encode(self, inputs: Inputs[Any], tower: str, layer: str = "output") -> np.ndarray:
        assert tower == "image"
        rows = self.features[[int(i) for i in inputs.ids]]
        return rows / np.linalg.norm(rows, axis=1, keepdims=True) if layer == "output" else rows


@pytest.fixture(scope="module")
def case() -> SimpleNamespace:
    data = fixture("linear_probe")
    parts = ("train", "val", "test")
    features = [data.inputs[f"{p}_features"] for p in parts]
    labels = {p: data.inputs[f"{p}_labels"] for p in parts}
    starts = np.cumsum([0, *map(len, features)])
    names = tuple(str(c) for c in range(max(int(y.max()) for y in labels.values()) + 1))

    def split(part: str, rows: np.ndarray | None = None) -> Split[Any]:
        rows = np.arange(len(labels[part])) if rows is None else rows
        ids = tuple(str(starts[parts.index(part)] + r) for r in rows)
        return Split(Inputs(ids, ids), labels[part][rows], names)

    return SimpleNamespace(
        data=data,
        labels=labels,
        split=split,
        names=names,
        backbone=GivenFeatures(np.concatenate(features)),
    )


def fit(case: SimpleNamespace, config: dict[str, Any], train=None, val=None, **context: Any):
    """Fit the shipped method; return the classifier, its test logits, the history and the observed values."""
    seen: list[tuple[str, Any]] = []
    ctx = RunContext(
        0,
        Path(),
        Services(FeatureCache(enabled=False)),
        observe=lambda name, value: seen.append((name, value)),
        **context,
    )
    task = Task(case.names, (), case.split("train") if train is None else train, val)
    classifier = LinearProbe(LinearProbeConfig(**config)).fit(case.backbone, task, ctx)
    return classifier, classifier.predict_scores(case.split("test").inputs), ctx.history, seen


def in_order(size: int):
    """Replace the order of batches by the order of the rows."""
    return lambda stream, n, _, epoch: [np.arange(i, min(i + size, n)) for i in range(0, n, size)]


@pytest.mark.parametrize(
    ("name", "layer"), [("openai", "projected"), ("openai_normalized", "output")]
)
def test_the_readme_probe_of_clip(case, name, layer):
    text = case.data.spec["hyperparameters"]["openai"]
    C = float(re.search(r"C=([\d.e-]+)", text)[1])
    max_iter = int(re.search(r"max_iter=(\d+)", text)[1])

    classifier, logits, _, _ = fit(
        case, {"layer": layer, "search": "none", "C": C, "max_iter": max_iter}
    )

    case.data.assert_close(f"{name}.coef", classifier.linear.weight)
    case.data.assert_close(f"{name}.intercept", classifier.linear.bias)
    case.data.assert_close(f"{name}.test_proba", softmax(logits))
    accuracy = 100 * topk_accuracy(logits, case.labels["test"], 1)
    case.data.assert_close(f"{name}.test_acc", accuracy)


def test_the_grid_of_penalties(case):
    values = case.data.inputs["grid.C64"]
    fitted = [fit(case, {"layer": "projected", "search": "none", "C": float(c)})[0] for c in values]

    for part in ("val", "test"):
        inputs, labels = case.split(part).inputs, case.labels[part]
        accuracy = [topk_accuracy(f.predict_scores(inputs), labels, 1) for f in fitted]
        case.data.assert_close(f"grid.{part}_acc", np.array(accuracy))


@pytest.mark.parametrize("draw", LPCLIP)
def test_the_bisection_of_lpclip(case, draw):
    name = f"lpclip.{draw}"
    train = case.split("train", case.data.inputs[f"{name}.train_idx"])
    val = case.split("val", case.data.inputs[f"{name}.val_idx"])
    config = {"layer": "projected", "search": "bisect", "refit": False, "span": False}

    classifier, logits, history, seen = fit(case, config, train, val)

    assert [h["C"] for h in history[:7]] == list(BISECT_START)
    case.data.assert_close(
        f"{name}.init_val_acc", np.array([h["val_accuracy"] for h in history[:7]])
    )
    steps = [trial for what, trial in seen if what == "step"]
    case.data.assert_close(f"{name}.step_C64", np.array([t.value for t in steps]))
    test = case.split("test")
    per_step = [t.layer(case.backbone.encode(test.inputs, "image", "projected")) for t in steps]
    accuracy = [100 * topk_accuracy(s, test.labels, 1) for s in per_step]
    case.data.assert_close(f"{name}.step_test_acc", np.array(accuracy))
    np.testing.assert_array_equal(logits, per_step[-1])
    assert classifier.n_trainable_params == len(case.names) * (case.backbone.features.shape[1] + 1)


@pytest.mark.parametrize("name", CB_TRAIN)
def test_the_linear_layer_of_clip_benchmark(case, name):
    text = case.data.spec["tensors"][f"{name}.weight"]["meaning"]
    decay = float(re.search(r"weight_decay ([\d.e+-]+\d)", text)[1])
    size = int(re.search(r"batches of (\d+)", text)[1])
    config = {
        "layer": "output",
        "solver": "adamw",
        "search": "none",
        "weight_decay": decay,
        "lr": float(re.search(r"AdamW\(lr ([\d.]+)", text)[1]),
        "epochs": int(re.search(r"after (\d+) epochs", text)[1]),
        "batch_size": size,
    }
    start = {k: case.data.inputs[f"cb.init_{k}"] for k in ("weight", "bias")}

    classifier, logits, _, _ = fit(case, config, order=in_order(size), start=start)

    case.data.assert_close(f"{name}.weight", classifier.linear.weight)
    case.data.assert_close(f"{name}.bias", classifier.linear.bias)
    case.data.assert_close(f"{name}.test_logits", logits)
    labels = case.labels["test"]
    top = np.array([topk_accuracy(logits, labels, k) for k in (1, 5)])
    case.data.assert_close(f"{name}.test_acc1_acc5", top)


@pytest.mark.parametrize("with_val", [True, False])
def test_the_whole_evaluation_of_clip_benchmark(case, with_val):
    name = "cb_evaluate_sweep" if with_val else "cb_evaluate_noval"
    start = {k: case.data.inputs[f"cb.init_{k}"] for k in ("weight", "bias")}
    config = {"layer": "output", "solver": "adamw", "search": "peak", "refit": True}

    _, logits, _, seen = fit(
        case,
        config,
        val=case.split("val") if with_val else None,
        order=in_order(4096),
        start=start,
    )

    labels = case.labels["test"]
    top = [topk_accuracy(logits, labels, k) for k in (1, 5)]
    recall = metrics.measure("mean_per_class_recall", logits, labels).value
    case.data.assert_close(f"{name}.metrics", np.array([*top, recall]))
    if with_val:
        (chosen,) = (trial.value for what, trial in seen if what == "chosen")
        case.data.assert_close(f"{name}.weight_decay64", np.array([chosen]))


def test_without_val_there_is_no_search(case):
    classifier, _, history, _ = fit(case, {"layer": "projected"})

    assert classifier.selection is None
    assert history == []


def test_solving_in_the_span_of_the_examples_gives_the_same_solution(case):
    rows = np.sort(
        np.argsort(case.labels["train"], kind="stable")[:: max(1, len(case.labels["train"]) // 24)]
    )
    train = case.split("train", rows)
    config = {"layer": "projected", "search": "none", "C": 1.0}

    _, plain, _, _ = fit(case, config | {"span": False}, train)
    _, fast, _, _ = fit(case, config, train)

    assert len(rows) < case.backbone.features.shape[1]
    np.testing.assert_allclose(softmax(fast), softmax(plain), atol=2e-3)
