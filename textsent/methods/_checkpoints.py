"""The Trainer's checkpoints: sealed with checksums, and checked before a fit resumes from one.

``checksums.json`` is written last and holds the sha256 of every file and the key of the fit, so that a fit never
resumes from a checkpoint that is unfinished, damaged, or of a different fit.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from transformers.trainer_callback import TrainerState
from transformers.trainer_pt_utils import safe_globals

from clipadapt.core.files.atomic import remove
from clipadapt.core.files.checksums import (
    checksums,
    first_changed,
    read_sealed_json,
    write_sealed_json,
)

if TYPE_CHECKING:
    from collections.abc import Callable

CHECKSUMS = "checksums.json"
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
PICKLED = ("optimizer.pt", "scheduler.pt")
RANDOM = "rng_state*.pth"  # one file per process


class _DamagedError(Exception):
    """A damaged checkpoint; the message says what is wrong."""


def seal(checkpoint: Path, key: str) -> None:
    """Write the checksums of a checkpoint's files and the key of its fit."""
    write_sealed_json(checkpoint / CHECKSUMS, {"key": key, "files": checksums(checkpoint)})


def newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.rpartition("-")[2].isdecimal()]
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)


def newest_valid(folder: Path, key: str, note: Callable[[str], None]) -> Path | None:
    """Return the newest intact checkpoint of the fit with this key, or None.

    Newer ones are removed: damaged ones with a warning, those of a different fit without.
    """
    damaged: list[str] = []
    chosen = None
    for checkpoint in newest_first(folder):
        try:
            if _key_of(checkpoint) == key:
                _check(checkpoint, key)
                chosen = checkpoint
                break
        except _DamagedError as err:
            damaged.append(f"{checkpoint} ({err})")
        remove(checkpoint)
    if damaged:
        then = "starts from the beginning" if chosen is None else f"resumes from {chosen.name}"
        note(
            f"warning: damaged or unfinished checkpoints are ignored: {', '.join(damaged)}; the fit {then}"
        )
    return chosen


def _key_of(checkpoint: Path) -> str:
    """Return the key of the fit that wrote a checkpoint, after comparing its files with their checksums.

    Raises:
        _DamagedError: If a file differs.
    """
    try:
        facts = read_sealed_json(checkpoint / CHECKSUMS)
    except FileNotFoundError:
        raise _DamagedError(f"it has no {CHECKSUMS}") from None
    except (OSError, ValueError):
        raise _DamagedError(CHECKSUMS) from None
    changed = first_changed(checkpoint, facts["files"], CHECKSUMS)
    if changed:
        raise _DamagedError(changed)
    return str(facts["key"])


def _check(checkpoint: Path, key: str) -> None:
    """Check that the Trainer can read all of a checkpoint and the best epoch's weights, without running any code in it.

    Raises:
        _DamagedError: If not.
    """
    try:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        best = checkpoint.parent / f"checkpoint-{state.best_global_step or state.global_step}"
        moved = state.best_global_step and Path(str(state.best_model_checkpoint)) != best
        with safe_globals():
            for path in (*(checkpoint / name for name in PICKLED), *checkpoint.glob(RANDOM)):
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        for place in (checkpoint, best):
            (weights,) = (place / name for name in WEIGHTS if (place / name).is_file())
            with safe_open(weights, framework="numpy"):
                pass
    except Exception as err:  # damaged files make the libraries raise errors of any kind
        raise _DamagedError(f"{type(err).__name__}: {str(err).partition(chr(10))[0]}") from err
    if moved:
        raise _DamagedError("its folder was moved; it refers to the best epoch by the old path")
    if best != checkpoint and _key_of(best) != key:
        raise _DamagedError(f"{best.name} belongs to a different fit")
