"""Export of a classifier: arrays, facts, and code that computes the scores with only open_clip and numpy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.api.method import Exported, require_format
from clipadapt.core.files.atomic import write_json
from clipadapt.methods._formula import Head

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.method import ScoreKind
    from clipadapt.models import ImageTextModel, Layer

    Encoder = Callable[[ImageTextModel, torch.Tensor], torch.Tensor]

FORMATS: Final = ("classifier", "openclip", "onnx")
"""Formats of a classifier on frozen features: the classifier alone, with the model as an open_clip folder, or both as
one ONNX graph."""
FILE: Final = "classifier.safetensors"
FACTS: Final = "classifier.json"
FORMAT_VERSION: Final = 1
"""Increased when the meaning of the files changes."""
COSINE: Final = "scores = a['logit_scale'] * x @ a['weight'].T + a['logit_bias']"
LARGEST: Final = f"{COSINE}\nscores = np.max(scores[:, a['prompts']], axis=2)"
LINEAR: Final = "scores = x @ a['weight'].T + a['bias']"


def cosine_arrays(
    weights: NDArray[np.float32], logit_scale: float, logit_bias: float
) -> dict[str, NDArray[Any]]:
    """Return the arrays used by :data:`COSINE`: unit-norm text features ``(C, D)``, scale and bias."""
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
    score_kind: ScoreKind = "logit",
    encode: Encoder | None = None,
) -> Exported:
    """Write a classifier as safetensors and JSON; with ``openclip`` also the model that computes its features.

    ``onnx`` is one file from pixels to probabilities instead, see :mod:`clipadapt.methods._onnx`.

    Args:
        form: One of ``formats``; only ``openclip`` and ``onnx`` include the model.
        path: The folder.
        model: The backbone; its name and hash are stored with the arrays.
        classnames: ``C`` class names.
        arrays: The arrays that ``formula`` reads as ``a``.
        formula: Code that computes ``scores`` from features ``x`` of shape ``(n, D)``, with the functions of numpy
            that :mod:`clipadapt.methods._onnx` has for tensors.
        temperature: Temperature of the run, or None.
        output: Final location of the folder.
        layer: Layer of the image features.
        formats: Formats that the classifier supports.
        dtype: Precision of the image features; None for that of the backbone.
        network: Model to write; None for the backbone.
        state: Weights to write; None for those of the model.
        score_kind: How the scores become probabilities.
        encode: Computes the features of ``onnx``; None for those of ``layer``.

    Raises:
        UnknownNameError: If the format is not one of ``formats``.
    """
    require_format(form, formats)
    dtype = dtype or model.dtype
    head = Head(tuple(classnames), arrays, formula, layer, score_kind, temperature)
    if form == "onnx":
        from clipadapt.methods import _onnx

        whole = _float32(model, network, state)
        return _onnx.export(path, whole, head, encode, _precision(dtype, "the export"))
    _write_head(path, model, head, dtype)
    if form == "openclip":
        (network or model.in_dtype("fp32")).save_folder(path, state, output)
    return _described(form, model, head, dtype)


def _write_head(path: Path, model: ImageTextModel, head: Head, dtype: str) -> None:
    write(path, head.arrays, model, head.classnames, {"features": head.layer})
    facts = {
        "format_version": FORMAT_VERSION,
        "classnames": list(head.classnames),
        "features": head.layer,
        "formula": head.formula.splitlines(),
        "temperature": head.temperature,
        **({"probabilities": "sigmoid"} if head.sigmoid else {}),
        "base_model": model.name,
        "base_weights_sha256": model.weights_sha256,
        "dtype": dtype,
    }
    write_json(path / FACTS, facts)


def _float32(
    model: ImageTextModel, network: ImageTextModel | None, state: Mapping[str, torch.Tensor] | None
) -> ImageTextModel:
    """Return the model that an export contains, with the weights ``state`` if there are any; ``network`` is float32."""
    network = network or model.in_dtype("fp32")
    if state is None:
        return network
    network = network.clone()
    network.module.load_state_dict(dict(state))
    return network


def _precision(dtype: str, place: str) -> tuple[str, ...]:
    if dtype == "fp32":
        return ()
    return (f"precision: the run computed image features in {dtype}, {place} uses float32",)


def _described(form: str, model: ImageTextModel, head: Head, dtype: str) -> Exported:
    """Return the code that computes the scores with open_clip, and the facts for the README of the export."""
    code = model.open_clip_code(head.layer, saved=form == "openclip", adapter=form == "peft")
    notes = code.notes + _precision(dtype, "open_clip")
    how = "one sigmoid per class" if head.sigmoid else "softmax"
    return Exported(
        f"{code.lines}\n{_scores(head)}",
        notes,
        {
            "Features": f"layer '{head.layer}' of the image tower",
            "Scores": f"`{'; '.join(head.formula.splitlines())}`, with the arrays of {FILE} as `a`",
            "Probabilities": f"{how} of the scores divided by the temperature in {FACTS}",
            "Preprocessing": code.preprocessing,
        },
    )


def _scores(head: Head) -> str:
    softmax = """probabilities = np.exp(scaled - scaled.max(axis=1, keepdims=True))
probabilities /= probabilities.sum(axis=1, keepdims=True)"""
    sigmoid = "probabilities = np.exp(-np.logaddexp(0, -scaled))  # one sigmoid per class"
    return f"""a = load_file(f"{{FOLDER}}/{FILE}")
with open(f"{{FOLDER}}/{FACTS}", encoding="utf-8") as file:
    facts = json.load(file)
{head.formula}
scaled = scores / (facts["temperature"] or 1.0)
{sigmoid if head.sigmoid else softmax}
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
    """Write the arrays; class names and the name and hash of the base weights are stored as metadata."""
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
