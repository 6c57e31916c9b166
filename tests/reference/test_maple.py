"""``clip/maple`` against the official code: features, loss, gradients and a whole training, through ``fit`` itself."""

from __future__ import annotations

import numpy as np
import pytest

from clipadapt.methods.maple import MaPLe, MaPLeConfig
from tests.reference import deep, tinyclip
from tests.reference.parity import fixture

DATA = fixture("maple")
GIVEN = DATA.spec["hyperparameters"]
START = deep.initial(DATA, "init.")
N, SIZE = len(DATA.inputs["images"]), GIVEN["batch_size"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tinyclip.load(tinyclip.write_folder(tmp_path_factory.mktemp("clip")))


def method(**more) -> MaPLe:
    """Return the method with the settings of the fixture."""
    settings = {
        "n_ctx": GIVEN["N_CTX"],
        "depth": GIVEN["PROMPT_DEPTH"],
        "ctx_init": GIVEN["CTX_INIT"],
        "lr": GIVEN["lr"],
        "batch_size": SIZE,
        "augment": "none",
    }
    return MaPLe(MaPLeConfig(**settings | more))


def assert_close(prefix: str, values) -> None:
    """Compare every parameter; of matrices, the first rows and the norm are stored."""
    for name in START:
        value = values[name]
        if f"{prefix}.{name}" in DATA.expected:
            DATA.assert_close(f"{prefix}.{name}", value)
        else:
            rows = DATA.expected[f"{prefix}.{name}.rows8"]
            DATA.assert_close(f"{prefix}.{name}.rows8", value[: len(rows)])
            DATA.assert_close(f"{prefix}.{name}.norm", value.double().norm())


def test_features_loss_and_gradients_at_the_start(model, tmp_path):
    # The learning rate of the first epoch is 1e-5; the values are observed before the step.
    _, first, _ = deep.fit(DATA, model, method(epochs=1), tmp_path / "a", START, SIZE)
    all_of_them = method(epochs=1, batch_size=N)
    _, whole, _ = deep.fit(DATA, model, all_of_them, tmp_path / "b", START, N)
    fitted, _, inputs = deep.fit(DATA, model, method(epochs=0), tmp_path / "c", START, N)

    length = DATA.expected["tokenized_prompts"].shape[1]
    DATA.assert_close("tokenized_prompts", deep.whole_length(first["tokens"][0], length))
    image, text = whole["features"][0]
    DATA.assert_close("image_features", image)
    DATA.assert_close("text_features", text)
    for i, prompt in enumerate(fitted.vision):
        DATA.assert_close(f"vision_ctx{i}", prompt)
    DATA.assert_close("logits_init", fitted.predict_scores(inputs))
    DATA.assert_close("loss", np.float64(first["loss"][0]))
    assert_close("grad", first["grad"][0])


def test_the_prompt_of_the_first_block_starts_from_the_words(model, tmp_path):
    others = {n: v for n, v in START.items() if n != "ctx"}

    fitted, _, _ = deep.fit(DATA, model, method(epochs=0), tmp_path, others, N)

    np.testing.assert_array_equal(fitted.text[0], START["ctx"])


def test_a_training(model, tmp_path):
    epochs = GIVEN["max_epoch"]

    fitted, seen, inputs = deep.fit(DATA, model, method(epochs=epochs), tmp_path, START, N)

    DATA.assert_close("traj.lr_per_step64", np.array(seen["lr"]))
    DATA.assert_close("traj.loss_per_step", np.array(seen["loss"]))
    assert_close("traj.final", seen["parameters"][0])
    DATA.assert_close("traj.logits_final", fitted.predict_scores(inputs))
    assert fitted.n_trainable_params == sum(v.size for v in START.values())


def test_the_defaults_are_the_papers():
    default = MaPLeConfig()

    assert (default.optimizer, default.lr, default.momentum) == ("sgd", 3.5e-3, 0.9)
    assert (default.n_ctx, default.depth, default.ctx_init) == (2, 9, "a photo of a")
    assert (default.epochs, default.batch_size, default.schedule) == (5, 4, "dassl")
    assert (default.augment, default.smallest_crop) == ("crop_flip", 0.08)


def test_every_expected_tensor_was_compared():
    DATA.assert_complete()
