"""The matrix products that a classifier on features cannot avoid, and the seconds that this machine needs for them.

Counted are the products of the fit and of the prediction, forward and backward. Sums over one-hot rows,
exponentials, softmax, and reading or writing memory are not counted, so a method can be far from its limit without
waste. The symmetric half of a product and a product of two constants are counted once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch
    from numpy.typing import NDArray

Shape = tuple[int, int, int]
ROWS: Final = 2048
"""Maximum number of rows of a measured product; larger ones have the same rate."""
SECONDS: Final = 0.2
REPEATS: Final = 50
"""A product is repeated for this time at most, and this often at most; the fastest one counts."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of a comparison.

    Attributes:
        C: Classes.
        N: Training examples.
        Q: Queries.
        D: Width of the features.
        W: Width before the projection.
        iterations: Iterations of scikit-learn.
        live: Sum over all queries of the entries in the positive cache of TDA.
    """

    C: int
    N: int
    Q: int
    D: int
    W: int
    iterations: int = 0
    live: int = 0


@dataclass(frozen=True, slots=True)
class Product:
    """Products of one shape.

    Attributes:
        times: How many.
        shape: ``(m, k, n)`` of ``(m, k) @ (k, n)``.
    """

    times: float
    shape: Shape

    @property
    def flop(self) -> float:
        """Floating-point operations of all of them."""
        m, k, n = self.shape
        return 2.0 * self.times * m * k * n


def products(method: str, s: Sizes, c: Any) -> list[Product]:
    """Return the products of a method with the settings ``c``, fit and prediction."""
    return [*FIT[method](s, c), Product(1, (s.Q, s.D, s.C)), *MORE.get(method, _none)(s, c)]


def _none(s: Sizes, c: Any) -> list[Product]:  # noqa: ARG001
    return []


def _gda(s: Sizes, c: Any) -> list[Product]:  # noqa: ARG001
    # Half of a symmetric product, a Cholesky factorization, two triangular solves.
    return [
        Product(0.5, (s.D, s.N, s.D)),
        Product(1 / 6, (s.D, s.D, s.D)),
        Product(1, (s.C, s.D, s.D)),
    ]


def _proker(s: Sizes, c: Any) -> list[Product]:  # noqa: ARG001
    return [
        Product(0.5, (s.N, s.D, s.N)),
        Product(1, (s.N, s.D, s.C)),
        Product(1 / 6, (s.N, s.N, s.N)),
        Product(1, (s.N, s.N, s.C)),
    ]


def _ape(s: Sizes, c: Any) -> list[Product]:
    return [Product(1, (s.N, round(c.channels * s.D), s.C))]


def _votes(s: Sizes, c: Any) -> list[Product]:  # noqa: ARG001
    return [Product(1, (s.Q, s.D, s.N))]


def _ape_votes(s: Sizes, c: Any) -> list[Product]:
    return [Product(1, (s.Q, round(c.channels * s.D), s.N))]


def _proker_votes(s: Sizes, c: Any) -> list[Product]:  # noqa: ARG001
    return [Product(1, (s.Q, s.D, s.N)), Product(1, (s.Q, s.N, s.C))]


def _transclip(s: Sizes, c: Any) -> list[Product]:
    return [
        Product(0.5, (s.Q, s.D, s.Q)),
        Product(c.iterations + 1, (s.Q, s.D, s.C)),
        Product(c.iterations, (s.C, s.Q, s.D)),
    ]


def _transclip_few_shot(s: Sizes, c: Any) -> list[Product]:
    return [Product(1, (s.N, s.D, s.Q)), *_transclip(s, c)]


def _tda(s: Sizes, c: Any) -> list[Product]:  # noqa: ARG001
    return [Product(1, (s.Q, s.D, max(1, round(s.live / s.Q))))]


def _batches(s: Sizes, c: Any) -> tuple[int, int]:
    """Return the number of steps and the size of a batch."""
    size = min(c.batch_size, s.N)
    return c.epochs * max(1, s.N // size), size


def _head(s: Sizes, c: Any) -> list[Product]:
    """Logits, and the gradient of the weights."""
    steps, size = _batches(s, c)
    return [Product(steps, (size, s.D, s.C)), Product(steps, (s.C, size, s.D))]


def _probe(s: Sizes, c: Any) -> list[Product]:  # noqa: ARG001
    steps = s.iterations
    return [Product(steps, (s.N, s.D, s.C)), Product(steps, (s.C, s.N, s.D))]


def _clip_adapter(s: Sizes, c: Any) -> list[Product]:
    (steps, size), H = _batches(s, c), s.D // c.reduction
    return [
        Product(steps, (size, s.D, s.C)),
        Product(steps, (size, s.C, s.D)),
        Product(3 * steps, (size, s.D, H)),
        Product(2 * steps, (s.D, size, H)),
    ]


def _adapted(s: Sizes, c: Any) -> list[Product]:
    return [Product(2, (s.Q, s.D, s.D // c.reduction))]


def _tip_adapter_f(s: Sizes, c: Any) -> list[Product]:
    steps, size = _batches(s, c)
    return [
        Product(steps, (size, s.D, s.N)),
        Product(steps, (s.N, size, s.D)),
        Product(steps, (size, s.D, s.C)),
    ]


def _ape_t(s: Sizes, c: Any) -> list[Product]:
    # Keys and features do not change: their similarities are computed once; the residual is one product for both.
    (steps, size), chosen = _batches(s, c), round(c.channels * s.D)
    return [
        Product(1, (s.N, s.D, s.N)),
        Product(1, (s.N, s.D, s.C)),
        Product(steps, (size, chosen, s.C)),
        Product(steps, (s.C, size, chosen)),
    ]


def _clap(s: Sizes, c: Any) -> list[Product]:
    return [Product(1, (s.N, s.D, s.C)), *_head(s, c)]


def _lp_plus_plus(s: Sizes, c: Any) -> list[Product]:
    return [Product(0.5, (s.D, s.N, s.D)), Product(1, (s.N, s.D, s.C)), *_head(s, c)]


def _prolip(s: Sizes, c: Any) -> list[Product]:
    steps, size = _batches(s, c)
    return [
        Product(steps, (size, s.W, s.D)),
        Product(steps, (s.W, size, s.D)),
        Product(steps, (size, s.D, s.C)),
        Product(steps, (size, s.C, s.D)),
    ]


def _projected(s: Sizes, c: Any) -> list[Product]:  # noqa: ARG001
    return [Product(1, (s.Q, s.W, s.D))]


def _cross_modal(s: Sizes, c: Any) -> list[Product]:
    return [Product(c.steps, (c.batch_size, s.D, s.C)), Product(c.steps, (s.C, c.batch_size, s.D))]


FIT: Final[dict[str, Callable[[Sizes, Any], list[Product]]]] = {
    "gda": _gda,
    "proker": _proker,
    "tip_adapter": _none,
    "ape": _ape,
    "transclip": _transclip,
    "transclip_few_shot": _transclip_few_shot,
    "tda": _none,
    "linear_probe": _probe,
    "linear_probe_adamw": _head,
    "clip_adapter": _clip_adapter,
    "tip_adapter_f": _tip_adapter_f,
    "ape_t": _ape_t,
    "taskres": _head,
    "clap": _clap,
    "lp_plus_plus": _lp_plus_plus,
    "prolip": _prolip,
    "cross_modal": _cross_modal,
}
"""Products of the fit, and of a prediction that is one computation for all queries."""
MORE: Final[dict[str, Callable[[Sizes, Any], list[Product]]]] = {
    "proker": _proker_votes,
    "tip_adapter": _votes,
    "tip_adapter_f": _votes,
    "ape": _ape_votes,
    "ape_t": _votes,
    "tda": _tda,
    "clip_adapter": _adapted,
    "prolip": _projected,
}
"""Products of the prediction, beside the logits of the text."""


def live_entries(predicted: NDArray[np.int64], capacity: int) -> int:
    """Return the sum over a stream of the entries in a cache with ``capacity`` entries per predicted class."""
    order = np.argsort(predicted, kind="stable")
    starts = np.flatnonzero(np.diff(predicted[order], prepend=-1))
    rank = np.empty(len(predicted), dtype=np.int64)
    counts = np.diff(np.append(starts, len(order)))
    rank[order] = np.arange(len(order)) - np.repeat(starts, counts)
    return int(np.cumsum(rank < capacity).sum())


def seconds_of(
    every: Iterable[Product],
    rates: dict[Shape, float],
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> tuple[float, float]:
    """Return the seconds of the products at the rates that this machine reaches, and their GFLOP.

    Args:
        every: The products.
        rates: Rates that are known by shape; new ones are added.
        device: Where they are measured.
        dtype: Type of the numbers; None is float32.
    """
    total, flop = 0.0, 0.0
    for product in every:
        m, k, n = product.shape
        # Blocks of a larger product have its rate.
        shape = (min(m, ROWS), min(k, ROWS), min(n, ROWS))
        if shape not in rates:
            rates[shape] = rate(shape, dtype, device)
        total += product.flop / rates[shape]
        flop += product.flop
    return total, flop / 1e9


def rate(shape: Shape, dtype: torch.dtype | None = None, device: str = "cpu") -> float:
    """Return the floating-point operations per second of a product, float32 unless another dtype is given."""
    import torch

    m, k, n = shape
    a, b, out = (
        torch.randn(size, device=device).to(dtype or torch.float32)
        for size in ((m, k), (k, n), (m, n))
    )

    def seconds() -> float:
        begun = time.perf_counter()
        torch.mm(a, b, out=out)
        if out.is_cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    seconds()
    best, end = float("inf"), time.perf_counter() + SECONDS
    for _ in range(REPEATS):
        best = min(best, seconds())
        if time.perf_counter() > end:
            break
    return 2.0 * m * k * n / best
