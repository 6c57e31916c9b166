"""``bench``: run a sweep."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipadapt.core.api.errors import EXIT_DEFECT, ClipAdaptError, ConfigError
from clipadapt.core.cli.options import (
    DEFAULT_OUT,
    JsonOption,
    OutOption,
    SettingOption,
    TrackerOption,
    complete_sweep,
    track_of,
)
from clipadapt.core.cli.output import print_json, say
from clipadapt.core.cli.run import FAILED_TWICE
from clipadapt.core.cli.terminal import print_summary
from clipadapt.core.cli.tracking import tracking

if TYPE_CHECKING:
    from clipadapt.core.experiments.config import Experiment
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.runs.schedule import Executor


class ExecutorName(StrEnum):
    """Where the runs of a sweep are executed."""

    local = "local"
    ray = "ray"


def bench(
    context: typer.Context,
    sweep: Annotated[
        str,
        typer.Argument(
            metavar="SWEEP", help="Name or file of a sweep.", autocompletion=complete_sweep
        ),
    ],
    settings: SettingOption = None,
    out: OutOption = DEFAULT_OUT,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the runs and which are complete; run nothing.")
    ] = False,
    executor: Annotated[
        ExecutorName, typer.Option(help="Run here, or as tasks of a Ray cluster.")
    ] = ExecutorName.local,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Parallel runs, with --executor ray.")
    ] = None,
    trackers: TrackerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a sweep and print its tables; complete runs are skipped, so the same command resumes."""
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.experiments.sweep import load_sweep
    from clipadapt.core.runs.sweep import run_sweep

    if workers not in {None, 1} and executor is ExecutorName.local:
        raise ConfigError(
            f"--workers {workers} needs --executor ray; the local executor runs one fit at a time",
            hint="or start the same command a second time: processes can share one --out",
        )
    experiments = load_sweep(sweep, settings or (), track=track_of(context).name)
    if dry_run:
        print_plan(experiments, out, executor, as_json=as_json)
        return
    with tracking(trackers, out) as log, _executor(executor, workers) as chosen:
        outcome = run_sweep(experiments, out, on_stderr(), chosen, on_records=log)
    if outcome.records:
        _write_results(outcome.records, Path(sweep).stem, out)
    if as_json:
        print_json({"records": [r.model_dump(mode="json") for r in outcome.records]})
    elif outcome.records:
        _print_summary(outcome.records, out)
    if n := len(outcome.failures):  # each message was printed when its fit failed
        fits, why = ("fit", "message is") if n == 1 else ("fits", "messages are")
        say(f"{n} {fits} failed; the {why} above", err=True)
    elif any(r.status == "failed" for r in outcome.records):
        say(FAILED_TWICE, err=True)
    else:
        return
    raise typer.Exit(EXIT_DEFECT)


def print_plan(
    experiments: Sequence[Experiment], out: Path, executor: ExecutorName, *, as_json: bool
) -> None:
    """Print the runs of a sweep, which of them are complete, and the expected cost of the others."""
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.runs import cluster, forecast
    from clipadapt.core.runs.sweep import plan_sweep

    threads = cluster.THREADS if executor is ExecutorName.ray else None
    _, jobs = plan_sweep(experiments, out, on_stderr(), threads)
    known = RunStore(out).load_all(lambda _: None) if out.is_dir() else []
    plan = forecast.forecast(jobs, known)
    if as_json:
        print_json(plan)
    else:
        say(forecast.render(plan), nl=False)


@contextlib.contextmanager
def _executor(name: ExecutorName, workers: int | None) -> Iterator[Executor | None]:
    """Yield the executor of a sweep; None runs one fit after another in this process."""
    if name is ExecutorName.local:
        yield None
        return
    from clipadapt.core.runs.distributed import Ray

    with Ray(workers) as executor:
        yield executor


def _write_results(found: Sequence[RunRecord], sweep: str, out: Path) -> None:
    """Write the result file of a sweep beside the records."""
    from clipadapt.core.files.atomic import write_text
    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.report import results

    built = results.build_results(RunStore(out), sweep, found)
    try:
        write_text(out / results.NAME, results.render_results(built))
    except OSError as err:
        say(f"no {results.NAME}: {err}", err=True)


def _print_summary(found: Sequence[RunRecord], out: Path) -> None:
    """Print the summary of a sweep; write it and the learning curves beside the records."""
    from clipadapt.core.files.atomic import write_text
    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.report import curves, summary

    built = summary.build_summary(RunStore(out), records=found)
    print_summary(built)
    try:
        write_text(out / "summary.md", summary.render_summary(built, "markdown"))
    except OSError as err:
        say(f"no summary.md: {err}", err=True)
    try:
        made = curves.plot_curves(RunStore(out), out / "curves")
    except (ClipAdaptError, OSError) as err:  # for example, the plotting extra is not installed
        say(f"no curves: {err}", err=True)
        made = []
    files = f"summary: {out / 'summary.md'}; results: {out / 'results.json'}"
    say(f"records: {out}; {files}; curves: {len(made)}", err=True)
