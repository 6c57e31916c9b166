"""Trained tokens in the towers that are replaced before each block (deep prompts).

M. Jia et al., "Visual Prompt Tuning", ECCV 2022, section 3.2; M. Khattak et al., "MaPLe", CVPR 2023, section 3.2.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from clipadapt.models import _blocks
from clipadapt.tensor.moves import placed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def image_blocks(visual: Any) -> tuple[int, int] | None:
    """Return the number of blocks of an image tower and their width, or None if it cannot take prompts."""
    if isinstance(visual, VisionTransformer) and _blocks.plain(visual):
        return len(visual.transformer.resblocks), int(visual.transformer.width)
    if isinstance(visual, TimmModel) and type(visual.trunk) is TimmViT:
        return len(visual.trunk.blocks), int(visual.trunk.embed_dim)
    return None


def kind_of(tower: Any) -> str:
    """Return the name of a tower's architecture, for messages."""
    inner = tower.trunk if isinstance(tower, TimmModel) else getattr(tower, "transformer", tower)
    return type(inner).__name__


def encode_image(
    visual: Any, states: torch.Tensor, prompts: Sequence[torch.Tensor], *, fast: bool
) -> torch.Tensor:
    """Run an image tower with prompts.

    ``prompts[0]`` is appended to the tokens of the image, after positions were added and before the first norm, which
    acts on each token separately. ``prompts[i]`` takes its place before block ``i``. No prompt is pooled.

    Args:
        visual: A tower of :func:`image_blocks`.
        states: Input of its first block, shape ``(n, L, W)``.
        prompts: Per block, shape ``(P, W)`` each; at least one.
        fast: Leave out computation whose result is never read.

    Returns:
        Projected features, shape ``(n, D)``.
    """
    n, length = states.shape[:2]
    norm = visual.ln_pre if isinstance(visual, VisionTransformer) else visual.trunk.norm_pre
    _, *blocks, finish = _blocks.units(visual, fast=fast)
    added = norm(prompts[0].to(states))
    x = states
    for i, block in enumerate(blocks):
        if i < len(prompts):
            added = prompts[i].to(x) if i else added
            x = torch.cat([x[:, :length], added.expand(n, -1, -1)], dim=1)  # (n, L + P, W)
        x = block.run(x)
    return finish.run(x[:, :length])


def text_blocks(net: Any) -> list[nn.Module] | None:
    """Return the blocks of a text tower, input side first, or None if its kind is unknown."""
    text = getattr(net, "text", net)
    inner = getattr(text, "transformer", None)
    blocks = getattr(inner, "resblocks", None)
    if blocks is not None:
        return list(blocks) if getattr(inner, "batch_first", True) else None
    # Hugging Face: BERT's and RoBERTa's encoder, DistilBERT's transformer.
    body = getattr(inner, "encoder", getattr(inner, "transformer", None))
    layers = getattr(body, "layer", None)
    config = getattr(inner, "config", None)
    embedding = getattr(inner, "get_input_embeddings", lambda: None)()
    if not isinstance(layers, nn.ModuleList) or embedding is None:
        return None
    # A tower may project its token embeddings to another width.
    same = embedding.weight.shape[1] == getattr(config, "hidden_size", None)
    return list(layers) if same else None


def fill(x: torch.Tensor, slots: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """Return states ``(n, L, W)`` with ``prompt``, ``(P, W)``, at the positions ``slots``, ``(n, P)``."""
    index = placed(slots, x.device).unsqueeze(-1).expand(-1, -1, x.shape[-1])  # (n, P, W)
    return x.scatter(1, index, prompt.to(x).expand(len(x), -1, -1))


@contextmanager
def replaced(
    blocks: Sequence[nn.Module], slots: torch.Tensor, prompts: Sequence[torch.Tensor]
) -> Iterator[None]:
    """Replace the states at ``slots`` by ``prompts[i]`` before block ``i``, for ``i >= 1``."""

    def before(prompt: torch.Tensor) -> Any:
        def replace(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (fill(args[0], slots, prompt), *args[1:])

        return replace

    handles = [
        block.register_forward_pre_hook(before(prompt))
        for block, prompt in zip(blocks[1 : len(prompts)], prompts[1:], strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
