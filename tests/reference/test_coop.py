"""``clip/coop`` against the official code: features, loss, gradient and whole trainings, through ``fit`` itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clipadapt.core.api.data import Task
from clipadapt.methods.coop import CoOp, CoOpConfig
from tests.reference import tinyclip
from tests.reference.parity import fixture

DATA = fixture("coop")
NAMES = tuple(DATA.spec["classnames"])
SIZE = DATA.spec["hyperparameters"]["batch_size"]
TEMPLATES = ("a photo of a {}.",)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tinyclip.load(tinyclip.write_folder(tmp_path_factory.mktemp("clip")))


def config(spec: dict[str, Any], **more: Any) -> CoOpConfig:
    """Return the method's settings for a variant or trajectory of the fixture."""
    names = ("class_token_position", "CSC", "n_ctx")
    settings = {k: spec[k] for k in names} | {"batch_size": SIZE, "augment": "none"}
    if spec.get("ctx_init"):
        settings["ctx_init"] = spec["ctx_init"]
    return CoOpConfig(**settings, **more)


@pytest.mark.parametrize("name", DATA.spec["variants"])
def test_forward_loss_and_gradient(name, model, tmp_path):
    seen = tinyclip.Seen()
    split = tinyclip.split_of(DATA.inputs["images"][:SIZE], DATA.inputs["labels"][:SIZE], NAMES)
    spec = DATA.spec["variants"][name]
    given = DATA.inputs[f"{name}.ctx"]
    # With ctx_init the method computes the vectors itself.
    start = {} if spec["ctx_init"] else {"ctx": given}
    context = tinyclip.context(tmp_path, start=start, observe=seen)

    # The learning rate of the first epoch is 1e-5; the values are observed before the step.
    CoOp(config(spec, epochs=1)).fit(model, Task(NAMES, TEMPLATES, split), context)
    fitted = CoOp(config(spec, epochs=0)).fit(
        model, Task(NAMES, TEMPLATES, split), tinyclip.context(tmp_path, start=start)
    )

    np.testing.assert_array_equal(fitted.context, given)
    features = DATA.expected[f"{name}.text_features"]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(fitted.weights, unit, atol=1e-5)
    DATA.assert_close(f"{name}.logits", fitted.predict_scores(split.inputs))
    DATA.assert_close(f"{name}.loss", np.float64(seen.values["loss"][0]))
    DATA.assert_close(f"{name}.grad_ctx", seen.values["grad"][0]["ctx"])


@pytest.mark.parametrize("name", DATA.spec["trajectories"])
@pytest.mark.parametrize("chunk", [None, 3])
def test_a_training(name, chunk, model, tmp_path):
    seen = tinyclip.Seen()
    spec = DATA.spec["trajectories"][name]
    split = tinyclip.split_of(DATA.inputs["images"], DATA.inputs["labels"], NAMES)
    start = {"ctx": DATA.inputs[f"{name}.ctx_init"]}
    given = {
        "lr": spec["lr"],
        "momentum": spec["momentum"],
        "weight_decay": spec["weight_decay"],
        "warmup_epochs": spec["warmup_epoch"],
        "warmup_lr": spec["warmup_cons_lr"],
        "epochs": spec["max_epoch"],
        "class_chunk": chunk,
    }

    fitted = CoOp(config(spec, **given)).fit(
        model,
        Task(NAMES, TEMPLATES, split),
        tinyclip.context(tmp_path, start=start, observe=seen),
    )

    DATA.assert_close(f"{name}.lr_per_step64", np.array(seen.values["lr"]))
    DATA.assert_close(f"{name}.loss_per_step", np.array(seen.values["loss"]))
    DATA.assert_close(f"{name}.ctx_final", fitted.context)
    DATA.assert_close(f"{name}.logits_final", fitted.predict_scores(split.inputs))
    assert fitted.n_trainable_params == start["ctx"].size


def test_the_defaults_are_the_papers():
    default, spec = CoOpConfig(), DATA.spec["trajectories"]["traj_config"]

    assert (default.lr, default.momentum, default.weight_decay) == (0.002, 0.9, 5e-4)
    assert default.warmup_lr == spec["warmup_cons_lr"]
    assert (default.n_ctx, default.epochs, default.batch_size) == (16, 200, 32)
    assert default.augment == "crop_flip"
    assert default.smallest_crop == 0.08
