"""``clip/ape`` against the official code: the channels, the cache and the search, through ``fit`` itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from clipadapt.core.api.data import Inputs, Split, Task
from clipadapt.core.scoring.scores import topk_accuracy
from clipadapt.methods.ape import APE, APEConfig
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
    labels = DATA.inputs[f"{part}_labels"]
    ids = tuple(f"{part}/{i}" for i in range(len(labels)))
    return Split(Inputs(ids, ids), labels, NAMES)


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
