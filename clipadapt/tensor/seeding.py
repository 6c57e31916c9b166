"""Random numbers of the CPU for a block of code."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw from a seed on the CPU inside the block; random numbers after it, and those of GPUs, are as without it.

    Args:
        seed: The seed; None leaves the generator as it is.
    """
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            # Not torch.manual_seed, which seeds every GPU too.
            torch.default_generator.manual_seed(seed)
        yield
