"""``clip/kgcoop`` against the official code: loss, gradient and a whole training, through ``fit`` itself."""

from __future__ import annotations

import numpy as np
import pytest

from clipadapt.core.api.data import Task
from clipadapt.methods.kgcoop import KgCoOp, KgCoOpConfig
from tests.reference import tinyclip
from tests.reference.parity import fixture

DATA = fixture("kgcoop")
GIVEN = DATA.spec["hyperparameters"]
NAMES = tuple(n.replace("_", " ") for n in DATA.spec["classnames"])
TEMPLATES = (DATA.spec["template"],)
SIZE = GIVEN["batch_size"]
SETTINGS = {
    "W": GIVEN["W"],
    "n_ctx": GIVEN["n_ctx"],
    "ctx_init": GIVEN["ctx_init"],
    "class_token_position": GIVEN["class_token_position"],
    "lr": GIVEN["lr"],
    "batch_size": SIZE,
    "augment": "none",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tinyclip.load(tinyclip.write_folder(tmp_path_factory.mktemp("clip")))


def fit(model, folder, images: int | None, start, **more):
    seen = tinyclip.Seen()
    split = tinyclip.split_of(DATA.inputs["images"][:images], DATA.inputs["labels"][:images], NAMES)
    context = tinyclip.context(folder, start=start, observe=seen)
    method = KgCoOp(KgCoOpConfig(**SETTINGS | more))
    return method.fit(model, Task(NAMES, TEMPLATES, split), context), seen.values, split


def test_loss_and_gradient(model, tmp_path):
    start = {"ctx": DATA.inputs["ctx"]}

    _, seen, _ = fit(model, tmp_path, SIZE, start, epochs=1)
    fitted, _, split = fit(model, tmp_path, SIZE, start, epochs=0)

    DATA.assert_close("reference_text_features", fitted.start)
    DATA.assert_close("logits", fitted.predict_scores(split.inputs))
    DATA.assert_close("score", seen["distance"][0])
    DATA.assert_close("loss_ce", seen["loss_ce"][0])
    DATA.assert_close("loss", np.float64(seen["loss"][0]))
    DATA.assert_close("grad_ctx", seen["grad"][0]["ctx"])


@pytest.mark.parametrize("chunk", [None, 3])
def test_a_training(chunk, model, tmp_path):
    untrained, _, _ = fit(model, tmp_path, None, {}, epochs=0)

    fitted, seen, _ = fit(model, tmp_path, None, {}, epochs=GIVEN["max_epoch"], class_chunk=chunk)

    np.testing.assert_array_equal(untrained.context, DATA.inputs["traj.ctx_init"])
    DATA.assert_close("traj.lr_per_step64", np.array(seen["lr"]))
    DATA.assert_close("traj.loss_per_step", np.array(seen["loss"]))
    DATA.assert_close("traj.ctx_final", fitted.context)


def test_the_defaults_are_the_papers():
    default = KgCoOpConfig()

    assert (default.W, default.ctx_init) == (GIVEN["W"], GIVEN["ctx_init"])
    assert (default.lr, default.epochs, default.batch_size) == (0.002, 100, 128)


def test_every_expected_tensor_is_compared():
    DATA.assert_complete()
