"""Export of a classifier on features: the classifier alone, with its encoder, or both as ONNX.

Imports torch: import it where work begins, not where a method is defined.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from clipadapt.core.api.method import Exported
from clipadapt.core.files.atomic import write_json
from textsent.models._build import quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from textsent.methods._features import Reader

FILE: Final = "classifier.safetensors"
FACTS: Final = "classifier.json"
FORMAT_VERSION: Final = 1
"""Increased when the meaning of the files changes."""


def _place(reader: Reader) -> int | None:
    """Return the layer that is read, counted from the embeddings; None for the last one."""
    n_layers = reader.encoder.n_layers
    place = reader.layer + n_layers + 1 if reader.layer < 0 else reader.layer
    return None if place == n_layers else place


class Pooled(torch.nn.Module):
    """The pooled states of one layer, computed in float32."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.encoder = reader.encoder.module
        self._place, self._pooling = _place(reader), reader.pooling

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return features ``(n, D)`` of token ids ``(n, L)`` and their mask, 0 at padding."""
        encoder: Any = self.encoder
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._place is None:
            states: torch.Tensor = encoder(**tokens).last_hidden_state  # (n, L, D)
        else:
            states = encoder(**tokens, output_hidden_states=True).hidden_states[self._place]
        if self._pooling == "cls":
            return states[:, 0]
        weight = attention_mask[:, :, None].to(states.dtype)  # (n, L, 1)
        return (states * weight).sum(1) / weight.sum(1)


class Scores(torch.nn.Module):
    """Features, and the formula of an export on tensors."""

    def __init__(
        self, pooled: Pooled, arrays: Mapping[str, NDArray[Any]], formula: Sequence[str]
    ) -> None:
        super().__init__()
        self.pooled = pooled
        self._names = tuple(arrays)
        for name, array in arrays.items():
            self.register_buffer(f"head_{name}", torch.from_numpy(array.astype(np.float32)))
        self._code = compile("\n".join(formula), "<formula>", "exec")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return scores ``(n, C)``."""
        a = {name: getattr(self, f"head_{name}") for name in self._names}
        # Formulas use no function of numpy that torch does not have under the same name.
        space: dict[str, Any] = {"np": torch, "a": a, "x": self.pooled(input_ids, attention_mask)}
        exec(self._code, space)  # noqa: S102 (a constant of the method)
        scores: torch.Tensor = space["scores"]
        return scores


def export(
    form: str,
    path: Path,
    reader: Reader,
    classnames: Sequence[str],
    arrays: Mapping[str, NDArray[Any]],
    formula: Sequence[str],
    scores: Callable[[NDArray[np.float64]], NDArray[np.float32]],
    temperature: float | None,
) -> Exported:
    """Write a classifier on features.

    Args:
        form: ``classifier`` (safetensors and JSON), ``hf`` (the same with the encoder), or ``onnx``.
        path: The folder.
        reader: Source of the features.
        classnames: ``C`` class names.
        arrays: The arrays that ``formula`` reads as ``a``.
        formula: Lines of code that compute ``scores`` from features ``x`` of shape ``(n, D)``.
        scores: The classifier's own scores of features, which an ONNX file is compared with.
        temperature: Temperature of the run, or None.

    Raises:
        ClipAdaptError: If a library is missing.
        ModelError: If the network cannot be written as ONNX.
    """
    if form == "onnx":
        return _as_onnx(path, reader, classnames, arrays, formula, scores, temperature)
    _write(path, reader, classnames, arrays, formula, temperature)
    encoder = reader.encoder
    tokenizer = copy.deepcopy(encoder.tokenizer)
    tokenizer.model_max_length = reader.max_length
    tokenizer.padding_side = "right"
    with quiet():
        tokenizer.save_pretrained(path)
        if form == "hf":
            copied: Any = copy.deepcopy(encoder.module)
            copied.save_pretrained(path)
    where, notes = base_model(encoder.name) if form == "classifier" else (("FOLDER", ""), ())
    return Exported(
        _snippet(reader, where, formula),
        notes + _precision(encoder.dtype, "transformers"),
        {
            "Features": f"layer {reader.layer} of the encoder, {_POOLED[reader.pooling]}",
            "Tokens read of a text": str(reader.max_length),
            "Scores": f"`{'; '.join(formula)}`, with the arrays of {FILE} as `a` and the features as `x`",
            "Probabilities": f"softmax of the scores divided by the temperature in {FACTS}",
        },
    )


_POOLED: Final = {"cls": "the state of the first token", "mean": "the mean over the tokens"}


def _as_onnx(
    path: Path,
    reader: Reader,
    classnames: Sequence[str],
    arrays: Mapping[str, NDArray[Any]],
    formula: Sequence[str],
    scores: Callable[[NDArray[np.float64]], NDArray[np.float32]],
    temperature: float | None,
) -> Exported:
    from textsent.methods import _onnx

    pooled = Pooled(reader)
    device = next(pooled.parameters()).device
    network = Scores(pooled, arrays, formula).to(device).eval()

    def reference(ids: list[list[int]]) -> NDArray[np.float32]:
        rows = [torch.tensor([row], device=device) for row in ids]  # one by one, without padding
        with torch.inference_mode():
            x = torch.cat([pooled(row, torch.ones_like(row)) for row in rows])  # (n, D)
        return scores(x.cpu().numpy().astype(np.float64))

    return _onnx.export(
        path,
        network,
        reference,
        reader.encoder,
        classnames,
        reader.max_length,
        temperature=temperature,
        padding_side="right",
        notes=_precision(reader.encoder.dtype, "the export"),
    )


def _write(
    path: Path,
    reader: Reader,
    classnames: Sequence[str],
    arrays: Mapping[str, NDArray[Any]],
    formula: Sequence[str],
    temperature: float | None,
) -> None:
    """Write arrays and facts; class names and the hash of the encoder are also in the metadata of the arrays."""
    encoder = reader.encoder
    write_arrays(
        path,
        arrays,
        {
            "classnames": json.dumps(list(classnames), ensure_ascii=False),
            "base_model": encoder.name,
            "base_weights_sha256": encoder.weights_sha256,
        },
    )
    facts = {
        "format_version": FORMAT_VERSION,
        "classnames": list(classnames),
        "layer": reader.layer,
        "pooling": reader.pooling,
        "max_length": reader.max_length,
        "formula": list(formula),
        "temperature": temperature,
        "base_model": encoder.name,
        "base_weights_sha256": encoder.weights_sha256,
        "dtype": encoder.dtype,
    }
    write_json(path / FACTS, facts)


def write_arrays(
    path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write arrays as safetensors into a folder, which is created."""
    from safetensors.numpy import save_file

    path.mkdir(parents=True, exist_ok=True)
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(whole, path / FILE, metadata=dict(metadata))


def base_model(name: str) -> tuple[tuple[str, str], tuple[str, ...]]:
    """Return code of a base model's place and revision for ``from_pretrained``, and a note on what is not included.

    Args:
        name: Name of the encoder.
    """
    base, _, revision = name.partition("@")
    if ":" in base or base == "minilm":  # no id of the hub
        note = (
            f"the base model: BASE stands for the folder of '{name}' (config.json and model.safetensors); "
            "--format hf writes one whole model"
        )
        return (f"\"base\"  # the folder of '{name}'", ""), (note,)
    at = f" at the revision {revision}" if revision else ""
    return (repr(base), f", revision={revision!r}" if revision else ""), (
        f"the base model, '{base}'{at}",
    )


def _precision(dtype: str, place: str) -> tuple[str, ...]:
    if dtype == "fp32":
        return ()
    return (f"precision: the run computed features in {dtype}, {place} uses float32",)


def _snippet(reader: Reader, where: tuple[str, str], formula: Sequence[str]) -> str:
    """Return code for transformers and numpy."""
    base, revision = where
    if _place(reader) is None:
        more, states = "", "last_hidden_state"
    else:
        more, states = ", output_hidden_states=True", f"hidden_states[{_place(reader)}]"
    if reader.pooling == "cls":
        pooled = "x = states[:, 0].numpy()  # (n, D)"
    else:
        pooled = """weight = mask[:, :, None].float()
x = ((states * weight).sum(1) / weight.sum(1)).numpy()  # (n, D)"""
    lines = "\n".join(formula)
    return f"""import json

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoModel, AutoTokenizer

FOLDER = "."  # this folder
BASE = {base}
TEXTS = ["a fine film", "a dull one"]

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
encoder = AutoModel.from_pretrained(BASE, dtype=torch.float32{revision}).eval()
tokens = tokenizer(TEXTS, truncation=True, padding=True, return_tensors="pt")
ids, mask = tokens["input_ids"], tokens["attention_mask"]
with torch.no_grad():
    states = encoder(ids, attention_mask=mask{more}).{states}
{pooled}
a = load_file(f"{{FOLDER}}/{FILE}")
with open(f"{{FOLDER}}/{FACTS}", encoding="utf-8") as file:
    facts = json.load(file)
{lines}
{PROBABILITIES}"""


PROBABILITIES: Final = """scaled = scores / (facts["temperature"] or 1.0)
probabilities = np.exp(scaled - scaled.max(axis=1, keepdims=True))
probabilities /= probabilities.sum(axis=1, keepdims=True)
for text, row in zip(TEXTS, probabilities):
    print(text, facts["classnames"][row.argmax()], f"{row.max():.4f}")
"""
