"""What the reference tests of the methods with prompts in both towers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from clipadapt.core.api.data import Task
from tests.reference import tinyclip
from tests.reference.parity import Fixture

TEMPLATES = ("a photo of a {}.",)


def initial(data: Fixture, prefix: str) -> dict[str, np.ndarray]:
    """Return the initial values of the parameters by name."""
    names = [n for n in data.inputs if n.startswith(prefix) and n not in {"images", "labels"}]
    return {n.removeprefix(prefix): data.inputs[n] for n in names}


def fit(data: Fixture, model: Any, method: Any, folder: Path, start: Any, images: int):
    """Fit on the first images in their order; return the classifier, what was observed, and the images."""
    seen, names = tinyclip.Seen(), tuple(data.spec["classnames"])
    split = tinyclip.split_of(data.inputs["images"][:images], data.inputs["labels"][:images], names)
    context = tinyclip.context(folder, start=start, observe=seen)
    return method.fit(model, Task(names, TEMPLATES, split), context), seen.values, split.inputs


def whole_length(tokens: Any, length: int) -> np.ndarray:
    """Return token ids ``(C, L)`` padded with zeros to the context length."""
    return np.pad(tokens.numpy(), ((0, 0), (0, length - tokens.shape[1])))
