"""``clip/tpt``: batches equal single images, no steps, the report of its cost."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clipadapt.core.experiments import config as experiments
from clipadapt.methods import _prompts
from tests.unit.methods.conftest import FAMILIES, context, method

FEW = {"views": 4, "selection_p": 0.5, "smallest_crop": 0.5}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_single_images(family, models, small, tmp_path):
    task, inputs = small
    fitted = method("tpt", steps=3, lr=1e-3, **FEW).fit(models(family), task, context(tmp_path))

    together = fitted.predict_scores(inputs)

    for i in range(len(inputs)):
        alone = fitted.predict_scores(inputs.take(np.array([i])))
        np.testing.assert_allclose(alone[0], together[i], atol=2e-3)
    # The order has no effect: every image starts from the same context.
    back = fitted.predict_scores(inputs.take(np.arange(len(inputs))[::-1]))
    np.testing.assert_allclose(back[::-1], together, atol=2e-3)


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_chunks_of_classes_give_the_same_result(chunk, models, small, tmp_path, monkeypatch):
    task, inputs = small
    whole = method("tpt", **FEW).fit(models("clip"), task, context(tmp_path))
    part = method("tpt", **FEW, class_chunk=chunk).fit(models("clip"), task, context(tmp_path))
    expected = whole.predict_scores(inputs)

    np.testing.assert_allclose(part.predict_scores(inputs), expected, atol=2e-3)
    monkeypatch.setattr(_prompts, "ALONE", 1)  # one image at a time, as with many classes
    np.testing.assert_allclose(part.predict_scores(inputs), expected, atol=2e-3)


def test_tuning_lowers_the_entropy_and_shows_it_to_an_observer(
    models, small, tmp_path, monkeypatch
):
    numpy_of = torch.Tensor.numpy
    task, inputs = small
    model = models("clip")
    fitted = method("tpt", steps=5, **FEW).fit(model, task, context(tmp_path))
    features = np.stack([model.encode(inputs, "image")] * 4, axis=1)

    seen = []
    scores = fitted.tune(features, fitted.prompts(), lambda *pair: seen.append(pair))

    losses = [value for name, value in seen if name == "loss"]
    assert [name for name, _ in seen][:2] == ["view_logits", "selected"]
    assert [loss.shape for loss in losses] == [(len(inputs),)] * 5
    assert (losses[-1] < losses[0]).all()
    # Nothing is copied if nobody observes: only the logits that select the views, and the scores.
    copied = []
    monkeypatch.setattr(torch.Tensor, "numpy", lambda t: copied.append(t.shape) or numpy_of(t))
    np.testing.assert_array_equal(fitted.tune(features, fitted.prompts()), scores)
    assert copied == [(len(inputs), 4, 3), (len(inputs), 3)]


def test_without_steps_it_is_zero_shot_with_the_initial_words(models, small, tmp_path):
    task, inputs = small
    fitted = method("tpt", steps=0, **FEW).fit(models("clip"), task, context(tmp_path))
    written = fitted.with_classnames(task.classnames, ("a photo of a {}.",))

    np.testing.assert_allclose(
        fitted.predict_scores(inputs), written.zero_shot_scores(inputs), atol=1e-4
    )


def test_images_are_tuned_in_groups_that_fit_into_the_cache_of_a_cpu(models, small, tmp_path):
    prompts = method("tpt", **FEW).fit(models("clip"), small[0], context(tmp_path)).prompts()
    at_once, (C, L) = prompts.at_once(), prompts.tokens.shape

    assert prompts.images_at_once() == min(at_once, 2048 // (C * L)) < at_once
    prompts.model = SimpleNamespace(device="cuda:0")
    assert prompts.images_at_once() == at_once


def test_the_quick_recipe_tunes_no_image_of_val():
    config = experiments.load(["tpt-quick"], ["data.name=synthetic", "model.name=stitched"]).config

    assert config.evaluation.calibrate is False
    assert any("no temperature" in text for text in config.recipe.deviations)
