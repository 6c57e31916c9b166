"""``clip/full_finetune`` and ``clip/wise_ft``: units, head, interpolation, export; the search of Tip-Adapter."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from clipadapt.core.api.data import Task
from clipadapt.core.api.errors import ConfigError, UnknownNameError
from clipadapt.core.scoring.scores import nll, topk_accuracy
from clipadapt.methods.wise_ft import ALPHAS
from tests.unit.methods.conftest import FAMILIES, arrays_of, context, load, method

SHORT = {"epochs": 2, "batch_size": 6, "augment": "none", "lr": 1e-3, "warmup_steps": 1}
HEAD = {"head.weight", "head.bias"}


@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_scores_equal_zero_shot(family, models, small, tmp_path):
    task, inputs = small

    fitted = method("full_finetune", epochs=0).fit(models(family), task, context(tmp_path))

    np.testing.assert_allclose(
        fitted.predict_scores(inputs), fitted.zero_shot_scores(inputs), atol=1e-4
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("blocks", [1, 2, None])
def test_only_the_last_units_are_trained(family, blocks, models, small, tmp_path):
    model = models(family)
    before = {n: p.clone() for n, p in model.module.named_parameters()}
    units = model.image_units()
    begins = tuple(name for unit in units[-blocks if blocks else 0 :] for name in unit)

    fitted = method("full_finetune", **SHORT, blocks=blocks).fit(model, small[0], context(tmp_path))

    trained = {n for n in before if n.startswith("visual.") and n.startswith(begins)}
    assert set(fitted.tuned.parameters) == trained | HEAD
    after = dict(fitted.tuned.tower.model.module.named_parameters())
    moved = {n for n, p in after.items() if not torch.equal(p, before[n])}
    assert moved <= trained
    # Key biases have no effect on attention, so they have no gradient; everything else changes.
    still = {n for n in trained - moved if not n.endswith("bias")}
    assert not still
    assert fitted.n_trainable_params == sum(before[n].numel() for n in trained) + 3 * (
        model.embed_dim + 1
    )
    assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())


@pytest.mark.parametrize("name", ["full_finetune", "wise_ft"])
def test_too_many_blocks_is_an_error(name, models, small, tmp_path):
    with pytest.raises(
        ConfigError, match="method.blocks is 9; the image tower .* has 4 units"
    ) as e:
        method(name, **SHORT, blocks=9).fit(models("clip"), small[0], context(tmp_path))

    assert e.value.hint.startswith("choose a value from 1 to 4")


@pytest.mark.parametrize("family", FAMILIES)
def test_exported_model_and_head_give_equal_logits(family, models, small, tmp_path):
    task, inputs = small
    fitted = method("full_finetune", **SHORT).fit(models(family), task, context(tmp_path / "fit"))

    fitted.export("openclip", tmp_path / "out")

    plain = load(f"local-dir:{tmp_path / 'out'}")
    with safe_open(tmp_path / "out" / "classifier.safetensors", framework="np") as file:
        weight, bias, facts = file.get_tensor("weight"), file.get_tensor("bias"), file.metadata()
    logits = plain.encode(inputs, "image") @ weight.T + bias
    np.testing.assert_allclose(logits, fitted.predict_scores(inputs), atol=1e-4)
    assert np.abs(logits - fitted.zero_shot_scores(inputs)).max() > 1e-3
    assert json.loads(facts["classnames"]) == list(task.classnames)
    assert facts["base_weights_sha256"] == models(family).weights_sha256
    with pytest.raises(UnknownNameError, match="export format 'peft'"):
        fitted.export("peft", tmp_path / "other")


def test_interpolated_weights_are_the_mean_of_both_ends(models, small, tmp_path):
    task = Task(small[0].classnames, small[0].templates, small[0].train)

    def weights(alpha):
        learner = method("wise_ft", **SHORT, alpha=alpha)
        fitted = learner.fit(models("clip"), task, context(tmp_path / f"{alpha}"))
        return arrays_of(fitted, tmp_path / f"saved{alpha}")

    start, quarter, end = weights(0.0), weights(0.25), weights(1.0)
    without = weights(None)  # without val: 0.5

    tuned = method("full_finetune", **SHORT).fit(models("clip"), task, context(tmp_path / "full"))
    for name in end:
        np.testing.assert_allclose(quarter[name], 0.75 * start[name] + 0.25 * end[name], atol=1e-6)
        np.testing.assert_allclose(without[name], 0.5 * start[name] + 0.5 * end[name], atol=1e-6)
    assert tuned.n_trainable_params == sum(a.size for n, a in end.items() if n != "start")


def test_alpha_is_the_best_on_val(models, small, tmp_path):
    task = small[0]
    ctx = context(tmp_path)

    fitted = method("wise_ft", **SHORT | {"epochs": 6}).fit(models("clip"), task, ctx)

    tried = [line for line in ctx.history if "alpha" in line]
    assert [line["alpha"] for line in tried] == list(ALPHAS)
    best = max(line["val_accuracy"] for line in tried)
    lowest = min(line["val_loss"] for line in tried if line["val_accuracy"] == best)
    (chosen,) = [line["alpha"] for line in tried if line["val_loss"] == lowest]
    scores = fitted.predict_scores(task.val.inputs)
    assert topk_accuracy(scores, task.val.labels, 1) == best == fitted.selection["value"]
    assert nll(scores, task.val.labels) == pytest.approx(lowest, rel=1e-4)
    assert f"alpha={chosen:.1f}" in fitted.selection["by"]


# ---------------------------------------------------------------- Tip-Adapter


def test_cache_scores_follow_the_formula(models, small, tmp_path):
    task, inputs = small
    model = models("clip")
    settings = {"search": False, "alpha": 2.0, "beta": 3.0, "views": 0}

    fitted = method("tip_adapter", **settings).fit(model, task, context(tmp_path))

    keys, f = model.encode(task.train.inputs, "image"), model.encode(inputs, "image")
    values = np.eye(3, dtype=np.float32)[task.train.labels]
    votes = np.exp(-3.0 * (1 - f @ keys.T)) @ values
    expected = 100 * f @ fitted.weights.T + 2.0 * votes
    np.testing.assert_allclose(fitted.predict_scores(inputs), expected, atol=1e-3)
    assert fitted.n_trainable_params == 0
    assert fitted.selection is None


def test_search_selects_the_first_best_value_of_the_grid(models, small, tmp_path):
    task, _ = small
    model = models("siglip")
    settings = {"alpha_steps": 4, "beta_steps": 3, "alpha_max": 3.0, "beta_max": 6.0, "views": 2}
    alphas, betas = [0.1 + i * 2.9 / 4 for i in range(4)], [0.1 + i * 5.9 / 3 for i in range(3)]

    def accuracy(alpha, beta):
        given = {"search": False, "alpha": alpha, "beta": beta, "views": 2}
        fitted = method("tip_adapter", **given).fit(model, task, context(tmp_path))
        return topk_accuracy(fitted.predict_scores(task.val.inputs), task.val.labels, 1)

    grid = [(accuracy(a, b), a, b) for b in betas for a in alphas]
    best = max(value for value, _, _ in grid)
    _, alpha, beta = next(point for point in grid if point[0] == best)

    found = method("tip_adapter", **settings).fit(model, task, context(tmp_path))

    assert (found.alpha, found.beta) == pytest.approx((alpha, beta))
    assert found.selection["value"] == pytest.approx(best)


def test_trained_keys_are_initialized_from_the_cache(models, small, tmp_path):
    task, inputs = small
    settings = {"views": 2, "search": False}
    plain = method("tip_adapter", **settings).fit(models("custom"), task, context(tmp_path))
    start = method("tip_adapter_f", **settings, epochs=0).fit(
        models("custom"), task, context(tmp_path)
    )
    ctx = context(tmp_path)
    trained = method("tip_adapter_f", **settings, lr=0.05, epochs=5).fit(
        models("custom"), task, ctx
    )

    np.testing.assert_array_equal(start.predict_scores(inputs), plain.predict_scores(inputs))
    assert trained.n_trainable_params == trained.cache.keys.numel() == 12 * 24
    # The kept epoch is the first with the best accuracy.
    right = [line["val_accuracy"] for line in ctx.history]
    assert trained.selection["value"] == max(right)
    assert trained.selection["epoch"] == right.index(max(right)) + 1


def test_clip_adapter_scores_follow_the_formula(models, small, tmp_path):
    task, inputs = small
    model = models("custom")
    fitted = method("clip_adapter", augment="none", epochs=3, lr=0.1, ratio=0.3).fit(
        model, task, context(tmp_path)
    )

    x = model.encode(inputs, "image", "projected")
    adapted = np.maximum(np.maximum(x @ fitted.down.T, 0) @ fitted.up.T, 0)
    mixed = 0.3 * adapted + 0.7 * x
    unit = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    expected = model.logit_scale * unit @ fitted.weights.T
    np.testing.assert_allclose(fitted.predict_scores(inputs), expected, atol=1e-4)
    assert fitted.down.shape == (6, 24)
    assert fitted.n_trainable_params == 2 * 6 * 24


# ---------------------------------------------------------------- augmentation

CROPPED = {
    "coop": {"n_ctx": 2},
    "lora": {"steps_per_shot": None},
    "clip_adapter": {},
    "tip_adapter_f": {"views": 2, "beta_steps": 2},
    "full_finetune": {"blocks": 2, "warmup_steps": 0.1},
    "wise_ft": {"blocks": 2, "warmup_steps": 0.1},
}


@pytest.mark.parametrize("name", CROPPED)
def test_augmented_fits_are_deterministic_and_use_other_views(name, small, models, tmp_path):
    task, inputs = small
    shared = {"epochs": 3, "batch_size": 6, "lr": 1e-2, **CROPPED[name]}

    def fit(augment, folder):
        learner = method(name, **shared, augment=augment)
        ctx = context(tmp_path / folder)
        return learner.fit(models("clip"), task, ctx).predict_scores(inputs), ctx.history

    (first, history), (second, again), (plain, _) = (
        fit("crop_flip", "a"),
        fit("crop_flip", "b"),
        fit("none", "c"),
    )

    np.testing.assert_array_equal(first, second)
    assert history == again
    assert np.isfinite(first).all()
    assert not np.array_equal(first, plain)


@pytest.mark.parametrize(("views", "expected"), [(None, 4), (2, 2), (0, 1)])
def test_tip_adapter_f_trains_on_the_given_number_of_views(
    views, expected, models, small, tmp_path, monkeypatch
):
    model, asked = models("clip"), []
    encode = type(model).encode

    def counted(self, inputs, tower, layer="output", view=0, smallest_crop=0.08):
        if tower == "image" and len(inputs) == 12 and inputs is small[0].train.inputs:
            asked.append((layer, view, smallest_crop))
        return encode(self, inputs, tower, layer, view, smallest_crop)

    monkeypatch.setattr(type(model), "encode", counted)
    task = Task(small[0].classnames, small[0].templates, small[0].train)

    method("tip_adapter_f", epochs=4, views=3, training_views=views).fit(
        model, task, context(tmp_path)
    )

    keys = {view for layer, view, _ in asked if layer == "projected"}
    trained = {view for layer, view, _ in asked if layer == "output"}
    assert keys == {1, 2, 3}
    assert len(trained) == expected
    assert not trained & keys
    assert {crop for _, _, crop in asked} == {0.5}
