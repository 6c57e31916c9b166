"""Parts of a training step that a GPU repeats as CUDA graphs.

A step of prompt learning or LoRA starts thousands of small kernels, each in less time than the host needs to start
one. A graph starts them together. They are the same kernels, so that results are equal bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from clipadapt.tensor.moves import constants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from clipadapt.core.api.context import Services

WORTH: Final = 16
"""Fewest calls for which a graph is recorded; recording takes the time of about five calls."""


class Repeated:
    """A function of tensors that every training step calls, on a CUDA GPU as a graph from its first call on.

    The plain function runs elsewhere, without gradients (the evaluation on val), for arguments of other shapes (the
    last batch of an epoch), for few steps, with ``fast`` off, and if it cannot be recorded because it waits for the
    GPU, as the attention masks of transformers do.
    """

    def __init__(
        self,
        function: Callable[..., torch.Tensor],
        parameters: Iterable[torch.Tensor],
        services: Services,
        device: str,
        steps: int,
    ) -> None:
        """Prepare a function; nothing is recorded yet.

        Args:
            function: Maps tensors to one tensor. What it reads on the host, and what it sends to the GPU with
                :func:`~clipadapt.tensor.moves.placed`, must be the same in every call.
            parameters: Trainable tensors that it reads beside its arguments; their gradients are valid until the
                next call.
            services: Whether fast paths are used.
            device: Device of its tensors.
            steps: Number of calls to expect.
        """
        self.function = function
        self.parameters = [p for p in parameters if p.requires_grad]
        self.device = torch.device(device)
        self.on = services.fast and steps >= WORTH and possible(self.device)
        self._recorded: Callable[..., torch.Tensor] | None = None
        self._shapes: list[tuple[Any, ...]] = []

    def __call__(self, *given: torch.Tensor) -> torch.Tensor:
        """Return the function's result; it is not overwritten by the next call."""
        if not self.on or not torch.is_grad_enabled():
            return self.function(*given)
        shapes = [(g.shape, g.dtype, g.requires_grad) for g in given]
        if self._recorded is None:
            self._shapes, self._recorded = shapes, self._record(given)
        if shapes != self._shapes or self._recorded is self.function:
            return self.function(*given)
        found: torch.Tensor = self._recorded(*map(_own_gradient, given))
        return found.clone()  # the graph writes into the same memory again

    def _record(self, given: tuple[torch.Tensor, ...]) -> Callable[..., torch.Tensor]:
        """Return the function as a graph, or the plain function if it cannot be recorded."""
        sample = tuple(g.detach().clone().requires_grad_(g.requires_grad) for g in given)
        on_gpu = torch.cuda.is_available()  # not with a stand-in of a test
        # Recording runs the function several times; the random numbers of the fit are those without it.
        with constants(), torch.random.fork_rng([self.device] if on_gpu else []):
            used = self._rehearse(sample)
            if used is None:
                return self.function
            # The nodes of parameters are made on another stream here than in a step, which is all right.
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
            restore = _generator(self.device) if on_gpu else None
            try:
                made: Any = torch.cuda.make_graphed_callables(
                    _Part(self.function, used), sample, allow_unused_input=True
                )
            except RuntimeError:  # no memory for the graph
                if restore is not None:
                    restore()
                return self.function
        recorded: Callable[..., torch.Tensor] = made
        return recorded

    def _rehearse(self, sample: tuple[torch.Tensor, ...]) -> list[torch.Tensor] | None:
        """Return the parameters that the function uses, or None if it waits for the GPU.

        The gradient of an unused parameter, such as one of the other tower, would tie a recording to the stream of the
        step, which torch refuses.
        """
        used = self._used(sample)
        if not torch.cuda.is_available():  # a stand-in of a test
            return used
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            self._used(sample)
        except RuntimeError:
            return None
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return used

    def _used(self, sample: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        out = self.function(*sample)
        asked = [*self.parameters, *(s for s in sample if s.requires_grad)]
        found = torch.autograd.grad(out, asked, torch.zeros_like(out), allow_unused=True)
        return [p for p, g in zip(self.parameters, found, strict=False) if g is not None]


def _generator(device: torch.device) -> Callable[[], None]:
    """Return a function that gives a GPU's random generator its present state; a failed recording breaks it."""
    index = torch.cuda.current_device() if device.index is None else device.index
    generator = torch.cuda.default_generators[index]
    state = generator.clone_state()

    def restore() -> None:
        generator.graphsafe_set_state(state)

    return restore


def possible(device: torch.device) -> bool:
    """Return whether graphs can be recorded on a device: on a real CUDA GPU."""
    return device.type == "cuda" and torch.cuda.is_available()


class _Part(nn.Module):
    """A function together with the parameters that it reads."""

    def __init__(self, function: Callable[..., torch.Tensor], parameters: list[Any]) -> None:
        super().__init__()
        self.function, self.given = function, parameters

    def parameters(self, recurse: bool = True) -> Iterator[Any]:  # noqa: ARG002  torch's signature
        return iter(self.given)

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        return self.function(*given)


def _own_gradient(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose gradient is a copy, which the next call of a graph does not overwrite."""
    if not x.requires_grad:
        return x
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
