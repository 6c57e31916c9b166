"""``clip/taskres`` against the official code: logits, loss, gradient and a whole training, through ``fit`` itself."""

from __future__ import annotations

import re

import numpy as np
import pytest

from clipadapt.core.api.data import Task
from clipadapt.methods.taskres import TaskRes, TaskResConfig
from tests.reference import tinyclip
from tests.reference.parity import fixture

DATA = fixture("taskres")
GIVEN = DATA.spec["hyperparameters"]
NAMES = tuple(DATA.spec["classnames"])  # their underscores stay
TEMPLATES = (DATA.spec["template"],)
SIZE = len(DATA.expected["logits"])
OPTIMIZER = GIVEN["optimizer"]
SETTINGS = {
    "alpha": GIVEN["alpha"],
    "lr": float(re.search(r"lr ([\d.e-]+)", OPTIMIZER)[1]),
    "weight_decay": float(re.search(r"weight_decay ([\d.e-]+)", OPTIMIZER)[1]),
    "batch_size": SIZE,
    "augment": "none",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tinyclip.load(tinyclip.write_folder(tmp_path_factory.mktemp("clip")))


def fit(model, folder, images: int, start, **more):
    seen = tinyclip.Seen()
    split = tinyclip.split_of(DATA.inputs["images"][:images], DATA.inputs["labels"][:images], NAMES)
    context = tinyclip.context(folder, start=start, observe=seen)
    method = TaskRes(TaskResConfig(**SETTINGS | more))
    return method.fit(model, Task(NAMES, TEMPLATES, split), context), seen.values, split


def test_logits_loss_and_gradient_of_given_residuals(model, tmp_path):
    start = {"residuals": DATA.inputs["residuals"]}

    # The learning rate of the first epoch is 1e-5; the values are observed before the step.
    _, seen, split = fit(model, tmp_path / "a", SIZE, start, epochs=1)
    fitted, _, _ = fit(model, tmp_path / "b", SIZE, start, epochs=0)

    DATA.assert_close("base_text_features", seen["base"][0])
    DATA.assert_close("logits", fitted.predict_scores(split.inputs))
    DATA.assert_close("loss", np.float64(seen["loss"][0]))
    DATA.assert_close("grad_residuals", seen["grad"][0]["residuals"])


def test_a_training(model, tmp_path):
    images = len(DATA.inputs["images"])

    fitted, seen, split = fit(model, tmp_path, images, {}, epochs=GIVEN["max_epoch"])

    DATA.assert_close("traj.lr_per_step64", np.array(seen["lr"]))
    DATA.assert_close("traj.loss_per_step", np.array(seen["loss"]))
    DATA.assert_close("traj.residuals_final", seen["residuals"][0])
    final = seen["base"][0] + GIVEN["alpha"] * seen["residuals"][0].numpy()
    unit = final / np.linalg.norm(final, axis=1, keepdims=True)
    np.testing.assert_allclose(fitted.weights, unit, atol=1e-6)
    assert fitted.n_trainable_params == DATA.inputs["residuals"].size
    zero_shot = fitted.zero_shot_scores(split.inputs)
    assert np.abs(zero_shot - fitted.predict_scores(split.inputs)).max() > 0.01


def test_the_defaults_are_the_papers():
    default = TaskResConfig()

    assert (default.optimizer, default.lr, default.weight_decay) == ("adam", 2e-3, 5e-4)
    assert (default.alpha, default.batch_size, default.epochs) == (0.5, 256, 200)
    assert (default.schedule, default.warmup_epochs, default.warmup_lr) == ("dassl", 1, 1e-5)
    assert (default.augment, default.smallest_crop) == ("crop_flip", 0.08)


def test_every_expected_tensor_was_compared():
    DATA.assert_complete()
