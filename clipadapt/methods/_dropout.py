"""Dropout with a cheap mask on the CPU.

On the CPU torch draws one float per element, which takes a large part of a training step; this module draws two random
bytes. On other devices it calls torch's dropout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

LEVELS = 1 << 16
"""The dropout rate is rounded to a multiple of ``1 / LEVELS``."""


class Dropout(nn.Module):
    """In training, zero each element with probability ``p`` and scale the others by ``1 / (1 - p)``."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.dropped = min(round(p * LEVELS), LEVELS - 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply dropout to ``x`` of any shape, with torch's global generator."""
        if not self.training or not self.dropped:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.dropped / LEVELS)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        draws = words.view(torch.int16)[: x.numel()].view(x.shape)  # even in [-2**15, 2**15)
        kept = draws >= self.dropped - LEVELS // 2
        return x * kept * (LEVELS / (LEVELS - self.dropped))
