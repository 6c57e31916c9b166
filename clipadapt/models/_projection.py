"""The linear projection at the end of an image tower, and the features that it reads."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from clipadapt.core.api.errors import ModelError
from clipadapt.models import Projection, _blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipadapt.models import Layer

ATTENTION: Final = "attention"
"""Layer of a ResNet's image features: the output of the attention pooling before its projection."""


def of(visual: Any, name: str) -> Projection:
    """Return a copy of the projection of an image tower.

    Args:
        visual: The image tower.
        name: Name of the model, for the message.

    Raises:
        ModelError: If the image features do not come from one linear projection.
    """
    if isinstance(visual, VisionTransformer) and visual.proj is not None:
        return _copied("pre_projection", visual.proj)
    if isinstance(visual, ModifiedResNet):
        linear = visual.attnpool.c_proj
        return _copied(ATTENTION, linear.weight.T, linear.bias)
    if isinstance(visual, TimmModel):
        last = visual.trunk.get_classifier() if _blocks.projects_in_trunk(visual) else None
        if isinstance(last, nn.Linear):
            return _copied("pre_projection", last.weight.T, last.bias)
        layers = [layer for layer in visual.head if not isinstance(layer, nn.Dropout)]
        if len(layers) == 1 and isinstance(layers[0], nn.Linear):
            return _copied("pre_projection", layers[0].weight.T, layers[0].bias)
    raise ModelError(
        f"the image features of '{name}' do not come from a linear projection: its image tower, a "
        f"{type(visual).__name__}, has none at its end",
        hint="use a model with one, such as ViT-B-16-quickgelu/openai or RN50-quickgelu/openai, or another method",
    )


def _copied(layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Projection:
    def array(tensor: torch.Tensor) -> NDArray[Any]:
        return tensor.detach().float().cpu().contiguous().clone().numpy()

    return Projection(layer, array(weight), None if bias is None else array(bias))


def before_projection(visual: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Return the output of a ResNet's attention pooling without its projection, shape ``(n, width)``.

    Raises:
        ModelError: If the tower is not a ResNet.
    """
    if not isinstance(visual, ModifiedResNet):
        raise ModelError(f"a {type(visual).__name__} has no layer '{ATTENTION}'")
    pool = copy.copy(visual.attnpool)
    pool._modules = dict(pool._modules)
    pool.c_proj = identity(pool.c_proj)
    x = visual.stem(pixels)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = layer(x)
    out: torch.Tensor = pool(x)
    return out


def identity(linear: nn.Linear) -> nn.Linear:
    """Return a layer that returns its input, for a pooling that reads the weights of its last layer."""
    width = linear.in_features
    same = nn.Linear(width, width, device=linear.weight.device, dtype=linear.weight.dtype)
    with torch.no_grad():
        same.weight.copy_(torch.eye(width))
        same.bias.zero_()
    return same.requires_grad_(False)
