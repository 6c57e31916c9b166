"""``clip/transclip`` against the official code, through ``fit`` and the classifier's predictions."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clipadapt.core.api.data import Inputs, Split, Task
from clipadapt.core.scoring.scores import topk_accuracy
from clipadapt.methods.transclip import TransCLIP, TransCLIPConfig
from tests.reference import tinyclip
from tests.reference.parity import fixture

DATA = fixture("transclip")
NAMES = tuple(DATA.spec["classnames"])
GIVEN = DATA.spec["hyperparameters"]
INNER = GIVEN["inner_iter"]
COMMON = {
    "n_neighbors": GIVEN["n_neighbors"],
    "iterations": GIVEN["max_iter"],
    "inner_iterations": INNER,
    "n_confident": GIVEN["n_most_confident"],
    "temperature": float(1 / Fraction(GIVEN["gmm_scale"])),
}
ZERO_SHOT = COMMON | {"few_shot": False, "text_weight": GIVEN["lambda_zero_shot"]}
FEW_SHOT = COMMON | {"text_weight": GIVEN["lambda_few_shot"], "gammas": GIVEN["gamma_list"]}


class GivenFeatures:
    """A backbone with the features of the fixture."""

    embed_dim = DATA.inputs["query_features"].shape[1]

    def encode(self, inputs: Inputs[Any], tower: str, layer: str = "output") -> np.ndarray:
        if tower == "text":
            return DATA.inputs["clip_prototypes"].T
        part = inputs.ids[0].split("/")[0]
        return DATA.inputs[f"{part}_features"][[int(i.split("/")[1]) for i in inputs.ids]]


def split(part: str) -> Split[Any]:
    return tinyclip.rows_of(DATA.inputs[f"{part}_labels"], part, NAMES)


def fit(folder: Any, settings: dict[str, Any], **start: np.ndarray) -> SimpleNamespace:
    seen = tinyclip.Seen()
    task = Task(NAMES, ("{}",), split("support"), split("val"))
    context = tinyclip.context(folder, observe=seen, start=start)
    fitted = TransCLIP(TransCLIPConfig(**settings)).fit(GivenFeatures(), task, context)
    return SimpleNamespace(classifier=fitted, seen=seen.values)


def accuracy(scores: np.ndarray, part: str = "query") -> np.float64:
    return np.float64(100 * topk_accuracy(scores, DATA.inputs[f"{part}_labels"], 1))


def states(seen: dict[str, list[Any]], run: int = 0) -> dict[str, Any]:
    """Return the states of one run of the solver under the names of the fixture."""
    steps = GIVEN["max_iter"]
    z = seen["z"][run * (steps + 1) :][: steps + 1]
    mu, var = (seen[name][run * steps :][:steps] for name in ("mu", "var"))
    found = {f"z_iter{k}": value for k, value in enumerate(z)}
    found |= {f"mu_iter{k}": value for k, value in enumerate(mu, 1)}
    found |= {f"std_iter{k}": value for k, value in enumerate(var, 1)}
    return found | {"z_final": z[-1]}


def zero_shot(folder: Any, name: str) -> dict[str, Any]:
    start = {"prototypes": DATA.inputs["other_prototypes"].T} if name == "ontop_prototypes" else {}
    got = fit(folder, ZERO_SHOT, **start)
    if name == "ontop_predictions":
        given = np.log(DATA.inputs["other_predictions"])
        scores = got.classifier.refine(split("query").inputs, given)
    else:
        scores = got.classifier.predict_scores(split("query").inputs)
    found = states(got.seen) | {
        "W": got.seen["affinity"][0].toarray(),
        "mu_init": got.seen["mu_init"][0],
        "z_init": got.seen["z_init"][0],
        "test_acc": accuracy(scores),
    }
    np.testing.assert_allclose(np.exp(scores), found["z_final"], atol=1e-6)
    return found


def few_shot(folder: Any, name: str) -> dict[str, Any]:
    alignment = "corrected" if name == "few_aligned" else "published"
    got = fit(folder, FEW_SHOT | {"alignment": alignment})
    scores = got.classifier.predict_scores(split("query").inputs)
    runs = [states(got.seen, i) for i in range(len(GIVEN["gamma_list"]))]
    found = {f"gamma{i}.{key}": value for i, run in enumerate(runs) for key, value in run.items()}
    accuracies = np.array(got.seen["val_accuracy"]) * 100
    best = int(accuracies.argmax())
    np.testing.assert_allclose(np.exp(scores), runs[best]["z_final"], atol=1e-6)
    return found | {
        "W": got.seen["affinity"][0].toarray(),
        "mu_init": got.seen["mu_init"][0],
        "z_init": got.seen["z_init"][0],
        "val_neighbours": got.seen["val_neighbors"][0],
        "val_acc_per_gamma": accuracies,
        "test_acc_per_gamma": np.array([accuracy(run["z_final"].numpy()) for run in runs]),
        "reported_test_acc": accuracy(scores),
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the method computes, by the name of the tensor in the fixture."""
    folder, values = tmp_path_factory.mktemp("work"), {}
    for name in dict.fromkeys(name.partition(".")[0] for name in DATA.expected):
        one = few_shot(folder, name) if name.startswith("few") else zero_shot(folder, name)
        values |= {f"{name}.{key}": value for key, value in one.items()}
    return values


@pytest.mark.parametrize("name", DATA.expected)
def test_every_expected_tensor(name, found):
    DATA.assert_close(name, found[name])


def test_the_defaults_are_the_papers():
    config = TransCLIPConfig()

    assert (config.n_neighbors, config.iterations, config.inner_iterations) == (3, 10, 5)
    assert (config.gammas, config.temperature) == ((0.002, 0.01, 0.02, 0.2), 50)
    assert (config.n_confident, config.alignment) == (8, "corrected")
