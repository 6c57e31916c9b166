"""Build an encoder, a classifier or a tokenizer with transformers."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from clipadapt.core.api.errors import ModelError, first_line
from clipadapt.tensor import tokenizers
from clipadapt.tensor.seeding import seeded
from textsent.models._configurations import LORA_TARGETS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from textsent.models._sources import Source

RANDOM_SEED: Final = 20191002
"""Seed of random weights."""
NO_LIMIT: Final = 1 << 30
"""A tokenizer without a maximum length reports a number above this one."""


def build(source: Source, name: str) -> tuple[PreTrainedModel, frozenset[str]]:
    """Build the encoder in float32 on the CPU, without a head, frozen, in evaluation mode.

    Random weights are the same at every call.

    Returns:
        The encoder, and the names of the parameters that its checkpoint does not hold (those of a pooler).

    Raises:
        ModelError: If transformers cannot build it, or the weights do not fit the configuration.
    """
    fresh: frozenset[str] = frozenset()
    with seeded(RANDOM_SEED), quiet():
        if source.folder is None:
            module = encoder_of(configuration(source, name), name)
        else:
            module, fresh = _loaded(source, name)
    module.eval().requires_grad_(False)
    for needed in ("hidden_size", "num_hidden_layers"):
        if not hasattr(module.config, needed):
            raise ModelError(
                f"'{name}' is a {type(module).__name__}, which is not a text encoder",
                hint="use an encoder such as minilm or distilbert-base-uncased",
            )
    return module, fresh


def configuration(source: Source, name: str) -> PreTrainedConfig:
    """Return the configuration of a source as transformers reads it.

    Raises:
        ModelError: If transformers does not know the architecture, or a value is not valid.
    """
    values = {k: v for k, v in source.config.items() if k != "model_type"}
    try:
        return AutoConfig.for_model(source.config["model_type"], **values)
    except (
        Exception
    ) as err:  # transformers and its validation raise many types of exceptions for a config
        raise _cannot_build(name, err) from err


def build_tokenizer(source: Source, name: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a source.

    Raises:
        ModelError: If its files cannot be read, or hold no vocabulary.
    """
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                str(source.tokenizer), local_files_only=True, trust_remote_code=False
            )
    except Exception as err:  # tokenizers raises plain exceptions for files that it cannot read
        raise ModelError(
            f"the tokenizer of '{name}' cannot be read: {first_line(err)}",
            hint="save it again with tokenizer.save_pretrained(folder)",
        ) from err
    if tokenizer.pad_token_id is None:
        # The attention mask hides the padding, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizers.check(tokenizer, name)
    return tokenizer


def _loaded(source: Source, name: str) -> tuple[PreTrainedModel, frozenset[str]]:
    try:
        module, info = AutoModel.from_pretrained(
            str(source.folder),
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
        )
    except (
        Exception
    ) as err:  # torch, safetensors and transformers raise many types of exceptions for a file
        if any(p.suffix == ".bin" for p in source.files):
            raise ModelError(
                f"the weights of '{name}' cannot be read as plain tensors: {first_line(err)}",
                hint="if you trust them, save them as safetensors: model.save_pretrained(folder)",
            ) from err
        raise _cannot_build(name, err) from err
    missing = set(info["missing_keys"])
    fresh = frozenset(k for k in missing if k.startswith("pooler."))
    if missing - fresh:
        first = sorted(missing - fresh)
        raise ModelError(
            f"the weights of '{name}' do not fit its config.json: tensor '{first[0]}' is missing "
            f"({len(first)} are)",
            hint="download config.json and weights of the same model",
        )
    return module, fresh


def encoder_of(config: PreTrainedConfig, name: str) -> PreTrainedModel:
    """Return an encoder with random weights.

    Raises:
        ModelError: If transformers cannot build it.
    """
    return _made(AutoModel, config, name)


def classifier_of(config: PreTrainedConfig, name: str) -> PreTrainedModel:
    """Return a sequence classifier with random weights.

    Raises:
        ModelError: If transformers cannot build it.
    """
    return _made(AutoModelForSequenceClassification, config, name)


def _made(kind: Any, config: PreTrainedConfig, name: str) -> PreTrainedModel:
    try:
        module: PreTrainedModel = kind.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as err:
        raise _cannot_build(name, err) from err
    return module


def max_length(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Return how many tokens a model can read: the lower of its positions and its tokenizer's limit."""
    embeddings = getattr(getattr(module, "embeddings", None), "position_embeddings", None)
    if isinstance(embeddings, torch.nn.Embedding):
        # RoBERTa and its relatives count positions from after the padding index.
        skipped = 0 if embeddings.padding_idx is None else embeddings.padding_idx + 1
        most = embeddings.num_embeddings - skipped
    else:
        most = int(getattr(module.config, "max_position_embeddings", None) or NO_LIMIT)
    if tokenizer is not None:
        most = min(most, int(tokenizer.model_max_length))
    return most if 0 < most < NO_LIMIT else 512


def lora_targets(module: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of the query and value projections of an encoder or classifier.

    Raises:
        ModelError: If they are not known for the architecture.
    """
    kind = str(module.config.model_type)
    linear = {
        name.rpartition(".")[2]
        for name, child in module.named_modules()
        if isinstance(child, torch.nn.Linear)
    }
    targets = LORA_TARGETS.get(kind)
    if targets is None or not linear.issuperset(targets):
        raise ModelError(
            f"LoRA's target modules are not known for the architecture '{kind}'; "
            f"its linear layers are {', '.join(sorted(linear)) or 'none'}",
            hint="name the layers to adapt, as in --set method.target_modules=[query,value]",
        )
    return targets


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the loading reports and progress bars of transformers; what matters is checked here."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def _cannot_build(name: str, err: BaseException) -> ModelError:
    return ModelError(
        f"transformers cannot build '{name}': {type(err).__name__}: {first_line(err)}",
        hint=f"check its config.json; the installed transformers is {transformers.__version__}",
    )
