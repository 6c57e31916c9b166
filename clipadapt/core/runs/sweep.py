"""TODO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipadapt.core.api.errors import ClipAdaptError, ConfigError
from clipadapt.core.runs import leftovers, plan, runner
from clipadapt.core.runs.claims import Claims
from clipadapt.core.runs.schedule import Local, work_through

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from clipadapt.core.api.progress import Progress
    from clipadapt.core.experiments.config import Experiment
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.runs.plan import Job
    from clipadapt.core.runs.runner import Session
    from clipadapt.core.runs.schedule import Executor


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a sweep came to.

    Attributes:
        records: Records of all runs that there are, in the order of the axes.
        failures: Run and message of each run that stopped with an error now.
    """

    records: list[RunRecord]
    failures: list[tuple[str, str]]


def plan_sweep(
    experiments: Sequence[Experiment],
    out: Path,
    progress: Progress | None = None,
    threads: int | None = None,
) -> tuple[Session, list[list[Job]]]:
    """Open all data and check everything before the first fit.

    Args:
        experiments: The experiments of a sweep.
        out: Folder of the records; those of other experiments are left alone.
        progress: Where warnings are shown.
        threads: Threads of a config that names none, as the executor has them; None takes this process's.

    Returns:
        The session, and the jobs of each experiment.

    Raises:
        ClipAdaptError: Naming every experiment that cannot be run.
    """
    session = runner.Session(out, progress, threads=threads)
    prepared, jobs, faults = [], [], []
    for experiment in experiments:
        try:
            one = session.prepare(experiment)
            jobs += session.jobs([one])
            prepared.append(one)
        except ClipAdaptError as err:
            faults.append((experiment, err))
    if faults:
        raise _joined(faults)
    plan.refuse_namesakes(prepared)
    return session, jobs


def run_sweep(
    experiments: Sequence[Experiment],
    out: Path,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> Outcome:
    """Run every experiment; a run that fails is recorded and does not stop the rest.

    Args:
        experiments: The experiments of a sweep.
        out: Folder of the records; any number of processes may use it at once.
        progress: Where bars are shown.
        executor: Does the runs; None does them here, one after another.

    Raises:
        ClipAdaptError: If something is wrong before the first fit; then nothing is run.
    """
    threads = executor.threads if executor else None
    session, jobs = plan_sweep(experiments, out, progress, threads)
    for of_one in jobs:
        session.note_skipped(of_one)
    flat = [job for of_one in jobs for job in of_one]
    failures: list[tuple[str, str]] = []
    with (
        session.progress.track("runs", len(flat), "runs") as bar,
        Claims(out) as claims,
    ):
        leftovers.clear(out, claims, {job.key for job in flat if not job.is_open()})
        for done in work_through(
            in_good_order(flat),
            claims,
            executor or Local(session.execute),
            session.progress,
            on_mistake=runner.record_mistake,
        ):
            bar.advance(1)
            if done.error is None:
                continue
            message = _message(done.error)
            failures.append((done.job.title, message))
            session.progress.note(f"failed: {done.job.title}: {message}")
    records = {r.run_id: r for job in flat for r in job.records()}
    return Outcome(list(records.values()), failures)


def in_good_order(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs so that a model is loaded once and a data set's features are used while they are fresh."""
    models: dict[Any, int] = {}
    datasets: dict[Any, int] = {}
    threads: dict[Any, int] = {}

    def rank(job: Job) -> tuple[int, int, int]:
        experiment = job.prepared.experiment
        model = experiment.config.model if job.prepared.provider is not None else None
        return (
            models.setdefault((experiment.track, model), len(models)),
            threads.setdefault(job.prepared.threads, len(threads)),
            datasets.setdefault(experiment.config.data.name, len(datasets)),
        )

    return sorted(jobs, key=rank)


def _message(err: Exception) -> str:
    return err.problem if isinstance(err, ClipAdaptError) else f"{type(err).__name__}: {err}"


def _joined(faults: Sequence[tuple[Experiment, ClipAdaptError]]) -> ClipAdaptError:
    """Return one error for all; equal messages stand there once."""
    messages = {err.problem: err for _, err in faults}
    if len(messages) == 1:
        return faults[0][1]
    lines = []
    for problem in messages:
        first = next(e for e, err in faults if err.problem == problem)
        times = sum(err.problem == problem for _, err in faults)
        more = f" and {times - 1} more" if times > 1 else ""
        name = first.recipe or first.method_name
        lines.append(f"  {name} on {first.config.data.name}{more}: {problem}")
    return ConfigError(
        f"{len(faults)} of the sweep's experiments cannot be run:\n" + "\n".join(lines),
        hint=faults[0][1].hint,
    )
