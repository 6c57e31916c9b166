"""PEFT's LoRA layer with fewer passes over memory: same parameters, same update.

A step of training spends much of its time not on matrix products but on reading and writing the dropped, scaled and
cast copies of a layer's input. Here the dropout's scale is part of the update's, the update is added to the output in
place, in the precision of the frozen layer, and only the input and the mask are kept for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear, LoraLayer
from torch import nn

from clipadapt.tensor.dropout import Dropout


def prepare(network: nn.Module, adapter: str, dropout: float, *, fast: bool) -> None:
    """Give the adapted layers of a network a cheap dropout, and fuse those that can be, in place.

    Fused is a frozen ``nn.Linear`` with a plain update, not DoRA.

    Args:
        network: Network with one adapter.
        adapter: Name of the adapter.
        dropout: Dropout rate.
        fast: Whether to fuse layers.
    """
    layers: list[Any] = [m for m in network.modules() if isinstance(m, LoraLayer)]
    for module in layers:
        if dropout:
            module.lora_dropout[adapter] = Dropout(dropout)
        plain = type(module) is Linear and adapter not in module.lora_variant
        if fast and plain and type(module.base_layer) is nn.Linear:
            module.__class__ = FusedLinear


class FusedLinear(Linear):
    """PEFT's layer as one operation for autograd; merged or disabled, it is PEFT's own."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the output with the update, shape ``(..., out)``."""
        names = self.active_adapters
        if args or kwargs or self.disable_adapters or self.merged or len(names) != 1:
            return super().forward(x, *args, **kwargs)
        (name,) = names
        dropout: Any = self.lora_dropout[name]
        kept, scale = dropout.mask(x) if isinstance(dropout, Dropout) else (None, 1.0)
        scale *= float(self.scaling[name])
        base: Any = self.base_layer
        A, B = self.lora_A[name].weight, self.lora_B[name].weight
        out: torch.Tensor = _Updated.apply(x, base.weight, base.bias, A, B, kept, scale)
        return out


class _Updated(torch.autograd.Function):
    """``x W^T + b + scale * (kept * x) A^T B^T`` with a constant ``W`` and ``b``."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> torch.Tensor:
        """Compute the output; gradients flow to ``x``, ``A`` and ``B``.

        Args:
            ctx: Kept for the backward pass.
            *given: ``x`` of shape ``(..., in)``, ``W`` ``(out, in)``, ``b`` ``(out,)`` or None, ``A`` ``(r, in)``,
                ``B`` ``(out, r)``, the mask or None, the scale.
        """
        x, weight, bias, A, B, kept, scale = given
        out = F.linear(x, weight, bias)
        low = F.linear(_masked(x, kept), A.to(x.dtype))  # (..., r)
        rows = out.view(-1, out.shape[-1])
        rows.addmm_(low.flatten(0, -2), B.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(x, weight, A, B, kept, low)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of ``x``, ``A`` and ``B``."""
        x, weight, A, B, kept, low = ctx.saved_tensors
        g = gradients[0].flatten(0, -2)  # (m, out)
        g_low = g @ B.to(g.dtype) * ctx.scale  # (m, r)
        g_B = (g.T @ low.flatten(0, -2)).to(B.dtype) * ctx.scale
        g_A = (g_low.T @ _masked(x, kept).flatten(0, -2)).to(A.dtype)
        g_x = None
        if ctx.needs_input_grad[0]:
            g_x = g @ weight  # (m, in)
            if kept is None:
                g_x.addmm_(g_low, A.to(g.dtype))
            else:
                g_x.addcmul_(g_low @ A.to(g.dtype), kept.flatten(0, -2))
            g_x = g_x.view(x.shape)
        return g_x, None, None, g_A, g_B, None, None


def _masked(x: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    return x if kept is None else x * kept
