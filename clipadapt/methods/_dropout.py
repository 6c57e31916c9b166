"""Dropout whose mask costs little on a CPU.

torch draws one float per number there, which takes a good part of a step; here a number takes two random bytes. On
other devices it is torch's own, whose mask is drawn where it is used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

LEVELS = 1 << 16
"""The rate is a multiple of one over this."""


class Dropout(nn.Module):
    """Sets each number to zero with probability ``p`` in training, and scales the others by ``1 / (1 - p)``."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.dropped = min(round(p * LEVELS), LEVELS - 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop numbers of ``x``, any shape; its generator is torch's own."""
        if not self.training or not self.dropped:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.dropped / LEVELS)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        draws = words.view(torch.int16)[: x.numel()].view(x.shape)  # even in [-2**15, 2**15)
        kept = draws >= self.dropped - LEVELS // 2
        return x * kept * (LEVELS / (LEVELS - self.dropped))
