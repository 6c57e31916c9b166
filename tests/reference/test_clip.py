"""Tower outputs of the shipped adapter against the official CLIP."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from clipadapt.core.api.data import Inputs
from clipadapt.models import ImageTextModel

from . import tinyclip
from .parity import fixture, parity_dir


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ImageTextModel:
    return tinyclip.load(tinyclip.write_folder(tmp_path_factory.mktemp("tiny") / "clip"))


def filled(spec: dict, names: list[str], template: str) -> list[str]:
    return [template.replace("{c}", "{}").replace("{}", n) for n in names]


def test_logit_scale_comes_from_the_checkpoint(model: ImageTextModel) -> None:
    config = json.loads((parity_dir("clip") / "config.json").read_text(encoding="utf-8"))
    assert model.logit_scale == pytest.approx(config["logit_scale_exp"], rel=1e-6)
    assert model.logit_bias == 0.0


def test_image_features(model: ImageTextModel) -> None:
    zero_shot = fixture("zero_shot")
    pixels = torch.from_numpy(zero_shot.inputs["images"])

    zero_shot.assert_close("image_features", model.encode_image(pixels, layer="projected"))
    zero_shot.assert_close("image_features_normalized", model.encode_image(pixels))


def test_projecting_pre_projection_features_gives_the_projected_ones(model: ImageTextModel) -> None:
    zero_shot = fixture("zero_shot")
    pixels = torch.from_numpy(zero_shot.inputs["images"])

    pooled = model.encode_image(pixels, layer="pre_projection")

    config = json.loads((parity_dir("clip") / "config.json").read_text(encoding="utf-8"))
    assert pooled.shape == (len(pixels), config["vision_width"])
    zero_shot.assert_close("image_features", pooled @ model.module.get_parameter("visual.proj"))


@pytest.mark.parametrize("through_store", [False, True])
def test_text_features_and_logits(model: ImageTextModel, through_store: bool) -> None:
    zero_shot = fixture("zero_shot")
    names = [n.replace("_", " ") for n in zero_shot.spec["classnames"]]
    texts = filled(zero_shot.spec, names, zero_shot.spec["coop_zs_template"])

    if through_store:  # truncated to the length of the texts
        text = torch.from_numpy(model.encode(Inputs(texts, tuple(texts)), "text"))
    else:
        text = model.encode_text(model.tokenize(texts))
    image = model.encode_image(torch.from_numpy(zero_shot.inputs["images"]))

    zero_shot.assert_close("coop_zs.text_features", text)
    zero_shot.assert_close("coop_zs.logits", model.logits(image, text))


def test_tokens(model: ImageTextModel) -> None:
    zero_shot = fixture("zero_shot")
    name = zero_shot.spec["classnames_used_by_clip_benchmark_part"][1]
    template = zero_shot.spec["templates"]["t1"][0]
    got = model.tokenize(filled(zero_shot.spec, [name], template))
    np.testing.assert_array_equal(got.numpy(), zero_shot.inputs["t1.tokens_class1"])
