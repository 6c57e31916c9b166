"""Who does which fit when: jobs are claimed, given to an executor, and waited for where another process does them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from clipadapt.core.api.errors import ClipAdaptError, DivergedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from clipadapt.core.api.progress import Progress
    from clipadapt.core.runs.claims import Claims
    from clipadapt.core.runs.plan import Job

_SHORTEST: Final = 0.05
_LONGEST: Final = 1.0
"""Seconds between two looks at what other processes do."""


@dataclass(frozen=True, slots=True)
class Done:
    """A job that needs no more work.

    Attributes:
        job: The job.
        error: What stopped it, or None.
    """

    job: Job
    error: Exception | None


class Executor(Protocol):
    """Does jobs, here or elsewhere. Records are written in this process."""

    @property
    def threads(self) -> int | None:
        """Threads of a run whose config names none; None is as many as this process takes."""
        ...

    def has_room(self) -> bool:
        """Tell whether another job may be started now."""
        ...

    def start(self, job: Job, /) -> None:
        """Begin a job."""
        ...

    def finished(self, timeout: float, /) -> list[Done]:
        """Return the jobs that ended since the last call; wait so many seconds for one where some are under way."""
        ...

    @property
    def busy(self) -> int:
        """Number of jobs begun and not yet returned."""
        ...


class Local:
    """One job after another, in this process.

    Args:
        execute: Does one job.
    """

    threads = None

    def __init__(self, execute: Callable[[Job], None]) -> None:
        self.execute = execute
        self._done: list[Done] = []

    def has_room(self) -> bool:
        """Tell whether the last job was fetched."""
        return not self._done

    def start(self, job: Job, /) -> None:
        """Do a job; what stops it is kept, but for an interruption."""
        error = None
        try:
            self.execute(job)
        except Exception as err:  # noqa: BLE001  whoever works through the jobs decides
            error = err
        self._done.append(Done(job, error))

    def finished(self, timeout: float, /) -> list[Done]:  # noqa: ARG002
        """Return the job done last."""
        done, self._done = self._done, []
        return done

    @property
    def busy(self) -> int:
        """Number of jobs not yet fetched."""
        return len(self._done)


def work_through(
    jobs: Sequence[Job],
    claims: Claims,
    executor: Executor,
    progress: Progress,
    *,
    on_mistake: Callable[[Job, ClipAdaptError], None] | None = None,
) -> Iterator[Done]:
    """Do every job once, whichever process does it; yield each when it is done.

    A job that another process has claimed is left for later; at the end those are waited for, and done here where
    that process went away.

    Args:
        jobs: In the order in which they are best done.
        claims: Claims on the output folder.
        executor: Does the jobs.
        progress: Where it is said who is waited for.
        on_mistake: Called with a job, still claimed, that a user's mistake has stopped.
    """

    def collect(timeout: float) -> list[Done]:
        ended = executor.finished(timeout)
        for done in ended:
            is_mistake = not isinstance(done.error, DivergedError)  # which is recorded already
            if on_mistake and is_mistake and isinstance(done.error, ClipAdaptError):
                on_mistake(done.job, done.error)
            claims.release(done.job.key)
        return ended

    waiting = list(jobs)
    pause, told = _SHORTEST, False
    while waiting or executor.busy:
        moved = False
        for job in list(waiting):
            if not executor.has_room():
                break
            if job.is_open():
                if not claims.acquire(job.key):
                    continue
                if job.is_open():  # it may have been done between the look and the claim
                    waiting.remove(job)
                    executor.start(job)
                    moved = True
                    yield from collect(0)
                    continue
                claims.release(job.key)
            waiting.remove(job)
            moved = True
            yield Done(job, None)
        ended = collect(0 if moved else pause)
        yield from ended
        if moved or ended:
            pause = _SHORTEST
            continue
        if not executor.busy and waiting:
            if not told:
                told = True
                progress.note(_told(waiting, claims))
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)


def _told(waiting: Sequence[Job], claims: Claims) -> str:
    """Say which runs are waited for, and who does them."""
    who = ", ".join(sorted({claims.holder(job.key) for job in waiting}))
    plural = "run" if len(waiting) == 1 else "runs"
    return f"waiting for {len(waiting)} {plural} done by {who}"
