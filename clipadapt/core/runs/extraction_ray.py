"""Workers of an extraction as Ray actors, one model each, on this machine or a cluster.

A worker that is lost, with its machine or alone, is replaced as soon as there is room for another one; its shard is
handed out again. Workers get the examples from the driver without the hashes of their content, so each shard is hashed
where it is encoded, and a file that differs on another machine is stored under its own hash.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import ClipAdaptError, DataError, first_line
from clipadapt.core.api.model import ModelIdentity
from clipadapt.core.experiments.settings import ExperimentConfig
from clipadapt.core.files.hardware import cpu_count
from clipadapt.core.runs.cluster import (
    RETRIES,
    WorkerError,
    connected,
    on_reserved_gpu,
    require,
    shared_environment,
)
from clipadapt.core.runs.extraction import Extraction, Lost, load_backbone, services_of
from clipadapt.core.runs.shards import Part, Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipadapt.core.api.features import Space
    from clipadapt.core.api.progress import Tracker
    from clipadapt.core.features.index import PrefixSet
    from clipadapt.core.runs.shards import Encoded, Shard

POLL_SECONDS: Final = 1.0


class RemoteWorker:
    """The actor: a worker that loads its model when it is opened, so that errors can be reported."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def open(self, task: dict[str, Any]) -> tuple[list[Space], tuple[str, str, str] | None]:
        """Load the model.

        Args:
            task: What :meth:`Actors._task` returned.

        Returns:
            Where the features of each part are stored; and kind, problem and hint of an error, or None.
        """
        os.environ.update(task["environ"])
        if Path(task["folder"]).is_dir():
            os.chdir(task["folder"])  # names such as folder:PATH may be relative
        try:
            plan = Extraction(
                ExperimentConfig.model_validate(task["config"]),
                task["track"],
                task["dataset"],
                ModelIdentity(**task["identity"]),
                tuple(_examples(task)),
                task["threads"],
            )
            services = services_of(plan, task["decoders"])
            self._worker = Worker(load_backbone(plan, services, None), services, plan.parts)
            return self._worker.spaces(), None
        except ClipAdaptError as err:
            return [], ("mistake", err.problem, err.hint)
        except Exception as err:  # noqa: BLE001  the driver raises it again
            return [], ("defect", f"{type(err).__name__}: {err}", traceback.format_exc())

    def encode(self, shard: Shard, stored: PrefixSet) -> Encoded:
        """Encode a shard, see :meth:`Worker.encode`."""
        assert self._worker is not None
        return self._worker.encode(shard, stored)


class Actors:
    """Encodes shards in Ray actors; use it as a context manager.

    Args:
        plan: What is encoded.
        workers: Number of workers; None is one per GPU if the model is on one, else one per ``threads`` processors.

    Attributes:
        count: Number of workers that are wanted.
    """

    def __init__(self, plan: Extraction, workers: int | None = None) -> None:
        self.plan = plan
        self.count = workers or 1
        self._wanted = workers
        self._session = contextlib.ExitStack()
        self._ray: Any = None
        self._opening: dict[Any, Any] = {}  # by what is awaited: an actor that loads its model
        self._idle: list[Any] = []
        self._running: dict[
            Any, tuple[Any, Shard]
        ] = {}  # by what is awaited: an actor and its shard
        self._spaces: list[Space] = []
        self._stored: list[Any] = []
        self._failures = 0

    def __enter__(self) -> Actors:
        self._ray = self._session.enter_context(connected(self._wanted))
        self._options, self._decoders, fitting = _resources(
            self.plan, self._ray.cluster_resources()
        )
        self.count = self._wanted or fitting
        self._actor = self._ray.remote(max_restarts=0, max_task_retries=0)(RemoteWorker)
        self._task_ref = self._task()
        for _ in range(self.count):
            self._add()
        return self

    def __exit__(self, *exc: object) -> None:
        working = [actor for actor, _ in self._running.values()]
        for actor in (*self._opening.values(), *self._idle, *working):
            self._ray.kill(actor)
        self._opening, self._idle, self._running = {}, [], {}
        self._session.close()

    def open(self) -> list[Space]:
        """Wait for the first worker and return where the features of each part are stored."""
        while not self._spaces:
            self.finished()
        return self._spaces

    def know(self, stored: Sequence[PrefixSet]) -> None:
        """Send the workers which examples of each part are stored."""
        self._stored = [self._ray.put(each) for each in stored]

    def show(self, bar: Tracker, /) -> None:
        """Leave the bar to the driver, which advances it by each shard."""

    def has_room(self) -> bool:
        """Return whether a worker has nothing to do."""
        return bool(self._idle)

    def start(self, shard: Shard, /) -> None:
        """Give a shard to a worker."""
        actor = self._idle.pop(0)
        awaited = actor.encode.remote(shard, self._stored[shard.part])
        self._running[awaited] = (actor, shard)

    @property
    def busy(self) -> int:
        """Number of shards started and not yet returned."""
        return len(self._running)

    def finished(self) -> list[Encoded | Lost]:
        """Wait a moment for a shard or a new worker; return the shards that ended."""
        awaited = [*self._running, *self._opening]
        ended, _ = self._ray.wait(awaited, num_returns=1, timeout=POLL_SECONDS)
        found: list[Encoded | Lost] = []
        for ref in ended:
            if ref in self._opening:
                self._welcome(ref)
                continue
            actor, shard = self._running.pop(ref)
            try:
                found.append(self._ray.get(ref))
            except self._ray.exceptions.RayError as err:
                self._replace(actor)
                found.append(Lost(shard, first_line(err)))
            else:
                self._idle.append(actor)
        return found

    def _add(self) -> None:
        actor = self._actor.options(**self._options).remote()
        self._opening[actor.open.remote(self._task_ref)] = actor

    def _replace(self, actor: Any) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(actor)
        self._add()

    def _welcome(self, ref: Any) -> None:
        """Give work to a worker that has loaded its model.

        Raises:
            ClipAdaptError: If it could not.
        """
        actor = self._opening.pop(ref)
        try:
            spaces, error = self._ray.get(ref)
        except self._ray.exceptions.RayError as err:
            self._failures += 1
            if self._failures > RETRIES * self.count:
                raise ClipAdaptError(
                    f"{self._failures} workers were lost while they started: {first_line(err)}",
                    hint="if memory runs out, use fewer --workers",
                ) from None
            self._replace(actor)
            return
        if error is not None:
            kind, problem, hint = error
            raise ClipAdaptError(problem, hint=hint) if kind == "mistake" else WorkerError(hint)
        if self._spaces and spaces != self._spaces:
            raise DataError(
                "the workers would compute different features: their libraries or devices differ",
                hint="give every machine of the cluster the same versions, and name one device with "
                "--set model.device=cpu or cuda",
            )
        self._spaces = spaces
        self._idle.append(actor)

    def _task(self) -> Any:
        """Return what a worker needs, as a reference to Ray's store; the examples are references within it."""
        plan = self.plan
        config = plan.config.model_dump(mode="json")
        return self._ray.put({
            "config": on_reserved_gpu(config) if self._options["num_gpus"] else config,
            "track": plan.track,
            "dataset": plan.dataset,
            "identity": asdict(plan.identity),
            "threads": plan.threads,
            "decoders": self._decoders,
            "parts": [(p.name, self._ray.put(p.inputs), dict(p.options)) for p in plan.parts],
            "environ": shared_environment(),
            "folder": str(Path.cwd()),
        })


def _examples(task: dict[str, Any]) -> list[Part]:
    """Fetch the examples; the environment is set by now, so that plug-ins are found."""
    from clipadapt.core.runs.cluster import ray_module

    ray = ray_module()
    return [Part(name, ray.get(ref), options) for name, ref, options in task["parts"]]


def _resources(
    plan: Extraction, cluster: dict[str, float]
) -> tuple[dict[str, Any], int | None, int]:
    """Return what Ray reserves for a worker, its threads for decoding, and how many workers fit the cluster."""
    asked = plan.config.resources
    cuda = plan.identity.device.startswith("cuda")
    cpus, gpus = cluster.get("CPU", 1.0), cluster.get("GPU", 0.0)
    own_gpus = (1.0 if cuda else 0.0) if asked.gpus is None else asked.gpus
    fitting = int(gpus / own_gpus) if own_gpus else 0
    own_cpus = asked.cpus or plan.threads
    if fitting and asked.cpus is None:  # decoding keeps a GPU busy
        own_cpus = max(own_cpus, int(cpus / fitting))
    if not own_gpus:
        fitting = int(cpus / own_cpus)
    options: dict[str, Any] = {"num_cpus": own_cpus, "num_gpus": own_gpus}
    if asked.memory_bytes:
        options["memory"] = asked.memory_bytes
    if asked.custom:
        options["resources"] = dict(asked.custom)
    require({"CPU": own_cpus, "GPU": own_gpus, **asked.custom}, cluster, "a worker")
    decoders = plan.config.workers or max(1, min(cpu_count(), int(own_cpus)))
    return options, decoders, max(1, fitting)
