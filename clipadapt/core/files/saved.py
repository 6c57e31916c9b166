"""Files of saved classifiers: arrays in safetensors, the rest in JSON; never a pickle."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from clipadapt.core.api.errors import RecordError
from clipadapt.core.files.atomic import write_bytes, write_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

ARRAYS = "classifier.safetensors"
FACTS = "classifier.json"


def save(directory: Path, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
    """Write arrays and facts into ``directory``."""
    from safetensors.numpy import save as to_bytes

    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_bytes(directory / ARRAYS, to_bytes(whole))
    write_text(directory / FACTS, json.dumps(dict(facts), ensure_ascii=False) + "\n")


def load_facts(directory: Path, required: Sequence[str]) -> dict[str, Any]:
    """Read the facts written by :func:`save`.

    Raises:
        RecordError: If the file is missing or damaged, or lacks a ``required`` key.
    """
    try:
        facts = json.loads((directory / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise unreadable(directory, repr(err)) from None
    missing = [k for k in required if not isinstance(facts, dict) or k not in facts]
    if missing:
        raise unreadable(directory, f"{FACTS} lacks {', '.join(missing)}")
    return dict(facts)


def load_arrays(
    directory: Path, shapes: Mapping[str, tuple[int | None, ...]]
) -> dict[str, NDArray[Any]]:
    """Read the arrays written by :func:`save`.

    Args:
        directory: Folder of the saved classifier.
        shapes: Expected shape of each array; None stands for any length.

    Raises:
        RecordError: If the file is missing or damaged, or an array is missing, unexpected, or has another shape.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(directory / ARRAYS)
    except (OSError, SafetensorError) as err:
        raise unreadable(directory, repr(err)) from None
    for name in sorted({*arrays, *shapes}):
        got = arrays[name].shape if name in arrays else None
        want = shapes.get(name)
        fits = got is not None and want is not None and len(got) == len(want)
        if not fits or any(w not in {None, n} for w, n in zip(want or (), got or (), strict=True)):
            raise RecordError(
                f"the classifier in '{directory}' does not fit this model: "
                f"'{name}' has shape {got}, expected {want}",
                hint="load it with the model in its record",
            )
    return arrays


def unreadable(directory: Path, problem: str) -> RecordError:
    """Return the error for a saved classifier that cannot be read."""
    return RecordError(
        f"no readable classifier in '{directory}': {problem}",
        hint="use a run folder that contains 'classifier', or run the experiment again",
    )
