"""``clip/tpt`` against the official code: selected views, losses, gradients, tuned contexts and predictions."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from clipadapt.core.api.data import Inputs, Task
from clipadapt.methods.tpt import TPT, TPTConfig
from tests.reference import tinyclip
from tests.reference.parity import fixture

DATA = fixture("tpt")
GIVEN = DATA.spec["hyperparameters"]
NAMES = tuple(n.replace("_", " ") for n in DATA.spec["classnames"])
RUNS = sorted({name.split(".image")[0] for name in DATA.expected if name.startswith("steps")})
IMAGES = DATA.inputs["images"]
VIEWS = IMAGES[:, None] + np.einsum(
    "ivg,gchw->ivchw", DATA.inputs["view_coefficients"], DATA.inputs["view_basis"]
)


class GivenViews:
    """The tiny CLIP with the views of the fixture."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def encode(
        self, inputs: Inputs[Any], tower: str, layer: str = "output", view: int = 0, crop: float = 1
    ) -> np.ndarray:
        if tower == "text":
            return self.model.encode(inputs, "text", layer)
        pixels = torch.from_numpy(VIEWS[[int(i) for i in inputs.ids], view].astype(np.float32))
        with torch.no_grad():
            return self.model.encode_image(pixels, layer).numpy()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return GivenViews(tinyclip.load(tinyclip.write_folder(tmp_path_factory.mktemp("clip"))))


@pytest.mark.parametrize("name", RUNS)
def test_the_tuning_of_each_image(name, model, tmp_path):
    steps, lr = re.fullmatch(r"steps(\d+)_lr([\d.e-]+)", name).groups()
    config = TPTConfig(
        ctx_init=GIVEN["ctx_init"],
        views=GIVEN["views"],
        selection_p=GIVEN["selection_p"],
        steps=int(steps),
        lr=float(lr),
    )
    ids = tuple(str(i) for i in range(len(IMAGES)))
    inputs = Inputs(ids, ids)
    fitted = TPT(config).fit(model, Task(NAMES, ("{}",)), tinyclip.context(tmp_path))
    features = np.stack(
        [model.encode(inputs, "image", view=v) for v in range(GIVEN["views"])], axis=1
    )

    got: dict[str, list[Any]] = {}
    fitted.tune(
        features,
        fitted.prompts(),
        lambda key, x: got.setdefault(key, []).append(np.asarray(x).copy()),
    )
    scores = fitted.predict_scores(inputs)

    DATA.assert_close("ctx_init", fitted.context)
    for i in range(len(IMAGES)):
        own = f"{name}.image{i}"
        found = {
            "view_logits": got["view_logits"][0][i],
            "selected_sorted": np.sort(got["selected"][0][i]),
            "grad_ctx": got["grad"][0][i],
            "loss_per_step": np.array(got["loss"])[:, i],
            "ctx_final": got["contexts"][0][i],
            "logits_after": scores[i],
        }
        for quantity, value in found.items():
            if f"{own}.{quantity}" in DATA.expected:
                DATA.assert_close(f"{own}.{quantity}", value)


def test_the_defaults_are_the_papers():
    default = TPTConfig()

    assert default.views == GIVEN["official_views"]
    assert default.selection_p == GIVEN["official_selection_p"]
    assert (default.steps, default.lr, default.weight_decay, default.eps) == (1, 5e-3, 0.01, 1e-8)
    assert default.ctx_init == GIVEN["ctx_init"].replace("_", " ")


def test_every_expected_tensor_is_compared():
    DATA.assert_complete()
