"""A stand-in for CUDA graphs: results and gradients lie in memory that every call uses again."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from clipadapt.tensor import graphs


class Recorder:
    """In place of ``torch.cuda.make_graphed_callables``.

    Attributes:
        made: Number of recorded functions.
        calls: Number of calls of all of them.
        wrong: Added to their results.
        stale: Whether they do nothing, so that their memory keeps what was recorded.
        devices: The GPU that was current at each recording.
    """

    def __init__(self) -> None:
        self.made = self.calls = 0
        self.wrong, self.stale = 0.0, False
        self.devices: list[Any] = []
        self.current: Any = None

    @contextlib.contextmanager
    def device(self, device: Any) -> Any:
        """In place of ``torch.cuda.device``."""
        before, self.current = self.current, device
        yield
        self.current = before

    def __call__(self, function: Any, sample: tuple[torch.Tensor]) -> Any:
        self.made += 1
        self.devices.append(self.current)
        recorder, memory = self, {}

        def kept(name: str, value: torch.Tensor) -> torch.Tensor:
            if name not in memory:
                memory[name] = value.clone()
            return memory[name].copy_(memory[name] if recorder.stale else value).detach()

        class Replayed(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
                recorder.calls += 1
                with torch.enable_grad():
                    ctx.x = x.detach().requires_grad_()
                    ctx.out = function(ctx.x)
                return kept("out", ctx.out + recorder.wrong)

            @staticmethod
            def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
                (found,) = torch.autograd.grad(ctx.out, ctx.x, gradient)  # once for each call
                return kept("gradient", found)

        x = sample[0]
        assert x.requires_grad
        out = function(x)
        kept("out", out)
        kept("gradient", torch.autograd.grad(out, x, torch.ones_like(out))[0])
        return Replayed.apply


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Pretend that this machine can record graphs, and that they pay from the first step on."""
    found = Recorder()
    monkeypatch.setattr(graphs, "possible", lambda _: True)
    monkeypatch.setattr(graphs, "WORTH", 0)
    monkeypatch.setattr(graphs, "waits", lambda *_: False)
    monkeypatch.setattr(torch.cuda, "device", found.device)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", found)
    return found
