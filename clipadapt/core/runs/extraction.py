"""Extraction: encode all examples of a dataset into the feature cache, here or on the workers of a cluster.

The examples are divided into shards (:mod:`clipadapt.core.runs.shards`). Workers encode them, and this process, which
alone writes, stores the features as a run would. What is stored is not encoded again, so the same command resumes;
a killed worker loses the shards that it was encoding, and they are repeated.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

import numpy as np

from clipadapt.core.api.context import Services
from clipadapt.core.api.errors import ClipAdaptError, ConfigError, DataError, Interrupted
from clipadapt.core.api.registry import MODELS, tracks
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.features.space import FLUSH_SECONDS, SEGMENT_BYTES
from clipadapt.core.files.folders import cache_dir
from clipadapt.core.files.hardware import set_threads
from clipadapt.core.files.locks import locked
from clipadapt.core.runs.cluster import RETRIES, WorkerError
from clipadapt.core.runs.models import ModelLoader
from clipadapt.core.runs.shards import Shards, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from clipadapt.core.api.features import Space
    from clipadapt.core.api.model import Backbone, ModelIdentity
    from clipadapt.core.api.progress import Progress, Tracker
    from clipadapt.core.experiments.settings import ExperimentConfig
    from clipadapt.core.features.index import PrefixSet
    from clipadapt.core.features.space import SpaceFolder
    from clipadapt.core.runs.shards import Encoded, Part, Shard

STAGES: Final = ("reading", "decoding", "model", "writing")


@dataclass(frozen=True, slots=True)
class Extraction:
    """What is to be encoded, with which model.

    Attributes:
        config: Data, model, and settings of the encoding.
        track: Name of the track.
        dataset: Name of the dataset.
        identity: The model.
        parts: The examples.
        threads: Threads of the numeric libraries in each worker.
    """

    config: ExperimentConfig
    track: str
    dataset: str
    identity: ModelIdentity
    parts: tuple[Part, ...]
    threads: int

    @property
    def total(self) -> int:
        """Number of examples of all parts."""
        return sum(len(part.inputs) for part in self.parts)

    @property
    def key(self) -> str:
        """Hash of what is encoded: two extractions with the same key encode the same features."""
        parts = [[part.name, len(part.inputs), dict(part.options)] for part in self.parts]
        whole = [self.track, self.dataset, asdict(self.identity), parts]
        return hashlib.sha256(json.dumps(whole, default=str).encode()).hexdigest()

    @property
    def unit(self) -> str:
        """What an example is, in the plural."""
        return tracks()[self.track].inputs


@dataclass(frozen=True, slots=True)
class Lost:
    """A shard whose worker was lost.

    Attributes:
        shard: The shard.
        why: The reason.
    """

    shard: Shard
    why: str


class Workers(Protocol):
    """Where shards are encoded; use it as a context manager."""

    @property
    def count(self) -> int:
        """Number of workers that are wanted."""
        ...

    def open(self) -> list[Space]:
        """Load the model and return where the features of each part are stored."""
        ...

    def know(self, stored: Sequence[PrefixSet]) -> None:
        """Set which examples of each part are stored."""
        ...

    def show(self, bar: Tracker, /) -> None:
        """Advance a bar within shards, where that is possible; :attr:`Encoded.shown` counts it."""
        ...

    def has_room(self) -> bool:
        """Return whether another shard can be started now."""
        ...

    def start(self, shard: Shard, /) -> None:
        """Start a shard."""
        ...

    def finished(self) -> list[Encoded | Lost]:
        """Wait until a shard ended or a worker is ready; return the shards that ended."""
        ...

    @property
    def busy(self) -> int:
        """Number of shards started and not yet returned."""
        ...

    def __enter__(self) -> Workers: ...
    def __exit__(self, *exc: object) -> None: ...


@dataclass(slots=True)
class Counts:
    """What was done with one part.

    Attributes:
        name: A split, or ``prompts``.
        examples: Number of its examples.
        encoded: Distinct examples that were encoded and stored now.
        stored: Examples that were stored before, or are equal to another one.
    """

    name: str
    examples: int
    encoded: int = 0
    stored: int = 0


@dataclass(slots=True)
class Extracted:
    """Result of an extraction.

    Attributes:
        parts: Counts of each part.
        workers: Number of workers.
        seconds: Seconds from the first shard to the last write.
        stages: Seconds by stage, those of all workers added.
        lost: Shards that were repeated because their worker was lost.
    """

    parts: list[Counts]
    workers: int
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    lost: int = 0

    @property
    def encoded(self) -> int:
        """Distinct examples that were encoded and stored now."""
        return sum(part.encoded for part in self.parts)

    @property
    def rate(self) -> float:
        """Examples encoded per second."""
        return self.encoded / max(self.seconds, 1e-9)

    def shares(self) -> dict[str, float]:
        """Return the share of each stage in the time of all stages."""
        total = sum(self.stages.values())
        return {name: seconds / total if total else 0.0 for name, seconds in self.stages.items()}


def extract(
    plan: Extraction,
    workers: Workers,
    progress: Progress,
    cache: FeatureCache | None = None,
    *,
    on_encoded: Callable[[Encoded], None] | None = None,
) -> Extracted:
    """Encode all examples that are not stored.

    Args:
        plan: What to encode.
        workers: Where it is encoded.
        progress: Where bars and warnings are shown.
        cache: Where features are stored; None is the user's feature cache, which must be writable.
        on_encoded: Called with each shard when it is done, before it is stored.

    Raises:
        ClipAdaptError: If an example cannot be read, features cannot be stored, or workers are lost too often. What was
            stored stays.
        Interrupted: If the user ends it; the message has the number of examples that are stored.
        WorkerError: If a worker fails.
    """
    cache = cache or FeatureCache(unwritable=_refuse)
    with _alone(plan, cache, progress), workers:
        spaces = workers.open()
        sinks = _sinks(spaces, plan.parts, cache)
        workers.know([sink.stored for sink in sinks])
        counts = [Counts(part.name, len(part.inputs)) for part in plan.parts]
        result = Extracted(counts, workers.count)
        shards = Shards(
            [part.examples for part in counts], workers.count, [s.seconds_each for s in sinks]
        )
        begun = time.perf_counter()
        try:
            with progress.track(f"encode {plan.dataset}", plan.total, plan.unit) as bar:
                workers.show(bar)
                for done in _work_through(shards, workers, result, progress):
                    if on_encoded is not None:
                        on_encoded(done)
                    _take(done, sinks[done.shard.part], result)
                    bar.advance(len(done.shard) - done.shown)
        except KeyboardInterrupt:
            _flush(sinks, result)
            raise _interrupted(plan, result) from None
        finally:
            _flush(sinks, result)
            result.seconds = time.perf_counter() - begun
    return result


@contextlib.contextmanager
def _alone(plan: Extraction, cache: FeatureCache, progress: Progress) -> Iterator[None]:
    """Let one process at a time encode the same examples; another one waits, and then finds them stored."""
    path = cache.directory.parent / "locks" / f"encode-{plan.key[:32]}"
    note = f"another process encodes {plan.dataset} with this model; waiting for it"
    with locked(path, lambda: progress.note(note)):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _flush(sinks: Sequence[_Sink], result: Extracted) -> None:
    """Write what was encoded and is not written yet."""
    begun = time.perf_counter()
    for sink in sinks:
        sink.flush()
    result.stages["writing"] += time.perf_counter() - begun


def _interrupted(plan: Extraction, result: Extracted) -> Interrupted:
    """Return what ends an extraction that the user interrupted."""
    there = sum(part.stored + part.encoded for part in result.parts)
    if not there:
        return Interrupted("interrupted before anything new was stored")
    return Interrupted(
        f"interrupted after {there:,} of {plan.total:,} {plan.unit}; they are stored, and the same command resumes"
    )


def _refuse(err: OSError) -> NoReturn:
    """End an extraction whose features cannot be stored.

    Raises:
        DataError: Always.
    """
    raise DataError(
        f"the features cannot be written to '{cache_dir() / 'features'}': {err.strerror or err}",
        hint="free some space, or set CLIPADAPT_CACHE to a folder with enough; what is stored stays, and the same "
        "command resumes",
    ) from err


def _sinks(spaces: Sequence[Space], parts: Sequence[Part], cache: FeatureCache) -> list[_Sink]:
    """Return where each part is stored; parts of the same space share it."""
    totals: dict[Space, int] = {}
    for space, part in zip(spaces, parts, strict=True):
        totals[space] = totals.get(space, 0) + len(part.inputs)
    made = {space: _Sink(cache.open(space), cache, total) for space, total in totals.items()}
    return [made[space] for space in spaces]


def _work_through(
    shards: Shards, workers: Workers, result: Extracted, progress: Progress
) -> Iterator[Encoded]:
    """Yield each shard when it is encoded; those of lost workers are repeated."""
    losses: dict[Shard, int] = {}
    waiting: Shard | None = None
    shown: set[str] = set()
    while True:
        while workers.has_room() and (waiting := waiting or shards.next()) is not None:
            workers.start(waiting)
            waiting = None
        if not workers.busy and (waiting := waiting or shards.next()) is None:
            return
        for done in workers.finished():
            if isinstance(done, Lost):
                result.lost += 1
                losses[done.shard] = losses.get(done.shard, 0) + 1
                if losses[done.shard] > RETRIES:
                    raise _lost_too_often(done)
                shards.repeat(done.shard)
                continue
            for note in done.notes:
                if note not in shown:
                    shown.add(note)
                    progress.note(note)
            shards.learn(done)
            yield done


def _lost_too_often(lost: Lost) -> ClipAdaptError:
    """Return the error for a shard that no worker survives."""
    shard = lost.shard
    return ClipAdaptError(
        f"the worker was lost {1 + RETRIES} times on the examples {shard.begin + 1:,} to {shard.end:,}: {lost.why}",
        hint="if memory runs out, use fewer --workers; what was encoded is stored, and the same command resumes",
    )


def _take(done: Encoded, sink: _Sink, result: Extracted) -> None:
    """Store the features of a shard and count them.

    Raises:
        ClipAdaptError: If the shard ended with a mistake of the user; what was encoded before is stored.
        WorkerError: If it ended with a defect.
    """
    counts = result.parts[done.shard.part]
    for name, seconds in done.stages.items():
        result.stages[name] = result.stages.get(name, 0.0) + seconds
    begun = time.perf_counter()
    encoded = sink.add(done)
    result.stages["writing"] += time.perf_counter() - begun
    counts.encoded += encoded
    if done.error is None:
        counts.stored += len(done.shard) - encoded
        return
    kind, problem, hint = done.error
    if kind == "interrupt":
        raise KeyboardInterrupt
    raise ClipAdaptError(problem, hint=hint) if kind == "mistake" else WorkerError(hint)


class _Sink:
    """Stores the features of one space, a segment at a time.

    Attributes:
        stored: The examples that are stored or will be with the next write.
        seconds_each: Mean seconds of encoding of what was stored before, or None.
    """

    def __init__(self, folder: SpaceFolder, cache: FeatureCache, total: int) -> None:
        self.stored = folder.stored()
        self.seconds_each = folder.seconds_each()
        self._folder = folder
        self._cache = cache
        self._total = total
        self._pending: list[Encoded] = []
        self._new: list[NDArray[np.bool_]] = []
        self._flushed = time.monotonic()

    def add(self, done: Encoded) -> int:
        """Add what a worker encoded; return the number of examples that were not stored yet."""
        new = ~self.stored.contains(done.digests)
        if new.any():
            self._require_room(done.rows)
            self.stored.add(done.digests[new])
            self._pending.append(done)
            self._new.append(new)
        size = sum(d.rows.nbytes for d in self._pending)
        if size >= SEGMENT_BYTES or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()
        return int(new.sum())

    def flush(self) -> None:
        """Write what was added since the last write; the cache refuses if it cannot."""
        pending, new = self._pending, self._new
        self._flushed = time.monotonic()
        if not pending:
            return
        digests = np.concatenate([d.digests[n] for d, n in zip(pending, new, strict=True)])
        rows = np.concatenate([d.rows[n] for d, n in zip(pending, new, strict=True)])
        try:
            self._folder.write(digests, rows, sum(d.seconds for d in pending))
        except KeyboardInterrupt:
            raise  # they are still pending, and are written before the end
        except BaseException:
            self._pending, self._new = [], []
            raise
        self._pending, self._new = [], []

    def _require_room(self, rows: NDArray[Any]) -> None:
        """Check that the cache is allowed to keep all rows.

        Raises:
            ConfigError: If it would remove the first rows for the last ones.
        """
        needed, bound = self._total * (rows.nbytes // len(rows)), self._cache.max_bytes
        if needed > bound:
            raise ConfigError(
                f"the features need {needed:,} bytes, and the feature cache keeps at most {bound:,}",
                hint=f"export CLIPADAPT_CACHE_BYTES={2 * needed}",
            )


class Here:
    """Encodes one shard after another, in this process."""

    count = 1

    def __init__(self, plan: Extraction, progress: Progress) -> None:
        self.plan = plan
        self.progress = progress
        self._bar: Tracker | None = None
        self._stored: Sequence[PrefixSet] = ()
        self._done: list[Encoded | Lost] = []
        self._backbone: Backbone | None = None
        self._services: Services | None = None
        self._worker: Worker | None = None

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def show(self, bar: Tracker, /) -> None:
        """Advance a bar by each batch."""
        self._worker = self._made(bar)

    def open(self) -> list[Space]:
        """Load the model and return where the features of each part are stored."""
        self._worker = self._made(None)
        return self._worker.spaces()

    def _made(self, bar: Tracker | None) -> Worker:
        if self._backbone is None or self._services is None:
            self._services = services_of(self.plan, self.plan.config.workers)
            self._backbone = load_backbone(self.plan, self._services, self.progress)
        return Worker(self._backbone, self._services, self.plan.parts, bar)

    def know(self, stored: Sequence[PrefixSet]) -> None:
        """Set which examples of each part are stored."""
        self._stored = stored

    def has_room(self) -> bool:
        """Return whether the last shard was fetched."""
        return not self._done

    def start(self, shard: Shard, /) -> None:
        """Encode a shard."""
        assert self._worker is not None
        self._done.append(self._worker.encode(shard, self._stored[shard.part]))

    def finished(self) -> list[Encoded | Lost]:
        """Return the last shard."""
        done, self._done = self._done, []
        return done

    @property
    def busy(self) -> int:
        """Number of shards not yet fetched."""
        return len(self._done)


def services_of(plan: Extraction, decoders: int | None) -> Services:
    """Return the services of a worker; features go to its driver, not to a cache."""
    config = plan.config
    return Services(
        FeatureCache(enabled=False),
        workers=decoders,
        threads=plan.threads,
        fast=config.fast == "on",
        compile=config.compile == "on",
    )


def load_backbone(plan: Extraction, services: Services, progress: Progress | None) -> Backbone:
    """Load the model of an extraction, and set the threads.

    Raises:
        DataError: If it is not the driver's model.
        ModelError: If it cannot be loaded.
    """
    model = plan.config.model
    assert model is not None
    set_threads(plan.threads)
    resolved = MODELS.resolve(model.name, plan.track)
    found = resolved.provider.identify(resolved.argument, model.options)
    own = plan.identity
    if (found.weights_sha256, found.dtype) != (own.weights_sha256, own.dtype):
        raise DataError(
            f"the model '{found.name}' of a worker differs from that of the driver",
            hint="give every machine of the cluster the same files and the same version of clipadapt",
        )
    return ModelLoader(progress).backbone(resolved, model.options, found, services)
