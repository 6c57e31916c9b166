"""GDA: edge cases of the estimate, and the low-rank form for new classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.api.data import Inputs, Split, Task
from clipadapt.core.api.method import OpenVocabulary
from clipadapt.core.features.cache import FeatureCache
from clipadapt.methods import gda
from clipadapt.methods.gda import GDA, GDAConfig

D = 8


class Features:
    """A backbone whose image features are given; text features are unit vectors."""

    embed_dim, logit_scale, logit_bias = D, 100.0, 0.0

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def encode(self, inputs: Inputs[Any], tower: str, *_: Any) -> np.ndarray:
        if tower == "text":
            return np.eye(D, dtype=np.float32)[: len(inputs)]
        return self.images[[int(i) for i in inputs.ids]]


def unit(n: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, D)) + 0.5
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def fit(labels: list[int], classes: int, **more: Any) -> tuple[Any, Inputs[Any]]:
    names = tuple(f"c{i}" for i in range(classes))
    ids = tuple(map(str, range(len(labels))))
    train = Split(Inputs(ids, ids), np.array(labels), names)
    ctx = RunContext(0, Path(), Services(FeatureCache(enabled=False)))
    task = Task(names, ("{}",), train, more.pop("val", None))
    images = more.pop("images", unit(len(labels)))
    fitted = GDA(GDAConfig(views=0, **more)).fit(Features(images), task, ctx)
    return fitted, train.inputs


@pytest.mark.parametrize("estimator", ["pooled", "per_class"])
def test_one_example_per_class_is_zero_shot(estimator):
    fitted, inputs = fit([0, 1, 2], 3, estimator=estimator)

    got, zero_shot = fitted.predict_scores(inputs), fitted.zero_shot_scores(inputs)

    np.testing.assert_allclose(got - got[:, :1], zero_shot - zero_shot[:, :1], atol=1e-4)


@pytest.mark.parametrize("noise", [0, 1e-7])
@pytest.mark.parametrize("estimator", ["pooled", "per_class"])
def test_equal_images_in_each_class_are_zero_shot(estimator, noise):
    """Three copies of one image per class, which may differ by the rounding of their batches."""
    labels = [0, 1, 2] * 3
    images = np.tile(unit(3), (3, 1))
    images += noise * np.random.default_rng(5).normal(size=images.shape).astype(np.float32)
    val = Split(Inputs(tuple("012"), tuple("012")), np.arange(3), ("c0", "c1", "c2"))

    fitted, inputs = fit(labels, 3, estimator=estimator, images=images, val=val)

    got, zero_shot = fitted.predict_scores(inputs), fitted.zero_shot_scores(inputs)
    np.testing.assert_allclose(got - got[:, :1], zero_shot - zero_shot[:, :1], atol=1e-4)
    assert np.isfinite(fitted.weights if estimator == "pooled" else fitted.head.weights).all()


def test_new_classes_whose_nearest_images_equal_their_texts_have_finite_scores():
    texts = np.eye(D, dtype=np.float32)
    labels = [0, 1, 2]
    fitted, inputs = fit(labels, 3, estimator="per_class", images=texts[:3], neighbours=1)

    new = fitted.with_classnames(("d0", "d1"), ("{}",))

    np.testing.assert_allclose(new.weights, texts[:2], atol=1e-6)
    assert np.isfinite(new.predict_scores(inputs)).all()


@pytest.mark.parametrize("estimator", ["pooled", "per_class"])
@pytest.mark.parametrize(("labels", "classes"), [([0], 1), ([0, 0], 1), ([0, 0, 2, 2], 4)])
def test_one_class_and_classes_without_examples(estimator, labels, classes):
    fitted, inputs = fit(labels, classes, estimator=estimator)

    assert np.isfinite(fitted.predict_scores(inputs)).all()


def test_without_val_or_values_alpha_is_that_of_the_config():
    labels = [0, 0, 1, 1]
    zero, inputs = fit(labels, 2, alpha=1e-9)
    val = Split(inputs, np.array(labels), ("c0", "c1"))

    fixed, _ = fit(labels, 2, alpha=1e-9, alphas=(), val=val)
    searched, _ = fit(labels, 2, alpha=1e-9, val=val)

    assert zero.selection is fixed.selection is None
    np.testing.assert_array_equal(zero.weights, fixed.weights)
    assert searched.selection["value"] >= 0.5


def test_the_pseudo_inverse_of_a_covariance_without_full_rank():
    labels = np.array([0, 0, 0, 1, 1])
    means, centred = gda._means(unit(5), labels, 2)
    ctx = RunContext(0, Path(), Services(FeatureCache(enabled=False)))

    got = gda._per_class(centred, labels, 2, means, ctx)

    covariance = np.mean([np.cov(unit(5)[labels == c].T.astype(float)) for c in (0, 1)], axis=0)
    precision = np.linalg.pinv(covariance, rcond=1e-6, hermitian=True)
    np.testing.assert_allclose(got, means @ precision, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 64])
def test_new_classes_follow_the_formula(k):
    bank, text = unit(20), unit(3, seed=1)
    means, near = gda.synthesized(bank, text, k, 2)

    got = gda._near_precision(bank, text, near, means.T)

    total = np.zeros((D, D))
    for t, rows in zip(text.astype(float), near, strict=True):
        X = bank[rows].astype(float) - t
        scatter = X.T @ X
        shrink = np.trace(scatter) / max(len(rows) - 1, 1)
        total += D * np.linalg.pinv(scatter + shrink * np.eye(D)) / len(text)
    np.testing.assert_allclose(got, total @ means.T, rtol=1e-8)


def test_an_open_classifier_is_saved_with_its_vectors(tmp_path):
    fitted, inputs = fit([0, 0, 1, 1], 2, estimator="per_class")
    fitted.save(tmp_path)

    method = GDA(GDAConfig(estimator="per_class"))
    loaded = method.load(tmp_path, fitted.head.model)

    assert isinstance(fitted, OpenVocabulary)
    assert method.open_vocabulary
    assert not GDA(GDAConfig()).open_vocabulary
    np.testing.assert_array_equal(loaded.predict_scores(inputs), fitted.predict_scores(inputs))
    new = [c.with_classnames(("x", "y", "z"), ("{}",)) for c in (fitted, loaded)]
    np.testing.assert_array_equal(*(n.predict_scores(inputs) for n in new))
    assert new[0].classnames == ("x", "y", "z")
