"""``clip/prograd`` against the official code: both losses and gradients, the projection, and whole trainings."""

from __future__ import annotations

import numpy as np
import pytest

from clipadapt.core.api.data import Task
from clipadapt.methods.prograd import ProGrad, ProGradConfig
from tests.reference import tinyclip
from tests.reference.parity import fixture

DATA = fixture("prograd")
NAMES = tuple(n.replace("_", " ") for n in DATA.spec["classnames"])
TEMPLATES = (DATA.spec["zero_shot_template"],)
VARIANTS = DATA.spec["variants"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tinyclip.load(tinyclip.write_folder(tmp_path_factory.mktemp("clip")))


def fit(model, folder, name: str, images: int | None = None, **more):
    seen = tinyclip.Seen()
    spec = VARIANTS[name]
    assert not spec["ctx_init"]
    split = tinyclip.split_of(DATA.inputs["images"][:images], DATA.inputs["labels"][:images], NAMES)
    names = ("n_ctx", "CSC", "class_token_position", "lr", "LAMBDA", "T", "batch_size")
    settings = {k: spec[k] for k in names}
    settings |= {"epochs": spec["max_epoch"], "template_init": False, "augment": "none"}
    start = {"ctx": DATA.inputs[f"{name}.ctx_init"]}
    context = tinyclip.context(folder, start=start, observe=seen)
    method = ProGrad(ProGradConfig(**settings | more))
    return method.fit(model, Task(NAMES, TEMPLATES, split), context), seen.values, split


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_and_gradients(name, model, tmp_path):
    _, seen, _ = fit(model, tmp_path, name)
    untrained, _, split = fit(model, tmp_path, name, epochs=0)

    size = VARIANTS[name]["batch_size"]
    tokens = model.tokenize([f"{' '.join(['X'] * VARIANTS[name]['n_ctx'])} {n}." for n in NAMES])
    DATA.assert_close(f"{name}.tokenized_prompts", tokens)
    DATA.assert_close("zero_shot_logits", untrained.zero_shot_scores(split.inputs))
    DATA.assert_close(
        f"{name}.logits", untrained.predict_scores(split.inputs.take(np.arange(size)))
    )
    DATA.assert_close(f"{name}.xe_loss", np.float64(seen["loss"][0]))
    DATA.assert_close(f"{name}.kl_loss", seen["loss_kl"][0])
    DATA.assert_close(f"{name}.grad_xe", seen["grad_ce"][0])
    DATA.assert_close(f"{name}.grad_kl", seen["grad_kl"][0])


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_training(name, chunk, model, tmp_path):
    fitted, seen, split = fit(model, tmp_path, name, class_chunk=chunk)

    opposed = [
        bool((a * b).sum() < 0) for a, b in zip(seen["grad_ce"], seen["grad_kl"], strict=True)
    ]
    first = opposed.index(True)
    DATA.assert_close(f"{name}.traj.first_projected_step", first)
    DATA.assert_close(f"{name}.traj.grad_first_projected_step", seen["grad"][first]["ctx"])
    DATA.assert_close(f"{name}.traj.lr_per_step64", np.array(seen["lr"]))
    DATA.assert_close(f"{name}.traj.xe_loss_per_step", np.array(seen["loss"]))
    DATA.assert_close(f"{name}.traj.kl_loss_per_step", np.array(seen["loss_kl"]))
    DATA.assert_close(f"{name}.traj.ctx_final", fitted.context)
    DATA.assert_close(f"{name}.traj.logits_final", fitted.predict_scores(split.inputs))


def test_the_defaults_are_the_papers():
    default = ProGradConfig()

    assert (default.LAMBDA, default.T, default.n_ctx, default.template_init) == (1, 1, 16, True)
    assert (default.lr, default.epochs, default.batch_size) == (0.002, 200, 32)


def test_every_expected_tensor_is_compared():
    DATA.assert_complete()
