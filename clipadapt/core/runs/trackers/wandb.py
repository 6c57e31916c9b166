"""Weights & Biases: one run per run, in the project ``WANDB_PROJECT``, or else ``clipadapt``.

Files are written to ``WANDB_DIR``, or else to the output folder. ``WANDB_MODE=offline`` needs no account; ``wandb
sync`` uploads the files later.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from clipadapt.core.api.errors import ConfigError

if TYPE_CHECKING:
    from clipadapt.core.runs.trackers import TrackedRun

_WITHOUT_ACCOUNT: Final = {"offline", "disabled", "dryrun"}


class WeightsAndBiases:
    """Logs with the package wandb.

    Raises:
        ConfigError: If there is no account and the mode is not offline.
    """

    package: ClassVar[str] = "wandb"

    def __init__(self, out: Path, /) -> None:
        import wandb

        self.mode = os.environ.get("WANDB_MODE", "")
        self.folder = Path(os.environ.get("WANDB_DIR") or out)
        self.project = os.environ.get("WANDB_PROJECT") or "clipadapt"
        offline = self.mode in _WITHOUT_ACCOUNT
        self.where = (
            f"wandb sync {self.folder / 'wandb'}/offline-run-*"
            if offline
            else f"project {self.project}"
        )
        if offline:
            return
        try:
            has_key = wandb.login(prompt=False)
        except Exception as err:  # noqa: BLE001  a bad key, no network or a busy service
            raise ConfigError(
                f"--tracker wandb cannot log in: {' '.join(str(err).split())}",
                hint="check WANDB_API_KEY and the network, or set WANDB_MODE=offline",
            ) from None
        if not has_key:
            raise ConfigError(
                "--tracker wandb needs an account: there is no API key",
                hint="run 'wandb login' or set WANDB_API_KEY; without an account, set WANDB_MODE=offline",
            )

    def log_run(self, run: TrackedRun, /) -> None:
        """Log a run: settings as config, history by step, final metrics as summary."""
        config = {**run.settings, "flags": list(run.flags)}
        logged = self._start(name=run.title[:128], group=run.group[:128], config=config)
        try:
            for step, values in enumerate(run.steps, start=1):
                logged.log(values, step=step)
            logged.summary.update({**run.metrics, "flags": list(run.flags)})
        finally:
            logged.finish(exit_code=1 if run.failed else 0)

    def log_page(self, page: Path, /) -> None:
        """Log the page as an artifact of a run named ``report``."""
        import wandb

        logged = self._start(name="report", job_type="report")
        try:
            artifact = wandb.Artifact("report", type="report")
            artifact.add_file(str(page))
            logged.log_artifact(artifact)
        finally:
            logged.finish()

    def _start(self, **facts: Any) -> Any:
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        # Nothing of this process but what is logged here: no console output, no code, no git state.
        settings = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False)
        return wandb.init(project=self.project, dir=str(self.folder), settings=settings, **facts)


TRACKER = WeightsAndBiases
