"""Schedule: claim fits, hand them to an executor, and wait for fits that other processes are running."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from clipadapt.core.api.errors import ClipAdaptError, DivergedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from clipadapt.core.api.progress import Progress
    from clipadapt.core.runs.claims import Claims
    from clipadapt.core.runs.plan import FitSpec

_SHORTEST: Final = 0.05
_LONGEST: Final = 1.0
"""Polling interval in seconds."""


@dataclass(frozen=True, slots=True)
class Done:
    """A fit that needs no more work.

    Attributes:
        spec: The fit.
        error: The error that stopped it, or None.
    """

    spec: FitSpec
    error: Exception | None


class Executor(Protocol):
    """Does fits, in this process or elsewhere. Records are written in this process."""

    @property
    def threads(self) -> int | None:
        """Threads of a run whose config does not set them; None means the default of this process."""
        ...

    def has_room(self) -> bool:
        """Return whether another fit can be started now."""
        ...

    def start(self, spec: FitSpec, /) -> None:
        """Start a fit."""
        ...

    def finished(self, timeout: float, /) -> list[Done]:
        """Return the fits that ended since the last call; if some are running, wait up to ``timeout`` s for one."""
        ...

    @property
    def busy(self) -> int:
        """Number of fits started and not yet returned."""
        ...


class Local:
    """Does one fit after another, in this process.

    Args:
        execute: Does one fit.
    """

    threads = None

    def __init__(self, execute: Callable[[FitSpec], None]) -> None:
        self.execute = execute
        self._done: list[Done] = []

    def has_room(self) -> bool:
        """Return whether the last fit was fetched."""
        return not self._done

    def start(self, spec: FitSpec, /) -> None:
        """Do a fit; its error is kept, except an interruption."""
        error = None
        try:
            self.execute(spec)
        except Exception as err:  # noqa: BLE001  the caller of work_through decides
            error = err
        self._done.append(Done(spec, error))

    def finished(self, timeout: float, /) -> list[Done]:  # noqa: ARG002
        """Return the last fit."""
        done, self._done = self._done, []
        return done

    @property
    def busy(self) -> int:
        """Number of fits not yet fetched."""
        return len(self._done)


class Watched:
    """An executor whose running fits are shown, one line each; use it as a context manager.

    Args:
        executor: Does the fits.
        progress: Where they are shown.
    """

    def __init__(self, executor: Executor, progress: Progress) -> None:
        self.executor = executor
        self.progress = progress
        self._shown: dict[FitSpec, ExitStack] = {}

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *exc: object) -> None:
        for line in self._shown.values():
            line.close()
        self._shown.clear()

    @property
    def threads(self) -> int | None:
        """Threads of a run whose config does not set them."""
        return self.executor.threads

    def has_room(self) -> bool:
        """Return whether another fit can be started now."""
        return self.executor.has_room()

    def start(self, spec: FitSpec, /) -> None:
        """Start a fit."""
        line = ExitStack()
        line.enter_context(self.progress.job(spec.title))
        self._shown[spec] = line
        self.executor.start(spec)

    def finished(self, timeout: float, /) -> list[Done]:
        """Return the fits that ended since the last call."""
        ended = self.executor.finished(timeout)
        for done in ended:
            if done.spec in self._shown:
                self._shown.pop(done.spec).close()
        return ended

    @property
    def busy(self) -> int:
        """Number of fits started and not yet returned."""
        return self.executor.busy


def work_through(
    specs: Sequence[FitSpec],
    claims: Claims,
    executor: Executor,
    progress: Progress,
    *,
    on_mistake: Callable[[FitSpec, ClipAdaptError], None] | None = None,
) -> Iterator[Done]:
    """Do every fit once, in whichever process; yield each when it is done.

    A fit that another process has claimed is left for later. At the end those are waited for, and done here if that
    process ended without doing them.

    Args:
        specs: In preferred order.
        claims: Claims on the output folder.
        executor: Does the fits.
        progress: Where a wait is reported.
        on_mistake: Called with a fit, still claimed, that a mistake of the user has stopped.
    """

    def collect(timeout: float) -> list[Done]:
        ended = executor.finished(timeout)
        for done in ended:
            is_mistake = not isinstance(done.error, DivergedError)  # which is recorded already
            if on_mistake and is_mistake and isinstance(done.error, ClipAdaptError):
                on_mistake(done.spec, done.error)
            claims.release(done.spec.fit_id)
        return ended

    waiting = list(specs)
    pause, reported = _SHORTEST, False
    while waiting or executor.busy:
        before = len(waiting)
        yield from _start(waiting, claims, executor, collect)
        started = len(waiting) < before
        ended = collect(0 if started else pause)
        yield from ended
        if started or ended:
            pause = _SHORTEST
        elif waiting and not executor.busy:
            if not reported:
                reported = True
                progress.note(_waiting_for(waiting, claims))
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)


def _start(
    waiting: list[FitSpec],
    claims: Claims,
    executor: Executor,
    collect: Callable[[float], list[Done]],
) -> Iterator[Done]:
    """Start the fits that can be claimed, as far as there is room, and yield those that are done.

    Fits that were started, or have nothing left to do, are removed from ``waiting``.
    """
    for spec in list(waiting):
        if not executor.has_room():
            return
        if spec.is_open():
            if not claims.acquire(spec.fit_id):
                continue
            if spec.is_open():  # another process may have done it before the claim
                waiting.remove(spec)
                executor.start(spec)
                yield from collect(0)
                continue
            claims.release(spec.fit_id)
        waiting.remove(spec)
        yield Done(spec, None)


def _waiting_for(waiting: Sequence[FitSpec], claims: Claims) -> str:
    """Return which runs are waited for, and who does them."""
    who = ", ".join(sorted({claims.holder(spec.fit_id) for spec in waiting}))
    plural = "run" if len(waiting) == 1 else "runs"
    return f"waiting for {len(waiting)} {plural} done by {who}"
