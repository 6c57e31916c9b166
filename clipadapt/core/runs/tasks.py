"""A fit as plain data, for another process that does it or takes part in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapt.core.api.errors import DataError
from clipadapt.core.experiments import config
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.runs.cluster import shared_environment
from clipadapt.core.runs.plan import open_experiment, plan_fit

if TYPE_CHECKING:
    from clipadapt.core.data.draws import Draws
    from clipadapt.core.data.targets import OpenDatasets
    from clipadapt.core.runs.plan import FitSpec


def to_task(spec: FitSpec) -> dict[str, Any]:
    """Return what another process needs to do a fit, as plain data."""
    experiment, opened = spec.experiment, spec.opened
    return {
        "config": experiment.resolved(),
        "track": experiment.track,
        "recipe": experiment.recipe,
        "origins": dict(experiment.origins),
        "stated": sorted(experiment.stated),
        "seed": spec.seed,
        "run_ids": [opened.run_id(spec.seed, t) for t in opened.targets],
        "threads": opened.threads,
        "local_ranks": list(opened.local_ranks),
        "environ": shared_environment(),
        "folder": str(Path.cwd()),
    }


def from_task(task: dict[str, Any], out: Path, datasets: OpenDatasets, draws: Draws) -> FitSpec:
    """Plan a fit again in another process.

    Args:
        task: What :func:`to_task` returned.
        out: Output folder of this process.
        datasets: Datasets that are already open; more are added.
        draws: Draws that were made for other fits; this one is added.

    Raises:
        DataError: If the fit would be another one here.
    """
    built = config.build([("the driver", task["config"])], source="a task", track=task["track"])
    experiment = replace(
        built, recipe=task["recipe"], origins=task["origins"], stated=frozenset(task["stated"])
    )
    opened = open_experiment(
        experiment,
        RunStore(out),
        datasets=datasets,
        threads=task["threads"],
        local_ranks=tuple(task["local_ranks"]),
    )
    if [opened.run_id(task["seed"], t) for t in opened.targets] != task["run_ids"]:
        raise DataError(
            "data, weights or code of another process differ from those of this run",
            hint="give every machine the same files and the same version of clipadapt",
        )
    return plan_fit(opened, task["seed"], draws)
