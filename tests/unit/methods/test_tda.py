"""TDA: matrix products over blocks equal the plain loop, and the order of the test images is respected."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from clipadapt.core.api.data import Inputs, Task
from clipadapt.core.api.errors import ConfigError
from clipadapt.core.experiments import config
from clipadapt.core.runs.session import run_experiments
from clipadapt.methods import _test_views, tda
from clipadapt.methods.tda import TDAClassifier, TDAConfig
from tests.unit.methods.conftest import context, method

N, C, D = 90, 4, 8
NAMES = ("a", "b", "c", "d")
# A low scale gives entropies on both sides of the bounds.
SETTINGS = {"logit_scale": 6.0, "entropy_low": 0.3, "entropy_high": 0.65, "mask_low": 0.2}


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


class Given:
    """A backbone whose image features are given, one array for each view."""

    def __init__(self, *views):
        self.views, self.embed_dim = views, views[0].shape[1]

    def encode(self, inputs, tower, layer="output", view=0, crop=1.0):
        return self.views[view][[int(i) for i in inputs.ids]]


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(C, D))
    return unit(centres[rng.integers(0, C, N)] + rng.normal(size=(N, D))), unit(centres)


def ids(n, order=None):
    numbers = range(n) if order is None else order
    return Inputs(tuple(numbers), tuple(map(str, numbers)))


def loop(x, text, own, views=None):
    """Return the logits by the plain loop: update the caches with an image, then predict it."""
    positive, negative, out = {}, {}, []

    def update(cache, c, item, capacity):
        held = cache.setdefault(c, [])
        if len(held) < capacity:
            held.append(item)
        elif item[1] < held[-1][1]:
            held[-1] = item
        held.sort(key=lambda i: i[1])

    for i in range(len(x)):
        each = x[i : i + 1] if views is None else np.stack([v[i] for v in views])
        logits = own.logit_scale * each.astype(float) @ text.T
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        best = np.argsort(-(p * np.log(p)).sum(1))[: max(1, int(len(each) * 0.1))]
        f, logit, p = each[best].mean(0), logits[best].mean(0), p[best].mean(0)
        h, c = -(p * np.log(p)).sum(), int(logit.argmax())
        if own.capacity:
            update(positive, c, (f, h), own.capacity)
        if own.negative_capacity and own.entropy_low < h / np.log2(len(text)) < own.entropy_high:
            update(negative, c, (f, h, p), own.negative_capacity)
        for k, held in positive.items():
            for key, _ in held:
                logit[k] += own.alpha * np.exp(-own.beta * (1 - f @ key))
        for held in negative.values():
            for key, _, q in held:
                near = np.exp(-own.negative_beta * (1 - f @ key))
                logit -= own.negative_alpha * near * ((q > own.mask_low) & (q < own.mask_high))
        out.append(logit)
    return np.array(out)


@pytest.mark.parametrize(
    "more",
    [
        {"capacity": 3, "negative_capacity": 2},
        {"capacity": 1, "negative_capacity": 1, "alpha": 5.0, "negative_alpha": 2.0},
        {"capacity": 0, "negative_capacity": 3, "negative_alpha": 1.0},
        {"capacity": 100, "negative_capacity": 0},
    ],
)
@pytest.mark.parametrize("block", [1, 7, 1000])
def test_blocks_equal_the_plain_loop(more, block, data, monkeypatch):
    monkeypatch.setattr(tda, "BLOCK", block)
    x, text = data
    own = TDAConfig(**SETTINGS, **more)

    found = TDAClassifier(Given(x), NAMES, text, own).predict_scores(ids(N))

    np.testing.assert_allclose(found, loop(x, text, own), rtol=1e-5, atol=1e-5)


def test_both_caches_are_used_and_replaced(data):
    x, text = data
    seen = {}
    TDAClassifier(
        Given(x), NAMES, text, TDAConfig(**SETTINGS), lambda name, value: seen.update({name: value})
    ).predict_scores(ids(N))

    for name, capacity in (("positive", 3), ("negative", 2)):
        cache, _ = seen[name]
        assert np.bincount(cache.classes[cache.until == N]).max() == capacity
        assert (cache.until < N).any()


@pytest.mark.parametrize("V", [10, 25])
def test_views_equal_the_plain_loop(V, data, monkeypatch):
    monkeypatch.setattr(_test_views, "NUMBERS_AT_ONCE", V * C * 8)  # several blocks of images
    x, text = data
    rng = np.random.default_rng(1)
    views = [x, *(unit(x + 0.3 * rng.normal(size=x.shape)) for _ in range(V - 1))]
    own = TDAConfig(**SETTINGS, views=V)

    found = TDAClassifier(Given(*views), NAMES, text, own).predict_scores(ids(N))

    np.testing.assert_allclose(found, loop(x, text, own, views), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 50])
def test_the_views_of_a_block_are_bounded_by_classes_and_width(classes, data, monkeypatch):
    V, widest = 10, max(classes, D)
    monkeypatch.setattr(_test_views, "NUMBERS_AT_ONCE", V * widest * 7)

    blocks = list(_test_views.blocks(Given(*[data[0]] * V), ids(N), V, 0.08, classes))

    assert max(features.shape[0] for _, features in blocks) == 7
    assert sum(features.shape[0] for _, features in blocks) == N


def test_equal_images_keep_the_first(data):
    x, text = data
    same = np.repeat(x[:1], 6, axis=0)
    seen = {}

    TDAClassifier(
        Given(same), NAMES, text, TDAConfig(capacity=2), lambda name, value: seen.update({name: value})
    ).predict_scores(ids(6))  # fmt: skip

    assert seen["positive"][0].rows.tolist() == [0, 1]


def test_the_order_matters_and_nothing_is_kept(data):
    x, text = data
    fitted = TDAClassifier(Given(x), NAMES, text, TDAConfig(**SETTINGS))
    once = fitted.predict_scores(ids(N))

    reverse = fitted.predict_scores(ids(N, range(N - 1, -1, -1)))[::-1]

    assert np.abs(reverse - once).max() > 1e-3
    np.testing.assert_array_equal(fitted.predict_scores(ids(N)), once)


def test_few_inputs_and_one_class(data):
    x, text = data
    assert TDAClassifier(Given(x), NAMES, text, TDAConfig()).predict_scores(ids(0)).shape == (0, C)

    one = TDAClassifier(Given(x), ("a",), text[:1], TDAConfig()).predict_scores(ids(N))

    assert np.isfinite(one).all()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "order_seed",
            "null",
            "method.order_seed: the predictions depend on the order of the test",
        ),
        ("views", "9", "method.views: a tenth of the views is kept, so use at least 10"),
        ("capacity", "-1", "method.capacity"),
    ],
)
def test_bad_settings_are_refused(key, value, message):
    words = ["data.name=synthetic", "model.name=stitched", f"method.{key}={value}"]

    with pytest.raises(ConfigError) as caught:
        config.load(["tda"], words)

    assert message in str(caught.value)


def test_a_record_holds_the_order(tiny_clip, tmp_path):
    words = ["data.name=synthetic:3x8", f"model.name={tiny_clip}"]

    (record,) = run_experiments([config.load(["tda-quick"], words)], tmp_path / "runs")
    (again,) = run_experiments([config.load(["tda-quick"], words)], tmp_path / "again")

    assert (record.method.setting, record.method.uses_train) == ("online", False)
    assert len(record.evaluation.order_sha256) == len(hashlib.sha256().hexdigest())
    assert again.evaluation.order_sha256 == record.evaluation.order_sha256
    assert again.predictions_sha256 == record.predictions_sha256
    assert "zero_shot_accuracy" in record.metrics


def test_other_classes_and_views_of_images(models, small, tmp_path):
    learner, model = method("tda", views=10), models("clip")
    task = Task(small[0].classnames, small[0].templates)
    fitted = learner.fit(model, task, context(tmp_path))

    other = fitted.with_classnames(("a dog", "a cat"), ("a photo of a {}.",))

    assert other.predict_scores(small[1]).shape == (len(small[1]), 2)
