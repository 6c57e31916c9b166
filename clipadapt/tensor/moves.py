"""Copies from the host to a device that nobody waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


def placed(values: torch.Tensor | NDArray[Any], device: torch.device | str) -> torch.Tensor:
    """Return a tensor with these values on a device; values that are there already are not copied.

    A copy to a GPU is queued from pinned memory, so that the host goes on at once.

    Args:
        values: A tensor, or an array, which may be read-only.
        device: The device.
    """
    import torch

    if not isinstance(values, torch.Tensor):
        values = torch.from_numpy(values if values.flags.writeable else np.array(values))
    device = torch.device(device)
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    # Pinned memory needs a driver, which a simulated device lacks.
    pinned = values.pin_memory() if torch.cuda.is_available() else values
    return pinned.to(device, non_blocking=True)
