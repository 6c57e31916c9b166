"""TransCLIP: the sparse solver equals the formulas, and few or one-sided inputs are predicted."""

from __future__ import annotations

import numpy as np
import pytest

from clipadapt.core.api.data import Inputs, Task
from clipadapt.core.experiments import config
from clipadapt.core.runs.session import run_experiments
from clipadapt.methods import transclip
from clipadapt.methods.transclip import (
    FewShotTransCLIPClassifier,
    Shots,
    TransCLIPClassifier,
    TransCLIPConfig,
)
from tests.unit.methods.conftest import context, method

Q, N, C, D, K = 40, 12, 4, 8, 3
NAMES = ("a", "b", "c", "d")


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


class Given:
    """A backbone whose image features are given."""

    def __init__(self, features):
        self.features, self.embed_dim = features, features.shape[1]

    def encode(self, inputs, tower, layer="output"):
        return self.features[[int(i) for i in inputs.ids]]


@pytest.fixture
def data():
    """Queries, train, val and text features around common centres."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(C, D))

    def around(labels):
        return unit(centres[labels] + rng.normal(size=(len(labels), D))).astype(np.float32)

    labels, val_labels = np.repeat(np.arange(C), N // C), np.arange(C)
    shots = Shots(around(labels), labels, around(val_labels), val_labels)
    return around(rng.integers(0, C, Q)), unit(centres).astype(np.float32), shots


def ids(n):
    return Inputs(tuple(range(n)), tuple(map(str, range(n))))


def formulas(x, text, config, *, published=False, shots=None, gamma=0.0):
    """Return the assignments by the formulas of the paper, in float64 and with dense arrays."""
    x, text = x.astype(float), text.astype(float)
    logits = 100 * x @ text.T
    prior = np.exp(logits - logits.max(1, keepdims=True))
    prior /= prior.sum(1, keepdims=True)
    z = prior.copy()
    s = np.empty((0, D)) if shots is None else shots.features.astype(float)
    y = np.empty((0, C)) if shots is None else np.eye(C)[shots.labels]
    rows = np.concatenate([s, x] if published else [x, s])
    similar = rows @ x.T
    W = np.zeros_like(similar)
    for i, row in enumerate(np.argsort(-similar, axis=1)[:, 1 : K + 1]):
        W[i, row] = similar[i, row]
    best = np.argsort(-z, axis=0)[: config.n_confident]  # (n, C)
    means = np.stack([(z[best[:, c], c, None] * x[best[:, c]]).sum(0) for c in range(C)])
    mu, var = unit(means if shots is None else y.T @ s), np.full(D, 1 / D)
    weight, g = (1.0, 0.0) if shots is None else (0.5, 50 * gamma)
    for k in range(config.iterations + 1):
        fit = -0.5 * ((x[:, None] - mu) ** 2 / var).sum(-1)
        for _ in range(config.inner_iterations):
            m = fit + 50 / (2 * K) * (W.T @ np.concatenate([z, y]) + (W @ z)[:Q])
            z = prior**weight * np.exp((m - m.max(1, keepdims=True)) / 50)
            z /= z.sum(1, keepdims=True)
        if k == config.iterations:
            return z
        w, v = z / Q, g * y / max(len(y), 1)
        total = w.sum() + v.sum()
        mu = unit(w.T @ x + v.T @ s)
        var = (w[..., None] * (x[:, None] - mu) ** 2).sum((0, 1)) / total
        var += (v[..., None] * (s[:, None] - mu) ** 2).sum((0, 1)) / total
    raise AssertionError


@pytest.mark.parametrize("case", ["zero_shot", "corrected", "published"])
def test_the_sparse_solver_equals_the_formulas(case, data, monkeypatch):
    x, text, shots = data
    monkeypatch.setattr(transclip, "BLOCK_BYTES", 4 * Q * 7)  # neighbours in several blocks
    if case == "zero_shot":
        settings = TransCLIPConfig(few_shot=False)
        fitted = TransCLIPClassifier(Given(x), NAMES, text, settings)
        expected = formulas(x, text, settings)
    else:
        settings = TransCLIPConfig(alignment=case, gammas=(0.02,))
        fitted = FewShotTransCLIPClassifier(Given(x), NAMES, text, settings, shots)
        expected = formulas(x, text, settings, published=case != "corrected", shots=shots, gamma=0.02)  # fmt: skip

    found = np.exp(fitted.predict_scores(ids(Q)))

    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_alignment_changes_the_result_with_training_examples_only(data):
    x, text, shots = data
    found = {}
    for alignment in ("corrected", "published"):
        own = TransCLIPConfig(alignment=alignment)
        found[alignment] = (
            TransCLIPClassifier(Given(x), NAMES, text, own).predict_scores(ids(Q)),
            FewShotTransCLIPClassifier(Given(x), NAMES, text, own, shots).predict_scores(ids(Q)),
        )

    np.testing.assert_array_equal(found["corrected"][0], found["published"][0])
    assert np.abs(found["corrected"][1] - found["published"][1]).max() > 1e-2


@pytest.mark.parametrize("n", [0, 1, 2, 3])
@pytest.mark.parametrize("few_shot", [False, True])
def test_few_inputs_are_predicted(n, few_shot, data):
    x, text, shots = data
    settings = TransCLIPConfig(few_shot=few_shot)
    fitted = (
        FewShotTransCLIPClassifier(Given(x), NAMES, text, settings, shots)
        if few_shot
        else TransCLIPClassifier(Given(x), NAMES, text, settings)
    )

    scores = fitted.predict_scores(ids(n))

    assert scores.shape == (n, C)
    assert np.isfinite(scores).all()
    if n == 1 and not few_shot:  # nothing to learn from
        np.testing.assert_allclose(scores.argmax(1), fitted.zero_shot_scores(ids(1)).argmax(1))


def test_equal_images_are_predicted(data):
    x, text, _ = data
    same = np.repeat(x[:1], 10, axis=0)

    scores = TransCLIPClassifier(Given(same), NAMES, text, TransCLIPConfig()).predict_scores(ids(10))  # fmt: skip

    assert np.isfinite(scores).all()
    assert len(set(scores.argmax(axis=1))) == 1


def test_one_class(data):
    x, text, _ = data

    scores = TransCLIPClassifier(Given(x), ("a",), text[:1], TransCLIPConfig()).predict_scores(ids(Q))  # fmt: skip

    np.testing.assert_allclose(scores, 0, atol=1e-5)


def test_classes_without_an_example_and_tasks_without_val(models, small, tmp_path):
    task = small[0]
    rows = np.flatnonzero(task.train.labels != 1)
    partly = Task(task.classnames, task.templates, task.train.take(rows), None)

    fitted = method("transclip").fit(models("clip"), partly, context(tmp_path))

    scores = fitted.predict_scores(small[1])
    assert scores.shape == (len(small[1]), 3)  # classes of the task, not of any labels
    assert np.isfinite(scores).all()
    assert fitted.selection is None
    fitted.save(tmp_path / "saved")
    loaded = method("transclip").load(tmp_path / "saved", models("clip"))
    np.testing.assert_array_equal(loaded.predict_scores(small[1]), scores)


def test_zero_shot_is_saved_and_predicts_other_classes(models, small, tmp_path):
    learner, model = method("transclip", few_shot=False), models("clip")
    fitted = learner.fit(model, small[0], context(tmp_path))
    scores = fitted.predict_scores(small[1])

    fitted.save(tmp_path / "saved")
    loaded = learner.load(tmp_path / "saved", model)
    other = fitted.with_classnames(("a dog", "a cat"), ("a photo of a {}.",))

    np.testing.assert_array_equal(loaded.predict_scores(small[1]), scores)
    assert other.predict_scores(small[1]).shape == (len(small[1]), 2)
    assert (learner.uses_train, learner.open_vocabulary) == (False, True)
    assert (method("transclip").uses_train, method("transclip").open_vocabulary) == (True, False)


@pytest.mark.parametrize("recipe", ["transclip-quick", "transclip-zero_shot-quick"])
def test_a_record_says_what_was_used(recipe, tiny_clip, tmp_path):
    words = ["data.name=synthetic:3x8", "data.shots=4", f"model.name={tiny_clip}", "seeds=[1]",
             "evaluation.also=[{split: val}]"]  # fmt: skip

    records = run_experiments([config.load([recipe], words)], tmp_path / "runs")

    assert [r.evaluation.split for r in records] == ["test", "val"]
    for record in records:
        assert record.method.setting == "transductive"
        assert record.method.uses_train == (recipe == "transclip-quick")
        assert record.calibration is not None
        assert record.evaluation.order_sha256 is None
