"""``clip/cocoop`` against the official code: meta-net, logits, gradients and a whole training."""

from __future__ import annotations

import numpy as np
import pytest

from clipadapt.core.api.data import Task
from clipadapt.methods._images import tensor
from clipadapt.methods.cocoop import SHAPES, CoCoOp, CoCoOpConfig, meta_net
from tests.reference import tinyclip
from tests.reference.parity import fixture

DATA = fixture("cocoop")
GIVEN = DATA.spec["trajectory"]
NAMES = tuple(n.replace("_", " ") for n in DATA.spec["classnames"])
IMAGES, LABELS = DATA.inputs["images"], DATA.inputs["labels"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tinyclip.load(tinyclip.write_folder(tmp_path_factory.mktemp("clip")))


def fit(model, folder, images: int, start: str, **settings):
    seen = tinyclip.Seen()
    split = tinyclip.split_of(IMAGES[:images], LABELS[:images], NAMES)
    given = {name: DATA.inputs[f"{start}.{name}"] for name in SHAPES}
    context = tinyclip.context(folder, start=given, observe=seen)
    method = CoCoOp(CoCoOpConfig(augment="none", **settings))
    return method.fit(model, Task(NAMES, ("{}",), split), context), seen.values, split


@pytest.mark.parametrize("name", DATA.spec["variants"])
def test_logits_loss_and_gradients(name, model, tmp_path):
    spec = DATA.spec["variants"][name]
    size = len(DATA.expected[f"{name}.logits"])
    settings = {"n_ctx": spec["n_ctx"], "ctx_init": spec["ctx_init"] or None, "batch_size": size}

    _, seen, _ = fit(model, tmp_path, size, name, epochs=1, **settings)
    fitted, _, split = fit(model, tmp_path, size, name, epochs=0, **settings)

    own = {n: tensor(a) for n, a in fitted.parameters.items()}
    features = tensor(model.encode(split.inputs, "image"))
    DATA.assert_close(f"{name}.meta_net_output", meta_net(own, features))
    DATA.assert_close(f"{name}.logits", fitted.predict_scores(split.inputs))
    DATA.assert_close(f"{name}.loss", np.float64(seen["loss"][0]))
    for parameter, gradient in seen["grad"][0].items():
        DATA.assert_close(f"{name}.grad_{parameter}", gradient)


@pytest.mark.parametrize("chunk", [None, 3])
def test_a_training(chunk, model, tmp_path):
    settings = {
        "lr": GIVEN["lr"],
        "epochs": GIVEN["max_epoch"],
        "batch_size": GIVEN["batch_size"],
        "warmup_epochs": GIVEN["warmup_epoch"],
        "warmup_lr": GIVEN["warmup_cons_lr"],
        "class_chunk": chunk,
    }
    n = GIVEN["batches_per_epoch"] * GIVEN["batch_size"]

    fitted, seen, _ = fit(model, tmp_path, n, "traj.init", **settings)

    DATA.assert_close("traj.lr_per_step64", np.array(seen["lr"]))
    DATA.assert_close("traj.loss_per_step", np.array(seen["loss"]))
    for parameter, value in fitted.parameters.items():
        DATA.assert_close(f"traj.final.{parameter}", value)
    whole = tinyclip.split_of(IMAGES, LABELS, NAMES)
    DATA.assert_close("traj.logits_final", fitted.predict_scores(whole.inputs))


def test_ctx_init_sets_the_context(model, tmp_path):
    split = tinyclip.split_of(IMAGES[:1], LABELS[:1], NAMES)
    method = CoCoOp(CoCoOpConfig(epochs=0))

    fitted = method.fit(model, Task(NAMES, ("{}",), split), tinyclip.context(tmp_path))

    np.testing.assert_array_equal(fitted.parameters["ctx"], DATA.inputs["traj.init.ctx"])


def test_the_defaults_are_the_papers():
    default = CoCoOpConfig()

    assert (default.lr, default.epochs, default.batch_size) == (0.002, 10, 1)
    assert (default.ctx_init, default.momentum, default.weight_decay) == ("a photo of a", 0.9, 5e-4)


def test_every_expected_tensor_is_compared():
    DATA.assert_complete()
