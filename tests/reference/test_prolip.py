"""``clip/prolip`` against the official code: trainings with each penalty and the search, through ``fit`` itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clipadapt.core.api.data import Inputs, Split, Task
from clipadapt.core.scoring.scores import topk_accuracy
from clipadapt.methods.prolip import ProLIP, ProLIPConfig
from clipadapt.models import Projection
from tests.reference import tinyclip
from tests.reference.parity import fixture

DATA = fixture("prolip")
GIVEN = DATA.spec["hyperparameters"]
NAMES = tuple(n.replace("_", " ") for n in DATA.spec["classnames"])
VARIANTS = [n.removesuffix(".proj_final") for n in DATA.expected if n.endswith(".proj_final")]
PENALTIES = {"inv_n": "1/n", "rn_inv_n": "1/n", "inv_n2": "1/n^2"}
SETTINGS = {
    "epochs": GIVEN["train_epoch"],
    "views": GIVEN["aug_views"],
    "eps": GIVEN["eps"],
    "lr_grid": GIVEN["lr_grid"],
    "penalty_grid": GIVEN["lambda_grid"],
}


class GivenFeatures:
    """A backbone with the features and the projection of the fixture."""

    name, weights_sha256, dtype, device = "fixture", "", "fp32", "cpu"
    logit_scale, logit_bias = 100.0, 0.0

    def __init__(self, bias: np.ndarray | None) -> None:
        self.bias = bias
        self.weight = DATA.inputs["proj"]

    def image_projection(self) -> Projection:
        return Projection("pre_projection", self.weight, self.bias)

    def encode(
        self, inputs: Inputs[Any], tower: str, layer: str = "output", view: int = 0, crop: float = 1
    ) -> np.ndarray:
        if tower == "text":
            return DATA.inputs["clip_weights"].T
        assert layer == "pre_projection"
        part = inputs.ids[0].split("/")[0]
        rows = [int(i.split("/")[1]) for i in inputs.ids]
        if part == "train":
            return DATA.inputs["train_views"][view - 1][rows]
        assert view == 0
        return DATA.inputs[f"{part}_features"][rows]


def split(part: str) -> Split[Any]:
    return tinyclip.rows_of(DATA.inputs[f"{part}_labels"], part, NAMES)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training(variant, tmp_path):
    lr, penalty = (float(v) for v in DATA.expected[f"{variant}.lr_lambda64"])
    settings = SETTINGS | {"lr": lr, "penalty": PENALTIES.get(variant, penalty)}
    if variant == "search":
        settings |= {"search": True, "lr": 1.0, "penalty": 1.0}
    seen = tinyclip.Seen()
    # Normalizing unit vectors again would change their last bits, which Adam amplifies.
    start = {"text_features": DATA.inputs["clip_weights"].T}
    context = tinyclip.context(tmp_path, start=start, observe=seen)
    task = Task(NAMES, ("{}",), split("train"), split("val"))
    backbone = GivenFeatures(DATA.inputs["rn.bias"] if variant.startswith("rn_") else None)

    fitted = ProLIP(ProLIPConfig(**settings)).fit(backbone, task, context)

    if variant == "search":
        DATA.assert_close("search.val_acc_grid", 100 * seen.values["grid"][0])
    DATA.assert_close(f"{variant}.lr_lambda64", np.array(seen.values["selected"][0]))
    DATA.assert_close(f"{variant}.lr_per_step64", np.array(seen.values["lr"]))
    ce, squares, logits = zip(*seen.values["parts"], strict=True)
    steps = SETTINGS["epochs"]
    DATA.assert_close(f"{variant}.loss_ce_per_step", np.array(ce[-steps:]))
    DATA.assert_close(f"{variant}.loss_sq_per_step", np.array(squares[-steps:]))
    DATA.assert_close(f"{variant}.train_logits_last_step", logits[-1])
    DATA.assert_close(f"{variant}.proj_final", fitted.projection)
    test = split("test")
    scores = fitted.predict_scores(test.inputs)
    DATA.assert_close(f"{variant}.test_logits", scores)
    accuracy = 100 * topk_accuracy(scores, test.labels, 1)
    DATA.assert_close(f"{variant}.test_acc", np.float64(accuracy))
    # The official code trains the model's own weights, so that a second task starts from them.
    np.testing.assert_array_equal(backbone.weight, DATA.inputs["proj"])


def test_the_defaults_are_the_papers():
    default = ProLIPConfig()

    assert (default.optimizer, default.eps, default.weight_decay) == ("adam", GIVEN["eps"], 0)
    assert (default.schedule, default.epochs, default.views) == ("cosine", 300, 300)
    assert default.lr_grid == tuple(GIVEN["lr_grid"])
    assert default.penalty_grid == tuple(GIVEN["lambda_grid"])
    assert (default.penalty, default.smallest_crop) == ("1/n", 0.5)


def test_every_expected_tensor_was_compared():
    DATA.assert_complete()
