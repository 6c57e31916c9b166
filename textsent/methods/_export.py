"""Export a sequence classifier as a Hugging Face model or a PEFT adapter, with code that loads it.

Imports torch and transformers: import it where work begins, not where a method is defined.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from clipadapt.core.api.errors import ModelError
from clipadapt.core.api.method import Exported
from clipadapt.core.files.atomic import write_text
from textsent.methods import _onnx
from textsent.methods._feature_export import base_model
from textsent.methods._network import example_batch, logits
from textsent.models._build import quiet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedModel

    from textsent.models import TextEncoder


def export(
    model: PreTrainedModel,
    encoder: TextEncoder,
    max_length: int,
    form: str,
    path: Path,
    initialized: Sequence[str],
    temperature: float | None,
) -> Exported:
    """Write a folder for ``from_pretrained`` (``hf``), or an adapter (``peft``), with the tokenizer.

    Args:
        model: Encoder and head.
        encoder: The encoder that the model was made from.
        max_length: Tokens read of a text.
        form: ``hf`` or ``peft``.
        path: The folder.
        initialized: Parameters that the encoder's checkpoint lacks; they are saved with an adapter.
        temperature: Divides the logits, so that the softmax of the export is calibrated.

    Raises:
        ModelError: If the temperature cannot be folded into the last layer.
    """
    tokenizer = copy.deepcopy(encoder.tokenizer)
    tokenizer.model_max_length = max_length  # other libraries then truncate as in training
    copied: Any = copy.deepcopy(model)
    if temperature is not None:
        _divide_logits(copied, encoder, temperature)
    with quiet():
        if form == "peft":
            base, _, revision = encoder.name.partition("@")
            settings = copied.peft_config["default"]
            settings.base_model_name_or_path = base
            settings.revision = revision or None
            copied.save_pretrained(path, save_embedding_layers=False)
            _add_to_adapter(path, copied, initialized)
        elif hasattr(copied, "peft_config"):
            copied.merge_and_unload().save_pretrained(path)
        else:
            copied.save_pretrained(path)
        tokenizer.save_pretrained(path)
    divided = "divided by the temperature in the last layer, so their softmax is calibrated"
    facts = {
        "Tokens read of a text": str(max_length),
        "Logits": "as trained" if temperature is None else divided,
    }
    if form == "hf":
        return Exported(HF_SNIPPET, (), facts)
    labels = {i: str(name) for i, name in copied.config.id2label.items()}
    return Exported(*_peft_snippet(encoder.name, labels), facts)


class _Logits(nn.Module):
    """The logits of a sequence classifier."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return logits ``(n, C)`` of token ids ``(n, L)`` and their mask, 0 at padding."""
        model: Any = self.model
        logits: torch.Tensor = model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def as_onnx(
    model: PreTrainedModel,
    encoder: TextEncoder,
    classnames: Sequence[str],
    max_length: int,
    path: Path,
    temperature: float | None,
) -> Exported:
    """Write a sequence classifier, with adapters merged, as ONNX; see :mod:`textsent.methods._onnx`.

    Args:
        model: Encoder and head.
        encoder: The encoder that the model was made from.
        classnames: ``C`` class names.
        max_length: Tokens read of a text.
        path: The folder.
        temperature: Temperature of the run, or None.

    Raises:
        ClipAdaptError: If a library is missing.
        ModelError: If the model cannot be written, or the file gives other probabilities.
    """
    merged: Any = copy.deepcopy(model)
    if hasattr(merged, "peft_config"):
        merged = merged.merge_and_unload()
    return _onnx.export(
        path,
        _Logits(merged).eval(),
        lambda ids: logits(model, encoder.tokenizer, ids, max_length),
        encoder,
        classnames,
        max_length,
        temperature=temperature,
        padding_side=encoder.tokenizer.padding_side,
    )


def _divide_logits(model: Any, encoder: TextEncoder, temperature: float) -> None:
    """Divide weight and bias of the last layer in place, and check on two texts that the logits are divided.

    Raises:
        ModelError: If they are not.
    """
    batch = example_batch(encoder, next(model.parameters()).device)
    with torch.inference_mode():
        before = model(**batch).logits
    *_, last = (m for m in model.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        last.weight.div_(temperature)
        if last.bias is not None:
            last.bias.div_(temperature)
    with torch.inference_mode():
        after = model(**batch).logits
    if not torch.allclose(after * temperature, before, rtol=1e-4, atol=1e-4):
        raise ModelError(
            f"the temperature of the run cannot be folded into the last layer of a {type(model).__name__}",
            hint="export a run without a temperature: --set evaluation.calibrate=false",
        )


def _add_to_adapter(path: Path, model: Any, names: Sequence[str]) -> None:
    """Add parameters to a saved adapter, as PEFT saves modules that are trained in full."""
    if not names:
        return
    weights, config = path / "adapter_model.safetensors", path / "adapter_config.json"
    modules = {name.rpartition(".")[0] for name in names}
    more = {
        f"base_model.model.{name}": parameter.detach().cpu().contiguous()
        for name, parameter in model.get_base_model().named_parameters()
        if name.rpartition(".")[0] in modules  # PEFT needs all parameters of a module
    }
    save_file({**load_file(weights), **more}, weights, metadata={"format": "pt"})
    settings = json.loads(config.read_text(encoding="utf-8"))
    # PEFT matches module names by their ends.
    ends = sorted(module.partition(".")[2] for module in modules)
    settings["modules_to_save"] = [*(settings["modules_to_save"] or ()), *ends]
    write_text(config, json.dumps(settings, indent=2, sort_keys=True) + "\n")


HF_SNIPPET = """
from transformers import pipeline

FOLDER = "."  # this folder
TEXTS = ["a fine film", "a dull one"]

classify = pipeline("text-classification", model=FOLDER, tokenizer=FOLDER, top_k=None)
found = classify(TEXTS, truncation=True)
for text, ranked in zip(TEXTS, found):
    print(text, ranked[0]["label"], f"{ranked[0]['score']:.4f}")
"""


def _peft_snippet(name: str, labels: dict[int, str]) -> tuple[str, tuple[str, ...]]:
    """Return code that loads an adapter onto its base model, and a note on the base model."""
    (base, at), notes = base_model(name)
    return (
        f"""
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

FOLDER = "."  # this folder
BASE = {base}
LABELS = {labels!r}
TEXTS = ["a fine film", "a dull one"]

base = AutoModelForSequenceClassification.from_pretrained(
    BASE, num_labels=len(LABELS), id2label=LABELS{at}
)
model = PeftModel.from_pretrained(base, FOLDER).eval()
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
tokens = tokenizer(TEXTS, truncation=True, padding=True, return_tensors="pt")
with torch.no_grad():
    probabilities = model(tokens["input_ids"], tokens["attention_mask"]).logits.softmax(dim=-1)
for text, row in zip(TEXTS, probabilities.tolist()):
    print(text, LABELS[row.index(max(row))], f"{{max(row):.4f}}")
""",
        notes,
    )
