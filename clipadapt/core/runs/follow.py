"""Take part in the fits of a main process, in the other processes of a launcher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipadapt.core.api.context import RunContext
from clipadapt.core.data.draws import Draws
from clipadapt.core.data.targets import OpenDatasets
from clipadapt.core.files.atomic import scratch_folder
from clipadapt.core.files.hardware import free_device_memory
from clipadapt.core.runs.models import ModelLoader
from clipadapt.core.runs.tasks import from_task

if TYPE_CHECKING:
    from clipadapt.core.api.processes import Team


def follow(team: Team) -> None:
    """Do the part of this process in each fit that the main process sends, until it sends no more.

    Nothing is evaluated, written to the output folder or shown; the fitted classifier is that of the main process.
    """
    models, datasets, draws = ModelLoader(), OpenDatasets(), Draws()
    while (task := team.receive()) is not None:
        with scratch_folder() as folder:
            spec = from_task(task, folder, datasets, draws)
            assert spec.draw is not None  # nothing is complete in a new folder
            models.use_threads(spec.opened)
            model = models.load(spec.opened)
            context = RunContext(spec.seed, folder, model.services, spec.opened.threads)
            method = spec.opened.method(spec.experiment.method)
            method.fit(model.backbone, spec.draw.task, context)
            free_device_memory()
