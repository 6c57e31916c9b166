"""Pairs of texts and the cosine loss that trains an encoder on them.

Imports torch: import it where work begins, not where a method is defined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from clipadapt.tensor.batching import PAD_TO

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from textsent.methods._trainer import Rows

SMALLEST_COUNT = 1e-9
"""Lower bound of the number of tokens in a mean, as in sentence-transformers' pooling."""


class PairModel(torch.nn.Module):
    """An encoder under the loss ``mean((cos(u, v) - label)^2)`` over pairs of texts.

    References:
        N. Reimers and I. Gurevych, "Sentence-BERT", EMNLP 2019, section 3. arXiv:1908.10084
    """

    def __init__(self, encoder: PreTrainedModel, pooling: str) -> None:
        """Wrap an encoder.

        Args:
            encoder: The encoder to train.
            pooling: ``mean`` over the tokens, or ``cls``.
        """
        super().__init__()
        self.encoder, self.pooling = encoder, pooling

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return the loss and the cosines ``(b,)`` of ``b`` pairs.

        Args:
            input_ids: Token ids of the first texts, then of the second ones, shape ``(2 b, L)``.
            attention_mask: 0 at padding, shape ``(2 b, L)``.
            labels: 1 for two texts of one class, else 0, shape ``(b,)``.
        """
        encoder: Any = self.encoder
        states = encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "cls":
            pooled = states[:, 0]  # (2 b, D)
        else:
            weight = attention_mask[:, :, None].to(states.dtype)
            pooled = (states * weight).sum(1) / weight.sum(1).clamp(min=SMALLEST_COUNT)
        first, second = pooled.chunk(2)
        cosine = F.cosine_similarity(first, second)  # (b,)
        return {"loss": F.mse_loss(cosine, labels.to(cosine.dtype)), "logits": cosine}


class PairRows(torch.utils.data.Dataset[dict[str, Any]]):
    """The Trainer's rows of pairs of tokenized texts, each made when it is read."""

    def __init__(self, ids: Sequence[list[int]], partners: NDArray[Any]) -> None:
        """Wrap texts and partners.

        Args:
            ids: Token ids of ``n`` texts.
            partners: Row numbers of a partner of the same class and of one of another class, drawn ``k`` times for
                each text, shape ``(k, n, 2)``.
        """
        self.ids, self.partners = ids, partners

    def __len__(self) -> int:
        return int(self.partners.size)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the pair of a text and a partner, with 1 for two texts of one class, else 0."""
        text, kind = divmod(index, 2)
        draw, i = divmod(text, len(self.ids))
        j = self.partners[draw, i, kind]
        return {"input_ids": (self.ids[i], self.ids[j]), "labels": float(kind == 0)}


class PairCollator:
    """Pads the texts of a batch of pairs to one length."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        """Return the arguments of :meth:`PairModel.forward`."""
        texts = [row["input_ids"][k] for k in (0, 1) for row in rows]
        padded = self.tokenizer.pad(
            {"input_ids": texts}, pad_to_multiple_of=PAD_TO, return_tensors="pt"
        )
        return {
            "input_ids": padded["input_ids"],
            "attention_mask": padded["attention_mask"],
            "labels": torch.tensor([row["labels"] for row in rows]),
        }
