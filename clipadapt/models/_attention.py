"""Attention whose projections are separate linear layers, so that each may carry an adapter of its own.

``nn.MultiheadAttention`` keeps query, key and value in one matrix. PEFT's adapter for it shares one low-rank input
matrix among the three, always adapts the output projection and leaves dropout out, which is not CLIP-LoRA.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from timm.layers.attention import Attention
from torch import nn

ROLES: Final = ("q", "k", "v", "out", "mlp", "pointwise")


class SplitAttention(nn.Module):
    """``nn.MultiheadAttention`` (batch first) with four ``nn.Linear``; same result, same call."""

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = source.num_heads
        self.batch_first = source.batch_first
        weights, biases = source.in_proj_weight.chunk(3), source.in_proj_bias.chunk(3)
        self.q, self.k, self.v = map(_linear, weights, biases)
        self.out = _linear(source.out_proj.weight, source.out_proj.bias)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """Attend; no attention weights are returned.

        Args:
            query: Shape ``(n, L, W)``.
            key: Shape ``(n, S, W)``.
            value: Shape ``(n, S, W)``.
            need_weights: Refused if true.
            attn_mask: Added to the scores; ``(L, S)`` or ``(n * heads, L, S)``.
        """
        assert not need_weights
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        n, length, width = query.shape

        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.view(n, -1, self.heads, width // self.heads).transpose(1, 2)

        q, k, v = heads(self.q(query)), heads(self.k(key)), heads(self.v(value))
        mask = attn_mask
        if mask is not None and mask.dim() == 3:
            mask = mask.view(n, self.heads, length, -1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (n, heads, L, W / heads)
        out: torch.Tensor = self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return (out if self.batch_first else out.transpose(0, 1)), None


class SplitProjection(nn.Module):
    """timm's fused ``qkv`` layer as three; same result."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        biases = (None,) * 3 if source.bias is None else source.bias.chunk(3)
        self.q, self.k, self.v = map(_linear, source.weight.chunk(3), biases)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(..., W)`` to ``(..., 3 W)``."""
        return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)


def split(network: nn.Module) -> None:
    """Give every attention layer of open_clip and timm in ``network`` separate projections, in place."""
    for module in list(network.modules()):
        if isinstance(module, ResidualAttentionBlock) and isinstance(
            module.attn, nn.MultiheadAttention
        ):
            module.attn = SplitAttention(module.attn)
        elif type(module) is Attention and isinstance(module.qkv, nn.Linear):
            module.qkv = SplitProjection(module.qkv)  # type: ignore[assignment]


def fuse(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state of a network that :func:`split` changed, under its names from before."""
    fused: dict[str, torch.Tensor] = {}
    state = network.state_dict()
    for name, module in network.named_modules():
        if not isinstance(module, SplitAttention | SplitProjection):
            continue
        whole = f"{name}.in_proj_" if isinstance(module, SplitAttention) else f"{name}."
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{name}.{role}.{kind}", None) for role in "qkv"]
            if parts[0] is not None:
                fused[whole + kind] = torch.cat([p for p in parts if p is not None])
        if isinstance(module, SplitAttention):
            for kind in ("weight", "bias"):
                fused[f"{name}.out_proj.{kind}"] = state.pop(f"{name}.out.{kind}")
    return {**state, **fused}


def targets(network: nn.Module) -> dict[str, dict[str, list[str]]]:
    """Return the layers that may carry adapters: ``{tower: {role: names}}``, input side first.

    Roles: ``q``, ``k``, ``v``, ``out`` of self-attention, ``mlp`` (both layers), ``pointwise`` (1x1 convolutions).
    A role that a tower lacks is left out.
    """
    found: dict[str, dict[str, list[str]]] = {"image": {}, "text": {}}
    for name, module in network.named_modules():
        role = _role(name, module)
        if role is not None:
            tower = "image" if name.startswith("visual.") else "text"
            found[tower].setdefault(role, []).append(name)
    return found


_SUFFIXES: Final = {
    # open_clip's blocks, split
    **{f"attn.{role}": role for role in ("q", "k", "v", "out")},
    "mlp.c_fc": "mlp",
    "mlp.c_proj": "mlp",
    # timm's blocks, split
    **{f"attn.qkv.{role}": role for role in "qkv"},
    "attn.proj": "out",
    "mlp.fc1": "mlp",
    "mlp.fc2": "mlp",
    # Hugging Face's BERT and RoBERTa
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "out",
    "intermediate.dense": "mlp",
    "output.dense": "mlp",
    # DistilBERT
    "attention.q_lin": "q",
    "attention.k_lin": "k",
    "attention.v_lin": "v",
    "attention.out_lin": "out",
    "ffn.lin1": "mlp",
    "ffn.lin2": "mlp",
}


def _role(name: str, module: Any) -> str | None:
    if isinstance(module, nn.Conv2d):
        plain = module.kernel_size == (1, 1) and module.groups == 1
        return "pointwise" if plain else None
    if not isinstance(module, nn.Linear) or "attn_pool." in name:
        return None
    # The longest suffix decides: BERT's attention.output.dense ends in output.dense too.
    fits = [s for s in _SUFFIXES if name.endswith(f".{s}")]
    return _SUFFIXES[max(fits, key=len)] if fits else None


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    out, width = weight.shape
    layer = nn.Linear(width, out, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer
