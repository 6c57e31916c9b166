"""What exported classifiers share: arrays, facts, and code that computes the scores with open_clip and numpy alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.api.errors import unknown
from clipadapt.core.api.method import Exported
from clipadapt.core.files.atomic import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clipadapt.models import ImageTextModel, Layer

FORMATS: Final = ("classifier", "openclip")
"""Of a classifier on frozen features: by itself, or with its model as open_clip's folder."""
FILE: Final = "classifier.safetensors"
FACTS: Final = "classifier.json"
FORMAT_VERSION: Final = 1
"""Raised when what the files mean changes."""
COSINE: Final = "scores = a['logit_scale'] * x @ a['weight'].T + a['logit_bias']"
LINEAR: Final = "scores = x @ a['weight'].T + a['bias']"


def cosine_arrays(
    weights: NDArray[np.float32], logit_scale: float, logit_bias: float
) -> dict[str, NDArray[Any]]:
    """Return the arrays that :data:`COSINE` reads: unit-norm text features ``(C, D)``, scale and bias."""
    return {
        "weight": weights,
        "logit_scale": np.array(logit_scale, dtype=np.float32),
        "logit_bias": np.array(logit_bias, dtype=np.float32),
    }


def export(
    form: str,
    path: Path,
    model: ImageTextModel,
    classnames: Sequence[str],
    arrays: Mapping[str, NDArray[Any]],
    formula: str,
    *,
    temperature: float | None,
    output: Path | None,
    layer: Layer = "output",
    formats: Sequence[str] = FORMATS,
    dtype: str | None = None,
    network: ImageTextModel | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
) -> Exported:
    """Write a classifier as safetensors and JSON; with ``openclip`` also the model that its features come from.

    Args:
        form: One of ``formats``; any but ``openclip`` leaves the model out.
        path: The folder.
        model: The backbone, whose name and hash go with the arrays.
        classnames: ``C`` class names.
        arrays: What ``formula`` calls ``a``.
        formula: Code that computes ``scores`` from features ``x`` of shape ``(n, D)``.
        temperature: Softmax temperature of the run, or None.
        output: Where the folder will be.
        layer: Which features.
        formats: Formats of the method.
        dtype: Arithmetic of the image features, if it is not the backbone's.
        network: The model that is written, if it is not the backbone.
        state: Weights that are written in the place of its own.

    Raises:
        UnknownNameError: If there is no such format.
    """
    require(form, formats)
    dtype = dtype or model.dtype
    write(path, arrays, model, classnames, {"features": layer})
    facts = {
        "format_version": FORMAT_VERSION,
        "classnames": list(classnames),
        "features": layer,
        "formula": formula.splitlines(),
        "temperature": temperature,
        "base_model": model.name,
        "base_weights_sha256": model.weights_sha256,
        "dtype": dtype,
    }
    write_json(path / FACTS, facts)
    if form == "openclip":
        (network or model.in_dtype("fp32")).save_folder(path, state, output)
    return _described(form, model, layer, formula, dtype)


def _described(
    form: str, model: ImageTextModel, layer: Layer, formula: str, dtype: str
) -> Exported:
    """Return the code that computes the scores with open_clip, and the facts for the README of the export."""
    code = model.open_clip_code(layer, saved=form == "openclip", adapter=form == "peft")
    notes = code.notes
    if dtype != "fp32":
        notes += (f"precision: the run computed image features in {dtype}, open_clip uses float32",)
    return Exported(
        f"{code.lines}\n{_scores(formula)}",
        notes,
        {
            "Features": f"layer '{layer}' of the image tower",
            "Scores": f"`{'; '.join(formula.splitlines())}`, with the arrays of {FILE} as `a`",
            "Probabilities": f"softmax of the scores over the temperature in {FACTS}",
            "Preprocessing": code.preprocessing,
        },
    )


def _scores(formula: str) -> str:
    return f"""a = load_file(f"{{FOLDER}}/{FILE}")
with open(f"{{FOLDER}}/{FACTS}", encoding="utf-8") as file:
    facts = json.load(file)
{formula}
scaled = scores / (facts["temperature"] or 1.0)
probabilities = np.exp(scaled - scaled.max(axis=1, keepdims=True))
probabilities /= probabilities.sum(axis=1, keepdims=True)
for image, row in zip(IMAGES, probabilities):
    print(image, facts["classnames"][row.argmax()], f"{{row.max():.4f}}")
"""


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
