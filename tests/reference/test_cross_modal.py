"""``clip/cross_modal`` against the official code: trainings of both heads and their selection, through ``fit``."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from clipadapt.core.api.data import Inputs, Split, Task
from clipadapt.core.scoring.scores import topk_accuracy
from clipadapt.methods.cross_modal import CrossModal, CrossModalConfig
from tests.reference import tinyclip
from tests.reference.parity import fixture

DATA = fixture("cross_modal")
GIVEN = DATA.spec["hyperparameters"]
NAMES = tuple(n.replace("_", " ") for n in DATA.spec["classnames"])
C, T = len(NAMES), len(DATA.inputs["text_labels"]) // len(NAMES)
# The method groups the texts by class; the fixture may have another order.
OURS = np.argsort(DATA.inputs["text_labels"], kind="stable")
PLACE = np.argsort(OURS)
TEMPLATES = tuple(f"{t} {{}}" for t in range(T))
VARIANTS = [n.removesuffix(".best_iter") for n in DATA.expected if n.endswith(".best_iter")]
SETTINGS = {
    "search": False,
    "views": 0,
    "steps": GIVEN["iters"],
    "every": GIVEN["eval_freq"],
    "lr": GIVEN["lr"],
    "weight_decay": GIVEN["wd"],
    "warmup_steps": GIVEN["warmup"],
    "warmup_lr": GIVEN["warmup_min_lr"],
    "logit_scale": math.exp(GIVEN["logit_scale_log"]),
}


class GivenFeatures:
    """A backbone with the image and text features of the fixture."""

    name, weights_sha256, dtype, device = "fixture", "", "fp32", "cpu"
    logit_scale, logit_bias = 100.0, 0.0
    embed_dim = DATA.inputs["train_features"].shape[1]

    def encode(self, inputs: Inputs[Any], tower: str, layer: str = "output", *_: Any) -> np.ndarray:
        if tower == "text":
            found = [tuple(prompt.split(" ", 1)) for prompt in inputs.examples]
            rows = [OURS[NAMES.index(name) * T + int(t)] for t, name in found]
            x = DATA.inputs["text_features"][rows]
        else:
            part = inputs.ids[0].split("/")[0]
            x = DATA.inputs[f"{part}_features"][[int(i.split("/")[1]) for i in inputs.ids]]
        return x / np.linalg.norm(x, axis=1, keepdims=True) if layer == "output" else x


def split(part: str) -> Split[Any]:
    return tinyclip.rows_of(DATA.inputs[f"{part}_labels"], part, NAMES)


def order(stream: str, n: int, size: int, epoch: int) -> list[np.ndarray]:
    """Return the batches of all steps of the fixture as one epoch."""
    assert epoch == 0
    if stream == "cross_modal.text":
        return [PLACE[rows] for rows in DATA.inputs["text_batches"]]
    return list(DATA.inputs["image_batches"])


def fit(variant: str, folder: Any, **more: Any):
    head, init, modality = variant.split("_")
    text = modality == "cross"
    settings = SETTINGS | {
        "head": head,
        "init": "random" if init == "random" else "zero_shot",
        "text": text,
        # Without texts the fixture has batches of the same images, of half the size.
        "batch_size": GIVEN["bs"] if text else GIVEN["bs"] // 2,
    }
    start = {"head.weight": DATA.inputs["random_init"]} if init == "random" else {}
    if head == "adapter":
        prefix = "adapter_init."
        given = {n: v for n, v in DATA.inputs.items() if n.startswith(prefix)}
        start |= {n.removeprefix(prefix): v for n, v in given.items()}
    seen = tinyclip.Seen()
    context = tinyclip.context(folder, start=start, observe=seen, order=order)
    task = Task(NAMES, TEMPLATES, split("train"), split("val"))
    method = CrossModal(CrossModalConfig(**settings | more))
    return method.fit(GivenFeatures(), task, context), seen.values, context.history


def assert_scores(name: str, fitted: Any) -> None:
    test = split("test")
    scores = fitted.predict_scores(test.inputs)
    DATA.assert_close(f"{name}.test_logits", scores)
    DATA.assert_close(f"{name}.test_acc", np.float64(100 * topk_accuracy(scores, test.labels, 1)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training(variant, tmp_path):
    fitted, seen, history = fit(variant, tmp_path / "head")

    DATA.assert_close("zero_shot_weights", seen["start"][0])
    DATA.assert_close(f"{variant}.lr_per_step64", np.array(seen["lr"]))
    DATA.assert_close(f"{variant}.loss_per_step", np.array(seen["loss"]))
    accuracy = [line["val_accuracy"] for line in history if "val_accuracy" in line]
    DATA.assert_close(f"{variant}.val_acc_at_evaluations64", np.array(accuracy))
    step = int(re.search(r"step=(\d+)", fitted.selection["by"])[1])
    DATA.assert_close(f"{variant}.best_iter", np.int64(step - 1))
    if variant.startswith("adapter"):
        DATA.assert_close(f"{variant}.best.0.fc.0.weight", fitted.down)
        DATA.assert_close(f"{variant}.best.0.fc.2.weight", fitted.up)
        DATA.assert_close(f"{variant}.best.1.weight", fitted.linear.weights)
    else:
        DATA.assert_close(f"{variant}.best.weight", fitted.weights)
    assert_scores(f"{variant}.head", fitted)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_head_averaged_with_the_text(variant, tmp_path):
    names = [n for n in DATA.expected if n.startswith(f"{variant}.head_wiseft_")]
    ratios = {re.search(r"wiseft_([\d.]+)\.test", name)[1] for name in names}

    for ratio in ratios:
        fitted, _, _ = fit(variant, tmp_path / ratio, wise_ft=float(ratio))

        assert_scores(f"{variant}.head_wiseft_{ratio}", fitted)


def test_the_defaults_are_the_papers():
    default, grid = CrossModalConfig(), GIVEN["official_grid"]

    assert (default.optimizer, default.eps) == (grid["optim"], 1e-8)
    assert default.lr_grid == tuple(grid["lr"])
    assert default.weight_decay_grid == tuple(grid["weight_decay"])
    assert default.batch_size_grid == tuple(grid["batch_size"])
    assert [default.steps] == grid["max_iter"]
    assert (default.warmup_steps, default.warmup_lr) == (grid["warmup_iter"], grid["warmup_min_lr"])
    assert default.every == GIVEN["eval_freq"]
    assert default.logit_scale == pytest.approx(math.exp(GIVEN["logit_scale_log"]))
    assert default.search


def test_every_expected_tensor_was_compared():
    DATA.assert_complete()
