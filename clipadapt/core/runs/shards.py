"""Shards of an extraction, and the worker that encodes one.

A worker holds the model. It hashes the examples of a shard, encodes those whose features are not stored, and returns
them; whoever started the worker writes them. Features are made by the model's own ``encode``, as in a run.
"""

from __future__ import annotations

import os
import time
import traceback
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.api.context import Meter
from clipadapt.core.api.errors import ClipAdaptError
from clipadapt.core.api.features import DIGEST_BYTES, StoredFeatures
from clipadapt.core.api.progress import Silent
from clipadapt.core.features.result import Result
from clipadapt.core.features.space import as_strings, checked_digests, compute_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from clipadapt.core.api.context import Services
    from clipadapt.core.api.data import Inputs
    from clipadapt.core.api.features import Compute, Space
    from clipadapt.core.api.progress import Progress, Tracker
    from clipadapt.core.features.index import PrefixSet

FIRST: Final = 64
"""Examples of the first shards, and of the smallest ones but the last."""
MOST: Final = 16_384
"""Examples of the largest shard."""
SECONDS: Final = 10.0
"""Seconds that a shard should take: what is lost with a worker, and how often the progress moves."""
GROWTH: Final = 4
"""How many times as large a shard may be as the one before."""


@dataclass(frozen=True, slots=True)
class Part:
    """Examples that are encoded with the same options.

    Attributes:
        name: A split, or ``prompts``.
        inputs: The examples.
        options: Keywords of the model's ``encode``.
    """

    name: str
    inputs: Inputs[Any]
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Shard:
    """Consecutive examples of one part.

    Attributes:
        part: Number of the part.
        begin: Its first example.
        end: The one after its last example.
    """

    part: int
    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a worker did with a shard.

    Attributes:
        shard: The shard.
        digests: sha256 of each example that was encoded, shape ``(m, 32)``.
        rows: Its features, shape ``(m, ...)``.
        seconds: Seconds of encoding.
        stages: Seconds of this worker by stage.
        notes: Warnings for the user.
        shown: Examples that the progress bar counted already.
        worker: Process that did it.
        error: Kind (``mistake``, ``defect`` or ``interrupt``), problem and hint of what ended it, or None.
    """

    shard: Shard
    digests: NDArray[np.uint8]
    rows: NDArray[Any]
    seconds: float
    stages: Mapping[str, float]
    notes: tuple[str, ...] = ()
    shown: int = 0
    worker: str = ""
    error: tuple[str, str, str] | None = None


class Shards:
    """Hands out shards that take about :data:`SECONDS`.

    Args:
        sizes: Number of examples of each part.
        workers: Number of workers, so that the last shards are divided evenly.
        each: Expected seconds per example of each part; None if unknown.
    """

    def __init__(self, sizes: Sequence[int], workers: int, each: Sequence[float | None]) -> None:
        self._sizes = list(sizes)
        self._workers = workers
        self._part, self._begin = 0, 0
        self._again: deque[Shard] = deque()
        self._length = [FIRST if s is None else _within(SECONDS / max(s, 1e-9)) for s in each]

    def next(self) -> Shard | None:
        """Return the next shard, or None if there is none left now."""
        if self._again:
            return self._again.popleft()
        while self._part < len(self._sizes) and self._begin >= self._sizes[self._part]:
            self._part, self._begin = self._part + 1, 0
        if self._part == len(self._sizes):
            return None
        left = self._sizes[self._part] - self._begin
        fair = max(FIRST, -(-left // (2 * self._workers)))
        begin, self._begin = self._begin, self._begin + min(self._length[self._part], fair, left)
        return Shard(self._part, begin, self._begin)

    def repeat(self, shard: Shard) -> None:
        """Hand out a shard once more, before all others."""
        self._again.append(shard)

    def learn(self, done: Encoded) -> None:
        """Adapt the length of the next shards to the time that one took."""
        n, part = len(done.digests), done.shard.part
        if n and done.seconds > 0:
            fitting = int(SECONDS * n / done.seconds)
            self._length[part] = _within(min(fitting, GROWTH * len(done.shard)))


def _within(length: float) -> int:
    return int(min(max(length, FIRST), MOST))


class Worker:
    """Encodes shards with one model.

    Args:
        backbone: The model.
        services: Its services; the cache is not used.
        parts: The parts of the extraction.
        bar: Advanced by each batch; None shows nothing.
    """

    def __init__(
        self, backbone: Any, services: Services, parts: Sequence[Part], bar: Tracker | None = None
    ) -> None:
        self._backbone = backbone
        self._services = services
        self._parts = parts
        self._bar = bar

    def spaces(self) -> list[Space]:
        """Return where the features of each part are stored."""
        none = np.empty(0, dtype=np.int64)
        found = []
        for part in self._parts:
            collector = _Collector(None)
            self._encode(part.inputs.take(none), part.options, collector, Silent(), Meter())
            if collector.space is None:
                raise TypeError(f"{type(self._backbone).__name__}.encode reads no feature cache")
            found.append(collector.space)
        return found

    def encode(self, shard: Shard, stored: PrefixSet) -> Encoded:
        """Encode the examples of a shard that are not stored; rows before an error are returned with it."""
        part, meter = self._parts[shard.part], Meter()
        collector, shown, error = _Collector(stored), _Shown(self._bar), None
        which = np.arange(shard.begin, shard.end, dtype=np.int64)
        try:
            self._encode(part.inputs.take(which), part.options, collector, shown, meter)
        except KeyboardInterrupt:
            error = ("interrupt", "", "")
        except ClipAdaptError as err:
            error = ("mistake", err.problem, err.hint)
        except Exception as err:  # noqa: BLE001  raised again by the driver
            error = ("defect", f"{type(err).__name__}: {err}", traceback.format_exc())
        digests, rows = collector.joined()
        return Encoded(
            shard,
            digests,
            rows,
            collector.seconds,
            meter.stages,
            tuple(shown.notes),
            shown.count,
            f"{os.uname().nodename if hasattr(os, 'uname') else ''}:{os.getpid()}",
            error,
        )

    def _encode(
        self,
        inputs: Inputs[Any],
        options: Mapping[str, Any],
        collector: _Collector,
        progress: Progress,
        meter: Meter,
    ) -> None:
        own = replace(self._services, cache=collector, progress=progress, meter=meter, flags={})
        self._backbone.with_services(own).encode(inputs, **options)


class _Collector:
    """Takes the place of the feature cache of a worker: collects what it does not know to be stored.

    Attributes:
        space: Space that was asked for last.
        seconds: Seconds of encoding.
    """

    def __init__(self, stored: PrefixSet | None) -> None:
        self.space: Space | None = None
        self.seconds = 0.0
        self._stored = stored
        self._digests: list[NDArray[np.uint8]] = []
        self._rows: list[NDArray[Any]] = []

    def get_or_compute(
        self,
        space: Space,
        digests: NDArray[np.uint8],
        compute: Compute,
        *,
        out: NDArray[Any] | None = None,
    ) -> StoredFeatures:
        """Compute each distinct example that is not stored; the rows of the others are not filled in."""
        self.space = space
        digests = checked_digests(digests)
        _, first = np.unique(as_strings(digests), return_index=True)
        wanted = np.sort(first)
        if self._stored is not None:
            wanted = wanted[~self._stored.contains(digests[wanted])]
        result = Result(len(digests), out=out)
        begun = time.perf_counter()
        try:
            if len(wanted):
                compute_rows(self, digests, wanted, compute, result)
        finally:
            self.seconds += time.perf_counter() - begun
        return StoredFeatures(result.rows(), self.seconds, len(wanted), self.seconds)

    def write(
        self,
        digests: NDArray[np.uint8],
        rows: NDArray[Any],
        encode_seconds: float = 0.0,  # noqa: ARG002
    ) -> bool:
        """Keep rows."""
        self._digests.append(digests)
        self._rows.append(rows)
        return True

    def joined(self) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Return the digests and rows of everything that was computed."""
        if not self._rows:
            return np.empty((0, DIGEST_BYTES), np.uint8), np.empty((0, 1), np.float32)
        return np.concatenate(self._digests), np.concatenate(self._rows)


class _Shown:
    """Progress of one shard: batches advance the bar of the whole extraction, notes are kept for the driver."""

    def __init__(self, bar: Tracker | None) -> None:
        self.notes: list[str] = []
        self.count = 0
        self._bar = bar

    def track(self, description: str, total: int | None, unit: str = "", /) -> Tracker:  # noqa: ARG002
        return self

    def job(self, title: str, /) -> Any:
        return Silent().job(title)

    def note(self, message: str, /) -> None:
        self.notes.append(message)

    def advance(self, n: int = 1, /, **info: float) -> None:
        if self._bar is not None:
            self.count += n
            self._bar.advance(n, **info)

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *exc: object) -> None:
        pass
