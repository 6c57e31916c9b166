"""``clip/proker`` against the near-official code: the search, and given values, through ``fit`` itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from clipadapt.core.api.data import Inputs, Split, Task
from clipadapt.core.scoring.scores import topk_accuracy
from clipadapt.methods import proker
from clipadapt.methods.proker import ProKeR, ProKeRConfig
from tests.reference import tinyclip
from tests.reference.parity import fixture

DATA = fixture("proker")
NAMES = tuple(DATA.spec["classnames"])
GIVEN = DATA.spec["hyperparameters"]
GRID = {
    f"{name}_{end}": value
    for name in ("beta", "lmbda")
    for end, value in zip(("min", "max", "steps"), GIVEN["grid"][name], strict=True)
}
SETTINGS = {"views": GIVEN["augment_epoch"]} | GRID | GIVEN["fixed"]


class GivenFeatures:
    """A backbone with the features of the fixture."""

    embed_dim = DATA.inputs["train_views"].shape[-1]
    logit_scale, logit_bias = 100.0, 0.0

    def encode(
        self, inputs: Inputs[Any], tower: str, layer: str = "output", view: int = 0, crop: float = 1
    ) -> np.ndarray:
        if tower == "text":
            return DATA.inputs["clip_weights"].T
        part, rows = inputs.ids[0].split("/")[0], [int(i.split("/")[1]) for i in inputs.ids]
        if view:
            assert (part, crop) == ("train", 0.5)
            return DATA.inputs["train_views"][view - 1][rows]
        return DATA.inputs[f"{part}_features"][rows]


def split(part: str) -> Split[Any]:
    return tinyclip.rows_of(DATA.inputs[f"{part}_labels"], part, NAMES)


def fit(folder, **more):
    seen = tinyclip.Seen()
    task = Task(NAMES, ("{}",), split("train"), split("val"))
    method = ProKeR(ProKeRConfig(**SETTINGS | more))
    fitted = method.fit(GivenFeatures(), task, tinyclip.context(folder, observe=seen))
    scores = fitted.predict_scores(split("test").inputs)
    found = {k: v[0] for k, v in seen.values.items()}
    return SimpleNamespace(classifier=fitted, scores=scores, **found)


def percent(scores: np.ndarray) -> np.float64:
    return np.float64(100 * topk_accuracy(scores, DATA.inputs["test_labels"], 1))


def test_the_search_on_val(tmp_path):
    got = fit(tmp_path)

    betas, lambdas = proker.grids(ProKeRConfig(**SETTINGS))
    DATA.assert_close("search.beta_grid", betas)
    DATA.assert_close("search.lambda_grid", lambdas)
    DATA.assert_close("search.val_acc_grid", 100 * got.grid)
    DATA.assert_close("search.best_beta_lambda", got.pair)
    DATA.assert_close("search.coefficients", got.classifier.coefficients)
    DATA.assert_close("search.test_logits", got.scores)
    DATA.assert_close("search.test_acc", percent(got.scores))


def test_a_large_kernel_factorized_for_each_lambda(tmp_path, monkeypatch):
    monkeypatch.setattr(proker, "EIGEN_VECTORS", 0)

    got = fit(tmp_path)

    DATA.assert_close("search.val_acc_grid", 100 * got.grid)
    DATA.assert_close("search.coefficients", got.classifier.coefficients)
    DATA.assert_close("search.test_logits", got.scores)


def test_given_values(tmp_path):
    got = fit(tmp_path, search=False)

    DATA.assert_close("fixed.kernel_train", got.kernel)
    DATA.assert_close("fixed.coefficients", got.classifier.coefficients)
    DATA.assert_close("fixed.test_logits", got.scores)
    DATA.assert_close("fixed.test_acc", percent(got.scores))
    assert got.classifier.selection is None


def test_given_values_without_augmentation(tmp_path):
    got = fit(tmp_path, search=False, views=0)

    DATA.assert_close("fixed_one_view.test_logits", got.scores)


def test_every_expected_tensor_was_compared():
    DATA.assert_complete()
