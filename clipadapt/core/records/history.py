"""Learning curves: the history that a run logged, by epoch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from clipadapt.core.api.errors import DamagedError, RecordError
from clipadapt.core.files.atomic import files_below
from clipadapt.core.records.reading import RERUN, read_file
from clipadapt.core.records.run_store import HISTORY, RECORD

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.records.schema import RunRecord


@dataclass(frozen=True, slots=True)
class Epoch:
    """The values logged for one epoch; None where the method logged none.

    Attributes:
        epoch: Epoch number, as the method counts.
        train_loss: Mean of the logged values of the epoch.
        train_accuracy: Last value of the epoch, a fraction.
        val_loss: Last value of the epoch.
        val_accuracy: Last value of the epoch, a fraction.
    """

    epoch: float
    train_loss: float | None
    train_accuracy: float | None
    val_loss: float | None
    val_accuracy: float | None


def read_epochs(run_dir: Path, record: RunRecord | None = None) -> tuple[Epoch, ...]:
    """Return the epochs of a run in order; empty if it logged none.

    Lines without an epoch, such as the trials of a hyperparameter search, are skipped.

    Args:
        run_dir: Folder of the run.
        record: Its record, to check the history against; None reads the file unchecked.

    Raises:
        RecordError: If the history is damaged.
    """
    path = run_dir / HISTORY
    if record is not None:
        content = read_file(run_dir, record, HISTORY)
    else:
        content = path.read_bytes() if path.is_file() else None
    if content is None:
        return ()
    by_epoch: dict[float, list[Mapping[str, Any]]] = {}
    for number, step in enumerate(_steps(content), start=1):
        try:
            if isinstance(step, bytes):
                step = json.loads(step)
            if step.get("epoch") is not None:
                by_epoch.setdefault(float(step["epoch"]), []).append(step)
        except (ValueError, TypeError, AttributeError) as err:
            raise DamagedError(
                f"{path} is damaged: line {number}: {err}",
                hint=RERUN,
            ) from err
    return tuple(
        Epoch(
            epoch,
            fmean(losses) if (losses := _values(steps, "train_loss")) else None,
            _last(steps, "train_accuracy"),
            _last(steps, "val_loss"),
            _last(steps, "val_accuracy"),
        )
        for epoch, steps in sorted(by_epoch.items())
    )


def _steps(content: bytes) -> list[Any]:
    """Return what each line holds, parsed together; the lines as they are if that is not possible."""
    lines = content.splitlines()
    try:
        steps: list[Any] = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        return list(lines)
    whole = len(steps) == len(lines) and all(isinstance(step, dict) for step in steps)
    return steps if whole else list(lines)


def loss_rise(epochs: Sequence[Epoch]) -> float | None:
    """Return the last val loss minus the lowest: how far a run trained past its optimum.

    None if fewer than two epochs have a val loss.
    """
    losses = [e.val_loss for e in epochs if e.val_loss is not None]
    return losses[-1] - min(losses) if len(losses) > 1 else None


def accuracy_gap(epochs: Sequence[Epoch], chosen: int | None = None) -> float | None:
    """Return train accuracy minus val accuracy at the selected epoch; None without both values.

    Args:
        epochs: The epochs of a run.
        chosen: The selected epoch; None takes the last with both values.
    """
    gaps = {
        e.epoch: e.train_accuracy - e.val_accuracy
        for e in epochs
        if e.train_accuracy is not None and e.val_accuracy is not None
    }
    if not gaps:
        return None
    return gaps.get(max(gaps) if chosen is None else chosen)


def run_folder(store: RunStore, record: RunRecord) -> Path:
    """Return the folder of a record: its usual place in the store, the root itself, or a deeper one.

    The root may be the folder of a run, or hold several stores.

    Raises:
        RecordError: If the record is not below the store's root.
    """
    known = store.loaded_from(record.run_id)
    if known is not None:
        return known
    for folder in (store.root, store.run_dir(record)):
        if (folder / RECORD).is_file():
            return folder
    for path in sorted(files_below(store.root, RECORD)):
        if path.parent.name == record.run_id:
            return path.parent
    raise RecordError(f"the run {record.run_id} is not in '{store.root}'")


def _values(steps: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    return [float(s[name]) for s in steps if s.get(name) is not None]


def _last(steps: Iterable[Mapping[str, Any]], name: str) -> float | None:
    values = _values(steps, name)
    return values[-1] if values else None
