"""``run``: fit a method and evaluate it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from clipadapt.core.api.errors import EXIT_DEFECT, ClipAdaptError, ConfigError
from clipadapt.core.cli.launcher import main_process
from clipadapt.core.cli.options import (
    DEFAULT_OUT,
    ConfigsArgument,
    DatasetOption,
    JsonOption,
    ModelOption,
    OutOption,
    SeedsOption,
    SettingOption,
    ShotsOption,
    TrackerOption,
    named_settings,
    refuse_twice,
    track_of,
)
from clipadapt.core.cli.output import print_records, say
from clipadapt.core.cli.tracking import tracking

if TYPE_CHECKING:
    from clipadapt.core.api.processes import Team
    from clipadapt.core.experiments.config import Experiment
    from clipadapt.core.records.schema import RunRecord

FAILED_TWICE = "some runs failed twice; delete their folders to try them again"


def run(
    context: typer.Context,
    configs: ConfigsArgument,
    model: ModelOption = None,
    dataset: DatasetOption = None,
    shots: ShotsOption = None,
    seeds: SeedsOption = None,
    settings: SettingOption = None,
    out: OutOption = DEFAULT_OUT,
    trackers: TrackerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a method, evaluate it and write one record per seed; complete runs are skipped."""
    track = track_of(context)
    with main_process(track) as team:
        experiment = load_experiment(
            configs, named_settings(model, dataset, shots, seeds), settings, track.name
        )
        with tracking(trackers, out) as log:
            found = run_experiments([experiment], out, as_json=as_json, on_records=log, team=team)
    print_records(found, out, as_json=as_json)
    _draw_curves(found, out)
    if any(r.status == "failed" for r in found):
        say(FAILED_TWICE, err=True)
        raise typer.Exit(EXIT_DEFECT)


def load_experiment(
    configs: Sequence[str],
    options: Mapping[str, tuple[str, Any]],
    settings: Sequence[str] | None,
    track: str,
) -> Experiment:
    """Return the experiment of config files, options of their own and ``--set``.

    Raises:
        ConfigError: If it is not valid, or a setting is given twice.
    """
    from clipadapt.core.experiments import config

    refuse_twice({option: key for option, (key, _) in options.items()}, settings)
    experiment = config.load(configs, settings or (), track=track, options=options)
    _refuse_unused(experiment)
    return experiment


def _refuse_unused(experiment: Experiment) -> None:
    """Check that templates given with ``--set`` have an effect.

    Raises:
        ConfigError: If the method makes its prompts without them.
    """
    from clipadapt.core.api.registry import METHODS

    method = METHODS.get(experiment.method_name)(experiment.method)
    used = getattr(method, "uses_templates", True)
    if experiment.origins.get("data.templates") == "--set" and not used:
        raise ConfigError(
            f"data.templates has no effect here: {experiment.method_name} uses {getattr(method, 'prompts', '')} "
            "in place of templates",
            hint="leave data.templates out, or use a setting of the method that adds templates, if it has one",
        )


def run_experiments(
    experiments: Sequence[Experiment],
    out: Path,
    *,
    as_json: bool,
    on_records: Callable[[Sequence[RunRecord]], None] | None = None,
    team: Team | None = None,
) -> list[RunRecord]:
    """Run experiments; with ``as_json``, the records so far are printed even if one fails."""
    from clipadapt.core.cli.progress import on_stderr
    from clipadapt.core.runs import session

    def print_so_far(found: Sequence[RunRecord]) -> None:
        print_records(found, out, as_json=True)

    on_error = print_so_far if as_json else None
    return session.run_experiments(
        experiments, out, on_stderr(), on_error=on_error, on_records=on_records, team=team
    )


def _draw_curves(found: Sequence[RunRecord], out: Path) -> None:
    """Draw the learning curve of every fit into its run's folder; an error here does not fail the run."""
    from clipadapt.core.records.history import run_folder
    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.report import curves

    store = RunStore(out)
    fits = {r.fit_id: r for r in reversed(found) if r.status == "ok"}  # the first target of each
    try:
        made = [p for r in fits.values() if (p := curves.plot_run(run_folder(store, r)))]
    except (ClipAdaptError, OSError) as err:
        say(f"no learning curves: {err}", err=True)
        return
    for path in reversed(made):
        say(f"learning curve: {path}", err=True)
