"""``clip/tda`` against the official code, through ``fit`` and the classifier's predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clipadapt.core.api.data import Inputs, Task
from clipadapt.core.scoring.scores import topk_accuracy
from clipadapt.methods.tda import TDA, TDAConfig
from tests.reference import tinyclip
from tests.reference.parity import fixture

DATA = fixture("tda")
NAMES = tuple(DATA.spec["classnames"])


class GivenFeatures:
    """A backbone with the features of the fixture."""

    embed_dim = DATA.inputs["stream_features"].shape[-1]

    def encode(
        self, inputs: Inputs[Any], tower: str, layer: str = "output", view: int = 0, crop: float = 1
    ) -> np.ndarray:
        if tower == "text":
            return DATA.inputs["clip_weights"].T
        part = inputs.ids[0].split("/")[0]
        rows = [int(i.split("/")[1]) for i in inputs.ids]
        if part == "view":
            return DATA.inputs["view_features"][rows, view]
        assert view == 0
        return DATA.inputs["stream_features"][rows]


def settings(given: dict[str, Any]) -> dict[str, Any]:
    """Translate the parameters of a variant."""
    positive, negative = given["positive"], given["negative"]
    found: dict[str, Any] = {"capacity": 0, "negative_capacity": 0}
    if positive["enabled"]:
        found |= {
            "capacity": positive["shot_capacity"],
            "alpha": positive["alpha"],
            "beta": positive["beta"],
        }
    if negative["enabled"]:
        entropy, mask = negative["entropy_threshold"], negative["mask_threshold"]
        found |= {
            "negative_capacity": negative["shot_capacity"],
            "negative_alpha": negative["alpha"],
            "negative_beta": negative["beta"],
            "entropy_low": entropy["lower"],
            "entropy_high": entropy["upper"],
            "mask_low": mask["lower"],
            "mask_high": mask["upper"],
        }
    return found


def contents(side: str, cache: Any, stream: Any) -> dict[str, Any]:
    """Return what a cache holds at the end, by class and entropy."""
    rows = cache.rows[cache.until == len(stream.entropy)]
    rows = rows[np.lexsort((stream.entropy[rows], stream.predicted[rows]))]
    return {
        f"{side}_cache_count": np.bincount(stream.predicted[rows], minlength=len(NAMES)),
        f"{side}_cache_features": stream.features[rows],
        f"{side}_cache_entropy": stream.entropy[rows],
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the method computes, by the name of the tensor in the fixture."""
    folder, values = tmp_path_factory.mktemp("work"), {}
    for name, given in DATA.spec["variants"].items():
        part, more = "stream", {}
        n = len(DATA.inputs["stream_features"])
        if name == "views":
            n, V, _ = DATA.inputs["view_features"].shape
            part, more = "view", {"views": V}
        seen = tinyclip.Seen()
        learner = TDA(TDAConfig(**settings(given), **more))
        context = tinyclip.context(folder, observe=seen)
        fitted = learner.fit(GivenFeatures(), Task(NAMES, ("{}",)), context)
        ids = tuple(f"{part}/{i}" for i in range(n))
        logits = fitted.predict_scores(Inputs(ids, ids))
        labels = DATA.inputs["stream_labels"][:n]
        one = {
            "logits": logits,
            "running_acc": np.float64(100 * topk_accuracy(logits, labels, 1)),
            "normalised_entropy64": seen.values["entropy_share"][0],
            **contents("pos", *seen.values["positive"][0]),
            **contents("neg", *seen.values["negative"][0]),
        }
        values |= {f"{name}.{key}": value for key, value in one.items()}
    return values


@pytest.mark.parametrize("name", DATA.expected)
def test_every_expected_tensor(name, found):
    DATA.assert_close(name, found[name])


def test_the_defaults_are_the_official_ones_of_imagenet():
    config = TDAConfig()

    assert (config.capacity, config.alpha, config.beta) == (3, 2, 5)
    assert (config.negative_capacity, config.negative_alpha, config.negative_beta) == (2, 0.117, 1)
    assert (config.entropy_low, config.entropy_high) == (0.2, 0.5)
    assert (config.mask_low, config.mask_high, config.order_seed) == (0.03, 1, 1)
