"""``clip/gda`` against the official code: every variant of the estimate, and base-to-new, through ``fit`` itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clipadapt.core.api.data import Inputs, Split, Task
from clipadapt.core.scoring.scores import topk_accuracy
from clipadapt.methods import gda
from clipadapt.methods.gda import GDA, GDAConfig
from tests.reference import tinyclip
from tests.reference.parity import fixture

DATA = fixture("gda")
NAMES = tuple(DATA.spec["classnames"])
GIVEN = DATA.spec["hyperparameters"]
SETTINGS = {
    "views": GIVEN["augment_epoch"],
    "alphas": tuple(GIVEN["alpha_grid"]),
    "neighbours": GIVEN["new_class_neighbours"],
    "text_copies": GIVEN["new_class_text_copies"],
}
VIEWS, LABELS = DATA.inputs["train_views"], DATA.inputs["train_labels"]
EVERY = np.arange(len(LABELS))
FIRSTS = EVERY[:: GIVEN["shots"]]
VARIANTS = {
    "few": (EVERY, SETTINGS["views"]),
    "one_view": (EVERY, 1),
    "one_shot": (FIRSTS, SETTINGS["views"]),
    "one_shot_one_view": (FIRSTS, 1),
    "unequal": (DATA.inputs["unequal.rows"], SETTINGS["views"]),
}


class GivenFeatures:
    """A backbone with the features of the fixture."""

    embed_dim = VIEWS.shape[-1]
    logit_scale, logit_bias = 100.0, 0.0

    def encode(
        self, inputs: Inputs[Any], tower: str, layer: str = "output", view: int = 0, crop: float = 1
    ) -> np.ndarray:
        if tower == "text":
            weights = "clip_weights_new" if inputs.examples[0].startswith("new") else "clip_weights"
            return DATA.inputs[weights].T
        part, rows = inputs.ids[0].split("/")[0], [int(i.split("/")[1]) for i in inputs.ids]
        if part == "train":
            assert crop == 0.5
            return VIEWS[view - 1][rows]
        assert view == 0
        return DATA.inputs[f"{part}_features"][rows]


def split(part: str) -> Split[Any]:
    return tinyclip.rows_of(DATA.inputs[f"{part}_labels"], part, NAMES)


def fit(folder, rows=EVERY, val="val", **more):
    seen = tinyclip.Seen()
    val = None if val is None else split(val)
    task = Task(NAMES, ("{}",), split("train").take(rows), val)
    config = GDAConfig(**SETTINGS | more)
    fitted = GDA(config).fit(GivenFeatures(), task, tinyclip.context(folder, observe=seen))
    return SimpleNamespace(classifier=fitted, **{k: v[0] for k, v in seen.values.items()})


def percent(scores: np.ndarray, part: str) -> np.float64:
    return np.float64(100 * topk_accuracy(scores, DATA.inputs[f"{part}_labels"], 1))


def compare_alphas(prefix: str, folder, rows=EVERY, **more):
    for i, alpha in enumerate(SETTINGS["alphas"]):
        name = f"{prefix}.val_logits_alpha{i}"
        if name in DATA.expected:
            got = fit(folder, rows, val=None, alpha=alpha, **more).classifier
            DATA.assert_close(name, got.predict_scores(split("val").inputs))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant(name, tmp_path):
    rows, views = VARIANTS[name]

    got = fit(tmp_path, rows, views=views)

    DATA.assert_close(f"{name}.means", got.means)
    DATA.assert_close(f"{name}.cov", got.cov)
    DATA.assert_close(f"{name}.precision", got.precision)
    DATA.assert_close(f"{name}.W", got.W.T)
    DATA.assert_close(f"{name}.b", got.b)
    DATA.assert_close(f"{name}.val_acc_grid", 100 * got.grid)
    alpha = SETTINGS["alphas"][int(got.grid.argmax())]
    assert f"alpha={alpha:.4g}" in got.classifier.selection["by"]
    DATA.assert_close(f"{name}.best_alpha64", np.float64(alpha))
    scores = got.classifier.predict_scores(split("test").inputs)
    DATA.assert_close(f"{name}.test_logits", scores)
    DATA.assert_close(f"{name}.test_acc", percent(scores, "test"))
    compare_alphas(name, tmp_path, rows, views=views)


def test_base_to_new(tmp_path):
    got = fit(tmp_path, estimator="per_class")

    base = got.classifier
    DATA.assert_close("b2n.base.mean_class_cov", got.cov)
    DATA.assert_close("b2n.base.precision", got.precision)
    DATA.assert_close("b2n.base.W", got.W.T)
    DATA.assert_close("b2n.base.b", got.b)
    DATA.assert_close("b2n.base.val_acc_grid", 100 * got.grid)
    DATA.assert_close("b2n.best_alpha64", np.float64(base.alpha))
    scores = base.predict_scores(split("test").inputs)
    DATA.assert_close("b2n.base.test_logits", scores)
    DATA.assert_close("b2n.base.test_acc", percent(scores, "test"))
    compare_alphas("b2n.base", tmp_path, estimator="per_class")


def test_new_classes(tmp_path):
    base = fit(tmp_path, estimator="per_class").classifier
    text = DATA.inputs["clip_weights_new"].T
    D = text.shape[1]

    new = base.with_classnames(tuple(f"new {n}" for n in NAMES), ("{}",))

    copies, k = SETTINGS["text_copies"], SETTINGS["neighbours"]
    means, near = gda.synthesized(base.bank, text, k, copies)
    DATA.assert_close("b2n.new.neighbours_sorted", np.sort(near, axis=1))
    DATA.assert_close("b2n.new.means", means)
    DATA.assert_close("b2n.new.precision", gda._near_precision(base.bank, text, near, np.eye(D)))
    W = (new.weights.astype(np.float64) - text) * new.scale / base.alpha
    DATA.assert_close("b2n.new.W", gda._near_precision(base.bank, text, near, means.T))
    np.testing.assert_allclose(W.T, DATA.expected["b2n.new.W"], atol=1e-2 / base.alpha)
    DATA.assert_close("b2n.new.b", new.bias / base.alpha)
    scores = new.predict_scores(split("test_new").inputs)
    DATA.assert_close("b2n.new.test_logits", scores)
    DATA.assert_close("b2n.new.test_acc", percent(scores, "test_new"))


def test_every_expected_tensor_was_compared():
    DATA.assert_complete()
