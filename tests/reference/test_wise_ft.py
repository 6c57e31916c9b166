"""``clip/wise_ft`` against the official merge; the fine-tuned weights are the initial values of a fit without steps."""

from __future__ import annotations

import numpy as np
import pytest

from clipadapt.core.api.data import Task
from clipadapt.methods.wise_ft import WiseFT, WiseFTConfig
from tests.reference import tinyclip
from tests.reference.parity import fixture

DATA = fixture("wise_ft")
NAMES = tuple(DATA.spec["classnames_used"])
TEMPLATES = tuple(DATA.spec["template"])
PREFIXES = {"theta1.image_encoder.model.": "", "theta1.classification_head.": "head."}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tinyclip.load(tinyclip.write_folder(tmp_path_factory.mktemp("clip")))


def fine_tuned() -> dict[str, np.ndarray]:
    found = {}
    for name, value in DATA.inputs.items():
        for theirs, ours in PREFIXES.items():
            if name.startswith(theirs):
                found[ours + name.removeprefix(theirs)] = value
    return found


def fit(model, folder, alpha, start):
    split = tinyclip.split_of(DATA.inputs["images"], DATA.inputs["labels"], NAMES)
    config = WiseFTConfig(alpha=alpha, epochs=0, augment="none")
    ctx = tinyclip.context(folder, start=start)
    return WiseFT(config).fit(model, Task(NAMES, TEMPLATES, split), ctx), split.inputs


@pytest.mark.parametrize("alpha", DATA.spec["alphas"])
def test_interpolated_weights_and_logits(alpha, model, tmp_path):
    start = fine_tuned()
    fitted, images = fit(model, tmp_path, alpha, start)

    assert set(start) == set(fitted.tuned.parameters)  # all weights of tower and head
    DATA.assert_close(f"conv1_alpha{alpha:g}", fitted.tuned.parameters["visual.conv1.weight"])
    DATA.assert_close(f"logits_alpha{alpha:g}", fitted.predict_scores(images))


def test_head_is_initialized_from_the_zero_shot_classifier(model, tmp_path):
    fitted, _ = fit(model, tmp_path, 1.0, {})

    weight, bias = fitted.tuned.head
    DATA.assert_close("head_weight_zero_shot", weight)
    DATA.assert_close("head_bias_zero_shot", bias)


def test_the_defaults_are_the_papers():
    default = WiseFTConfig()

    assert (default.lr, default.weight_decay, default.batch_size) == (3e-5, 0.1, 512)
    assert (default.epochs, default.warmup_steps, default.clip_norm) == (10, 500, 1.0)
