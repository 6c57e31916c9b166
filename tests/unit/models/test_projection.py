"""The linear projection of an image tower reproduces the projected features, in every family that has one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet

from clipadapt.core.api.errors import ModelError
from clipadapt.models import _projection, _snippet
from tests.unit.methods.conftest import load


@pytest.fixture
def resnet() -> ModifiedResNet:
    torch.manual_seed(0)
    tower = ModifiedResNet([1, 1, 1, 1], output_dim=12, heads=2, image_size=32, width=8)
    return tower.eval().requires_grad_(False)


@pytest.mark.parametrize("family", ["clip", "custom", "hf"])
def test_projecting_its_input_gives_the_projected_features(family, tiny_models):
    model = load(tiny_models[family])
    torch.manual_seed(0)
    pixels = torch.rand(3, 3, 32, 32)

    found = model.image_projection()

    x = model.encode_image(pixels, found.layer).numpy()
    projected = x @ found.weight + (0 if found.bias is None else found.bias)
    np.testing.assert_allclose(projected, model.encode_image(pixels, "projected"), atol=1e-4)


def test_the_projection_is_a_copy(tiny_models):
    model = load(tiny_models["clip"])
    before = model.weights_sha256

    model.image_projection().weight[:] = 0

    assert model.weights_sha256 == before
    assert np.abs(model.image_projection().weight).max() > 0


def test_a_resnet_projects_the_output_of_its_attention(resnet):
    pixels = torch.rand(2, 3, 32, 32)
    linear = resnet.attnpool.c_proj

    found = _projection.of(resnet, "tiny")
    x = _projection.before_projection(resnet, pixels).numpy()

    assert found.layer == _projection.ATTENTION
    assert x.shape == (2, found.weight.shape[0])
    np.testing.assert_allclose(x @ found.weight + found.bias, resnet(pixels).numpy(), atol=1e-5)
    assert resnet.attnpool.c_proj is linear


def test_the_portable_code_computes_the_same_features(resnet):
    pixels = torch.rand(2, 3, 32, 32)
    expected = _projection.before_projection(resnet, pixels)
    names = {"torch": torch, "model": SimpleNamespace(visual=resnet), "pixels": pixels}

    exec("\n".join(_snippet._features(resnet, _projection.ATTENTION)), names)

    torch.testing.assert_close(names["x"], expected)


def test_a_model_without_a_linear_projection_is_refused(tiny_models):
    with pytest.raises(ModelError, match="do not come from a linear projection") as found:
        load(tiny_models["siglip"]).image_projection()

    assert "ViT-B-16" in found.value.hint


def test_only_a_resnet_has_the_layer_attention(tiny_models):
    with pytest.raises(ModelError, match="no layer 'attention'"):
        load(tiny_models["clip"]).encode_image(torch.rand(1, 3, 32, 32), "attention")
