"""``clip/tip_adapter`` and ``clip/tip_adapter_f`` against the official code, through ``fit`` itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from clipadapt.core.api.data import Inputs, Split, Task
from clipadapt.core.scoring.scores import topk_accuracy
from clipadapt.methods import _cache_model
from clipadapt.methods.tip_adapter import TipAdapter, TipAdapterConfig
from clipadapt.methods.tip_adapter_f import FIRST_TRAINING_VIEW, TipAdapterF, TipAdapterFConfig
from tests.reference import tinyclip
from tests.reference.parity import fixture

DATA = fixture("tip_adapter")
NAMES = tuple(n.replace("_", " ") for n in DATA.spec["classnames"])
TEMPLATES = tuple(DATA.spec["templates"])
GIVEN = DATA.spec["hyperparameters"]
SEARCH = {
    "alpha": GIVEN["init_alpha"],
    "beta": GIVEN["init_beta"],
    "beta_max": GIVEN["search_scale"][0],
    "alpha_max": GIVEN["search_scale"][1],
    "beta_steps": GIVEN["search_step"][0],
    "alpha_steps": GIVEN["search_step"][1],
    "views": GIVEN["augment_epoch"],
}
AB = {"ab0": (1.0, 1.0), "ab1": (2.0, 5.5), "ab2": (7.3, 11.0)}


class GivenFeatures:
    """A backbone with the image features of the fixture; texts are encoded by the tiny CLIP."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def encode(
        self, inputs: Inputs[Any], tower: str, layer: str = "output", view: int = 0, crop: float = 1
    ) -> np.ndarray:
        if tower == "text":
            return self.model.encode(inputs, "text", layer)
        part = inputs.ids[0].split("/")[0]
        rows = [int(i.split("/")[1]) for i in inputs.ids]
        if part != "train":
            assert (view, layer) == (0, "output")
            return DATA.inputs[f"{part}_features"][rows]
        assert crop == 0.5
        if view >= FIRST_TRAINING_VIEW:  # every epoch of the fixture uses the first view
            assert layer == "output"
            return DATA.expected["F.batch_features"][rows]
        assert layer == "projected"
        return DATA.inputs["train_features_raw"][view - 1][rows]


def split(part: str) -> Split[Any]:
    return tinyclip.rows_of(DATA.inputs[f"{part}_labels"], part, NAMES)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> GivenFeatures:
    folder = tinyclip.write_folder(tmp_path_factory.mktemp("clip"))
    return GivenFeatures(tinyclip.load(folder))


def fit(method: Any, backbone: Any, folder: Any, val: str | None = "val", **context: Any):
    seen = tinyclip.Seen()
    task = Task(NAMES, TEMPLATES, split("train"), None if val is None else split(val))
    fitted = method.fit(backbone, task, tinyclip.context(folder, observe=seen, **context))
    return SimpleNamespace(classifier=fitted, seen=seen.values)


def percent(scores: np.ndarray, part: str) -> np.float64:
    return np.float64(100 * topk_accuracy(scores, DATA.inputs[f"{part}_labels"], 1))


def test_the_cache_and_the_zero_shot_part(backbone, tmp_path):
    got = fit(TipAdapter(TipAdapterConfig(**SEARCH, search=False)), backbone, tmp_path).classifier

    DATA.assert_close("clip_weights", got.weights.T)
    DATA.assert_close("cache_keys", got.cache.keys.T)
    DATA.assert_close("cache_values", got.cache.values())
    for part in ("val", "test"):
        zero_shot = got.zero_shot_scores(split(part).inputs)
        DATA.assert_close(f"{part}.zero_shot_logits", zero_shot)
        DATA.assert_close(f"{part}.zero_shot_acc", percent(zero_shot, part))
    scores = got.predict_scores(split("val").inputs)
    DATA.assert_close("val.tip_logits_init", scores)
    DATA.assert_close("val.tip_acc_init", percent(scores, "val"))


@pytest.mark.parametrize("name", AB)
def test_other_weights_of_the_cache(name, backbone, tmp_path):
    alpha, beta = AB[name]
    config = TipAdapterConfig(**SEARCH | {"alpha": alpha, "beta": beta}, search=False)

    got = fit(TipAdapter(config), backbone, tmp_path).classifier

    DATA.assert_close(f"{name}.val_tip_logits", got.predict_scores(split("val").inputs))


def test_the_search_on_val(backbone, tmp_path):
    got = fit(TipAdapter(TipAdapterConfig(**SEARCH)), backbone, tmp_path)

    (grid,) = got.seen["grid"]
    expected = DATA.expected["search.val_acc_grid"] / 100
    # Rounding may break ties differently in a few cells.
    assert (np.abs(grid - expected) > 1e-5).sum() <= 4
    chosen = np.array([got.classifier.beta, got.classifier.alpha])
    DATA.assert_close("search.best_beta_alpha64", chosen)
    scores = got.classifier.predict_scores(split("test").inputs)
    DATA.assert_close("test.tip_logits_searched", scores)
    DATA.assert_close("test.tip_acc_searched", percent(scores, "test"))


@pytest.mark.parametrize("name", DATA.spec["F_runs"])
def test_the_training_of_the_keys(name, backbone, tmp_path):
    settings = SEARCH | {
        "lr": DATA.spec["F_runs"][name],
        "epochs": GIVEN["train_epoch"],
        "batch_size": GIVEN["batch_size"],
        "search": False,
    }
    last = TipAdapterF(TipAdapterFConfig(**settings, keep="last"))
    got = fit(last, backbone, tmp_path, val=None)

    DATA.assert_close(f"{name}.lr_per_step64", np.array(got.seen["lr"]))
    DATA.assert_close(f"{name}.loss_per_step", np.array(got.seen["loss"]))
    DATA.assert_close(f"{name}.adapter_weight_last", got.classifier.cache.keys)
    scores = got.classifier.predict_scores(split("test").inputs)
    DATA.assert_close(f"{name}.test_logits_last_epoch", scores)

    # The official code selects the epoch on test; here val is that split.
    best = TipAdapterF(TipAdapterFConfig(**settings))
    chosen = fit(best, backbone, tmp_path, val="test").classifier
    DATA.assert_close(f"{name}.adapter_weight_best_on_test", chosen.cache.keys)
    accuracy = DATA.expected[f"{name}.test_acc_per_epoch"]
    assert chosen.selection["epoch"] == int(accuracy.argmax()) + 1
    assert chosen.selection["value"] == pytest.approx(accuracy.max() / 100, abs=1e-5)


@pytest.mark.parametrize("name", DATA.spec["F_runs"])
def test_the_search_with_trained_keys(name, backbone, tmp_path):
    start = {"keys": DATA.expected[f"{name}.adapter_weight_best_on_test"]}
    method = TipAdapterF(TipAdapterFConfig(**SEARCH, epochs=0))

    got = fit(method, backbone, tmp_path, start=start)

    (grid,) = got.seen["grid"]
    expected = DATA.expected[f"{name}.search.val_acc_grid"] / 100
    assert (np.abs(grid - expected) > 1e-5).sum() <= 4
    chosen = np.array([got.classifier.beta, got.classifier.alpha])
    DATA.assert_close(f"{name}.search.best_beta_alpha64", chosen)
    scores = got.classifier.predict_scores(split("test").inputs)
    DATA.assert_close(f"{name}.test_logits_searched", scores)


def test_the_defaults_are_the_papers():
    plain, trained = TipAdapterConfig(), TipAdapterFConfig()

    assert (plain.alpha, plain.beta, plain.views) == (1.17, 1.0, 10)
    assert (plain.alpha_steps, plain.beta_steps) == (20, 200)
    assert (trained.lr, trained.eps, trained.batch_size, trained.epochs) == (1e-3, 1e-4, 256, 20)
    assert trained.smallest_crop == plain.smallest_crop == 0.5


def test_cache_votes_follow_the_formula():
    rng = np.random.default_rng(0)
    keys = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(5, 3))).float(), dim=1)
    cache = _cache_model.CacheModel(keys, np.array([0, 1, 1, 0, 2]), 3)

    votes = cache.votes(keys[:1], beta=2.0)[0]

    by_hand = [0.0, 0.0, 0.0]
    for key, label in zip(keys, cache.labels, strict=True):
        by_hand[label] += float(torch.exp(-2.0 * (1 - keys[0] @ key)))
    np.testing.assert_allclose(votes, by_hand, rtol=1e-5)
