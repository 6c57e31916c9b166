"""Train on texts laid end to end: the logits and gradients of a padded batch, without computing its padding.

A batch in random order is padded to its longest text, so half of its tokens may be padding. Here the tokens of all
texts form one sequence, and only attention separates the texts. Linear layers, normalizations and dropout, nearly all
of the work, see no padding. Imports torch and transformers.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, cast

import torch
from torch import nn
from transformers import AttentionInterface

from clipadapt.tensor.dropout import Dropout
from clipadapt.tensor.dropout import dropout as drop
from textsent.methods import _network

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from transformers.modeling_outputs import SequenceClassifierOutput

ATTENTION: Final = "textsent_packed"
"""Name of the attention function in transformers."""
FILL_TO: Final = 32
"""The packed sequence has a multiple of this number of tokens: kernels are prepared for each number once."""
GROUP_COST: Final = 12_000
"""Cost of attention on one more group of texts, in attention weights per head."""
TOLERANCE: Final = 1e-4
"""Between the logits of a padded and a packed batch."""


@dataclass(frozen=True, slots=True)
class Group:
    """Texts of similar length whose attention is computed together, padded to the longest.

    Attributes:
        begin: First packed position of the group.
        end: Position after the last.
        size: Texts, ``b``.
        length: Padded length, ``L``.
        source: Position from ``begin`` of each padded position, shape ``(b * L,)``; None without padding.
        target: Padded position of each packed position, shape ``(end - begin,)``; None without padding.
        hidden: Which padded positions hold no token, shape ``(b, 1, 1, L)``; None without padding.
    """

    begin: int
    end: int
    size: int
    length: int
    source: torch.Tensor | None = None
    target: torch.Tensor | None = None
    hidden: torch.Tensor | None = None

    @classmethod
    def of(cls, begin: int, lengths: Sequence[int]) -> Group:
        """Return the group of texts with these lengths."""
        longest, n = max(lengths), torch.tensor(lengths)
        end = begin + int(n.sum())
        if min(lengths) == longest:
            return cls(begin, end, len(lengths), longest)
        at = torch.arange(longest)
        real = at < n[:, None]  # (b, L)
        first = n.cumsum(0) - n  # (b,)
        source = torch.where(real, first[:, None] + at, 0).flatten()
        hidden = ~real[:, None, None]
        return cls(
            begin, end, len(lengths), longest, source, real.flatten().nonzero()[:, 0], hidden
        )


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch of texts laid end to end, the longest first.

    Attributes:
        tokens: Token ids, shape ``(1, T)``.
        positions: Position of each token in its text, shape ``(1, T)``.
        starts: First token of each text in the order of the batch, shape ``(b,)``.
        groups: The groups of attention.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    starts: torch.Tensor
    groups: tuple[Group, ...]


def pack(ids: torch.Tensor, mask: torch.Tensor) -> Packed:
    """Pack a batch that is padded on the right.

    Args:
        ids: Token ids, shape ``(b, L)``.
        mask: 1 for tokens, 0 for padding, shape ``(b, L)``.
    """
    lengths = mask.sum(dim=1)  # (b,)
    order = torch.argsort(lengths, descending=True, stable=True)
    real = mask[order].bool()
    tokens = ids[order][real]  # (T,)
    positions = torch.arange(mask.shape[1]).expand_as(mask)[real]
    ordered = lengths[order]
    starts = torch.empty_like(order)
    starts[order] = ordered.cumsum(0) - ordered
    fill = -len(tokens) % FILL_TO
    groups, begin = [], 0
    for rows in split(ordered.tolist()):
        groups.append(Group.of(begin, rows))
        begin = groups[-1].end
    return Packed(
        nn.functional.pad(tokens, (0, fill), value=int(tokens[0])).unsqueeze(0),
        nn.functional.pad(positions, (0, fill)).unsqueeze(0),
        starts,
        tuple(groups),
    )


def split(lengths: Sequence[int]) -> list[list[int]]:
    """Split lengths in descending order into groups with little padding; few groups are better than many."""
    best, begin = [0], [0]  # cost of the first j texts, and where their last group begins
    for j in range(1, len(lengths) + 1):
        costs = [best[i] + (j - i) * lengths[i] ** 2 + GROUP_COST for i in range(j)]
        begin.append(min(range(j), key=costs.__getitem__))
        best.append(costs[begin[-1]])
    found, end = [], len(lengths)
    while end:
        found.append(list(lengths[begin[end] : end]))
        end = begin[end]
    return found[::-1]


class PackedClassifier:
    """Runs a sequence classifier on packed batches; parameters and modules are the model's own."""

    def __init__(self, model: Any) -> None:
        """Wrap a classifier whose head reads the first state.

        Args:
            model: A sequence classifier, or a PEFT model of one.
        """
        self.model: Any = model.get_base_model() if hasattr(model, "peft_config") else model
        self.head: Any = _network.head_of(self.model)
        embeddings = getattr(self.model.base_model, "embeddings", None)
        # RoBERTa and its relatives count positions from after the padding index.
        padding = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
        self.first_position = 0 if padding is None else padding + 1

    @classmethod
    def of(cls, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> Self | None:
        """Return the packed form of a model, or None if it gives other logits on a padded batch.

        So it is with models that read more than the first state, or that compute attention in a way of their own.
        """
        training = model.training
        model.eval()
        try:
            packed = cls(model)
            with torch.no_grad():
                whole, found = model(**batch).logits, cast("Any", packed(batch)).logits
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            # The model does not take these arguments, or not so long a row.
            return None
        finally:
            model.train(training)
        same = whole.shape == found.shape and torch.allclose(whole, found, atol=TOLERANCE)
        return packed if same else None

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> SequenceClassifierOutput:
        """Return the loss and the logits of a batch that is padded on the right.

        Args:
            batch: ``input_ids`` and ``attention_mask`` of shape ``(b, L)``; ``labels`` of shape ``(b,)``, or none.
        """
        packed = pack(batch["input_ids"], batch["attention_mask"])
        config = self.model.config
        before, config._attn_implementation = config._attn_implementation, ATTENTION
        try:
            states = self.model.base_model(
                input_ids=packed.tokens,
                position_ids=packed.positions + self.first_position,
                packed_groups=packed.groups,
            )[0]  # (1, T, D)
        finally:
            config._attn_implementation = before
        first = states[0, packed.starts].unsqueeze(1)  # (b, 1, D)
        found = self.head(inputs_embeds=first, labels=batch.get("labels"))
        found.logits = found.logits.float()
        return cast("SequenceClassifierOutput", found)


@contextlib.contextmanager
def fast_dropout(model: nn.Module) -> Iterator[None]:
    """Draw the masks of all dropout modules of a model with :mod:`~clipadapt.tensor.dropout`."""
    slow = [m for m in model.modules() if type(m) is nn.Dropout]
    for module in slow:
        module.__class__ = Dropout
    try:
        yield
    finally:
        for module in slow:
            module.__class__ = nn.Dropout


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001
    *,
    packed_groups: tuple[Group, ...],
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each text of a packed sequence.

    Args:
        module: The attention layer.
        query: Shape ``(1, H, T, d)``, as the next two.
        key: The keys.
        value: The values.
        attention_mask: Not used.
        packed_groups: The texts.
        scaling: Factor of the scores; None is ``d ** -0.5``.
        dropout: Probability of dropout on the weights.

    Returns:
        Shape ``(1, T, H, d)``, zero after the last text, and no weights.
    """
    n, (heads, d) = query.shape[2], query.shape[1::2]
    scale = d**-0.5 if scaling is None else scaling
    flat = [x[0].transpose(0, 1) for x in (query * scale, key, value)]  # (T, H, d)
    found = []
    for group in packed_groups:
        q, k, v = (_padded(x, group) for x in flat)  # (b, H, L, d)
        scores = q @ k.transpose(-1, -2)  # (b, H, L, L)
        if group.hidden is not None:
            scores = scores.masked_fill(group.hidden, -torch.inf)
        weights = scores.softmax(dim=-1)
        if dropout and module.training:
            weights = drop(weights, dropout)
        out = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(-1, heads * d)  # (b * L, H * d)
        found.append(out if group.target is None else _Unpad.apply(out, group.target))
    fill = n - packed_groups[-1].end
    if fill:
        found.append(found[0].new_zeros(fill, heads * d))
    return torch.cat(found).view(1, n, heads, d), None


def _padded(x: torch.Tensor, group: Group) -> torch.Tensor:
    """Return the texts of a group from packed states ``(T, H, d)``, shape ``(b, H, L, d)``."""
    own = x[group.begin : group.end]
    if group.source is not None:
        own = _Pad.apply(own, group.source, group.target)
    return own.reshape(group.size, group.length, *x.shape[1:]).transpose(1, 2)


class _Pad(torch.autograd.Function):
    """Copy packed rows to padded positions; the gradients of padding are zero, as attention hides it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> Any:
        ctx.save_for_backward(target)
        return x.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class _Unpad(torch.autograd.Function):
    """Copy padded rows to packed positions."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, target: torch.Tensor) -> Any:
        ctx.save_for_backward(target)
        ctx.n = len(x)
        return x.index_select(0, target)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        whole = grad.new_zeros(ctx.n, *grad.shape[1:])
        whole[ctx.saved_tensors[0]] = grad
        return whole, None


AttentionInterface.register(ATTENTION, attention)
