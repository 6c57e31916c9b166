"""APE and APE-T: edge cases, the number of channels, and the values of the recipes by dataset."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clipadapt.core.api.context import Services
from clipadapt.core.api.data import Inputs, Split, Task
from clipadapt.core.api.errors import ConfigError
from clipadapt.core.experiments import config
from clipadapt.core.features.cache import FeatureCache
from clipadapt.methods import _ape
from tests.unit.methods.conftest import arrays_of, context, method

D = 8
SMALL: dict[str, dict[str, Any]] = {
    "ape": {"beta_steps": 3, "alpha_steps": 3, "gamma_steps": 3},
    "ape_t": {"beta_steps": 3, "alpha_steps": 3, "epochs": 2, "batch_size": 3, "augment": "none", "lr": 0.01},
}  # fmt: skip


class Features:
    """A backbone whose image features are given; text features are unit vectors."""

    embed_dim, logit_scale, logit_bias = D, 100.0, 0.0
    device, dtype, weights_sha256 = "cpu", "float32", "0"
    services = Services(FeatureCache(enabled=False))

    def encode(self, inputs: Inputs[Any], tower: str, *_: Any) -> np.ndarray:
        if tower == "text":
            return np.eye(D, dtype=np.float32)[: len(inputs)]
        x = np.array([np.random.default_rng(int(i)).normal(size=D) + 0.5 for i in inputs.ids])
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def split(labels: list[int], classes: int) -> Split[Any]:
    ids = tuple(map(str, range(len(labels))))
    return Split(Inputs(ids, ids), np.array(labels), tuple(f"c{i}" for i in range(classes)))


def fit(name: str, labels: list[int], classes: int, folder: Any, **more: Any) -> tuple[Any, Inputs[Any]]:  # fmt: skip
    train = split(labels, classes)
    task = Task(train.classnames, ("{}",), train, more.pop("val", None))
    own = method(name, views=0, **SMALL[name] | more)
    return own.fit(Features(), task, context(folder)), train.inputs


@pytest.mark.parametrize("with_val", [False, True])
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    ("labels", "classes"), [([0], 1), ([0, 0], 1), ([0, 1, 2], 3), ([0, 0, 2, 2, 2], 4)]
)
def test_one_class_one_shot_and_classes_without_examples(name, labels, classes, with_val, tmp_path):
    val = split(labels, classes) if with_val else None

    fitted, inputs = fit(name, labels, classes, tmp_path, val=val)

    scores = fitted.predict_scores(inputs)
    assert scores.shape == (len(labels), classes)
    assert np.isfinite(scores).all()
    assert (fitted.selection is None) == (not with_val)


@pytest.mark.parametrize("name", SMALL)
def test_more_channels_than_the_features_have_are_refused(name, tmp_path):
    with pytest.raises(ConfigError, match=r"method\.channels=9, but .* have 8 channels") as error:
        fit(name, [0, 1], 2, tmp_path, channels=9)

    assert "8 or less" in error.value.hint


def test_channels_are_a_number_or_a_fraction():
    assert [_ape.count_of(c, 1024) for c in (0.48828125, 0.68359375, 0.78125, 0.87890625)] == [
        500,
        700,
        800,
        900,
    ]
    assert [_ape.count_of(c, D) for c in (0.01, 0.5, 1, 8)] == [1, 4, 8, 8]


def test_without_epochs_ape_t_is_the_cache_with_all_channels(tmp_path):
    labels = [0, 0, 1, 2]
    fitted, inputs = fit("ape_t", labels, 3, tmp_path, epochs=0)

    f = Features().encode(inputs, "image")
    votes = np.exp(f @ f.T - 1) @ np.eye(3)[labels]
    want = 100 * f @ np.eye(D)[:3].T + votes

    np.testing.assert_allclose(fitted.predict_scores(inputs), want, atol=1e-4)
    assert fitted.n_trainable_params == 3 * _ape.count_of(0.7, D) + 4


def test_ape_weighs_a_vote_by_the_divergence_of_its_key(tmp_path):
    arrays = {}
    for gamma in (0.0, 0.5):
        fitted, _ = fit("ape", [0, 1, 1], 2, tmp_path, gamma=gamma, channels=1)
        arrays[gamma] = arrays_of(fitted, tmp_path / str(gamma))

    keys = arrays[0.0]["keys"].astype(np.float64)
    p = np.exp(keys[:, :2])
    own = (p / p.sum(axis=1, keepdims=True))[np.arange(3), [0, 1, 1]]

    np.testing.assert_array_equal(arrays[0.0]["value_weights"], 1)
    want = np.exp(0.5 * np.log2((1 + 1e-6) / (own + 1e-6)))
    np.testing.assert_allclose(arrays[0.5]["value_weights"], want, rtol=1e-5)


def recipe(name: str, dataset: str, shots: int = 16) -> Any:
    words = [f"data.name={dataset}", f"data.shots={shots}", "model.name=any"]
    return config.load([name], words)


@pytest.mark.parametrize(
    ("dataset", "values"),
    [
        ("imagenet:/d", (0.48828125, 0.7, 2, 7, 7, 0.5, 5, "7")),
        ("eurosat", (0.68359375, 0.9, 1, 5, 30, 1.5, 20, "single")),
        ("fgvc_aircraft", (0.78125, 0.1, 5, 10, 20, 1, 20, "single")),
        ("ucf101", (0.68359375, 0.3, 2, 7, 10, 1.5, 20, "single")),
        ("folder:/mine", (0.7, 0.7, 1, 7, 7, 1, 20, "single")),
    ],
)
def test_values_of_ape_by_dataset(dataset, values):
    got = recipe("ape", dataset)
    keys = ("channels", "similarity_weight", "alpha", "alpha_max", "beta_max", "gamma_max", "gamma_steps")  # fmt: skip

    assert (*(getattr(got.method, key) for key in keys), got.config.data.templates) == values
    assert got.method.similarity_weight + got.method.variance_weight == pytest.approx(1)
    assert got.deviations == got.config.recipe.deviations


@pytest.mark.parametrize(
    ("dataset", "shots", "values"),
    [
        ("imagenet:/d", 16, (0.48828125, 2, 7, 1e-3, 1e-4, 20)),
        ("food101", 1, (0.87890625, 0.8, 7, 1e-2, 1e-4, 30)),
        ("food101", 2, (0.87890625, 0.8, 7, 1e-2, 1e-4, 30)),
        ("food101", 4, (0.87890625, 0.8, 7, 1e-3, 1e-4, 30)),
        ("eurosat", 16, (0.87890625, 1, 30, 1e-3, 1e-3, 200)),
        ("oxford_pets", 16, (0.78125, 2, 7, 2e-3, 1e-4, 30)),
        ("folder:/mine", 16, (0.7, 1, 7, 1e-3, 1e-3, 20)),
    ],
)
def test_values_of_ape_t_by_dataset(dataset, shots, values):
    got = recipe("ape_t", dataset, shots).method

    assert (got.channels, got.alpha, got.beta_max, got.eps, got.lr, got.epochs) == values
