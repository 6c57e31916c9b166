"""Texts of different lengths without padding, in a causal text tower of open_clip.

The rows of all texts are one matrix, the shortest texts first, so layers that treat each position by itself need no
padding; attention runs once for each length. The features only change by rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from clipadapt.models import _attention
from clipadapt.tensor.moves import placed


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the positions of ``n`` texts are in packed rows.

    Attributes:
        groups: Number of texts and length of each group of equally long texts, shortest first.
        rows: Rows of the padded texts ``(n L)`` that are kept, shape ``(S,)``.
        ends: The last packed row of each text, in packed order, shape ``(n,)``.
        back: The place of each text in packed order, shape ``(n,)``.
    """

    groups: tuple[tuple[int, int], ...]
    rows: torch.Tensor
    ends: torch.Tensor
    back: torch.Tensor

    @classmethod
    def of(cls, lengths: torch.Tensor, width: int, device: torch.device | str) -> Packing:
        """Pack texts.

        Args:
            lengths: Positions of each text that have an effect, at least 1; on the host.
            width: Positions of each padded text.
            device: Device of the result.
        """
        order = lengths.argsort(stable=True)
        sizes, counts = lengths.unique(return_counts=True)
        ordered = lengths[order]
        begins = ordered.cumsum(0) - ordered
        places = torch.arange(int(ordered.sum())) - begins.repeat_interleave(ordered)
        rows = (order * width).repeat_interleave(ordered) + places
        return cls(
            tuple(zip(counts.tolist(), sizes.tolist(), strict=True)),
            placed(rows, device),
            placed(begins + ordered - 1, device),
            placed(order.argsort(), device),
        )

    def split(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the texts of each group, ``(count, length, ...)``, from packed rows ``(S, ...)``."""
        parts = x.split([count * length for count, length in self.groups])
        return [
            part.view(count, length, *x.shape[1:])
            for part, (count, length) in zip(parts, self.groups, strict=True)
        ]


def run(blocks: Any, states: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Run all blocks; return the output of the last one at the end of each text, shape ``(n, W)``.

    Args:
        blocks: The blocks of the tower.
        states: States of the texts, shape ``(n, L, W)``.
        packing: Which of them have an effect.
    """
    places = torch.arange(states.shape[1], device=states.device)
    causal = places <= places[:, None]  # (L, L)
    x = states.flatten(0, 1).index_select(0, packing.rows)  # (S, W)
    *others, last = blocks
    for block in others:
        heads = _attention.heads_of(block.attn, block.ln_1(x), "qkv")  # (S, heads, d) each
        parts = [
            _mixed(q, k, v, causal) for q, k, v in zip(*map(packing.split, heads), strict=True)
        ]
        x = _attention.finished(block, x, torch.cat(parts))
    return _ends(last, x, packing).index_select(0, packing.back)


def _mixed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: torch.Tensor) -> torch.Tensor:
    """Attend in texts of one length, ``(n, L, heads, d)``; the result is packed, ``(n L, W)``."""
    length = q.shape[1]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mixed = _attention.attend(q, k, v, causal[:length, :length])
    return mixed.transpose(1, 2).flatten(2).flatten(0, 1)


def _ends(block: Any, x: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Return the output of the last block at the end of each text, in packed order."""
    normed = block.ln_1(x)
    (q,) = _attention.heads_of(block.attn, normed.index_select(0, packing.ends), "q")
    k, v = _attention.heads_of(block.attn, normed, "kv")  # (S, heads, d)
    queries = q.split([count for count, _ in packing.groups])
    mixed = [
        _attention.mixed_at_one_place(*group)
        for group in zip(queries, packing.split(k), packing.split(v), strict=True)
    ]
    ends = x.index_select(0, packing.ends)
    return _attention.finished(block, ends, torch.cat(mixed).to(x.dtype).flatten(1))
