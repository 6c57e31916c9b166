"""How classifiers are written: arrays in safetensors, the rest as JSON; never a pickle."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from clipadapt.core.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

ARRAYS = "classifier.safetensors"
FACTS = "classifier.json"


def save(directory: Path, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
    """Write arrays and JSON facts into ``directory``, which the caller moves into place whole."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    save_file(dict(arrays), directory / ARRAYS)
    text = json.dumps(dict(facts), indent=2, ensure_ascii=False)
    (directory / FACTS).write_text(text + "\n", encoding="utf-8")


def load(
    directory: Path, shapes: Mapping[str, tuple[int | None, ...]]
) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """Read what :func:`save` wrote.

    Args:
        directory: Folder of the saved classifier.
        shapes: Expected arrays; None stands for any length.

    Raises:
        RecordError: If a file is missing, damaged, or an array has another shape.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(directory / ARRAYS)
        facts = json.loads((directory / FACTS).read_text(encoding="utf-8"))
    except (OSError, SafetensorError, ValueError) as err:
        raise RecordError(
            f"no readable classifier in {directory}: {err}",
            hint="name a run folder that holds 'classifier', or run the experiment again",
        ) from None
    for name, shape in shapes.items():
        got = arrays[name].shape if name in arrays else None
        fits = got is not None and len(got) == len(shape)
        if not fits or any(want not in {None, n} for want, n in zip(shape, got or (), strict=True)):
            raise RecordError(
                f"the classifier in {directory} does not fit this model: "
                f"'{name}' has shape {got}, expected {shape}",
                hint="load it with the model named in its record",
            )
    return arrays, facts
