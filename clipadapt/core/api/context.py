"""The run context: seed, named random streams, the order of batches and the start of parameters.

``batches`` and ``initial`` are seams: a reference test feeds the official code's order and start values
through them into ``Method.fit`` itself, so that parity is proved of the shipped method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from clipadapt.core.api.flags import registered
from clipadapt.core.api.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.features import FeatureReader
    from clipadapt.core.api.progress import Progress

BatchOrder = Callable[[str, int, int, int], "list[NDArray[np.int64]]"]


@dataclass(slots=True)
class Meter:
    """Seconds of encoding: what the features used cost, whoever paid, and what was spent just now."""

    used_seconds: float = 0.0
    spent_seconds: float = 0.0
    computed: int = 0

    def add(self, used: float, spent: float, computed: int) -> None:
        """Count one read of the store."""
        self.used_seconds += used
        self.spent_seconds += spent
        self.computed += computed

    def reset(self) -> None:
        """Begin a new run."""
        self.used_seconds = self.spent_seconds = 0.0
        self.computed = 0


@dataclass(slots=True)
class Services:
    """What a model needs to encode, beside its weights.

    Attributes:
        store: Feature store; a disabled one computes everything.
        progress: Where bars are shown.
        meter: Counts the seconds of encoding.
        workers: Threads that decode ahead; None takes the affinity mask.
        batch_size: Examples per forward pass; None lets the model choose.
        threads: Threads of the framework; None leaves them alone.
        fast: Whether exact short cuts are taken; tests compare them with the plain way.
        compile: Whether an image tower that encodes is compiled first.
        flags: Flags of the run under way and the reason of each, see :meth:`report`.
    """

    store: FeatureReader
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
        """Warn the user about a problem of the run's input; each flag is reported once.

        Args:
            flag: Name of a flag registered in :mod:`clipadapt.core.api.flags`.
            why: One sentence with the figures.
            record: Whether the records of the run carry the flag.

        Raises:
            ValueError: If the flag is not registered.
        """
        registered((flag,))
        if record:
            self.flags.setdefault(flag, why)
        if flag not in self._reported:
            self._reported.add(flag)
            self.progress.note(f"warning: {why}")


@dataclass(slots=True)
class RunContext:
    """What a fit may depend on beside backbone and task.

    Attributes:
        seed: The run's seed; every random number comes from :meth:`rng`.
        work_dir: Folder for checkpoints of a fit that may be resumed.
        services: Store, progress and meter.
        threads: Threads of the framework, a recorded setting; None leaves them alone.
        history: One mapping per logged step, written as history.jsonl.
        order: Replaces the order of batches: ``(stream, n, size, epoch) -> index arrays``.
        start: Replaces start values of parameters by name.
        observe: Called with a name and a value by methods at points a reference test compares.
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
        """Where bars are shown."""
        return self.services.progress

    @property
    def store(self) -> FeatureReader:
        """The feature store."""
        return self.services.store

    def rng(self, name: str) -> np.random.Generator:
        """Return the named random stream of this seed; equal on every platform."""
        raw = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(raw[:16], "little")))

    def batches(
        self, stream: str, n: int, size: int, epoch: int, *, drop_last: bool = False
    ) -> list[NDArray[np.int64]]:
        """Return the index arrays of one epoch, in shuffled order.

        Args:
            stream: Name of the random stream.
            n: Number of examples.
            size: Examples per batch; the last batch is smaller where it does not divide ``n``.
            epoch: Epoch, from 0.
            drop_last: Leave out a last batch that is smaller (never the only one).
        """
        if self.order is not None:
            return self.order(stream, n, size, epoch)
        order = self.rng(f"{stream}:{epoch}").permutation(n).astype(np.int64)
        out = [order[i : i + size] for i in range(0, n, size)]
        if drop_last and len(out) > 1 and len(out[-1]) < size:
            out.pop()
        return out

    def initial(self, name: str, default: NDArray[Any]) -> NDArray[Any]:
        """Return the start value of a parameter: ``default``, unless a reference test feeds another."""
        given = self.start.get(name)
        if given is None:
            return default
        if given.shape != default.shape:
            raise ValueError(
                f"start value '{name}' has shape {given.shape}, expected {default.shape}"
            )
        return given

    def log(self, **values: Any) -> None:
        """Add one line to the history (epoch, loss, val accuracy, learning rate)."""
        self.history.append(values)
