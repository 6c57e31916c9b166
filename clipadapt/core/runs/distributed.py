"""Run fits as Ray tasks, on this machine or on the cluster that ``RAY_ADDRESS`` names.

A task is one fit with its evaluations. A worker does it in a folder of its own and returns the files; the driver, which
holds the claims, writes them. So only the driver needs the output folder. Every worker needs the data, the weights
and, to share features, the cache folder. If a worker is lost, its task is repeated.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapt.core.api.errors import ClipAdaptError, DivergedError, first_line
from clipadapt.core.data.draws import Draws
from clipadapt.core.data.targets import OpenDatasets
from clipadapt.core.files.atomic import scratch_folder
from clipadapt.core.records.run_store import RECORD
from clipadapt.core.runs.cluster import (
    RETRIES,
    THREADS,
    WorkerError,
    connected,
    on_reserved_gpu,
    ray_module,
    require,
)
from clipadapt.core.runs.models import ModelLoader
from clipadapt.core.runs.record import Failure, write_failure
from clipadapt.core.runs.schedule import Done
from clipadapt.core.runs.session import execute
from clipadapt.core.runs.tasks import from_task, to_task

if TYPE_CHECKING:
    from types import TracebackType

    from clipadapt.core.runs.plan import FitSpec


class Ray:
    """Does fits as Ray tasks; use it as a context manager.

    Args:
        workers: Fits at a time; None means as many as the cluster has processors for, or GPUs if fits need them.

    Attributes:
        threads: Threads of a run whose config does not set them.
    """

    threads = THREADS

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers
        self._limit = 0
        self._cluster: dict[str, float] = {}
        self._tasks: dict[Any, FitSpec] = {}
        self._session = contextlib.ExitStack()

    def __enter__(self) -> Ray:
        ray = self._session.enter_context(connected(self.workers))
        self._cluster = ray.cluster_resources()
        self._limit = self.workers or max(1, int(self._cluster.get("CPU", 1)))
        self._work = ray.remote(max_retries=RETRIES)(work)
        # A process that has used one GPU cannot change to another, so it ends with its fit.
        self._work_on_gpu = ray.remote(max_retries=RETRIES, max_calls=1)(work)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None
    ) -> None:
        ray = ray_module()
        for task in self._tasks:
            ray.cancel(task, force=True)
        self._tasks.clear()
        self._session.close()

    def has_room(self) -> bool:
        """Return whether another task can be submitted now."""
        return len(self._tasks) < self._limit

    def start(self, spec: FitSpec, /) -> None:
        """Submit a fit.

        Raises:
            ConfigError: If the cluster does not have what it needs.
        """
        options, task, remote = _resources(spec), to_task(spec), self._work
        custom = spec.experiment.config.resources.custom
        needed = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], **custom}
        require(needed, self._cluster, f"the fit {spec.title}")
        if options["num_gpus"]:
            task["config"], remote = on_reserved_gpu(task["config"]), self._work_on_gpu
            if self.workers is None:  # more would only wait, and keep other drivers from doing them
                self._limit = max(1, int(self._cluster["GPU"] / options["num_gpus"]))
        self._tasks[remote.options(**options).remote(task)] = spec

    def finished(self, timeout: float, /) -> list[Done]:
        """Write the records of the tasks that ended, and return their fits."""
        if not self._tasks:
            return []
        ray = ray_module()
        ended, _ = ray.wait(list(self._tasks), num_returns=1, timeout=timeout)
        done = []
        for task in ended:
            spec = self._tasks.pop(task)
            try:
                result = ray.get(task)
            except ray.exceptions.RayError as err:
                lost = WorkerError(f"the worker was lost {1 + RETRIES} times: {first_line(err)}")
                write_failure(spec, Failure(str(lost)), datetime.now(UTC))
                done.append(Done(spec, lost))
            else:
                done.append(Done(spec, _adopt(spec, result)))
        return done

    @property
    def busy(self) -> int:
        """Number of tasks not yet returned."""
        return len(self._tasks)


_datasets = OpenDatasets()
_draws = Draws(most=8)
_models: list[ModelLoader] = []
"""What a worker keeps for its next task: the open datasets, the last draws and the last model."""


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Do one fit in a worker.

    Args:
        task: What :func:`~clipadapt.core.runs.tasks.to_task` returned.

    Returns:
        ``runs``: the files of each run's folder; ``error``: kind, problem and hint of the error, or None.
    """
    os.environ.update(task["environ"])
    if Path(task["folder"]).is_dir():
        os.chdir(task["folder"])  # names such as folder:PATH may be relative
    with scratch_folder() as folder:
        error = None
        try:
            _execute(task, folder)
        except DivergedError as err:
            error = ("diverged", err.problem, err.hint)
        except ClipAdaptError as err:
            error = ("mistake", err.problem, err.hint)
        except Exception as err:  # noqa: BLE001  the driver raises it again
            error = ("defect", f"{type(err).__name__}: {err}", traceback.format_exc())
        runs = [
            {str(p.relative_to(d)): p.read_bytes() for p in d.rglob("*") if p.is_file()}
            for d in sorted(path.parent for path in folder.glob(f"*/*/*/{RECORD}"))
        ]
    return {"runs": runs, "error": error}


def _execute(task: dict[str, Any], out: Path) -> None:
    if not _models:  # made here: the driver may have set another cache folder
        _models.append(ModelLoader())
    execute(from_task(task, out, _datasets, _draws), _models[0])


def _adopt(spec: FitSpec, result: dict[str, Any]) -> Exception | None:
    for files in result["runs"]:
        spec.opened.store.adopt(files)
    if result["error"] is None:
        return None
    kind, problem, hint = result["error"]
    if kind == "diverged":
        return DivergedError(problem, hint=hint)
    return ClipAdaptError(problem, hint=hint) if kind == "mistake" else WorkerError(problem)


def _resources(spec: FitSpec) -> dict[str, Any]:
    """Return the resources that Ray reserves for a fit."""
    asked = spec.experiment.config.resources
    cuda = spec.opened.device.startswith("cuda")  # also if device is auto
    options: dict[str, Any] = {
        "num_cpus": asked.cpus or spec.opened.threads,
        "num_gpus": (1 if cuda else 0) if asked.gpus is None else asked.gpus,
        "name": f"clipadapt {spec.title}",
    }
    if asked.memory_bytes:
        options["memory"] = asked.memory_bytes
    if asked.custom:
        options["resources"] = dict(asked.custom)
    return options
