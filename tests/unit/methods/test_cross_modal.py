"""Cross-modal probe: what a batch holds, the search on val, the adapter, and the average with the text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from clipadapt.core.api.data import Task
from clipadapt.core.api.errors import ConfigError
from clipadapt.methods import cross_modal
from clipadapt.methods.cross_modal import CrossModalConfig
from tests.unit.methods.conftest import Seen, context, method

SETTINGS: dict[str, Any] = {
    "views": 0,
    "steps": 8,
    "every": 3,
    "warmup_steps": 0,
    "batch_size": 4,
    "lr": 1e-2,
    "search": False,
}


def fit(models, small, folder, **more):
    seen = Seen()
    ctx = context(folder, observe=seen)
    fitted = method("cross_modal", **SETTINGS | more).fit(models("clip"), small[0], ctx)
    return fitted, seen.values, ctx


@pytest.mark.parametrize(("text", "size", "rows"), [(True, 4, 4), (True, 5, 5), (False, 4, 4)])
def test_the_size_of_a_batch(text, size, rows, models, small, tmp_path, monkeypatch):
    shapes: list[tuple[int, ...]] = []
    loss = torch.nn.functional.cross_entropy
    monkeypatch.setattr(
        torch.nn.functional,
        "cross_entropy",
        lambda logits, y: shapes.append(tuple(logits.shape)) or loss(logits, y),
    )

    fit(models, small, tmp_path, text=text, batch_size=size)

    assert shapes == [(rows, 3)] * 8
    assert CrossModalConfig(text=text, batch_size=5).halves == ((3, 2) if text else (5, 0))


def test_every_prompt_of_every_class_is_used_once_per_epoch(tmp_path):
    prompts = cross_modal._Prompts(context(tmp_path), 6, 2)

    for epoch in range(3):
        used = np.concatenate([prompts.at(3 * epoch + i) for i in range(3)])
        assert sorted(used) == list(range(6))
    again = cross_modal._Prompts(context(tmp_path), 6, 2)
    np.testing.assert_array_equal(again.at(7), prompts.at(7))


def test_more_prompts_than_one_per_class(models, small, tmp_path):
    task = Task(small[0].classnames, ("a photo of a {}.", "art of a {}."), small[0].train, None)
    learner = method("cross_modal", **SETTINGS | {"batch_size": 8})

    fitted = learner.fit(models("clip"), task, context(tmp_path))

    assert fitted.weights.shape == (3, 24)
    assert fitted.selection is None
    assert np.abs(fitted.weights - fitted.start).max() > 1e-3
    # The zero-shot reference is that of the method, whatever the head starts from.
    plain = method("zero_shot").fit(models("clip"), task, context(tmp_path))
    inputs = small[0].train.inputs
    expected = plain.predict_scores(inputs)
    np.testing.assert_allclose(fitted.zero_shot_scores(inputs), expected, rtol=1e-5, atol=1e-5)


def test_the_search_equals_fits_with_each_setting(models, small, tmp_path):
    grid = {"lr_grid": [1e-2, 1e-4], "weight_decay_grid": [0, 0.1], "batch_size_grid": [4, 5]}

    fitted, seen, ctx = fit(models, small, tmp_path / "search", search=True, **grid)

    found = {}
    for lr in grid["lr_grid"]:
        for decay in grid["weight_decay_grid"]:
            for size in grid["batch_size_grid"]:
                setting = {"lr": lr, "weight_decay": decay, "batch_size": size}
                alone, _, _ = fit(models, small, tmp_path / str(len(found)), **setting)
                found[lr, decay, size] = alone
    accuracy = [one.selection["value"] for one in found.values()]
    assert seen["grid"][0] == pytest.approx(accuracy)
    best = list(found)[int(np.argmax(accuracy))]
    np.testing.assert_array_equal(fitted.weights, found[best].weights)
    assert fitted.selection["value"] == max(accuracy)
    expected = f"lr={best[0]:g}, weight_decay={best[1]:g}, batch_size={best[2]}"
    assert expected in fitted.selection["by"]
    assert [line["batch_size"] for line in ctx.history[:8]] == [4, 5] * 4


def test_batches_that_are_not_smaller_than_the_data_are_left_out(models, small, tmp_path):
    grid = {"lr_grid": [1e-2], "weight_decay_grid": [0]}

    _, seen, _ = fit(models, small, tmp_path / "a", search=True, **grid, batch_size_grid=[4, 6, 32])
    _, alone, _ = fit(models, small, tmp_path / "b", search=True, **grid, batch_size_grid=[64, 32])

    # 12 images and 3 prompts: halves of 2 are smaller than both, halves of 3 are not.
    assert len(seen["grid"][0]) == 1
    assert len(alone["grid"][0]) == 1


@pytest.mark.parametrize("head", ["linear", "adapter"])
def test_the_average_with_the_text(head, models, small, tmp_path):
    def weights(share: float) -> np.ndarray:
        fitted, _, _ = fit(models, small, tmp_path / str(share), head=head, wise_ft=share)
        return (fitted.linear if head == "adapter" else fitted).weights

    start = fit(models, small, tmp_path / "start", steps=None, epochs=0)[0].start

    np.testing.assert_allclose(
        weights(1.0), start, rtol=0, atol=1e-6
    )  # one template: equal up to rounding
    np.testing.assert_allclose(weights(0.25), 0.75 * weights(0.0) + 0.25 * start, atol=1e-6)


def test_a_saved_adapter_gives_equal_scores_and_is_exported(models, small, tmp_path):
    from safetensors.numpy import load_file

    fitted, _, _ = fit(models, small, tmp_path / "fit", head="adapter")
    fitted.save(tmp_path / "saved")

    loaded = method("cross_modal", **SETTINGS | {"head": "adapter"}).load(
        tmp_path / "saved", models("clip")
    )

    scores = fitted.predict_scores(small[1])
    np.testing.assert_array_equal(loaded.predict_scores(small[1]), scores)
    np.testing.assert_array_equal(
        loaded.zero_shot_scores(small[1]), fitted.zero_shot_scores(small[1])
    )
    assert loaded.n_trainable_params == 3 * 24 + 2 * 24 * 6
    fitted.export("classifier", tmp_path / "out")
    names = {"np": np, "a": load_file(tmp_path / "out" / "classifier.safetensors")}
    names["x"] = models("clip").encode(small[1], "image")
    exec(cross_modal.FORMULA, names)
    np.testing.assert_allclose(names["scores"], scores, atol=1e-3)


def test_wrong_settings_are_refused(models, small, tmp_path):
    with pytest.raises(ConfigError, match="half of each batch are prompts"):
        fit(models, small, tmp_path, batch_size=1)
    with pytest.raises(ConfigError, match=r"method\.reduction is 48"):
        fit(models, small, tmp_path, head="adapter", reduction=48)
    with pytest.raises(ConfigError, match="warmup_steps=50"):
        fit(models, small, tmp_path, warmup_steps=50)


@pytest.mark.parametrize(("text", "views", "steps"), [(True, 0, 12), (True, 1, 24), (False, 1, 12)])
def test_the_warm_up_is_compared_with_the_steps_of_the_images(
    text, views, steps, models, small, tmp_path
):
    """Half a batch are images, and the crops belong to the epoch: 12 images, batches of 4, 2 epochs."""
    more = {"steps": None, "epochs": 2, "text": text, "views": views}

    _, seen, _ = fit(models, small, tmp_path / "a", warmup_steps=steps, **more)

    assert len(seen["loss"]) == steps
    with pytest.raises(ConfigError, match=rf"warmup_steps=\d+ is more than the {steps} training"):
        fit(models, small, tmp_path / "b", warmup_steps=steps + 1, **more)


def test_the_warm_up_is_compared_with_the_longest_batch_of_the_search(small):
    """With 12 images and 3 prompts, batches of 6 are left out of the search: the fewest steps are those of 5."""
    more = {"steps": None, "epochs": 2, "search": True, "batch_size_grid": (2, 5, 6)}
    settings = SETTINGS | more | {"batch_size": 64}
    without_val = Task(small[0].classnames, small[0].templates, small[0].train, None)

    CrossModalConfig(**settings | {"warmup_steps": 8}).check(small[0])
    with pytest.raises(ConfigError, match="more than the 8 training steps"):
        CrossModalConfig(**settings | {"warmup_steps": 9}).check(small[0])
    with pytest.raises(ConfigError, match="more than the 2 training steps"):
        CrossModalConfig(**settings | {"warmup_steps": 8}).check(without_val)
