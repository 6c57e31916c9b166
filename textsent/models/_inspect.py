"""Facts about a text model and its outputs for given texts, as plain data for ``textsent inspect``."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from clipadapt.core.api.context import Services
from clipadapt.core.api.errors import ModelError
from clipadapt.core.api.registry import MODELS
from clipadapt.core.features.cache import FeatureCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from textsent.models._sources import Source

LORA_R: Final = 16
LORA_ALPHA: Final = 32
SHOWN: Final = 8
"""Values of a [CLS] vector that are shown."""


def describe(name: str, texts: Sequence[str], *, random: bool = False) -> dict[str, Any]:
    """Describe a model, and run it on texts.

    Parameters are counted from the configuration; weights are only loaded, or drawn, if there are texts.

    Args:
        name: Any name that ``--model`` accepts.
        texts: Texts to run as one batch, in float32.
        random: Use random weights.

    Returns:
        ``name``, ``encoder_class``, ``class``, ``architecture``, ``parameters`` (total, and trainable by method),
        ``vocabulary``, ``width``, ``layers``, ``heads``, ``max_length``, ``id2label``, ``lora_targets``,
        ``tokenizer`` (its class and size, or why there is none) and, with texts, ``output_shapes`` and ``texts``
        (``text``, ``tokens``, ``ids``, ``mask``, ``cls``, ``decoded``), or ``note`` if they cannot be tokenized.

    Raises:
        ModelError: If the model is not available or cannot be built.
    """
    shown, source = _found(name, random=random)
    import torch

    from textsent.models import _build

    config = _build.configuration(source, shown)
    tokenizer = None if source.tokenizer is None else _build.build_tokenizer(source, shown)
    with torch.device("meta"):
        body = _build.encoder_of(config, shown)
        classifier = _build.classifier_of(config, shown)
    targets, parameters = _parameters(classifier)
    facts: dict[str, Any] = {
        "name": shown,
        "class": type(classifier).__name__,
        "encoder_class": type(body).__name__,
        "architecture": config.model_type,
        "weights": "random" if source.folder is None else "pretrained",
        "parameters": {"encoder": _count(body), **parameters},
        "vocabulary": int(config.vocab_size),
        "width": int(config.hidden_size),
        "layers": int(config.num_hidden_layers),
        "heads": int(config.num_attention_heads),
        "max_length": _build.max_length(body, tokenizer),
        "id2label": {str(k): v for k, v in (config.id2label or {}).items()},
        "lora_targets": targets,
    }
    if tokenizer is None:
        why = "there is no tokenizer of this model on this machine"
        facts["tokenizer"] = why
        if texts:
            facts["note"] = f"the texts are left out: {why}"
        return facts
    facts["tokenizer"] = f"{type(tokenizer).__name__}, {len(tokenizer)} tokens"
    if source.tokenizer_note:
        facts["note"] = source.tokenizer_note
    if texts:
        facts.update(_followed(source, shown, texts))
    return facts


def _found(name: str, *, random: bool) -> tuple[str, Source]:
    """Return the name to show and the source of a model."""
    resolved = MODELS.resolve(name, "text")
    provider: Any = resolved.provider
    if not hasattr(provider, "source"):
        raise ModelError(
            f"'{name}' is a model of a plug-in that does not report its files",
            hint="add a method source(name) to its MODEL",
        )
    from textsent.models import _sources
    from textsent.models.huggingface import HuggingFace

    if isinstance(provider, HuggingFace):
        given = resolved.argument.removeprefix("random:") if random else resolved.argument
        parsed = _sources.parse(f"random:{given}" if random else given)
        return parsed.shown, _sources.find(parsed)
    shown, source = name.strip(), cast("Source", provider.source(resolved.argument))
    return (f"random:{shown}", replace(source, folder=None)) if random else (shown, source)


def _parameters(classifier: PreTrainedModel) -> tuple[list[str], dict[str, Any]]:
    """Return LoRA's target modules, and the number of parameters: total, and trainable by method."""
    from textsent.models import _build

    total = _count(classifier)
    prefix = f"{classifier.base_model_prefix}."
    sizes = {name: p.numel() for name, p in classifier.named_parameters()}
    head = sum(n for name, n in sizes.items() if not name.startswith(prefix))
    biases = sum(
        n for name, n in sizes.items() if name.startswith(prefix) and name.endswith(".bias")
    )
    trainable: dict[str, int | None] = {
        "svm": 0,
        "logreg": 0,
        "head": head,
        "bitfit": biases + head,
        "lora": None,
        "full_finetune": total,
    }
    with_lora = None
    try:
        targets = _build.lora_targets(classifier)
    except ModelError:
        targets = ()
    else:
        from peft import LoraConfig, TaskType, get_peft_model

        config = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=LORA_R,
            lora_alpha=LORA_ALPHA,
            target_modules=list(targets),
        )
        # Last, because it changes the classifier in place.
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # between two libraries, no concern of the user
            adapted: Any = get_peft_model(cast("Any", classifier), config)
        trainable["lora"], with_lora = adapted.get_nb_trainable_parameters()
    return list(targets), {"total": total, "total_with_lora": with_lora, "trainable": trainable}


def _followed(source: Source, shown: str, texts: Sequence[str]) -> dict[str, Any]:
    """Run the model on the texts and return tokens, ids and first values of each."""
    import torch

    from textsent.models import _encoder

    services = Services(FeatureCache(enabled=False))
    encoder = _encoder.load(source, name=shown, device="cpu", dtype="fp32", services=services)
    ids = encoder.tokenize(list(texts))
    states, padded, mask = encoder.states(ids, encoder.n_layers)  # (n, L, D), (n, L), (n, L)
    model = encoder.classifier(("0", "1"), 0)
    with torch.inference_mode():
        logits = model(input_ids=padded, attention_mask=mask).logits  # (n, C)
    tokenizer = encoder.tokenizer
    rows = [
        {
            "text": text,
            "tokens": tokenizer.convert_ids_to_tokens(ids[i]),
            "ids": padded[i].tolist(),
            "mask": mask[i].tolist(),
            "cls": states[i, 0, :SHOWN].tolist(),
            "decoded": tokenizer.decode(ids[i], skip_special_tokens=True),
        }
        for i, text in enumerate(texts)
    ]
    shapes = {
        "input_ids": list(padded.shape),
        "last_hidden_state": list(states.shape),
        "cls": [states.shape[0], states.shape[2]],
        "logits": list(logits.shape),
    }
    return {"output_shapes": shapes, "texts": rows}


def _count(model: PreTrainedModel) -> int:
    return sum(p.numel() for p in model.parameters())
