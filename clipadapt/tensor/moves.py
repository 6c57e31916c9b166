"""Copies between the host and a device that nobody waits for."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch
    from numpy.typing import NDArray


_CONSTANTS: ContextVar[dict[tuple[Any, ...], torch.Tensor] | None] = ContextVar(
    "_CONSTANTS", default=None
)


@contextlib.contextmanager
def constants() -> Iterator[dict[tuple[Any, ...], torch.Tensor]]:
    """Send equal values only once inside the block; yields what was sent, which a graph of a GPU reads again."""
    sent: dict[tuple[Any, ...], torch.Tensor] = {}
    token = _CONSTANTS.set(sent)
    try:
        yield sent
    finally:
        _CONSTANTS.reset(token)


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
    known = _CONSTANTS.get()
    if known is None:
        return _sent(values, device)
    content = values.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
    key = (device, values.dtype, values.shape, content)
    if key not in known:
        known[key] = _sent(values, device)
    return known[key]


def _sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    import torch

    # Pinned memory needs a driver, which a simulated device lacks.
    # Memory of an expanded tensor cannot be pinned.
    pinned = values.contiguous().pin_memory() if torch.cuda.is_available() else values
    return pinned.to(device, non_blocking=True)


def stacked(rows: Sequence[torch.Tensor], device: torch.device | str) -> torch.Tensor:
    """Return tensors of the host as one; for a GPU in pinned memory, so that they are copied once before they are sent.

    Args:
        rows: ``n`` tensors of one shape.
        device: Where the result will be sent.
    """
    import torch

    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        return torch.stack(list(rows))
    out = torch.empty((len(rows), *rows[0].shape), dtype=rows[0].dtype, pin_memory=True)
    return torch.stack(list(rows), out=out)


def sent_ahead(values: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return :func:`placed`; on a GPU the copy overlaps what was queued before it.

    Args:
        values: A tensor on the host.
        device: The device.
    """
    import torch

    device = torch.device(device)
    if device.type != "cuda" or values.device.type != "cpu":
        return placed(values, device)
    stream, current = _streams(device)[0], torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        there = placed(values, device)
    current.wait_stream(stream)
    there.record_stream(current)  # its memory is not used again before the work on it has ended
    return there


def fetched(values: torch.Tensor) -> Callable[[], NDArray[Any]]:
    """Start the copy of a tensor to the host; return a function that waits for it and returns the array.

    On a GPU the copy into pinned memory overlaps what is queued after it; elsewhere it is done at once.
    """
    import torch

    if values.device.type != "cuda":
        array: NDArray[Any] = values.cpu().numpy()
        return lambda: array
    stream = _streams(values.device)[1]
    pinned = torch.cuda.is_available()  # a simulated device has no driver
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=pinned)
    stream.wait_stream(torch.cuda.current_stream(values.device))
    with torch.cuda.stream(stream):
        host.copy_(values, non_blocking=True)
        values.record_stream(stream)
        done = torch.cuda.Event()
        done.record(stream)

    def wait() -> NDArray[Any]:
        done.synchronize()
        found: NDArray[Any] = host.numpy()
        return found

    return wait


@cache
def _streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """Return the queues of a GPU for copies to it and from it."""
    import torch

    return torch.cuda.Stream(device), torch.cuda.Stream(device)
