"""IVLP, MaPLe and PromptSRC beyond the reference numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.api.data import DatasetOptions, Task
from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import DATASETS, MODELS
from clipadapt.core.features.cache import FeatureCache
from clipadapt.methods.ivlp import IVLP, IVLPConfig
from clipadapt.methods.maple import MaPLe, MaPLeConfig
from clipadapt.methods.promptsrc import PromptSRC, PromptSRCConfig, gaussian

QUICK = {"epochs": 2, "augment": "none", "batch_size": 8}
BOTH = {"depth_text": 2, "depth_vision": 2}


@pytest.fixture(scope="module")
def load(tiny_models):
    def model(family, **services):
        found = MODELS.resolve(tiny_models[family], "clip")
        own = Services(FeatureCache(enabled=False), workers=1, **services)
        return found.provider.load(found.argument, ModelOptions("fp32", "cpu"), own)

    return model


@pytest.fixture(scope="module")
def data():
    found = DATASETS.resolve("synthetic:3x12", "clip")
    return found.provider(found.argument, DatasetOptions())


def task_of(data, classes=3, shots=None, *, val=True):
    train = data.split("train")
    if shots is not None:
        rows = [np.flatnonzero(train.labels == c)[:shots] for c in range(classes)]
        train = train.take(np.concatenate(rows).astype(np.int64))
    names = data.classnames[:classes]
    splits = [train, data.split("val") if val else None]
    own = [
        None
        if s is None
        else dataclasses.replace(s.take(np.flatnonzero(s.labels < classes)), classnames=names)
        for s in splits
    ]
    return Task(names, data.templates, *own)


def fit(method, model, task, folder):
    return method.fit(model, task, RunContext(1, folder, model.services))


def methods(**more):
    return [
        IVLP(IVLPConfig(**QUICK | BOTH | more)),
        MaPLe(MaPLeConfig(depth=2, **QUICK | more)),
        PromptSRC(PromptSRCConfig(**QUICK | BOTH | more)),
    ]


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_fast_and_reference_implementation_agree(which, augment, load, data, tmp_path):
    scores = []
    for fast in (True, False):
        model, task = load("clip", fast=fast), task_of(data)
        method = methods(augment=augment)[which]
        fitted = fit(method, model, task, tmp_path / str(fast))
        scores.append(fitted.predict_scores(data.split("test").inputs))

    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("chunk", [1, 2])
def test_chunks_of_classes_do_not_change_the_result(which, chunk, load, data, tmp_path):
    model, task = load("clip"), task_of(data, val=False)
    inputs = data.split("test").inputs

    whole = fit(methods()[which], model, task, tmp_path / "a").predict_scores(inputs)
    chunked = fit(methods(class_chunk=chunk)[which], model, task, tmp_path / "b")

    np.testing.assert_allclose(chunked.predict_scores(inputs), whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize(("classes", "shots"), [(1, None), (3, 1)])
def test_one_class_and_one_shot(which, classes, shots, load, data, tmp_path):
    model, task = load("clip"), task_of(data, classes, shots)

    fitted = fit(methods()[which], model, task, tmp_path)

    scores = fitted.predict_scores(data.split("test").inputs)
    assert scores.shape[1] == classes
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("which", range(3))
def test_training_reduces_the_loss(which, load, data, tmp_path):
    model, task = load("clip"), task_of(data)
    context = RunContext(1, tmp_path, model.services)

    methods(epochs=8, lr=[0.05, 0.05, 0.005][which])[which].fit(model, task, context)

    losses = [line["train_loss"] for line in context.history]
    assert losses[-1] < losses[0]
    assert all("val_accuracy" in line for line in context.history)


def test_a_random_start_has_no_words(load, data, tmp_path):
    model, task = load("clip"), task_of(data)
    random = MaPLe(MaPLeConfig(depth=2, ctx_init=None, n_ctx=3, **QUICK | {"epochs": 0}))

    fitted = fit(random, model, task, tmp_path)

    assert fitted.text.shape == (2, 3, 32)
    assert 0.01 < fitted.text.std() < 0.03


def test_image_prompts_of_maple_are_its_text_prompts_after_one_layer(load, data, tmp_path):
    model, task = load("clip"), task_of(data)

    fitted = fit(MaPLe(MaPLeConfig(depth=2, **QUICK | {"epochs": 0})), model, task, tmp_path)

    assert fitted.n_trainable_params == 2 * 2 * 32 + 2 * (32 * 32 + 32)
    assert fitted.vision.shape == (2, 2, 32)


def test_text_prompts_alone_leave_the_image_features_as_they_are(load, data, tmp_path):
    model, task = load("hf"), task_of(data)
    config = IVLPConfig(n_ctx_vision=0, depth_vision=0, depth_text=2, **QUICK)

    fitted = fit(IVLP(config), model, task, tmp_path)

    inputs = data.split("test").inputs
    features = model.encode(inputs, "image")
    expected = model.logit_scale * features @ fitted.weights.T
    np.testing.assert_allclose(fitted.predict_scores(inputs), expected, rtol=1e-5, atol=1e-5)
    assert fitted.vision.size == 0
    assert np.abs(fitted.weights - fitted.start).max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth_text": 3}, r"method.depth_text is 3, but the text tower .* has 2 blocks"),
        ({"depth_vision": 9}, r"method.depth_vision is 9, but the image tower .* has 2 blocks"),
        ({"n_ctx_vision": 0}, r"n_ctx_vision is 0 and method.depth_vision is 2"),
        ({"n_ctx_text": 5}, r"ctx_init 'a photo of a' has 4 tokens, fewer than the 5"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(settings, message, load, data, tmp_path):
    method = IVLP(IVLPConfig(**QUICK | BOTH | settings))

    with pytest.raises(ConfigError, match=message):
        fit(method, load("clip"), task_of(data), tmp_path)


def test_the_average_over_epochs_has_gaussian_weights():
    weights = gaussian(20, 15, 1)

    assert weights.sum() == pytest.approx(1)
    assert weights.argmax() == 14
    assert weights[13] / weights[14] == pytest.approx(np.exp(-0.5))
    # A mean far away leaves the nearest epoch.
    np.testing.assert_allclose(gaussian(3, 1000, 1), [0, 0, 1], atol=1e-12)
    assert gaussian(0, 15, 1).shape == (0,)


def test_the_result_of_promptsrc_is_the_average_of_its_epochs(load, data, tmp_path):
    model, task = load("clip"), task_of(data, val=False)
    seen = []

    def observe(name, value):
        if name in {"parameters", "last_epoch"}:
            seen.append({n: p.clone() for n, p in value.items()})

    context = RunContext(1, tmp_path, model.services, observe=observe)
    config = PromptSRCConfig(gpa_mean=1, gpa_std=1, **QUICK | BOTH)
    fitted = PromptSRC(config).fit(model, task, context)

    last, final = seen
    assert any((last[n] - final[n]).abs().max() > 0 for n in final)
    np.testing.assert_array_equal(fitted.text[0], final["text.ctx0"].numpy())


def test_new_classes_keep_the_prompts(load, data, tmp_path):
    model, task = load("clip"), task_of(data)
    fitted = fit(methods()[1], model, task, tmp_path)

    same = fitted.with_classnames(task.classnames, task.templates)

    inputs = data.split("test").inputs
    np.testing.assert_array_equal(same.predict_scores(inputs), fitted.predict_scores(inputs))
    np.testing.assert_array_equal(same.zero_shot_scores(inputs), fitted.zero_shot_scores(inputs))
