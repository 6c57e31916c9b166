"""Search of training settings on val: a fit with each setting, kept across interruptions."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import DivergedError
from clipadapt.core.api.progress import Silent
from clipadapt.core.files.atomic import write_text
from clipadapt.core.scoring.scores import topk_accuracy
from clipadapt.methods import _training

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from clipadapt.core.api.context import RunContext
    from clipadapt.methods._training import Objective, TrainingConfig

FOLDER: Final = "search"
FILE: Final = "accuracies.json"


def search(
    name: str,
    objective: Callable[[Any], tuple[Objective, TrainingConfig, int | None]],
    config: TrainingConfig,
    settings: Sequence[Mapping[str, Any]],
    ctx: RunContext,
) -> tuple[int, list[float]]:
    """Return the index of the first setting with the best val accuracy, and the accuracies, nan if a fit diverged.

    An interrupted search resumes after its last complete fit, and inside the fit that was interrupted.

    Args:
        name: Name of the method, for the progress.
        objective: Returns, for a config, a new objective with its own parameters, and the config and number of steps
            with which it is trained.
        config: The config that the settings change.
        settings: Values of some fields of the config, one mapping per fit.
        ctx: Batch order, checkpoint folder, history and progress.

    Raises:
        DivergedError: If training diverges with every setting.
    """
    folder = ctx.work_dir / FOLDER
    services = replace(ctx.services, progress=Silent())
    known = _read(folder / FILE)
    found: list[float | None] = []
    with ctx.progress.track(f"{name}: search on val", len(settings), "fits") as bar:
        for values in settings:
            changed = config.model_copy(update=dict(values))
            own, used, steps = objective(changed)
            key = _training.fit_key(own, used, ctx, steps)
            if key not in known:
                assert own.val_scores is not None
                assert own.val is not None
                quiet = replace(ctx, work_dir=folder, services=services, history=[], observe=None)
                try:
                    _training.train(own, used, quiet, steps=steps)
                    known[key] = topk_accuracy(own.val_scores(), own.val, 1)
                except DivergedError as err:
                    ctx.progress.note(f"{err.problem} with {dict(values)}; it is not selected")
                    known[key] = None
                _write(folder / FILE, known)
            found.append(known[key])
            ctx.log(**values, val_accuracy=known[key])
            bar.advance(1, val_accuracy=max((a for a in found if a is not None), default=0.0))
    valid = [i for i, accuracy in enumerate(found) if accuracy is not None]
    if not valid:
        raise DivergedError(
            f"{name}: training diverged with each of the {len(settings)} settings of the search",
            hint="search smaller learning rates",
        )
    accuracies = [math.nan if accuracy is None else accuracy for accuracy in found]
    return max(valid, key=accuracies.__getitem__), accuracies


def _read(path: Path) -> dict[str, float | None]:
    """Return the accuracies of complete fits; nothing if the file is missing or damaged."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(path: Path, known: Mapping[str, float | None]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(known))
    except OSError:  # the search does not depend on the file; only a resumed fit uses it
        return
