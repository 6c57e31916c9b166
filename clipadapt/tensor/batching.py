"""Batches whose rows do not depend on one another, so that features can be cached per example.

A row's last bits must not change with the size of its batch or with the longest text in it. So short batches are
filled up to :data:`MIN_ROWS` rows, and only texts that are padded to the same length share a batch.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
import torch

from clipadapt.tensor.moves import fetched, sent_ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from clipadapt.core.api.context import Meter

T = TypeVar("T")

MIN_ROWS: Final = 16
"""Fewest rows of a forward pass. With fewer, CPU kernels take another path and give other last bits (measured for
convolutions and matrix products, float32 and bfloat16, 1 and 2 threads; from 16 rows up all results were equal)."""
PAD_TO: Final = 8
"""Texts are padded to a multiple of this number of tokens."""
CHUNK: Final = 8192
"""Texts that are tokenized in one call; bounds the memory."""


def n_filler(n: int, size: int, least: int = MIN_ROWS) -> int:
    """Return how many rows to add to a batch of ``n``, so that it has a multiple of ``min(least, size)`` rows.

    Args:
        n: Rows of the batch.
        size: Rows of a full batch.
        least: Rows of the smallest batch.
    """
    return -n % min(least, size)


def same_length(keys: NDArray[np.int64], size: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Yield batches ``(rows, key)`` of at most ``size`` rows that have the same key, the largest keys first.

    Args:
        keys: Padded length of each row, or another key, shape ``(n,)``.
        size: Rows of a full batch.
    """
    for key in np.unique(keys)[::-1].tolist():
        rows = np.flatnonzero(keys == key)
        for begin in range(0, len(rows), size):
            yield rows[begin : begin + size], key


def padded_batches(
    lengths: NDArray[np.int64], limit: int, size: int
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Yield batches ``(rows, padded length)`` of texts that are padded to the same length, the longest first.

    A text is padded to the next multiple of :data:`PAD_TO` above its own length, so at least one token is padding:
    every batch then runs on the kernels that take an attention mask.

    Args:
        lengths: Number of tokens of each text, shape ``(n,)``.
        limit: Greatest length; texts of this length have no padding and get batches of their own.
        size: Texts of a full batch.
    """
    padded = np.minimum((lengths // PAD_TO + 1) * PAD_TO, limit)
    for rows, key in same_length(2 * padded + (lengths == padded), size):
        yield rows, key // 2


def pad_tokens(
    ids: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return padded token ids and the attention mask, both of shape ``(n, length)``, int64."""
    padded = np.full((len(ids), length), pad_id, dtype=np.int64)
    mask = np.zeros_like(padded)
    for i, row in enumerate(ids):
        padded[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return torch.from_numpy(padded), torch.from_numpy(mask)


def forward(
    network: Callable[[torch.Tensor], torch.Tensor],
    batch: torch.Tensor,
    size: int,
    least: int = MIN_ROWS,
) -> NDArray[np.float32]:
    """Run one batch without gradients; a short batch is filled up with its first row, see :func:`n_filler`.

    Args:
        network: Maps ``(m, ...)`` to ``(m, D)``.
        batch: ``n`` rows, at most ``size``.
        size: Rows of a full batch.
        least: Rows of the smallest batch.

    Returns:
        float32 features, shape ``(n, D)``.
    """
    return started(network, batch, size, least)()


def started(
    network: Callable[[torch.Tensor], torch.Tensor],
    batch: torch.Tensor,
    size: int,
    least: int = MIN_ROWS,
    device: str | None = None,
) -> Callable[[], NDArray[np.float32]]:
    """Start :func:`forward`; return a function that waits for its result and returns it.

    Args:
        network: As in :func:`forward`.
        batch: As in :func:`forward`.
        size: As in :func:`forward`.
        least: As in :func:`forward`.
        device: Where the batch is sent, which a GPU does while it computes another one; None leaves it where it is.
    """
    n = len(batch)
    filler = n_filler(n, size, least)
    if filler:
        batch = torch.cat([batch, batch[:1].expand(filler, *batch.shape[1:])])
    with torch.inference_mode():
        there = batch if device is None else sent_ahead(batch, device)
        return fetched(network(there)[:n].float())


def in_flight(
    batches: Iterator[tuple[T, Callable[[], NDArray[np.float32]]]], device: str, meter: Meter
) -> Iterator[tuple[T, NDArray[np.float32]]]:
    """Yield the result of each batch that was started, in order.

    On a GPU the next batch is prepared and queued before the host waits for one, so that the GPU always has work.

    Args:
        batches: Starts a batch each; what it is, and a function that waits for its result, see :func:`started`.
        device: Device of the network.
        meter: Gets the time spent waiting, as time of the model.
    """
    waiting: deque[tuple[T, Callable[[], NDArray[np.float32]]]] = deque()
    most = 1 if device.startswith("cuda") else 0
    for batch in batches:
        waiting.append(batch)
        if len(waiting) > most:
            yield _result(waiting.popleft(), meter)
    while waiting:
        yield _result(waiting.popleft(), meter)


def _result(
    batch: tuple[T, Callable[[], NDArray[np.float32]]], meter: Meter
) -> tuple[T, NDArray[np.float32]]:
    what, wait = batch
    with meter.stage("model"):
        return what, wait()


def ahead(make: Callable[[int], T], items: Sequence[int], workers: int, window: int) -> Iterator[T]:
    """Yield ``make(item)`` in order, computed in threads; at most ``window`` results are waiting at any time.

    Args:
        make: Prepares one item; called in threads.
        items: Items to prepare.
        workers: Number of threads.
        window: Upper bound of the look-ahead.
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
        # After an error the remaining items are cancelled.
        pool.shutdown(wait=True, cancel_futures=True)
