"""Run experiments: plan -> fit -> evaluate -> record.

:func:`run_experiments` is the entry point for one experiment or a few, :func:`clipadapt.core.runs.sweep.run_sweep`
that for a sweep. Both open data and models once in a :class:`Session` and do each fit with :func:`execute`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from clipadapt.core.api.errors import ClipAdaptError, DivergedError
from clipadapt.core.api.model import calculating
from clipadapt.core.api.progress import Silent
from clipadapt.core.data.draws import Draws, draw_task
from clipadapt.core.data.targets import OpenDatasets
from clipadapt.core.files.folders import refusal
from clipadapt.core.files.hardware import free_device_memory
from clipadapt.core.records.environment import reset_peak_memory
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.runs import leftovers
from clipadapt.core.runs.claims import Claims
from clipadapt.core.runs.evaluate import evaluate
from clipadapt.core.runs.fit import draw_flags, fit, warn_of_untrained_classes
from clipadapt.core.runs.models import ModelLoader
from clipadapt.core.runs.plan import check_dataset_names, open_experiment, plan_fit
from clipadapt.core.runs.record import Failure, write_failure, write_record
from clipadapt.core.runs.schedule import Local, Watched, work_through
from clipadapt.core.runs.tasks import to_task

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from clipadapt.core.api.processes import Team
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.experiments.config import Experiment
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.runs.fit import FitResult
    from clipadapt.core.runs.plan import FitSpec, OpenExperiment
    from clipadapt.core.runs.schedule import Done, Executor


def run_experiments(
    experiments: Sequence[Experiment],
    out: Path,
    progress: Progress | None = None,
    *,
    on_error: Callable[[list[RunRecord]], None] | None = None,
    on_records: Callable[[list[RunRecord]], None] | None = None,
    team: Team | None = None,
) -> list[RunRecord]:
    """Run experiments one after another; complete runs are read, not repeated.

    Args:
        experiments: Valid experiments; all are planned before the first fit.
        out: Folder of the records.
        progress: Where bars and warnings are shown.
        on_error: Called with the records that exist, before the error that ended a fit is raised.
        on_records: Called with the records of each fit when it is done, also of one that was complete before.
        team: Processes that do each fit together; this one is the main process.

    Returns:
        One record per experiment, seed and target, in order, including failed ones.

    Raises:
        DivergedError: If the scores of a seed are not finite; the other seeds run first.
        ClipAdaptError: For a mistake of the user; records written until then stay.
    """
    return Session(out, progress, team=team).run(experiments, on_error, on_records)


class Session:
    """Opens data and models once for experiments with the same output folder.

    Args:
        out: Folder of the records.
        progress: Where bars and warnings are shown.
        threads: Threads of experiments that do not set them; None takes those of this process.
        datasets: Datasets that are already open; more are added.
        models: Loads the models, and may have one already.
        team: Processes that do each fit together; this one is the main process.
    """

    def __init__(
        self,
        out: Path,
        progress: Progress | None = None,
        threads: int | None = None,
        *,
        datasets: OpenDatasets | None = None,
        models: ModelLoader | None = None,
        team: Team | None = None,
    ) -> None:
        self.out = out
        self.progress: Progress = progress or Silent()
        self.threads = threads
        self.datasets = datasets or OpenDatasets()
        self.models = models or ModelLoader(self.progress)
        self.team = team
        self.store = RunStore(out)
        self._draws = Draws()
        self._checked: dict[tuple[Any, ...], ClipAdaptError | None] = {}

    def run(
        self,
        experiments: Sequence[Experiment],
        on_error: Callable[[list[RunRecord]], None] | None = None,
        on_records: Callable[[list[RunRecord]], None] | None = None,
    ) -> list[RunRecord]:
        """Run experiments one after another; see :func:`run_experiments`."""
        planned = self.plan([self.open(e) for e in experiments])
        diverged: list[DivergedError] = []

        def check(done: Done) -> None:
            if on_records is not None:
                on_records(done.spec.records())
            if isinstance(done.error, DivergedError):
                diverged.append(done.error)
            elif done.error is not None:
                raise done.error

        def records() -> list[RunRecord]:
            return [record for specs in planned for spec in specs for record in spec.records()]

        try:
            self.execute(planned, check)
            if diverged:
                raise diverged[0]  # noqa: TRY301
        except Exception:
            if on_error is not None:
                on_error(records())
            raise
        return records()

    def open(self, experiment: Experiment) -> OpenExperiment:
        """Open the data of an experiment and identify its model; see :func:`open_experiment`."""
        ranks = self.team.local_ranks if self.team else ()
        return open_experiment(
            experiment, self.store, self.progress, self.datasets, self.threads, ranks
        )

    def plan(self, experiments: Sequence[OpenExperiment]) -> list[list[FitSpec]]:
        """Return the fits of each experiment; every draw is made here, before the first fit.

        Raises:
            ClipAdaptError: If a draw is impossible, two datasets have one name, or a method cannot use its model.
        """
        for opened in experiments:
            self._report_damage(opened)
        specs = [
            [plan_fit(opened, seed, self._draws) for seed in opened.experiment.config.seeds]
            for opened in experiments
        ]
        check_dataset_names(experiments)
        for opened, fits in zip(experiments, specs, strict=True):
            if any(spec.draw is not None for spec in fits):
                self._check_model(opened)
        return specs

    def _check_model(self, opened: OpenExperiment) -> None:
        """Check that a method can use its model; the model is loaded, and kept for the first fit."""
        experiment = opened.experiment
        check = getattr(opened.method(experiment.method), "check_model", None)
        if check is None or opened.identity is None:
            return
        key = (opened.identity, experiment.method_name, experiment.method.model_dump_json())
        if key not in self._checked:
            self._checked[key] = None
            self.models.use_threads(opened)
            try:
                check(self.models.load(opened).backbone)
            except ClipAdaptError as err:
                self._checked[key] = err
        error = self._checked[key]
        if error is not None:
            raise error

    def execute(
        self,
        planned: Sequence[Sequence[FitSpec]],
        on_done: Callable[[Done], None],
        *,
        executor: Executor | None = None,
        order: Callable[[Sequence[FitSpec]], Sequence[FitSpec]] = list,
        on_mistake: Callable[[FitSpec, ClipAdaptError], None] | None = None,
    ) -> None:
        """Do every planned fit that is not complete.

        Args:
            planned: The fits of each experiment.
            on_done: Called with each fit when it is done; an error that it raises ends the session.
            executor: Does the fits; None does them here, one after another.
            order: Puts all fits in the order in which they are done.
            on_mistake: Called with a fit, still claimed, that a mistake of the user has stopped.
        """
        flat = [spec for specs in planned for spec in specs]
        complete = {spec for spec in flat if not spec.is_open()}
        for specs in planned:
            self._report_skipped(specs, len(complete.intersection(specs)))
        local = Local(self._do)
        n_open = len(flat) - len(complete)
        whole = self.progress if n_open > 1 else Silent()  # a single run has a line of its own
        with (
            whole.track("all", n_open, "runs") as bar,
            Watched(executor or local, self.progress) as watched,
            Claims(self.out) as claims,
        ):
            leftovers.clear(self.out, claims, {spec.fit_id for spec in complete})
            for done in work_through(
                order(flat), claims, watched, self.progress, on_mistake=on_mistake
            ):
                if done.spec not in complete:
                    bar.advance(1)
                on_done(done)

    def _do(self, spec: FitSpec) -> None:
        if self.team is not None:
            self.team.send(to_task(spec))
        execute(spec, self.models)

    def _report_damage(self, opened: OpenExperiment) -> None:
        """Check every file of the existing runs, once each; a damaged run counts as missing."""
        for seed in opened.experiment.config.seeds:
            runs = {opened.run_id(seed, t): opened.place(t) for t in opened.targets}
            for run_id, place in runs.items():
                if damage := opened.store.damage(run_id, place):
                    self.progress.note(
                        f"warning: {damage}; the run is repeated, and its damaged folder is kept beside it as "
                        f".damaged-{run_id}"
                    )

    def _report_skipped(self, specs: Sequence[FitSpec], skipped: int) -> None:
        if skipped:
            self.progress.note(
                f"{specs[0].experiment.method_name} on {specs[0].opened.home.dataset.name}: "
                f"{skipped} of {len(specs)} runs were complete already, skipped"
            )


def execute(spec: FitSpec, models: ModelLoader) -> None:
    """Fit, evaluate on every target that still needs a run, and write the records.

    A failure that is not a mistake of the user is recorded as a failed run, then raised again.

    Raises:
        DivergedError: If scores are not finite.
    """
    try:
        _execute(spec, models)
    finally:
        free_device_memory()


def _execute(spec: FitSpec, models: ModelLoader) -> None:
    models.use_threads(spec.opened)
    started_at = datetime.now(UTC)
    reset_peak_memory(spec.opened.device)
    draw = spec.draw or draw_task(
        spec.opened.home, spec.experiment, spec.opened.manifests.get(spec.seed), spec.seed
    )
    fitted: FitResult | None = None
    ids: tuple[str, ...] = ()

    def failed(error: str, *flags: str) -> None:
        known = fitted.flags if fitted else draw_flags(spec, draw)
        write_failure(spec, Failure(error, (*known, *flags), draw, ids), started_at)

    try:
        warn_of_untrained_classes(spec, draw, models.progress)
        model = models.load(spec.opened)
        work = leftovers.make_work(spec.opened.store.root, spec.fit_id)
        with calculating(model.backbone):
            fitted = fit(spec, draw, model, work)
            for target in spec.missing():
                test = target.examples(spec.experiment.config.data.limit)
                ids = test.inputs.ids
                write_record(spec, fitted, evaluate(spec, fitted, target, test), started_at)
        leftovers.remove_work(work)
    except DivergedError as err:
        failed(err.problem, "nan")
        raise
    except ClipAdaptError:
        raise
    except Exception as err:
        refused = refusal(err)
        if refused is not None:
            raise refused from err  # not the fault of the run: it does not count as an attempt
        failed(f"{type(err).__name__}: {err}")
        raise
