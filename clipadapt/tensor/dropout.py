"""Dropout with a cheap mask on the CPU. Imports torch.

On the CPU torch draws one number per element after the other, which takes a large part of a training step. Here a fast
generator draws one random byte per element if the rate is a multiple of 1/256, else two; its seed comes from torch's
generator, so a resumed fit draws the same masks. Other devices draw as torch does.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import nn

LEVELS: Final = 1 << 16
"""The dropout rate is rounded to a multiple of ``1 / LEVELS``."""


def mask(x: torch.Tensor, p: float) -> tuple[torch.Tensor | None, float]:
    """Draw with torch's generator which elements are kept.

    Args:
        x: Tensor of any shape.
        p: Probability that an element is dropped.

    Returns:
        0 or 1 for each element in the dtype of ``x``, or None if all are kept; and the factor of those that are kept,
        which preserves the mean.
    """
    level = round(p * LEVELS)
    if level == 0:
        return None, 1.0
    if level == LEVELS:
        return torch.zeros_like(x), 1.0
    scale = LEVELS / (LEVELS - level)
    if x.device.type != "cpu":
        kept = torch.empty_like(x, memory_format=torch.contiguous_format)
        return kept.bernoulli_(1 - level / LEVELS), scale
    kind: np.dtype[Any] = np.dtype(np.uint16)
    if level % 256 == 0:
        kind, level = np.dtype(np.uint8), level // 256
    n = x.numel()
    seed = int(torch.randint(2**63 - 1, ()))
    words = np.random.SFC64(seed).random_raw(-(-n * kind.itemsize // 8))
    drawn = words.view(kind)[:n] >= np.array(level, kind)
    # Bytes first: torch converts booleans several times slower.
    return torch.from_numpy(drawn).view(torch.uint8).view(x.shape).to(x.dtype), scale


def dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """Set each element to zero with probability ``p`` and scale the others by ``1 / (1 - p)``."""
    kept, scale = mask(x, p)
    return x if kept is None else x * kept * scale


class Dropout(nn.Dropout):
    """A dropout module with :func:`dropout`."""

    def mask(self, x: torch.Tensor) -> tuple[torch.Tensor | None, float]:
        """Return the mask and the factor of :func:`mask`; None and 1 in evaluation mode."""
        return mask(x, self.p) if self.training else (None, 1.0)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        """Apply dropout to ``input`` of any shape."""
        return dropout(input, self.p) if self.training else input
