"""The run context, which ``Method.fit`` gets beside backbone and task: seed, random streams, services, history.

Reference tests replace the order of :meth:`RunContext.batches` and the values of :meth:`RunContext.initial` by those of
the official code, so that they compare the shipped method itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from clipadapt.core.api.flags import registered
from clipadapt.core.api.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.features import FeatureReader
    from clipadapt.core.api.progress import Progress

BatchOrder = Callable[[str, int, int, int], "list[NDArray[np.int64]]"]


@dataclass(slots=True)
class Meter:
    """Seconds of encoding since the last reset.

    Attributes:
        used_seconds: Cost of the features used, cached features included.
        spent_seconds: Seconds spent on encoding in this process.
        computed: Examples encoded in this process.
        stages: Seconds by stage, see :meth:`stage`.
    """

    used_seconds: float = 0.0
    spent_seconds: float = 0.0
    computed: int = 0
    stages: dict[str, float] = field(default_factory=dict)

    def add(self, used: float, spent: float, computed: int) -> None:
        """Add the cost of one read of the feature cache."""
        self.used_seconds += used
        self.spent_seconds += spent
        self.computed += computed

    def reset(self) -> None:
        """Set all counts to 0."""
        self.used_seconds = self.spent_seconds = 0.0
        self.computed = 0
        self.stages.clear()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a block to a stage.

        The stages of encoding divide the time of the thread that runs the model: ``reading`` (the bytes, which are
        hashed), ``decoding`` (waiting for decoded images, or tokenizing) and ``model``. A fit that writes checkpoints
        has the stage ``checkpoints``.
        """
        begun = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - begun
            self.stages[name] = self.stages.get(name, 0.0) + spent


@dataclass(slots=True)
class Services:
    """What a model uses to encode, beside its weights.

    Attributes:
        cache: Feature cache; a disabled one computes every feature.
        progress: Where progress is shown.
        meter: Seconds of encoding.
        workers: Threads that decode images ahead; None takes one per available processor.
        batch_size: Examples per forward pass; None lets the model choose.
        threads: Threads of the framework; None does not change them.
        fast: Whether faster implementations are used that are equal to the reference implementation up to rounding.
        compile: Whether the encoding image tower is compiled.
        flags: Flags of the current run with their reasons, see :meth:`report`.
    """

    cache: FeatureReader
    progress: Progress = field(default_factory=Silent)
    meter: Meter = field(default_factory=Meter)
    workers: int | None = None
    batch_size: int | None = None
    threads: int | None = None
    fast: bool = True
    compile: bool = False
    flags: dict[str, str] = field(default_factory=dict)
    _reported: set[str] = field(default_factory=set)

    def report(self, flag: str, why: str, *, record: bool = True) -> None:
        """Warn the user about a problem with the run's input, once per flag.

        Args:
            flag: Name of a flag registered in :mod:`clipadapt.core.api.flags`.
            why: One sentence with the figures.
            record: Whether the flag is added to the records of the run.

        Raises:
            ValueError: If the flag is not registered.
        """
        registered((flag,))
        if record:
            self.flags.setdefault(flag, why)
        if flag not in self._reported:
            self._reported.add(flag)
            self.progress.note(f"warning: {why}")


def random_stream(seed: int, name: str) -> np.random.Generator:
    """Return the named random stream of a seed; it is the same on every platform."""
    raw = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(raw[:16], "little")))


@dataclass(slots=True)
class RunContext:
    """Everything a fit depends on beside backbone and task.

    Attributes:
        seed: Seed of the run; every random number comes from :meth:`rng`.
        work_dir: Folder for checkpoints of a fit that can be resumed.
        services: Feature cache, progress and meter.
        threads: Threads of the framework; None does not change them.
        history: One mapping per logged step, written to history.jsonl.
        order: For reference tests, replaces the order of batches: ``(stream, n, size, epoch) -> index arrays``.
        start: For reference tests, initial values of parameters by name.
        observe: For reference tests, called by methods with the name and value of an intermediate result.
    """

    seed: int
    work_dir: Path
    services: Services
    threads: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    order: BatchOrder | None = None
    start: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    observe: Callable[[str, Any], None] | None = None

    @property
    def progress(self) -> Progress:
        """Where progress is shown."""
        return self.services.progress

    @property
    def cache(self) -> FeatureReader:
        """The feature cache."""
        return self.services.cache

    def rng(self, name: str) -> np.random.Generator:
        """Return the named random stream of this seed; it is the same on every platform."""
        return random_stream(self.seed, name)

    def batches(
        self, stream: str, n: int, size: int, epoch: int, *, drop_last: bool = False
    ) -> list[NDArray[np.int64]]:
        """Return the batches of one epoch as arrays of shuffled indices.

        Args:
            stream: Name of the random stream.
            n: Number of examples.
            size: Examples per batch; the last batch may be smaller.
            epoch: Epoch, from 0.
            drop_last: Drop a last batch that is smaller, unless it is the only one.
        """
        if self.order is not None:
            return self.order(stream, n, size, epoch)
        order = self.rng(f"{stream}:{epoch}").permutation(n).astype(np.int64)
        out = [order[i : i + size] for i in range(0, n, size)]
        if drop_last and len(out) > 1 and len(out[-1]) < size:
            out.pop()
        return out

    def initial(self, name: str, default: NDArray[Any]) -> NDArray[Any]:
        """Return the initial value of a parameter: ``default``, unless a reference test replaces it.

        Raises:
            ValueError: If the replacement has another shape.
        """
        given = self.start.get(name)
        if given is None:
            return default
        if given.shape != default.shape:
            raise ValueError(
                f"initial value '{name}' has shape {given.shape}, expected {default.shape}"
            )
        return given

    def log(self, **values: Any) -> None:
        """Add one step to the history, such as epoch, loss, val accuracy and learning rate."""
        self.history.append(values)
