"""Causal text towers of open_clip with fewer operations.

Under a causal mask a position only depends on the positions before it. So nothing after the end-of-text token has an
effect, and texts with the same beginning (a trained context, a template) have equal states there, which are computed
once. In the last block only the end of the text is read. All three change rounding only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from open_clip.model import CLIP
from open_clip.transformer import TextTransformer, text_global_pool
from torch import nn

from clipadapt.models import _attention, _deep_prompts, _packed_text
from clipadapt.tensor.moves import placed

if TYPE_CHECKING:
    from collections.abc import Sequence


class CausalTextTower:
    """A causal text tower of open_clip whose feature is read at the end-of-text token.

    Attributes:
        tower: The module with embedding, blocks, last norm and projection.
        context_length: Positions of a full forward pass.
    """

    def __init__(self, tower: Any, pool_type: str, eos_id: Any) -> None:
        self.tower, self.pool_type, self.eos_id = tower, pool_type, eos_id
        self.context_length = int(tower.context_length)

    @classmethod
    def of(cls, net: Any) -> CausalTextTower | None:
        """Return the text tower of a network, or None if it is of another kind."""
        if isinstance(net, CLIP):
            tower, pool_type, eos_id = net, net.text_pool_type, net.text_eos_id
        elif isinstance(text := getattr(net, "text", None), TextTransformer):
            if text.cls_emb is not None:
                return None
            tower, pool_type, eos_id = text, text.pool_type, getattr(text, "eos_id", None)
        else:
            return None
        causal = tower.attn_mask is not None and pool_type == "argmax"
        return cls(tower, pool_type, eos_id) if causal else None

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Encode ``(n, L)`` token ids, ``L`` at most the context, to projected features that are not normalised."""
        tower, length = self.tower, tokens.shape[1]
        x = self._placed(tower.token_embedding(tokens))
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        x = tower.ln_final(x)  # (n, L, W)
        return self._projected(
            text_global_pool(x, tokens, self.pool_type, eos_token_id=self.eos_id)
        )

    def can_share(self) -> bool:
        """Return whether :meth:`with_shared` supports every block."""
        return all(map(_attention.is_plain, self.tower.transformer.resblocks))

    def with_shared(
        self,
        embeddings: torch.Tensor,
        tokens: torch.Tensor,
        shared: int,
        slots: torch.Tensor | None = None,
        prompts: Sequence[torch.Tensor] = (),
        *,
        packed: bool = False,
    ) -> torch.Tensor:
        """Encode token embeddings ``(n, L, W)`` whose first ``shared`` positions are the same in all texts.

        Tokens and slots are read on the host: on a GPU, they should not be there yet.

        Before block ``i >= 1`` the states at ``slots``, shape ``(n, P)``, are replaced by ``prompts[i]``.

        With ``packed``, which ignores ``shared`` and supports no slots, nothing is computed after the end of a text;
        the last bits of a feature then depend on the number of texts.
        """
        ends = tokens.argmax(dim=1)
        shared = min(shared, int(ends.min()))
        if slots is not None and len(prompts) > 1 and shared <= int(slots.max()):
            shared = min(shared, int(slots.min()))
        x = self._placed(embeddings)
        if packed:
            packing = _packed_text.Packing.of(ends + 1, x.shape[1], x.device)
            pooled = _packed_text.run(self.tower.transformer.resblocks, x, packing)
            return self._projected(self.tower.ln_final(pooled))
        head, rest = x[:1, :shared], x[:, shared:]  # (1, P, W), (n, L - P, W)
        ends = placed(ends, x.device)
        places = torch.arange(x.shape[1], device=x.device)
        causal = places <= places[:, None]  # (L, L)
        *blocks, last = self.tower.transformer.resblocks
        for i, block in enumerate(blocks):
            head, rest = _replaced(head, rest, slots, prompts, i)
            head, rest = _block(block, head, rest, causal)
        head, rest = _replaced(head, rest, slots, prompts, len(blocks))
        before = None
        if shared:
            k, v = _attention.heads_of(last.attn, last.ln_1(head), "kv")
            before = k, v
        seen = places <= ends[:, None]  # (n, L)
        pooled = _attention.at_one_place(last, rest, ends - shared, seen, before)
        return self._projected(self.tower.ln_final(pooled))

    def _placed(self, embeddings: torch.Tensor) -> torch.Tensor:
        tower = self.tower
        dtype = tower.transformer.get_cast_dtype()
        positions = tower.positional_embedding[: embeddings.shape[1]]
        placed: torch.Tensor = embeddings.to(dtype) + positions.to(dtype)
        return placed

    def _projected(self, pooled: torch.Tensor) -> torch.Tensor:
        projection = self.tower.text_projection
        if projection is None:
            return pooled
        linear = isinstance(projection, nn.Module)
        out: torch.Tensor = projection(pooled) if linear else pooled @ projection
        return out


def _replaced(
    head: torch.Tensor,
    rest: torch.Tensor,
    slots: torch.Tensor | None,
    prompts: Sequence[torch.Tensor],
    i: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the states before block ``i`` with its prompt; all slots are in ``head``, or all are in ``rest``."""
    if slots is None or not 0 < i < len(prompts):
        return head, rest
    shared = head.shape[1]
    if int(slots.max()) < shared:
        return _deep_prompts.fill(head, slots[:1], prompts[i]), rest
    return head, _deep_prompts.fill(rest, slots - shared, prompts[i])


def _block(
    block: Any, head: torch.Tensor, rest: torch.Tensor, causal: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run one block on the shared positions, and on the other positions of each text, which attend to both.

    Args:
        block: The block.
        head: States of the shared positions, shape ``(1, P, W)``; ``P`` may be 0.
        rest: States of the other positions, shape ``(n, L - P, W)``.
        causal: Causal mask, True where attention is allowed, shape ``(L, L)``.
    """
    attention, n, shared = block.attn, len(rest), head.shape[1]
    q, k, v = _heads(attention, block.ln_1(rest))  # (n, heads, L - P, d)
    if shared:
        q0, k0, v0 = _heads(attention, block.ln_1(head))  # (1, heads, P, d)
        k = torch.cat([k0.expand(n, -1, -1, -1), k], dim=2)
        v = torch.cat([v0.expand(n, -1, -1, -1), v], dim=2)
        head = _ended(block, head, _attention.attend(q0, k0, v0, causal[:shared, :shared]))
    return head, _ended(block, rest, _attention.attend(q, k, v, causal[shared:]))


def _ended(block: Any, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
    return _attention.finished(block, x, mixed.transpose(1, 2).reshape(x.shape))


def _heads(attention: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """Return query, key and value, each ``(n, heads, L, d)``."""
    return [p.transpose(1, 2) for p in _attention.heads_of(attention, x, "qkv")]
