"""A part of every training step that a GPU repeats as a CUDA graph.

A step of prompt learning launches hundreds of small kernels, each of which runs for less time than its launch takes. A
graph launches them together. They are the same kernels, so that results are equal bit for bit.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

import torch

from clipadapt.tensor.moves import constants

if TYPE_CHECKING:
    from collections.abc import Callable

    from clipadapt.core.api.context import Services

WORTH: Final = 16
"""Fewest calls for which a graph is recorded; recording takes the time of about seven calls."""
CLOSE: Final = 1e-2
"""Largest relative difference of a graph from the plain function. Kernels that add in any order differ by far less, and
a graph that reads freed memory by far more."""


class Repeated:
    """A function of one tensor that every training step calls, on a CUDA GPU as a graph from its first call on.

    The plain function runs elsewhere, without gradients (the evaluation on val), for arguments of another shape, for
    few steps, with ``fast`` off, and if it cannot be recorded: because it waits for the GPU, as the attention masks of
    transformers do, or because there is no memory for the graph. A graph that does not give the plain result is not
    used. Each call has one backward pass. While a graph is recorded, no other thread may wait for a GPU.
    """

    def __init__(
        self,
        function: Callable[[torch.Tensor], torch.Tensor],
        services: Services,
        device: str,
        steps: int,
    ) -> None:
        """Prepare a function; nothing is recorded yet.

        Args:
            function: Draws no random numbers, and no gradients flow to other tensors than its argument. What it reads
                on the host, and what it sends to the GPU with :func:`~clipadapt.tensor.moves.placed`, is the same in
                every call.
            services: Whether fast paths are used.
            device: Device of its tensors.
            steps: Number of calls to expect.
        """
        self.function = function
        self.on = services.fast and steps >= WORTH and possible(torch.device(device))
        self._recorded: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._kind: tuple[Any, ...] = ()
        self._sent: list[torch.Tensor] = []  # the graph reads them again

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the function's result; neither it nor its gradient is overwritten by the next call."""
        if not self.on or not torch.is_grad_enabled() or not x.requires_grad:
            return self.function(x)
        kind = x.shape, x.dtype, x.device
        if self._recorded is None:
            # Streams are those of the current GPU. Chunks that are computed again in a backward pass see the
            # constants only in this thread.
            with torch.cuda.device(x.device), torch.autograd.set_multithreading_enabled(False):
                self._kind, self._recorded = kind, self._record(x)
        if kind != self._kind or self._recorded is self.function:
            return self.function(x)
        return self._recorded(x)

    def _record(self, x: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the function as a graph, or the plain function."""
        sample = x.detach().clone().requires_grad_()
        with constants() as sent:
            try:
                if waits(self.function, sample):
                    return self.function
                made: Any = torch.cuda.make_graphed_callables(self.function, (sample,))
            except RuntimeError:  # no memory, or what a graph cannot hold
                return self.function
            self._sent = list(sent.values())

        def repeated(x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = made(_own_gradient(x))
            return out.clone()  # the graph writes into the same memory again

        # Not the recorded values, which a graph that does nothing would still hold.
        other = sample.detach().flip(-1).requires_grad_()
        pairs = zip(
            _with_gradient(repeated, other), _with_gradient(self.function, other), strict=True
        )
        return (
            repeated if all(_close(found, expected) for found, expected in pairs) else self.function
        )


def possible(device: torch.device) -> bool:
    """Return whether graphs can be recorded on a device: on a real CUDA GPU."""
    return device.type == "cuda" and torch.cuda.is_available()


def waits(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> bool:
    """Return whether the host waits for the GPU in a function or in its backward pass, the second time it runs."""
    _with_gradient(function, x)
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        _with_gradient(function, x)
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return False


def _with_gradient(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the result for ``x``, and the gradient of ``x`` for a gradient that is the result in reversed order."""
    out = function(x)
    (gradient,) = torch.autograd.grad(out, x, out.detach().flip(0))
    return out.detach(), gradient


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    gap = torch.linalg.vector_norm(found - expected, dtype=torch.float32)
    return bool(gap <= CLOSE * torch.linalg.vector_norm(expected, dtype=torch.float32))


def _own_gradient(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose gradient is a copy, which the next call of a graph does not overwrite."""
    found: torch.Tensor = _Owned.apply(x)
    return found


class _Owned(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, *given: Any) -> torch.Tensor:
        (x,) = given
        found: torch.Tensor = x.view_as(x)
        return found

    @staticmethod
    def backward(_: Any, *gradients: Any) -> torch.Tensor:
        found: torch.Tensor = gradients[0].clone()
        return found
