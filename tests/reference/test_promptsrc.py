"""``clip/promptsrc`` against the official code: losses, gradients, training and averaging, through ``fit`` itself."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch.nn.functional as F

from clipadapt.methods.promptsrc import PromptSRC, PromptSRCConfig
from tests.reference import deep, tinyclip
from tests.reference.parity import fixture

DATA = fixture("promptsrc")
GIVEN = DATA.spec["hyperparameters"]
PROMPTS = {n: v for n, v in deep.initial(DATA, "").items() if n != "fixed_text_features"}
START = PROMPTS | {"fixed_text_features": DATA.inputs["fixed_text_features"]}
N, SIZE = len(DATA.inputs["images"]), GIVEN["batch_size"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tinyclip.load(tinyclip.write_folder(tmp_path_factory.mktemp("clip")))


def method(**more) -> PromptSRC:
    """Return the method with the settings of the fixture."""
    settings = {
        "n_ctx_text": GIVEN["N_CTX_TEXT"],
        "n_ctx_vision": GIVEN["N_CTX_VISION"],
        "depth_text": GIVEN["PROMPT_DEPTH_TEXT"],
        "depth_vision": GIVEN["PROMPT_DEPTH_VISION"],
        "text_weight": GIVEN["TEXT_LOSS_WEIGHT"],
        "image_weight": GIVEN["IMAGE_LOSS_WEIGHT"],
        "gpa_mean": GIVEN["GPA_MEAN"],
        "gpa_std": GIVEN["GPA_STD"],
        "lr": GIVEN["lr"],
        "momentum": float(re.search(r"momentum ([\d.e-]+)", GIVEN["optimizer"])[1]),
        "weight_decay": float(re.search(r"weight_decay ([\d.e-]+)", GIVEN["optimizer"])[1]),
        "warmup_lr": float(re.search(r"epoch ([\d.e-]+)", GIVEN["warmup"])[1]),
        "batch_size": SIZE,
        "augment": "none",
    }
    return PromptSRC(PromptSRCConfig(**settings | more))


@pytest.mark.parametrize("fast", [True, False])
def test_losses_and_gradients_at_the_start(fast, model, tmp_path):
    own = model.with_services(tinyclip.context(tmp_path).services)
    own.services.fast = fast
    # The learning rate of the first epoch is 1e-5; the values are observed before the step.
    _, first, _ = deep.fit(DATA, own, method(epochs=1), tmp_path / "a", START, SIZE)
    fitted, _, inputs = deep.fit(DATA, own, method(epochs=0), tmp_path / "b", START, SIZE)

    image, text = first["features"][0]
    frozen, teacher, ce, text_loss, image_loss, logit_loss = first["self_consistency"][0]
    DATA.assert_close("image_features", F.normalize(image, dim=-1))
    DATA.assert_close("text_features", F.normalize(text, dim=-1))
    DATA.assert_close("zero_shot_image_features", frozen)
    DATA.assert_close("zero_shot_logits", teacher)
    DATA.assert_close("logits", fitted.predict_scores(inputs))
    DATA.assert_close("loss_ce", ce)
    DATA.assert_close("loss_scl_text", text_loss)
    DATA.assert_close("loss_scl_image", image_loss)
    DATA.assert_close("loss_scl_logits", logit_loss)
    DATA.assert_close("loss", np.float64(first["loss"][0]))
    for name in PROMPTS:
        DATA.assert_close(f"grad.{name}", first["grad"][0][name])


def test_a_training_and_the_average_of_its_epochs(model, tmp_path):
    epochs = GIVEN["max_epoch"]

    fitted, seen, inputs = deep.fit(DATA, model, method(epochs=epochs), tmp_path, START, N)

    DATA.assert_close("traj.lr_per_step64", np.array(seen["lr"]))
    DATA.assert_close("traj.loss_per_step", np.array(seen["loss"]))
    DATA.assert_close("traj.gpa_weights64", seen["gpa_weights"][0])
    for name in PROMPTS:
        DATA.assert_close(f"traj.last_epoch.{name}", seen["last_epoch"][0][name])
        DATA.assert_close(f"traj.gpa.{name}", seen["parameters"][0][name])
    DATA.assert_close("traj.logits_gpa", fitted.predict_scores(inputs))
    assert fitted.n_trainable_params == sum(v.size for v in PROMPTS.values())


def test_the_defaults_are_the_papers():
    default = PromptSRCConfig()

    assert (default.optimizer, default.lr, default.momentum) == ("sgd", 2.5e-3, 0.9)
    assert (default.n_ctx_text, default.n_ctx_vision, default.ctx_init) == (4, 4, "a photo of a")
    assert (default.depth_text, default.depth_vision) == (9, 9)
    assert (default.text_weight, default.image_weight, default.logit_weight) == (25, 10, 1)
    assert (default.gpa_mean, default.gpa_std) == (15, 1)
    assert (default.epochs, default.batch_size, default.schedule) == (20, 4, "dassl")
    assert (default.augment, default.smallest_crop) == ("crop_flip", 0.08)


def test_every_expected_tensor_was_compared():
    DATA.assert_complete()
