"""Dropout with a cheap mask on the CPU.

On the CPU torch draws one float per element, which takes a large part of a training step; this module draws one random
byte if the rate is a multiple of 1/256, else two. Other devices draw as torch does.
"""

from __future__ import annotations

import torch
from torch import nn

LEVELS = 1 << 16
"""The dropout rate is rounded to a multiple of ``1 / LEVELS``."""


class Dropout(nn.Module):
    """In training, zero each element with probability ``p`` and scale the others by ``1 / (1 - p)``."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.dropped = min(round(p * LEVELS), LEVELS - 1)

    @property
    def scale(self) -> float:
        """Factor of the elements that are kept."""
        return LEVELS / (LEVELS - self.dropped)

    def kept(self, x: torch.Tensor) -> torch.Tensor | None:
        """Draw with torch's global generator which elements of ``x`` are kept: 0 or 1 in its dtype; None keeps all."""
        if not self.training or not self.dropped:
            return None
        kept = torch.empty_like(x, memory_format=torch.contiguous_format)
        if x.device.type != "cpu":
            return kept.bernoulli_(1 - self.dropped / LEVELS)
        size, dtype, dropped = 2, torch.int16, self.dropped
        if not dropped % 256:
            size, dtype, dropped = 1, torch.int8, dropped // 256
        words = torch.empty(-(-x.numel() * size // 8), dtype=torch.int64).random_(-(2**63), None)
        draws = words.view(dtype)[: x.numel()].view(x.shape)  # even over all integers of the type
        # Written as numbers: operations on booleans are several times slower.
        return torch.ge(draws, torch.iinfo(dtype).min + dropped, out=kept)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply dropout to ``x`` of any shape."""
        kept = self.kept(x)
        return x if kept is None else x * kept * self.scale
