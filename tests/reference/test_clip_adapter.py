"""``clip/clip_adapter`` against the official code: logits, loss, gradients and a training, through ``fit`` itself."""

from __future__ import annotations

import numpy as np
import pytest

from clipadapt.core.api.data import Task
from clipadapt.methods.clip_adapter import CLIPAdapter, CLIPAdapterConfig
from tests.reference import tinyclip
from tests.reference.parity import fixture

DATA = fixture("clip_adapter")
NAMES = tuple(n.replace("_", " ") for n in DATA.spec["classnames"])
TEMPLATES = (DATA.spec["template"],)
GIVEN = DATA.spec["hyperparameters"]
START = {n: DATA.inputs[f"init.{n}"] for n in ("fc.0.weight", "fc.2.weight")}
SIZE = len(DATA.expected["logits"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tinyclip.load(tinyclip.write_folder(tmp_path_factory.mktemp("clip")))


def config(epochs: int) -> CLIPAdapterConfig:
    return CLIPAdapterConfig(
        ratio=GIVEN["ratio"],
        reduction=GIVEN["reduction"],
        lr=GIVEN["lr"],
        batch_size=SIZE,
        epochs=epochs,
        augment="none",
    )


def fit(model, folder, epochs, rows, **context):
    split = tinyclip.split_of(DATA.inputs["images"][:rows], DATA.inputs["labels"][:rows], NAMES)
    seen = tinyclip.Seen()
    ctx = tinyclip.context(folder, start=START, observe=seen, **context)
    fitted = CLIPAdapter(config(epochs)).fit(model, Task(NAMES, TEMPLATES, split), ctx)
    return fitted, seen.values, split


def test_forward_loss_and_gradients(model, tmp_path):
    fitted, _, split = fit(model, tmp_path, 0, SIZE)
    _, seen, _ = fit(model, tmp_path, 1, SIZE)

    DATA.assert_close("logits", fitted.predict_scores(split.inputs))
    DATA.assert_close("loss", np.float64(seen["loss"][0]))
    for name in START:
        DATA.assert_close(f"grad.{name}", seen["grad"][0][name])


def test_a_training(model, tmp_path):
    fitted, seen, _ = fit(model, tmp_path, GIVEN["max_epoch"], len(DATA.inputs["images"]))

    DATA.assert_close("traj.lr_per_step64", np.array(seen["lr"]))
    DATA.assert_close("traj.loss_per_step", np.array(seen["loss"]))
    DATA.assert_close("traj.final.fc.0.weight", fitted.down)
    DATA.assert_close("traj.final.fc.2.weight", fitted.up)
    assert fitted.n_trainable_params == sum(w.size for w in START.values())


def test_the_defaults_are_the_papers():
    default = CLIPAdapterConfig()

    assert (default.ratio, default.reduction) == (GIVEN["ratio"], GIVEN["reduction"])
    assert (default.momentum, default.weight_decay, default.batch_size) == (0.9, 5e-4, 32)
