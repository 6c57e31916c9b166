"""MLflow: one run of an experiment per run, at ``MLFLOW_TRACKING_URI``, or else in the folder ``OUT/mlruns``.

The experiment is ``MLFLOW_EXPERIMENT_NAME``, or else ``clipadapt``. The light package mlflow-skinny is enough for a
folder and for a tracking server.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from clipadapt.core.runs.trackers import TrackedRun

MOST_CHARACTERS: Final = 500
"""MLflow's limit for values of parameters."""
BATCH: Final = 100
"""MLflow's limit for parameters in one request."""


class MLflow:
    """Logs with the MLflow client."""

    package: ClassVar[str] = "mlflow"

    def __init__(self, out: Path, /) -> None:
        given = os.environ.get("MLFLOW_TRACKING_URI")
        self.uri = given or (out / "mlruns").absolute().as_uri()
        self.is_folder = not given
        self.experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "clipadapt"
        self.where = given or str(out / "mlruns")

    def log_run(self, run: TrackedRun, /) -> None:
        """Log a run."""
        from mlflow.entities import Metric, Param

        record = run.record
        tags = {
            "clipadapt.run_id": record.run_id,
            "clipadapt.group": run.group,
            "clipadapt.flags": ", ".join(run.flags),
        }
        now = time.time_ns() // 1_000_000
        params = [Param(_key(k), str(v)[:MOST_CHARACTERS]) for k, v in run.settings.items()]
        metrics = [
            Metric(_key(f"history.{k}"), v, now, step)
            for step, values in enumerate(run.steps, start=1)
            for k, v in values.items()
        ]
        metrics += [Metric(_key(k), v, now, 0) for k, v in run.metrics.items()]
        with self._run(run.title, tags, failed=run.failed) as (client, run_id):
            for part in _batches(params):
                client.log_batch(run_id, params=part)
            for part in _batches(metrics):
                client.log_batch(run_id, metrics=part)

    def log_page(self, page: Path, /) -> None:
        """Log the page as an artifact of a run named ``report``."""
        with self._run("report", {}, failed=False) as (client, run_id):
            client.log_artifact(run_id, str(page))

    @contextlib.contextmanager
    def _run(self, title: str, tags: dict[str, str], *, failed: bool) -> Iterator[tuple[Any, str]]:
        if self.is_folder:  # MLflow asks for this to be said before it writes to a folder
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=self.uri)
        known = client.get_experiment_by_name(self.experiment)
        experiment = known.experiment_id if known else client.create_experiment(self.experiment)
        run_id = client.create_run(experiment, run_name=title, tags=tags).info.run_id
        try:
            yield client, run_id
        except Exception:
            client.set_terminated(run_id, "FAILED")
            raise
        client.set_terminated(run_id, "FAILED" if failed else "FINISHED")


def _key(name: str) -> str:
    """Return a name with only the characters that MLflow accepts."""
    return re.sub(r"[^\w./ -]", "_", name)


def _batches(items: list[Any]) -> Iterable[list[Any]]:
    return (items[i : i + BATCH] for i in range(0, len(items), BATCH))


TRACKER = MLflow
