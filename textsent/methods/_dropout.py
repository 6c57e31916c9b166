"""Dropout with masks that are drawn fast on a CPU. Imports torch."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

LEVELS: Final = 1 << 16
"""Probabilities are rounded to multiples of one over this number."""


def dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """Set each value to zero with probability ``p`` and scale the others, so that the mean is kept.

    torch draws a CPU mask one number after the other. Here a fast generator draws 16 bits per value; its seed comes
    from torch's random state, so a resumed fit draws the same masks.
    """
    level = round(p * LEVELS)
    if level == 0:
        return x
    if level == LEVELS:
        return x * 0.0
    seed = int(torch.randint(2**63 - 1, ()))
    n = x.numel()
    bits = np.random.SFC64(seed).random_raw(-(-n // 4)).view(np.uint16)[:n]
    kept = torch.from_numpy(bits >= level).view(torch.uint8).view(x.shape)
    return x * (kept.to(x.dtype) * (LEVELS / (LEVELS - level)))


class _FastDropout(nn.Dropout):
    """A dropout module with :func:`dropout`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return dropout(input, self.p) if self.training else input


@contextlib.contextmanager
def fast(model: nn.Module) -> Iterator[None]:
    """Draw the masks of all dropout modules of a model with :func:`dropout`."""
    slow = [m for m in model.modules() if type(m) is nn.Dropout]
    for module in slow:
        module.__class__ = _FastDropout
    try:
        yield
    finally:
        for module in slow:
            module.__class__ = nn.Dropout
