"""What exported classifiers share: safetensors that name the weights they belong to."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.errors import unknown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.models import ImageTextModel

EXPORT_WEIGHTS: Final = ("classifier",)
FILE: Final = "classifier.safetensors"


def export_weights(
    model: ImageTextModel,
    classnames: Sequence[str],
    weights: NDArray[np.float32],
    form: str,
    path: Path,
) -> None:
    """Write a zero-shot weight matrix: logits are ``logit_scale * image_features @ weight.T + logit_bias``.

    Args:
        model: The backbone, whose weights' hash goes with the matrix.
        classnames: ``C`` class names.
        weights: Unit-norm text features, shape ``(C, D)``.
        form: Must be ``classifier``.
        path: A new folder.
    """
    require(form, EXPORT_WEIGHTS)
    arrays = {
        "weight": weights,
        "logit_scale": np.array(model.logit_scale, dtype=np.float32),
        "logit_bias": np.array(model.logit_bias, dtype=np.float32),
    }
    write(path, arrays, model, classnames, {"features": "output"})


def write(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    model: ImageTextModel,
    classnames: Sequence[str],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write arrays with class names, and name and hash of the base weights, as metadata."""
    from safetensors.numpy import save_file

    metadata = {
        "classnames": json.dumps(list(classnames), ensure_ascii=False),
        "base_model": model.name,
        "base_weights_sha256": model.weights_sha256,
        **{k: str(v) for k, v in (facts or {}).items()},
    }
    path.mkdir(parents=True, exist_ok=True)
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(whole, path / FILE, metadata=metadata)


def require(form: str, formats: Sequence[str]) -> None:
    """Refuse a format that a classifier has not.

    Raises:
        UnknownNameError: If there is no such format.
    """
    if form not in formats:
        raise unknown("export format", form, formats)
