"""``clip/ape`` and ``clip/ape_t`` against the official code, through ``fit`` itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clipadapt.core.api.context import Services
from clipadapt.core.api.data import Inputs, Split, Task
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.scoring.scores import topk_accuracy
from clipadapt.methods.ape import APE, APEConfig
from clipadapt.methods.ape_t import APET, APETConfig
from tests.reference import tinyclip
from tests.reference.parity import fixture

DATA = fixture("ape")
NAMES = tuple(DATA.spec["classnames"])
GIVEN = DATA.spec["hyperparameters"]
VIEWS = DATA.inputs["train_views"]
SETTINGS = {
    "views": len(VIEWS),
    "channels": GIVEN["training_free_feat_num"],
    "similarity_weight": GIVEN["w_training_free"][0],
    "variance_weight": GIVEN["w_training_free"][1],
    **{name: GIVEN[f"init_{name}"] for name in ("alpha", "beta", "gamma")},
    **{
        f"{name}_{end}": values[i]
        for i, name in enumerate(("beta", "alpha", "gamma"))
        for end, values in (("max", GIVEN["search_scale"]), ("steps", GIVEN["search_step"]))
    },
}


class GivenFeatures:
    """A backbone with the features of the fixture."""

    embed_dim = VIEWS.shape[-1]
    logit_scale, logit_bias = 100.0, 0.0

    def encode(
        self, inputs: Inputs[Any], tower: str, layer: str = "output", view: int = 0, crop: float = 1
    ) -> np.ndarray:
        if tower == "text":
            return DATA.inputs["clip_weights"].T
        part, rows = inputs.ids[0].split("/")[0], [int(i.split("/")[1]) for i in inputs.ids]
        if view:
            assert (part, crop, layer) == ("train", 0.5, "projected")
            return VIEWS[view - 1][rows]
        return DATA.inputs[f"{part}_features"][rows]


def split(part: str) -> Split[Any]:
    return tinyclip.rows_of(DATA.inputs[f"{part}_labels"], part, NAMES)


def fit(folder, **more):
    seen = tinyclip.Seen()
    task = Task(NAMES, ("{}",), split("train"), split("val"))
    method = APE(APEConfig(**SETTINGS | more))
    fitted = method.fit(GivenFeatures(), task, tinyclip.context(folder, observe=seen))
    scores = fitted.predict_scores(split("test").inputs)
    found = {k: v[0] for k, v in seen.values.items()}
    return SimpleNamespace(classifier=fitted, scores=scores, **found)


def test_every_expected_tensor_of_ape(tmp_path):
    plain, got = fit(tmp_path, search=False), fit(tmp_path)

    DATA.assert_close("cache_keys", got.keys.T)
    DATA.assert_close("sim_text_image", got.sim)
    DATA.assert_close("criterion", got.criterion)
    DATA.assert_close("indices_sorted", got.channels)
    DATA.assert_close("refined_keys", got.refined_keys)
    DATA.assert_close("refined_text", got.refined_text.T)
    DATA.assert_close("cache_div", got.div[:, None])
    zero_shot = got.classifier.zero_shot_scores(split("test").inputs)
    DATA.assert_close("test_logits_zero_shot", zero_shot)
    DATA.assert_close("test_logits_init", plain.scores)
    DATA.assert_close("search.val_acc_grid", 100 * got.grid)
    DATA.assert_close("search.best_beta_alpha_gamma64", got.best)
    DATA.assert_close("test_logits_searched", got.scores)
    labels = DATA.inputs["test_labels"]
    every = [topk_accuracy(s, labels, 1) for s in (zero_shot, plain.scores, got.scores)]
    DATA.assert_close("test_acc", 100 * np.array(every))


VARIANTS = {"text_only": "text", "after_ape": "text_image"}
TRAINING = SETTINGS | {
    "channels": GIVEN["training_feat_num"],
    "similarity_weight": GIVEN["w_training"][0],
    "variance_weight": GIVEN["w_training"][1],
    "lr": GIVEN["lr"],
    "eps": GIVEN["eps"],
    "weight_decay": GIVEN["weight_decay_T"],
    "batch_size": GIVEN["batch_size_T"],
    "epochs": GIVEN["train_epoch"],
    "augment": "none",
}


# Rows of the training set in the order of the batches; only the label of a row matters.
ORDER = np.empty(len(VIEWS[0]), dtype=np.int64)
ORDER[np.argsort(DATA.inputs["T.batch_labels"], kind="stable")] = np.argsort(
    DATA.inputs["train_labels"], kind="stable"
)


def in_batches(_stream: str, n: int, size: int, _epoch: int) -> list[np.ndarray]:
    return [ORDER[i : i + size] for i in range(0, n, size)]


class OneView(GivenFeatures):
    """A backbone whose unaugmented training features are the batches of the fixture."""

    device, dtype, weights_sha256 = "cpu", "fp32", ""
    services = Services(FeatureCache(enabled=False))

    def encode(self, inputs: Inputs[Any], tower: str, *more: Any, **named: Any) -> np.ndarray:
        if tower == "image" and inputs.ids[0].startswith("train") and not any(more[1:2]):
            return DATA.inputs["T.batch_features"][np.argsort(ORDER)]
        return super().encode(inputs, tower, *more, **named)


@pytest.mark.parametrize("name", VARIANTS)
def test_ape_t(name, tmp_path):
    settings = {k: v for k, v in TRAINING.items() if not k.startswith("gamma")}

    def run(**more):
        seen = tinyclip.Seen()
        ctx = tinyclip.context(tmp_path, observe=seen, order=in_batches)
        task = Task(NAMES, ("{}",), split("train"), split("val"))
        method = APET(APETConfig(**settings | more, similarity=VARIANTS[name]))
        return method.fit(OneView(), task, ctx), seen.values, ctx

    last, _, _ = run(keep="last", search=False)
    fitted, seen, ctx = run()

    if VARIANTS[name] == "text":
        DATA.assert_close("T.sim_text_only", seen["sim"][0])
    given = f"T.{name}"
    DATA.assert_close(f"{given}.indices_sorted", seen["channels"][0])
    DATA.assert_close(f"{given}.lr_per_step64", np.array(seen["lr"]))
    DATA.assert_close(f"{given}.loss_per_step", np.array(seen["loss"]))
    accuracies = np.array([line["val_accuracy"] for line in ctx.history])
    DATA.assert_close(f"{given}.val_acc_per_epoch", 100 * accuracies)
    DATA.assert_close(f"{given}.val_logits_last_epoch", last.predict_scores(split("val").inputs))
    DATA.assert_close(f"{given}.best_epoch", np.int64(fitted.selection["epoch"] - 1))
    DATA.assert_close(f"{given}.res", seen["res"][0])
    DATA.assert_close(f"{given}.value_weights", seen["value_weights"][0][:, None])
    DATA.assert_close(f"{given}.search.val_acc_grid", 100 * seen["grid"][0])
    DATA.assert_close(f"{given}.search.best_beta_alpha64", seen["best"][0])
    scores = fitted.predict_scores(split("test").inputs)
    DATA.assert_close(f"{given}.test_logits_searched", scores)


def test_every_expected_tensor_was_compared():
    DATA.assert_complete()
