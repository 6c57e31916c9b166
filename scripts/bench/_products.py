"""The bound of a training step by its matrix products: each at the rate that this machine reaches alone.

The products of one step are recorded while it runs, attention's included, and then measured one by one with the same
shapes, in the same precision and with the same threads. A step that needs no more than this bound would spend no time
on anything else: norms, activations, softmax, dropout, the optimizer, and moving memory.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import torch
from _common import train_task
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _common import Ours

Key = tuple[int, int, int, int, torch.dtype]
"""``(b, m, k, n, dtype)``: ``b`` products ``(m, k) @ (k, n)`` at once."""
SECONDS: Final = 0.15
REPEATS: Final = 50
"""A product is repeated for this time at most, and this often at most; the fastest one counts."""


class StepEndedError(Exception):
    """Ends a fit of which only the second step is needed."""


class Products(TorchDispatchMode):
    """Counts the matrix products between the first two calls of :meth:`step`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Key] = Counter()
        self.steps = 0

    def step(self, name: str, _value: Any) -> None:
        """Observe a fit, from the loss of its first step to that of its second.

        Raises:
            StepEndedError: At the loss of the second step.
        """
        if name == "loss":
            self.steps += 1
            if self.steps == 2:
                raise StepEndedError

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and count its products."""
        del types
        out = func(*args, **kwargs or {})
        if self.steps == 1:
            name = func._schema.name.removeprefix("aten::").rstrip("_")
            self.found.update(_of(name, [a for a in args if isinstance(a, torch.Tensor)], out))
        return out


def _of(name: str, given: list[torch.Tensor], out: Any) -> dict[Key, int]:
    """Return the products of an operation."""
    if name in {"mm", "addmm", "bmm", "baddbmm"}:
        a, b = given[-2:]
        batch = a.shape[0] if a.ndim == 3 else 1
        return {(batch, *a.shape[-2:], b.shape[-1], a.dtype): 1}
    if name.startswith("_scaled_dot_product"):
        q, k, v = given[1:4] if "backward" in name else given[:3]
        batch, (length, width) = q.shape[0] * q.shape[1], q.shape[-2:]
        scores = (batch, length, width, k.shape[-2], q.dtype)
        mixed = (batch, length, k.shape[-2], v.shape[-1], q.dtype)
        # Backward, those of q and k, of the probabilities and of v; the scores are not counted again.
        times = 2 if "backward" in name else 1
        return dict(Counter({scores: times}) + Counter({mixed: times}))
    if name == "convolution":
        weight = given[1]
        rows = out.numel() // weight.shape[0]
        return {(1, rows, weight[0].numel(), weight.shape[0], weight.dtype): 1}
    return {}


def bound(it: Ours, settings: Mapping[str, Any]) -> float:
    """Return the seconds that the products of a step take alone.

    Args:
        it: The method.
        settings: ``n``, ``classes`` and, if it is not the CPU, ``device``.
    """
    task = train_task(it.open().dataset, settings["n"], settings["classes"])
    products = Products()
    with contextlib.suppress(StepEndedError), products:
        it.method.fit(it.backbone, task, it.context(observe=products.step))
    device = settings.get("device", "cpu")
    return sum(times * seconds(key, device) for key, times in products.found.items())


def seconds(key: Key, device: str = "cpu") -> float:
    """Return the seconds of a product."""
    batch, m, k, n, dtype = key
    a, b, out = (
        torch.randn(batch, *size, device=device).to(dtype) for size in ((m, k), (k, n), (m, n))
    )
    if batch == 1:
        a, b, out = a[0], b[0], out[0]
    multiply: Any = torch.mm if batch == 1 else torch.bmm

    def once() -> float:
        begun = time.perf_counter()
        multiply(a, b, out=out)
        if out.is_cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    once()
    best, end = once(), time.perf_counter() + SECONDS
    for _ in range(REPEATS):
        if time.perf_counter() > end:
            break
        best = min(best, once())
    return best
