"""Forward passes of a sequence classifier, and training its head on cached features of the encoder.

Imports torch and transformers: import it where work begins, not where a method is defined.
"""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn
from transformers import DataCollatorWithPadding
from transformers.modeling_outputs import BaseModelOutputWithPooling

from clipadapt.tensor.batching import n_filler, padded_batches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from textsent.models import TextEncoder

PREDICT_BATCH = 64
TOLERANCE = 1e-5  # between the logits of the whole model and of its head on the first state


def logits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[list[int]],
    longest: int,
) -> NDArray[np.float32]:
    """Return the logits of tokenized texts, shape ``(n, C)``; those of a text do not depend on the other texts."""
    out = np.zeros((len(ids), int(model.config.num_labels or 0)), dtype=np.float32)
    device = next(model.parameters()).device
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    for rows, length in padded_batches(lengths, longest, PREDICT_BATCH):
        texts = [{"input_ids": ids[i]} for i in rows]
        texts += texts[:1] * n_filler(len(texts), PREDICT_BATCH)
        pad = DataCollatorWithPadding(tokenizer, padding="max_length", max_length=length)
        batch: Any = pad(texts)
        with torch.inference_mode():
            scores = model(**batch.to(device)).logits  # (b, C)
        out[rows] = scores[: len(rows)].float().cpu().numpy()
    return out


def example_batch(encoder: TextEncoder, device: torch.device) -> Any:
    """Return two tokenized texts of different lengths, padded, to compare models on."""
    ids = encoder.tokenize(["a", "a longer text of other words"])
    batch: Any = DataCollatorWithPadding(encoder.tokenizer)([{"input_ids": row} for row in ids])
    return batch.to(device)


# ---------------------------------------------------------------- the head alone


def head_logits(model: PreTrainedModel, states: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the head's logits, shape ``(n, C)``, of first states, shape ``(n, D)``."""
    device = next(model.parameters()).device
    embeds = torch.from_numpy(states).unsqueeze(1).to(device)  # (n, 1, D)
    with torch.inference_mode():
        scores = head_of(model)(inputs_embeds=embeds).logits.float().cpu().numpy()
    return cast("NDArray[np.float32]", scores)


def head_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with its encoder replaced by one that returns the given states of the first token.

    The parameters are shared, so training the head trains the model. A pooler still runs.
    """
    body = model.base_model
    head = copy.copy(model)
    head._modules = {
        **model._modules,
        model.base_model_prefix: _GivenStates(getattr(body, "pooler", None)),
    }
    head.main_input_name = "inputs_embeds"
    return head


class _GivenStates(nn.Module):
    """Returns the given states as an encoder would return its own."""

    def __init__(self, pooler: nn.Module | None) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(
        self, *_: Any, inputs_embeds: torch.Tensor, **__: Any
    ) -> BaseModelOutputWithPooling:
        pooled = None if self.pooler is None else self.pooler(inputs_embeds)
        return BaseModelOutputWithPooling(last_hidden_state=inputs_embeds, pooler_output=pooled)


def reads_first_state(model: PreTrainedModel, encoder: TextEncoder) -> bool:
    """Return whether the head gives the model's own logits from the last layer's first state alone."""
    if "inputs_embeds" not in inspect.signature(model.forward).parameters:
        return False
    model.eval()
    batch = example_batch(encoder, next(model.parameters()).device)
    with torch.inference_mode():
        whole = model(**batch).logits
        states = model.base_model(**batch)[0][:, :1]  # (2, 1, D)
        try:
            alone = head_of(model)(inputs_embeds=states).logits
        except (AttributeError, TypeError):  # the head needs more of its encoder than states
            return False
    return whole.shape == alone.shape and bool(torch.allclose(whole, alone, atol=TOLERANCE))


# ---------------------------------------------------------------- parameters


def initialized(model: PreTrainedModel, encoder: PreTrainedModel) -> dict[str, NDArray[np.float32]]:
    """Return the parameters of a classifier's encoder that differ from those of ``encoder``.

    They are newly initialized because the checkpoint lacks them, so a saved classifier must include them.
    """
    stored = encoder.state_dict()
    found = {}
    for name, parameter in model.base_model.named_parameters(prefix=model.base_model_prefix):
        known = stored.get(name.partition(".")[2])
        if known is None or not torch.equal(known.to(parameter), parameter):
            found[name] = parameter.detach().cpu().numpy().copy()
    return found


def overwrite(
    parameters: Mapping[str, nn.Parameter], arrays: Mapping[str, NDArray[np.float32]]
) -> None:
    """Copy saved values into parameters; names and shapes have been checked."""
    with torch.no_grad():
        for name, array in arrays.items():
            parameters[name].copy_(torch.from_numpy(array))
