"""``clip/lp_plus_plus`` against the official code: step sizes and a whole training, through ``fit`` itself."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from clipadapt.core.api.data import Inputs, Split, Task
from clipadapt.core.scoring.scores import topk_accuracy
from clipadapt.methods.lp_plus_plus import LPPlusPlus, LPPlusPlusConfig
from tests.reference import tinyclip
from tests.reference.parity import fixture

DATA = fixture("lp_plus_plus")
GIVEN = DATA.spec["hyperparameters"]
NAMES = tuple(DATA.spec["classnames"])
STEPS = GIVEN["steps"]
SETTINGS = {
    "views": 0,
    "epochs": STEPS,
    "momentum": float(re.search(r"momentum=([\d.]+)", GIVEN["optimizer"])[1]),
    "alpha_every": int(re.search(r"every (\d+)th step", GIVEN["alpha_update"])[1]),
}


class GivenFeatures:
    """A backbone with the image and text features of the fixture."""

    name, weights_sha256, dtype, device = "fixture", "", "fp32", "cpu"

    def encode(self, inputs: Inputs[Any], tower: str, layer: str = "output", *_: Any) -> np.ndarray:
        assert layer == "output"
        if tower == "text":
            return DATA.inputs["text_weights"].T
        part = inputs.ids[0].split("/")[0]
        return DATA.inputs[f"{part}_features"][[int(i.split("/")[1]) for i in inputs.ids]]


def split(part: str) -> Split[Any]:
    return tinyclip.rows_of(DATA.inputs[f"{part}_labels"], part, NAMES)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory):
    """Fit with ``keep: last`` and ``keep: best``; return classifier, observed values and history of each."""
    found = {}
    for keep in ("last", "best"):
        seen = tinyclip.Seen()
        context = tinyclip.context(
            tmp_path_factory.mktemp(keep), start={"bias": DATA.inputs["init_bias"]}, observe=seen
        )
        method = LPPlusPlus(LPPlusPlusConfig(**SETTINGS, keep=keep))
        task = Task(NAMES, ("{}",), split("train"), split("val"))
        found[keep] = method.fit(GivenFeatures(), task, context), seen.values, context.history
    return found


def test_initial_values_and_step_sizes(fitted):
    (start,) = fitted["last"][1]["start"]

    DATA.assert_close("init_weight", start.weight)
    DATA.assert_close("init_alpha", start.alpha[None])
    DATA.assert_close("lr_w", np.float64(start.lr_weight))
    DATA.assert_close("lr_alpha", np.float64(start.lr_alpha))


def test_a_training(fitted):
    classifier, seen, _ = fitted["last"]
    (final,) = seen["final"]

    assert seen["lr"] == [seen["start"][0].lr_weight] * STEPS
    DATA.assert_close("loss_per_step", np.array(seen["loss"]))
    for name, value in zip(("weight", "bias", "alpha"), final, strict=True):
        DATA.assert_close(f"final_{name}", value[None] if name == "alpha" else value)
    DATA.assert_close("test_logits_final", classifier.predict_scores(split("test").inputs))
    C, D = DATA.expected["init_weight"].shape
    assert classifier.n_trainable_params == C * D + 2 * C


def test_the_selection_on_val(fitted):
    classifier, _, history = fitted["best"]
    accuracy = np.array([line["val_accuracy"] for line in history])

    DATA.assert_close("val_acc_per_step", 100 * accuracy)
    last_of_the_best = STEPS - int(accuracy[::-1].argmax())
    assert classifier.selection["epoch"] == last_of_the_best
    test = split("test")
    reached = topk_accuracy(classifier.predict_scores(test.inputs), test.labels, 1)
    DATA.assert_close("reported_test_acc", np.float64(100 * reached))


def test_the_defaults_are_the_papers():
    default = LPPlusPlusConfig()

    assert (default.optimizer, default.momentum, default.weight_decay) == ("sgd", 0.9, 0.0)
    assert (default.epochs, default.alpha_init, default.alpha_every) == (300, 250, 10)
    assert (default.views, default.smallest_crop, default.keep) == (1, 0.5, "best")
    assert default.schedule == "constant"


def test_every_expected_tensor_was_compared():
    DATA.assert_complete()
