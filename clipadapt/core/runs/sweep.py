"""Run the experiments of a sweep; a run that fails is recorded and does not stop the others."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from clipadapt.core.api.errors import ClipAdaptError, ConfigError
from clipadapt.core.runs.plan import USER_ERROR, check_dataset_names
from clipadapt.core.runs.record import Failure, write_failure
from clipadapt.core.runs.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from clipadapt.core.api.progress import Progress
    from clipadapt.core.experiments.config import Experiment
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.runs.plan import FitSpec
    from clipadapt.core.runs.schedule import Done, Executor


@dataclass(frozen=True, slots=True)
class SweepResult:
    """Result of a sweep.

    Attributes:
        records: Records of all runs that exist, in the order of the axes.
        failures: Title and message of each fit that failed now.
    """

    records: list[RunRecord]
    failures: list[tuple[str, str]]


def plan_sweep(
    experiments: Sequence[Experiment],
    out: Path,
    progress: Progress | None = None,
    threads: int | None = None,
) -> tuple[Session, list[list[FitSpec]]]:
    """Open all data and check everything before the first fit.

    Args:
        experiments: The experiments of a sweep.
        out: Folder of the records; those of other experiments are left alone.
        progress: Where warnings are shown.
        threads: Threads of the executor, for experiments that do not set them; None takes those of this process.

    Returns:
        The session, and the fits of each experiment.

    Raises:
        ClipAdaptError: Naming every experiment that cannot be run.
    """
    session = Session(out, progress, threads)
    opened, planned, errors = [], [], []
    for experiment in experiments:
        try:
            one = session.open(experiment)
            planned += session.plan([one])
            opened.append(one)
        except ClipAdaptError as err:
            errors.append((experiment, err))
    if errors:
        raise _joined(errors)
    check_dataset_names(opened)
    return session, planned


def run_sweep(
    experiments: Sequence[Experiment],
    out: Path,
    progress: Progress | None = None,
    executor: Executor | None = None,
    *,
    on_records: Callable[[list[RunRecord]], None] | None = None,
) -> SweepResult:
    """Run every experiment.

    Args:
        experiments: The experiments of a sweep.
        out: Folder of the records; any number of processes may use it at the same time.
        progress: Where bars and warnings are shown.
        executor: Does the fits; None does them here, one after another.
        on_records: Called with the records of each fit when it is done, also of one that was complete before.

    Raises:
        ClipAdaptError: If something is wrong before the first fit; then nothing is run.
    """
    session, planned = plan_sweep(
        experiments, out, progress, executor.threads if executor else None
    )
    failures: list[tuple[str, str]] = []

    def check(done: Done) -> None:
        if on_records is not None:
            on_records(done.spec.records())
        if done.error is not None:
            message = _message(done.error)
            failures.append((done.spec.title, message))
            session.progress.note(f"failed: {done.spec.title}: {message}")

    session.execute(
        planned, check, executor=executor, order=in_good_order, on_mistake=_record_mistake
    )
    records = {r.run_id: r for specs in planned for spec in specs for r in spec.records()}
    return SweepResult(list(records.values()), failures)


def in_good_order(specs: Sequence[FitSpec]) -> list[FitSpec]:
    """Sort fits so that each model is loaded once, and a dataset's features are used soon after they are computed."""
    models: dict[Any, int] = {}
    datasets: dict[Any, int] = {}
    threads: dict[Any, int] = {}

    def rank(spec: FitSpec) -> tuple[int, int, int]:
        config = spec.experiment.config
        model = config.model if spec.opened.provider is not None else None
        return (
            models.setdefault((spec.experiment.track, model), len(models)),
            threads.setdefault(spec.opened.threads, len(threads)),
            datasets.setdefault(config.data.name, len(datasets)),
        )

    return sorted(specs, key=rank)


def _record_mistake(spec: FitSpec, err: ClipAdaptError) -> None:
    """Record a user error found only during a fit."""
    write_failure(spec, Failure(err.problem, (USER_ERROR,)), datetime.now(UTC))


def _message(err: Exception) -> str:
    return err.problem if isinstance(err, ClipAdaptError) else f"{type(err).__name__}: {err}"


def _joined(errors: Sequence[tuple[Experiment, ClipAdaptError]]) -> ClipAdaptError:
    """Return one error for all, in which equal messages appear once."""
    messages = {err.problem: err for _, err in errors}
    if len(messages) == 1:
        return errors[0][1]
    lines = []
    for problem in messages:
        first = next(e for e, err in errors if err.problem == problem)
        times = sum(err.problem == problem for _, err in errors)
        more = f" and {times - 1} more" if times > 1 else ""
        name = first.recipe or first.method_name
        lines.append(f"  {name} on {first.config.data.name}{more}: {problem}")
    return ConfigError(
        f"{len(errors)} of the sweep's experiments cannot be run:\n" + "\n".join(lines),
        hint=errors[0][1].hint,
    )
