"""``clip/zero`` against the official code: probabilities, confident views, votes, ties and predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clipadapt.core.api.data import Inputs, Task
from clipadapt.core.scoring.scores import topk_accuracy
from clipadapt.methods import _test_views
from clipadapt.methods.zero import Zero, ZeroConfig
from tests.reference import tinyclip
from tests.reference.parity import fixture

DATA = fixture("zero")
GIVEN = DATA.spec["hyperparameters"]
NAMES = tuple(n.replace("_", " ") for n in DATA.spec["classnames"])
VIEWS = DATA.inputs["view_features"]  # (N, V, D)


class GivenFeatures:
    """A backbone with the features of the fixture's views; texts are encoded by the tiny CLIP."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def encode(
        self, inputs: Inputs[Any], tower: str, layer: str = "output", view: int = 0, crop: float = 1
    ) -> np.ndarray:
        if tower == "text":
            return self.model.encode(inputs, "text", layer)
        return VIEWS[[int(i) for i in inputs.ids], view]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("clip")
    model = tinyclip.load(tinyclip.write_folder(folder))
    config = ZeroConfig(
        views=GIVEN["num_views"], gamma=GIVEN["gamma"], temperature=GIVEN["temperature"]
    )
    start = {"weights": DATA.inputs["text_features"]}
    task = Task(NAMES, ("a photo of a {}.",))
    return Zero(config).fit(GivenFeatures(model), task, tinyclip.context(folder, start=start))


def test_confident_views(fitted):
    got = fitted.votes(VIEWS)

    DATA.assert_close("view_probs", np.exp(_test_views.log_softmax(got.logits)))
    DATA.assert_close("view_entropy", got.entropy)
    DATA.assert_close("confident_views_sorted", np.sort(got.confident, axis=1))
    DATA.assert_close("tie", got.tie.astype(np.int64))


def test_predictions(fitted):
    ids = tuple(str(i) for i in range(len(VIEWS)))

    scores = fitted.predict_scores(Inputs(ids, ids))

    DATA.assert_close("votes", scores)
    DATA.assert_close("prediction", scores.argmax(axis=1))
    DATA.assert_close("acc", np.float64(100 * topk_accuracy(scores, DATA.inputs["labels"], 1)))


def test_the_defaults_are_the_papers():
    default = ZeroConfig()

    assert default.views == GIVEN["official_num_views"]
    assert default.gamma == GIVEN["official_gamma"]
    assert default.temperature is None


def test_every_expected_tensor_is_compared():
    DATA.assert_complete()
