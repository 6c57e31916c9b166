"""``clip/clap`` against the official code: multipliers, constraint, gradient and trainings, through ``fit`` itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clipadapt.core.api.data import Task
from clipadapt.methods.clap import CLAP, CLAPConfig
from tests.reference import tinyclip
from tests.reference.parity import fixture

DATA = fixture("clap")
GIVEN = DATA.spec["hyperparameters"]
NAMES = tuple(DATA.spec["classnames"])  # their underscores stay
TEMPLATES = (DATA.spec["template"],)
N = len(DATA.inputs["train_labels"])
VARIANTS = [name.removesuffix(".grad") for name in DATA.expected if name.endswith(".grad")]
SETTINGS = {name: GIVEN[name] for name in ("lr", "momentum", "weight_decay")} | {"views": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tinyclip.load(tinyclip.write_folder(tmp_path_factory.mktemp("clip")))


def split(part: str):
    return tinyclip.split_of(DATA.inputs[f"{part}_images"], DATA.inputs[f"{part}_labels"], NAMES)


def fit(model, folder, variant: str, start: Any, **more: Any):
    seen = tinyclip.Seen()
    method = CLAP(CLAPConfig(**SETTINGS, constraint=variant, **more))
    context = tinyclip.context(folder, start=start, observe=seen)
    return method.fit(model, Task(NAMES, TEMPLATES, split("train")), context), seen.values


def test_features_and_zero_shot_logits(model, tmp_path):
    for part in ("train", "test"):
        found = model.encode(split(part).inputs, "image", "projected")
        DATA.assert_close(f"{part}_features", found)

    fitted, seen = fit(model, tmp_path, "none", {}, epochs=0)

    DATA.assert_close("base_text_features", seen["base"][0])
    inputs = split("train").inputs
    DATA.assert_close("zero_shot_logits_train", fitted.zero_shot_scores(inputs))
    DATA.assert_close("zero_shot_logits_train", fitted.predict_scores(inputs))


@pytest.mark.parametrize("variant", VARIANTS)
def test_constraint_loss_and_gradient_of_given_prototypes(variant, model, tmp_path):
    start = {"prototypes": DATA.inputs["perturbed_prototypes"]}

    # The learning rate of the first epoch is 1e-5; the values are observed before the step.
    _, seen = fit(model, tmp_path / "a", variant, start, epochs=1, batch_size=N)
    fitted, _ = fit(model, tmp_path / "b", variant, start, epochs=0)

    DATA.assert_close("logits", fitted.predict_scores(split("train").inputs))
    constraint = seen["constraint"][0].item() if variant != "none" else 0.0
    DATA.assert_close(f"{variant}.constraint", np.float64(constraint))
    DATA.assert_close(f"{variant}.loss", np.float64(seen["loss"][0]))
    DATA.assert_close("loss_ce", np.float64(seen["loss"][0] - constraint))
    DATA.assert_close(f"{variant}.grad", seen["grad"][0]["prototypes"])
    if variant != "none":
        DATA.assert_close(f"{variant}.alpha", seen["alpha"][0])
    after = f"{variant}.alpha_after_outer_step_at_perturbed"
    assert (after in DATA.expected) == (len(seen["alpha"]) == 2)
    if after in DATA.expected:
        DATA.assert_close(after, seen["alpha"][1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training(variant, model, tmp_path):
    settings = {"epochs": GIVEN["max_epoch"], "batch_size": N // 2}

    fitted, seen = fit(model, tmp_path, variant, {}, **settings)

    DATA.assert_close(f"{variant}.traj.lr_per_step64", np.array(seen["lr"]))
    DATA.assert_close(f"{variant}.traj.loss_per_step", np.array(seen["loss"]))
    DATA.assert_close(f"{variant}.traj.prototypes_final", seen["prototypes"][0])
    scores = fitted.predict_scores(split("test").inputs)
    DATA.assert_close(f"{variant}.traj.test_logits_final", scores)
    assert fitted.n_trainable_params == DATA.inputs["perturbed_prototypes"].size


def test_the_defaults_are_the_papers():
    default = CLAPConfig()

    assert (default.constraint, default.lr, default.weight_decay) == ("l2", 0.1, 0.0)
    assert (default.epochs, default.batch_size, default.views) == (300, 256, 20)
    assert (default.schedule, default.warmup_epochs, default.warmup_lr) == ("dassl", 1, 1e-5)
    assert (default.smallest_crop, default.keep) == (0.08, "last")


def test_every_expected_tensor_was_compared():
    DATA.assert_complete()
