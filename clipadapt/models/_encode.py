"""Streaming: threads prepare examples a bounded number of batches ahead of the network."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

T = TypeVar("T")

SMALLEST: Final = 16
"""Rows of a forward pass at the least: with fewer, CPU kernels take another path and give other last bits (measured
for convolutions and matrix products, float32 and bfloat16, 1 and 2 threads; from 16 rows up all were equal)."""


def ahead(make: Callable[[int], T], items: Sequence[int], workers: int, window: int) -> Iterator[T]:
    """Yield ``make(item)`` in order; at most ``window`` results are waiting at any time.

    Args:
        make: Prepares one item; called in threads.
        items: What to prepare.
        workers: Threads.
        window: Bound of the look-ahead.
    """
    pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="decode")
    waiting: deque[Future[T]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # After an error the waiting items are not prepared any more.
        pool.shutdown(wait=True, cancel_futures=True)


def forward(
    network: Callable[[torch.Tensor], torch.Tensor],
    batch: torch.Tensor,
    size: int,
    least: int = SMALLEST,
) -> NDArray[np.float32]:
    """Run one batch so that no row depends on how many others there are.

    A short batch is filled up with its first row to a multiple of ``least``.

    Args:
        network: Maps ``(m, ...)`` to ``(m, D)``.
        batch: ``n`` rows, at most ``size``.
        size: Rows of a full batch.
        least: Rows of the smallest batch.
    """
    n = len(batch)
    step = min(least, size)
    missing = -n % step
    if missing:
        batch = torch.cat([batch, batch[:1].expand(missing, *batch.shape[1:])])
    with torch.inference_mode():
        rows = network(batch)[:n]
    return np.asarray(rows.float().cpu().numpy(), dtype=np.float32)


def images(
    load: Callable[[int], torch.Tensor],
    network: Callable[[torch.Tensor], torch.Tensor],
    indices: NDArray[np.int64],
    size: int,
    workers: int,
    least: int = SMALLEST,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield ``(indices, features)`` batch by batch, in constant memory.

    Args:
        load: Returns one preprocessed image ``(3, H, W)``; called in threads.
        network: Maps pixels ``(m, 3, H, W)`` to features ``(m, D)``.
        indices: Which images.
        size: Images of one forward pass.
        workers: Threads that decode.
        least: Rows of the smallest batch; shorter ones are filled up.
    """
    stream = ahead(load, indices.tolist(), workers, window=2 * size)
    for begin in range(0, len(indices), size):
        part = indices[begin : begin + size]
        pixels = torch.stack([next(stream) for _ in part])  # (m, 3, H, W)
        yield part, forward(network, pixels, size, least)


def texts(
    tokens_of: Callable[[NDArray[np.int64]], torch.Tensor],
    lengths_of: Callable[[torch.Tensor], torch.Tensor],
    network: Callable[[torch.Tensor], torch.Tensor],
    indices: NDArray[np.int64],
    size: int,
    chunk: int = 8192,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield ``(indices, features)`` with texts of like length together.

    A text is cut to its own length, rounded up to a multiple of 8, so its features depend on itself alone.

    Args:
        tokens_of: Tokenizes texts to ``(m, L)``.
        lengths_of: Tells how many positions of each row are needed.
        network: Maps tokens ``(m, l)`` to features ``(m, D)``.
        indices: Which texts.
        size: Texts of one forward pass.
        chunk: Texts tokenized at once; bounds the memory.
    """
    for start in range(0, len(indices), chunk):
        part = indices[start : start + chunk]
        tokens = tokens_of(part)  # (m, L)
        lengths = ((lengths_of(tokens) + 7) // 8 * 8).clamp(max=tokens.shape[1])
        for length in torch.unique(lengths).tolist():
            rows = torch.nonzero(lengths == length)[:, 0]
            for begin in range(0, len(rows), size):
                some = rows[begin : begin + size]
                yield part[some.numpy()], forward(network, tokens[some, :length], size)
