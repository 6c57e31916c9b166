"""An image tower as a chain of units: everything below the first trained unit is computed once.

Of the last block of a vision transformer only the class token is read, so its other tokens are not computed; this
changes rounding only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import Transformer, VisionTransformer
from timm.models.efficientnet import EfficientNet
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from clipadapt.models import _attention

if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX: Final = "unit:"
"""Layer ``unit:K`` is the input of unit ``K``."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One step of a tower.

    Attributes:
        names: Prefixes of the names of its parameters in the whole network.
        run: Maps its input to its output.
    """

    names: tuple[str, ...]
    run: Callable[[torch.Tensor], torch.Tensor]


def units(visual: Any, *, fast: bool = True) -> tuple[Unit, ...]:
    """Return the units of an image tower; run one after another, they compute the tower.

    The last unit returns projected features. A tower of an unknown kind is one unit.

    Args:
        visual: The tower.
        fast: Leave out computation whose result is never read.
    """
    if isinstance(visual, VisionTransformer) and plain(visual):
        return _vit(visual, fast=fast)
    if isinstance(visual, TimmModel):
        if isinstance(visual.trunk, EfficientNet):
            return _efficientnet(visual)
        if type(visual.trunk) is TimmViT:
            return _timm_vit(visual)
    if isinstance(visual, ModifiedResNet):
        return _resnet(visual)
    return (Unit(("visual.",), visual),)


def plain(visual: VisionTransformer) -> bool:
    """Return whether a tower of open_clip is a plain chain of blocks, batch first."""
    return isinstance(visual.transformer, Transformer) and bool(
        getattr(visual.transformer, "batch_first", True)
    )


def ends_early(visual: Any) -> bool:
    """Return whether the fast units of a tower leave out computation."""
    if not (isinstance(visual, VisionTransformer) and plain(visual)):
        return False
    last = visual.transformer.resblocks[-1]
    return visual.attn_pool is None and visual.pool_type == "tok" and _attention.is_plain(last)


def projects_in_trunk(visual: Any) -> bool:
    """Return whether the last layer of a timm trunk is the projection (EVA-CLIP, MobileCLIP, PE-Core)."""
    if not isinstance(visual, TimmModel) or len(visual.head):
        return False
    return not isinstance(visual.trunk.get_classifier(), nn.Identity)


def before_head(trunk: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Return the pooled features that the last layer of a timm trunk reads, shape ``(n, width)``."""
    out: torch.Tensor = trunk.forward_head(trunk.forward_features(pixels), pre_logits=True)
    return out


def _class_token(block: Any, x: torch.Tensor) -> torch.Tensor:
    """Return the output of a block at the first position of ``(n, L, W)``, shape ``(n, 1, W)``."""
    first = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return _attention.at_one_place(block, x, first)[:, None]


def _vit(visual: Any, *, fast: bool) -> tuple[Unit, ...]:
    *blocks, end = visual.transformer.resblocks
    last_block = partial(_class_token, end) if fast and ends_early(visual) else end

    def finish(x: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = visual._pool(x)[0]
        return pooled if visual.proj is None else pooled @ visual.proj

    first = ("conv1.", "class_embedding", "positional_embedding", "ln_pre.")
    last = ("ln_post.", "proj", "attn_pool")
    return (
        Unit(tuple(f"visual.{n}" for n in first), visual._embeds),
        *(
            Unit((f"visual.transformer.resblocks.{i}.",), block)
            for i, block in enumerate([*blocks, last_block])
        ),
        Unit(tuple(f"visual.{n}" for n in last), finish),
    )


def _efficientnet(visual: Any) -> tuple[Unit, ...]:
    trunk = visual.trunk

    def finish(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = visual.head(trunk.forward_head(trunk.bn2(trunk.conv_head(x))))
        return out

    inner = [
        (f"visual.trunk.blocks.{i}.{j}.", block)
        for i, stage in enumerate(trunk.blocks)
        for j, block in enumerate(stage)
    ]
    return (
        Unit(
            ("visual.trunk.conv_stem.", "visual.trunk.bn1."),
            lambda x: trunk.bn1(trunk.conv_stem(x)),
        ),
        *(Unit((name,), block) for name, block in inner),
        Unit(
            (
                "visual.trunk.conv_head.",
                "visual.trunk.bn2.",
                "visual.trunk.classifier",
                "visual.head.",
            ),
            finish,
        ),
    )


def _timm_vit(visual: Any) -> tuple[Unit, ...]:
    trunk = visual.trunk

    def begin(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(x))))
        return out

    def finish(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = visual.head(trunk.forward_head(trunk.norm(x)))
        return out

    first = ("patch_embed.", "pos_embed", "cls_token", "reg_token", "norm_pre.")
    last = ("norm.", "fc_norm.", "attn_pool.", "head.")
    return (
        Unit(tuple(f"visual.trunk.{n}" for n in first), begin),
        *(Unit((f"visual.trunk.blocks.{i}.",), block) for i, block in enumerate(trunk.blocks)),
        Unit((*(f"visual.trunk.{n}" for n in last), "visual.head."), finish),
    )


def _resnet(visual: Any) -> tuple[Unit, ...]:
    stem = ("conv1.", "bn1.", "conv2.", "bn2.", "conv3.", "bn3.")
    inner = [
        (f"visual.layer{i}.{j}.", block)
        for i in range(1, 5)
        for j, block in enumerate(getattr(visual, f"layer{i}"))
    ]
    return (
        Unit(tuple(f"visual.{n}" for n in stem), visual.stem),
        *(Unit((name,), block) for name, block in inner),
        Unit(("visual.attnpool.",), visual.attnpool),
    )
