"""Export of a text classifier as ONNX: token ids in, probabilities out, with the tokenizer beside it.

Imports torch: import it where work begins, not where a method is defined.
"""

from __future__ import annotations

import copy
import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from tokenizers import Tokenizer

from clipadapt.core.api.method import Exported
from clipadapt.core.files.atomic import write_json
from clipadapt.core.scoring.scores import probabilities
from clipadapt.tensor import onnx
from textsent.models._build import quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from textsent.models import TextEncoder

FACTS: Final = "onnx.json"
TEXTS: Final = ("a fine film", "a dull one", "not good, not bad; a film that one sees and forgets")
"""Texts that torch and onnxruntime are compared on, besides one of the maximum length."""


class Probabilities(torch.nn.Module):
    """Probabilities at a temperature of a network that returns scores."""

    def __init__(self, scores: torch.nn.Module, temperature: float) -> None:
        super().__init__()
        self.scores, self.temperature = scores, temperature

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return probabilities ``(n, C)`` of token ids ``(n, L)`` and their mask, 0 at padding."""
        scaled: torch.Tensor = self.scores(input_ids, attention_mask) / self.temperature
        return scaled.softmax(dim=1)


def export(
    path: Path,
    scores: torch.nn.Module,
    reference: Callable[[list[list[int]]], NDArray[np.floating[Any]]],
    encoder: TextEncoder,
    classnames: Sequence[str],
    max_length: int,
    *,
    temperature: float | None,
    padding_side: str,
    notes: tuple[str, ...] = (),
) -> Exported:
    """Write ``model.onnx``, ``onnx.json`` with the class names, and the tokenizer, which truncates and pads.

    Args:
        path: The folder.
        scores: Maps token ids and attention mask, both ``(n, L)``, to scores ``(n, C)``, in float32.
        reference: Maps token ids of single texts to their scores, without ``scores``.
        encoder: The encoder of the run; it tokenizes.
        classnames: ``C`` class names.
        max_length: Tokens read of a text.
        temperature: Temperature of the run, or None.
        padding_side: Side on which ``scores`` expects padding.
        notes: Notes for the user.

    Raises:
        ClipAdaptError: If a library is missing.
        ModelError: If the network cannot be written, or the file gives other probabilities.
    """
    onnx.require()
    divisor = temperature or 1.0
    texts = [*TEXTS, " ".join(TEXTS[:2] * max_length)]
    # Not by the encoder, which would warn that the last one is truncated.
    ids: Any = encoder.tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    expected = probabilities(reference(ids).astype(np.float64), divisor)  # (n, C)
    device = next(scores.parameters()).device
    pad = int(encoder.tokenizer.pad_token_id or 0)
    example = {k: v.to(device) for k, v in _padded(ids, pad, padding_side).items()}
    path.mkdir(parents=True, exist_ok=True)
    free = ("n", "length")
    found = onnx.write(path, Probabilities(scores, divisor).eval(), example, expected, free=free)
    _save_tokenizer(path, encoder, max_length, pad, padding_side)
    names = list(classnames)
    write_json(path / FACTS, {"classnames": names, "max_length": max_length})
    facts = {
        "textsent_version": version("clipadapt"),
        "base_model": encoder.name,
        "base_weights_sha256": encoder.weights_sha256,
        "classnames": json.dumps(names, ensure_ascii=False),
        "temperature": json.dumps(temperature),
        "max_length": str(max_length),
        "max_difference_from_torch": f"{found:.3g}",
    }
    fast = getattr(encoder.tokenizer, "backend_tokenizer", None) is not None
    lines = _described(len(names), max_length, found)
    return Exported(snippet(fast=fast), notes, lines, onnx.stamp(path, facts))


def _described(n_classes: int, max_length: int, difference: float) -> dict[str, str]:
    """Return lines of the README."""
    return {
        "Input": "`input_ids` and `attention_mask`, int64 of shape (n, length)",
        "Output": f"`{onnx.OUTPUT}`, shape (n, {n_classes}): a softmax over the classes, temperature included",
        "Tokens read of a text": str(max_length),
        "Class names": f"in {FACTS} and in the metadata of {onnx.FILE}",
        "Checked": f"onnxruntime differs from torch by at most {difference:.1e} in a probability",
    }


def _padded(ids: Sequence[list[int]], pad: int, side: str) -> Mapping[str, torch.Tensor]:
    """Return token ids and attention mask, both ``(n, L)``."""
    shape = (len(ids), max(map(len, ids)))
    tokens, mask = torch.full(shape, pad), torch.zeros(shape, dtype=torch.int64)
    for i, row in enumerate(ids):
        place = slice(len(row)) if side == "right" else slice(shape[1] - len(row), None)
        tokens[i, place], mask[i, place] = torch.tensor(row), 1
    return {"input_ids": tokens, "attention_mask": mask}


def _save_tokenizer(
    path: Path, encoder: TextEncoder, max_length: int, pad: int, padding_side: str
) -> None:
    """Write the tokenizer for transformers, and so that ``tokenizers`` alone truncates and pads as the run did."""
    tokenizer = copy.deepcopy(encoder.tokenizer)
    tokenizer.model_max_length, tokenizer.padding_side = max_length, padding_side
    with quiet():
        tokenizer.save_pretrained(path)
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    alone = Tokenizer.from_str(backend.to_str())
    alone.enable_truncation(max_length, direction=tokenizer.truncation_side)
    alone.enable_padding(
        direction=padding_side, pad_id=pad, pad_token=str(tokenizer.pad_token or "[PAD]")
    )
    alone.save(str(path / "tokenizer.json"))


def snippet(*, fast: bool) -> str:
    """Return code for onnxruntime with ``tokenizers`` alone, or with transformers for a tokenizer in Python."""
    if fast:
        library = "from tokenizers import Tokenizer"
        tokens = f"""tokenizer = Tokenizer.from_file(f"{{FOLDER}}/tokenizer.json")  # truncates and pads
rows = tokenizer.encode_batch(TEXTS)
tokens = {{
    "input_ids": np.array([row.ids for row in rows], dtype=np.int64),  # (n, length)
    "attention_mask": np.array([row.attention_mask for row in rows], dtype=np.int64),
}}
({onnx.OUTPUT},) = session.run(None, tokens)"""
    else:
        library = "from transformers import AutoTokenizer"
        tokens = f"""tokenizer = AutoTokenizer.from_pretrained(FOLDER)
tokens = tokenizer(TEXTS, truncation=True, padding=True, return_tensors="np")
wanted = {{name: tokens[name].astype(np.int64) for name in ("input_ids", "attention_mask")}}
({onnx.OUTPUT},) = session.run(None, wanted)"""
    return f"""import json

import numpy as np
import onnxruntime
{library}

FOLDER = "."  # this folder
TEXTS = ["a fine film", "a dull one"]

with open(f"{{FOLDER}}/{FACTS}", encoding="utf-8") as file:
    classnames = json.load(file)["classnames"]
session = onnxruntime.InferenceSession(f"{{FOLDER}}/{onnx.FILE}", providers=["CPUExecutionProvider"])
{tokens}
for text, row in zip(TEXTS, {onnx.OUTPUT}):
    print(text, classnames[row.argmax()], f"{{row.max():.4f}}")
"""
