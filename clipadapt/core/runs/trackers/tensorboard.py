"""TensorBoard: event files in ``OUT/tensorboard``, one folder per run; read with ``tensorboard --logdir OUT``.

Curves are scalars ``history/NAME`` by step, final metrics are scalars ``final/NAME``, and settings with the main
figures are in the HPARAMS tab. TensorBoard has no artifacts, so the page is not logged.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, ClassVar

from clipadapt.core.records.schema import slug

if TYPE_CHECKING:
    from pathlib import Path

    from clipadapt.core.runs.trackers import TrackedRun


class TensorBoard:
    """Writes event files with the package tensorboard; neither TensorFlow nor torch is used."""

    package: ClassVar[str] = "tensorboard"

    def __init__(self, out: Path, /) -> None:
        self.folder = out / "tensorboard"
        self.where = f"tensorboard --logdir {self.folder}"

    def log_run(self, run: TrackedRun, /) -> None:
        """Write the event file of a run."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        record = run.record
        name = f"{record.run_id}-{record.attempt}"
        folder = self.folder / slug(record.evaluation.dataset) / slug(record.method.name) / name
        folder.mkdir(parents=True, exist_ok=True)
        writer = EventFileWriter(str(folder))
        now = time.time()

        def add(summary: Any, step: int = 0) -> None:
            writer.add_event(Event(wall_time=now, step=step, summary=summary))

        try:
            settings = {k: "" if v is None else v for k, v in run.settings.items()}
            add(hparams_pb(settings, trial_id=name, start_time_secs=record.started_at.timestamp()))
            for step, values in enumerate(run.steps, start=1):
                add(_scalars(Summary, "history", values), step)
            add(_scalars(Summary, "final", run.metrics))
            add(text_pb("run", f"{run.title}\n\nflags: {', '.join(run.flags) or 'none'}"))
            if record.error:
                add(text_pb("error", record.error))
        finally:
            writer.close()

    def log_page(self, page: Path, /) -> None:
        """Do nothing: TensorBoard has no artifacts."""


def _scalars(summary: Any, prefix: str, values: dict[str, float]) -> Any:
    """Return a summary of the finite values."""
    found = [
        summary.Value(tag=f"{prefix}/{name}", simple_value=value)
        for name, value in values.items()
        if math.isfinite(value)
    ]
    return summary(value=found)


TRACKER = TensorBoard
