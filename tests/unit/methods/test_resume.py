"""An interrupted fit resumes bit-identically; checkpoints of other fits and damaged ones are ignored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from clipadapt.core.api.data import Split, Task
from clipadapt.core.files import pacing
from clipadapt.methods import _training
from clipadapt.methods._training import Objective, TrainingConfig
from tests.unit.methods.conftest import Seen, arrays_of, context, method

EPOCHS, SIZE = 2, 5  # 12 images: two full batches and a smaller one
BASE = {"epochs": EPOCHS, "batch_size": SIZE, "augment": "none"}
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "coop": ("coop", "clip", {"n_ctx": 3, "drop_last": False, "lr": 0.1, "warmup_epochs": 0}),
    "cocoop": ("cocoop", "clip", {"drop_last": False, "lr": 0.1, "warmup_epochs": 0}),
    "kgcoop": ("kgcoop", "clip", {"drop_last": False, "lr": 0.1, "warmup_epochs": 0}),
    "taskres": ("taskres", "hf", {"drop_last": False, "warmup_epochs": 0}),
    "ape_t": ("ape_t", "clip", {"views": 0, "beta_steps": 3, "alpha_steps": 3}),
    "ivlp": ("ivlp", "clip", {"depth_text": 2, "depth_vision": 2, "drop_last": False}),
    "prograd": ("prograd", "clip", {"n_ctx": 6, "drop_last": False, "lr": 0.1, "warmup_epochs": 0}),
    "lora": ("lora", "clip", {"steps_per_shot": None, "lora_dropout": 0.5, "lr": 0.02}),
    "lora-dora": (
        "lora",
        "hf",
        {"steps_per_shot": None, "encoder": "image", "roles": ["pointwise"], "use_dora": True},
    ),
    "full_finetune": ("full_finetune", "clip", {"lr": 1e-3, "warmup_steps": 2, "keep": "best"}),
    "tip_adapter_f": (
        "tip_adapter_f",
        "siglip",
        {"lr": 0.05, "views": 1, "beta_steps": 3, "alpha_steps": 3},
    ),
    "clap": ("clap", "clip", {"constraint": "l2_adaptative", "views": 0, "drop_last": False}),
    "lp_plus_plus": ("lp_plus_plus", "clip", {"views": 0, "alpha_every": 1}),
    "prolip": ("prolip", "hf", {"views": 2, "lr": 1e-3}),
    "cross_modal": (
        "cross_modal",
        "clip",
        {"batch_size": 10, "steps": 6, "warmup_steps": 2, "views": 0, "search": False, "every": 2}
        | {"drop_last": False, "head": "adapter"},
    ),
    "maple": ("maple", "clip", {"depth": 2, "drop_last": False, "warmup_epochs": 0}),
    "promptsrc": (
        "promptsrc",
        "siglip",
        {"depth_text": 2, "depth_vision": 2, "gpa_mean": 1, "drop_last": False},
    ),
    "clip_adapter": ("clip_adapter", "custom", {"drop_last": False, "augment": "crop_flip"}),
}


pytestmark = pytest.mark.usefixtures("every_checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize("case", METHODS)
def test_fit_killed_at_any_step_resumes_bit_identically(case, models, small, tmp_path):
    name, family, settings = METHODS[case]
    learner, backbone = method(name, **BASE | settings), models(family)
    task, inputs = small
    whole = context(tmp_path / "whole", observe=Seen())
    expected = learner.fit(backbone, task, whole)
    steps = len(whole.observe.values["lr"])
    assert steps == 6
    points = [("lr", k) for k in range(steps)] + [("grad", steps - 1), ("epoch", 0)]

    for point, k in points:
        work = tmp_path / f"{point}{k}"
        with pytest.raises(KeyboardInterrupt):
            learner.fit(backbone, task, context(work, observe=Seen(point, k)))
        again = context(work, observe=Seen())
        got = learner.fit(backbone, task, again)

        taken = steps // EPOCHS if point == "epoch" else k
        assert len(again.observe.values["lr"]) == steps - taken
        assert again.history == whole.history
        assert got.selection == expected.selection
        wanted, found = arrays_of(expected, tmp_path / "w"), arrays_of(got, work / "saved")
        assert wanted.keys() == found.keys()
        for key in wanted:
            np.testing.assert_array_equal(found[key], wanted[key], err_msg=f"{point} {k} {key}")
        np.testing.assert_array_equal(got.predict_scores(inputs), expected.predict_scores(inputs))


def test_fit_killed_twice_resumes_bit_identically(models, small, tmp_path):
    name, family, settings = METHODS["lora"]
    learner, (task, inputs) = method(name, **BASE | settings), small
    expected = learner.fit(models(family), task, context(tmp_path / "whole"))

    for after in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            learner.fit(models(family), task, context(tmp_path / "w", observe=Seen("lr", after)))
    last = context(tmp_path / "w", observe=Seen())
    got = learner.fit(models(family), task, last)

    assert len(last.observe.values["lr"]) == 1
    np.testing.assert_array_equal(got.predict_scores(inputs), expected.predict_scores(inputs))


def test_checkpoints_respect_the_minimum_interval(models, small, tmp_path, monkeypatch):
    monkeypatch.setattr(pacing, "SECONDS", 3600.0)

    method("coop", **BASE, n_ctx=2).fit(models("clip"), small[0], context(tmp_path / "work"))

    assert not (tmp_path / "work").exists()


# ---------------------------------------------------------------- other checkpoints


def toy(folder, *, seed=1, after=None, start=0.0, key="", **settings) -> tuple[float, int]:
    """Fit two numbers with noise; return their sum and the number of steps."""
    p = torch.full((2,), start, requires_grad=True)
    seen = Seen() if after is None else Seen("lr", after)
    ctx = context(folder, seed, observe=seen)
    given = {"lr": 0.1, "schedule": "constant", "epochs": 2, "batch_size": 2} | settings
    loss = Objective("toy", {"p": p}, lambda rows, _: ((p - torch.rand(2)) ** 2).sum(), 6, key=key)
    try:
        _training.train(loss, TrainingConfig(optimizer="adamw", **given), ctx)
    except KeyboardInterrupt:
        assert after is not None
    return p.sum().item(), len(seen.values["lr"])


@pytest.mark.parametrize(
    "other",
    [{"seed": 2}, {"lr": 0.2}, {"epochs": 3}, {"keep": "best"}, {"start": 1.0}, {"key": "other data"}],
)  # fmt: skip
def test_checkpoint_of_another_fit_is_ignored(other, tmp_path):
    expected, steps = toy(tmp_path / "fresh", **other)
    toy(tmp_path / "w", after=4)

    assert toy(tmp_path / "w", **other) == (expected, steps)


def damage(kind: str, raw: bytes) -> bytes:
    flipped = bytearray(raw)
    if kind == "a byte of the tensors":
        flipped[-3] ^= 1
    elif kind == "a byte of the header":
        flipped[raw.index(b"losses") + 1] ^= 1
    return {
        "truncated": raw[: len(raw) // 2],
        "empty": b"",
        "text": b"this is no checkpoint at all",
        "zeros": bytes(len(raw)),
    }.get(kind, bytes(flipped))


@pytest.mark.parametrize(
    "kind",
    ["truncated", "empty", "text", "zeros", "a byte of the tensors", "a byte of the header"],
)
def test_damaged_checkpoint_is_ignored(kind, tmp_path):
    expected = toy(tmp_path / "fresh")
    toy(tmp_path / "w", after=4)
    (path,) = (tmp_path / "w").iterdir()
    path.write_bytes(damage(kind, path.read_bytes()))

    assert toy(tmp_path / "w") == expected


def test_valid_checkpoint_is_used(tmp_path):
    expected, steps = toy(tmp_path / "fresh")
    toy(tmp_path / "w", after=4)

    assert toy(tmp_path / "w") == (expected, steps - 4)


@pytest.mark.parametrize("what", ["labels", "images", "val", "model"])
def test_checkpoint_of_other_data_or_another_model_is_ignored(what, models, small, tmp_path):
    settings = {"n_ctx": 2, "lr": 0.1, "keep": "best", "warmup_epochs": 0, "drop_last": False}
    learner, task = method("coop", **BASE | settings), small[0]
    train, val = task.train, task.val
    order = np.roll(np.arange(len(train)), 1)
    other = {
        "labels": Task(task.classnames, task.templates, train_of(train, labels=train.labels[order]), val),
        "images": Task(task.classnames, task.templates, train_of(train, inputs=train.inputs.take(order)), val),
        "val": Task(task.classnames, task.templates, train, train_of(val, labels=val.labels[order])),
        "model": task,
    }[what]  # fmt: skip
    backbone = models("custom" if what == "model" else "clip")
    expected = learner.fit(backbone, other, context(tmp_path / "fresh"))
    with pytest.raises(KeyboardInterrupt):
        learner.fit(models("clip"), task, context(tmp_path / "w", observe=Seen("lr", 5)))

    again = context(tmp_path / "w", observe=Seen())
    got = learner.fit(backbone, other, again)

    assert len(again.observe.values["lr"]) == 6
    np.testing.assert_array_equal(got.context, expected.context)


def train_of(split: Split[Any], **given: Any) -> Split[Any]:
    return Split(
        given.get("inputs", split.inputs), given.get("labels", split.labels), split.classnames
    )
