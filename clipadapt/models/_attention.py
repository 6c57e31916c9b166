"""Attention whose projections are separate linear layers, so that each can have its own adapter.

``nn.MultiheadAttention`` has one matrix for query, key and value. PEFT's adapter for it shares one low-rank input
matrix among the three, always adapts the output projection and has no dropout, which is not CLIP-LoRA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from timm.layers.attention import Attention, AttentionRope
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping

ROLES: Final = ("q", "k", "v", "out", "mlp", "pointwise")
DECODER: Final = "text_decoder."
"""Prefix of CoCa's captioning decoder, which no feature depends on."""


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Attend as ``F.scaled_dot_product_attention`` does.

    In half precision on the CPU, the backward pass of that function is several times slower than that of its single
    products, so with gradients the products are computed one by one.

    Args:
        q: Queries, shape ``(n, heads, L, d)``.
        k: Keys, shape ``(n, heads, S, d)``.
        v: Values, shape ``(n, heads, S, d)``.
        mask: Float mask added to the scores, or boolean mask, True where attention is allowed; broadcast to
            ``(n, heads, L, S)``.
    """
    half = q.dtype != torch.float32 and q.device.type == "cpu"
    if not (half and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    if mask is not None:
        seen = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, float("-inf")) if seen else scores + mask
    return torch.matmul(scores.softmax(dim=-1), v)


def heads_of(attention: Any, x: torch.Tensor, roles: str) -> list[torch.Tensor]:
    """Return queries, keys or values.

    Args:
        attention: ``nn.MultiheadAttention`` or :class:`SplitAttention`.
        x: States, shape ``(..., W)``.
        roles: Consecutive letters of ``qkv``.

    Returns:
        One tensor ``(..., heads, W / heads)`` per letter.
    """
    width = x.shape[-1]
    if isinstance(attention, SplitAttention):
        parts, heads = [getattr(attention, role)(x) for role in roles], attention.heads
    else:
        begin = "qkv".index(roles) * width
        rows = slice(begin, begin + len(roles) * width)
        joined = F.linear(x, attention.in_proj_weight[rows], attention.in_proj_bias[rows])
        parts, heads = list(joined.chunk(len(roles), dim=-1)), attention.num_heads
    return [p.view(*x.shape[:-1], heads, width // heads) for p in parts]


def finished(block: Any, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
    """Return the output of a block of open_clip, from its input ``(..., W)`` and the attention result ``(..., W)``."""
    attention = block.attn
    layer = attention.out if isinstance(attention, SplitAttention) else attention.out_proj
    x = x + block.ls_1(layer(mixed))
    out: torch.Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return out


def at_one_place(
    block: Any,
    x: torch.Tensor,
    places: torch.Tensor,
    sees: torch.Tensor | None = None,
    before: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return the output of a block of open_clip at one position of each example, shape ``(n, W)``.

    Args:
        block: The block.
        x: States, shape ``(n, L, W)``.
        places: The position of each example, shape ``(n,)``.
        sees: Positions that it may attend to, shape ``(n, P + L)``; all if omitted.
        before: Keys and values of ``P`` preceding positions that all examples share, each ``(1, P, heads, d)``.
    """
    attention, n = block.attn, len(x)
    rows = torch.arange(n, device=x.device)
    normed = block.ln_1(x)
    (q,) = heads_of(attention, normed[rows, places], "q")  # (n, heads, d)
    k, v = heads_of(attention, normed, "kv")  # (n, L, heads, d)
    if before is not None:
        k, v = (
            torch.cat([b.expand(n, -1, -1, -1), own], dim=1)
            for b, own in zip(before, (k, v), strict=True)
        )
    mixed = mixed_at_one_place(q, k, v, sees)
    return finished(block, x[rows, places], mixed.to(x.dtype).flatten(1))


def mixed_at_one_place(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sees: torch.Tensor | None = None
) -> torch.Tensor:
    """Attend with one query per example, in float32.

    Args:
        q: Queries, shape ``(n, heads, d)``.
        k: Keys, shape ``(n, L, heads, d)``.
        v: Values, shape ``(n, L, heads, d)``.
        sees: Positions that may be attended to, shape ``(n, L)``; all if omitted.

    Returns:
        Shape ``(n, heads, d)``.
    """
    # Sums, not a matrix product, whose last bits depend on the number of examples.
    scores = (q.float()[:, None] * k.float()).sum(-1) * q.shape[-1] ** -0.5  # (n, L, heads)
    if sees is not None:
        scores = scores.masked_fill(~sees[..., None], float("-inf"))
    return (scores.softmax(dim=1)[..., None] * v.float()).sum(1)


def is_plain(block: Any) -> bool:
    """Return whether :func:`at_one_place` supports a block."""
    return (
        type(block) is ResidualAttentionBlock
        and not hasattr(block, "ln_1_kv")
        and isinstance(block.attn, nn.MultiheadAttention | SplitAttention)
        and block.attn.batch_first
    )


class SplitAttention(nn.Module):
    """``nn.MultiheadAttention`` with four ``nn.Linear`` layers; same call, same result."""

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = source.num_heads
        self.batch_first = source.batch_first
        weights, biases = source.in_proj_weight.chunk(3), source.in_proj_bias.chunk(3)
        self.q, self.k, self.v = map(_linear, weights, biases)
        self.out = _linear(source.out_proj.weight, source.out_proj.bias)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """Attend; attention weights are not returned.

        Args:
            query: Shape ``(n, L, W)``.
            key: Shape ``(n, S, W)``.
            value: Shape ``(n, S, W)``.
            need_weights: Must be False.
            attn_mask: Added to the scores; ``(L, S)`` or ``(n * heads, L, S)``.
        """
        assert not need_weights
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        n, length, width = query.shape

        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.view(n, -1, self.heads, width // self.heads).transpose(1, 2)

        q, k, v = heads(self.q(query)), heads(self.k(key)), heads(self.v(value))
        mask = attn_mask
        if mask is not None and mask.dim() == 3:
            mask = mask.view(n, self.heads, length, -1)
        mixed = attend(q, k, v, mask)  # (n, heads, L, W / heads)
        out: torch.Tensor = self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return (out if self.batch_first else out.transpose(0, 1)), None


class SplitProjection(nn.Module):
    """timm's fused ``qkv`` layer as three layers; same result."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        biases = (None,) * 3 if source.bias is None else source.bias.chunk(3)
        self.q, self.k, self.v = map(_linear, source.weight.chunk(3), biases)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(..., W)`` to ``(..., 3 W)``."""
        return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)


def split(network: nn.Module) -> None:
    """Replace every attention layer of open_clip and timm in ``network`` by one with separate projections, in place."""
    for module in list(network.modules()):
        if isinstance(module, ResidualAttentionBlock) and isinstance(
            module.attn, nn.MultiheadAttention
        ):
            module.attn = SplitAttention(module.attn)
        elif type(module) in {Attention, AttentionRope} and isinstance(module.qkv, nn.Linear):
            module.qkv = SplitProjection(module.qkv)


def fuse(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state of a network that :func:`split` changed, under its original names."""
    fused: dict[str, torch.Tensor] = {}
    state = network.state_dict()
    for name, module in network.named_modules():
        if not isinstance(module, SplitAttention | SplitProjection):
            continue
        whole = f"{name}.in_proj_" if isinstance(module, SplitAttention) else f"{name}."
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{name}.{role}.{kind}", None) for role in "qkv"]
            if parts[0] is not None:
                fused[whole + kind] = torch.cat([p for p in parts if p is not None])
        if isinstance(module, SplitAttention):
            for kind in ("weight", "bias"):
                fused[f"{name}.out_proj.{kind}"] = state.pop(f"{name}.out.{kind}")
    return {**state, **fused}


def fuse_adapters(
    network: nn.Module, updates: Mapping[str, Mapping[str, torch.Tensor]]
) -> dict[str, dict[str, torch.Tensor]]:
    """Convert low-rank updates of a network that :func:`split` changed to updates of its original layers.

    The updates of query, key and value become one: the ``A`` are stacked, the ``B`` are the blocks of a block-diagonal
    matrix, and a projection without an update gets zeros. For ``nn.MultiheadAttention`` the updates of ``NAME`` and
    ``NAME.out_proj`` have the same rank, as PEFT requires.

    Args:
        network: The split network.
        updates: By layer: ``A`` of shape ``(r, in)``, ``B`` of shape ``(out, r)``, optionally DoRA's ``magnitude``.

    Returns:
        The same by fused layer; a magnitude is NaN in rows without an update.
    """
    fused: dict[str, dict[str, torch.Tensor]] = {}
    owners: dict[str, dict[str, Mapping[str, torch.Tensor]]] = {}
    for name, parts in updates.items():
        owner, _, role = name.rpartition(".")
        if isinstance(network.get_submodule(owner), SplitAttention | SplitProjection):
            owners.setdefault(owner, {})[role] = parts
        else:
            fused[name] = dict(parts)
    for owner, roles in owners.items():
        out = roles.pop("out", None)
        if roles:
            fused[owner] = _blocks_of(roles)
        if not isinstance(network.get_submodule(owner), SplitAttention):
            continue
        if out is None:
            rank, width = fused[owner]["A"].shape
            out = {"A": torch.zeros(0, width), "B": torch.zeros(width, 0)}
        elif not roles:
            rank, width = out["A"].shape
            fused[owner] = {"A": torch.zeros(rank, width), "B": torch.zeros(3 * width, rank)}
        rank = max(len(fused[owner]["A"]), len(out["A"]))
        fused[owner] = _of_rank(fused[owner], rank)
        fused[f"{owner}.out_proj"] = _of_rank(out, rank)
    return fused


def _blocks_of(roles: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return one update of the fused query, key and value projection."""
    present = [role for role in "qkv" if role in roles]
    width = len(roles[present[0]]["B"])
    blocks = [roles[role]["B"] if role in present else torch.zeros(width, 0) for role in "qkv"]
    update = {
        "A": torch.cat([roles[role]["A"] for role in present]),  # (r * roles, in)
        "B": torch.block_diag(*blocks),  # (3 out, r * roles)
    }
    if "magnitude" in roles[present[0]]:
        none = torch.full((width,), torch.nan)
        update["magnitude"] = torch.cat([
            roles[role]["magnitude"] if role in present else none for role in "qkv"
        ])
    return update


def _of_rank(update: Mapping[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """Pad an update with zeros to a rank."""
    more = rank - len(update["A"])
    return {
        "A": F.pad(update["A"], (0, 0, 0, more)),
        "B": F.pad(update["B"], (0, more)),
    }


def targets(network: nn.Module) -> dict[str, dict[str, list[str]]]:
    """Return the layers that can have adapters: ``{tower: {role: names}}``, input side first.

    Roles: ``q``, ``k``, ``v``, ``out`` of self-attention, ``mlp`` (both layers), ``pointwise`` (1x1 convolutions).
    A role that a tower does not have is left out.
    """
    found: dict[str, dict[str, list[str]]] = {"image": {}, "text": {}}
    for name, module in network.named_modules():
        role = _role(name, module)
        if role is not None and not name.startswith(DECODER):
            tower = "image" if name.startswith("visual.") else "text"
            found[tower].setdefault(role, []).append(name)
    return found


_SUFFIXES: Final = {
    # open_clip's blocks, split
    **{f"attn.{role}": role for role in ("q", "k", "v", "out")},
    "mlp.c_fc": "mlp",
    "mlp.c_proj": "mlp",
    # timm's blocks, split
    **{f"attn.{role}_proj": role for role in "qkv"},
    **{f"attn.qkv.{role}": role for role in "qkv"},
    "attn.proj": "out",
    "mlp.fc1": "mlp",
    "mlp.fc1_g": "mlp",
    "mlp.fc1_x": "mlp",
    "mlp.fc2": "mlp",
    # Hugging Face's BERT and RoBERTa
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "out",
    "intermediate.dense": "mlp",
    "output.dense": "mlp",
    # DistilBERT
    "attention.q_lin": "q",
    "attention.k_lin": "k",
    "attention.v_lin": "v",
    "attention.out_lin": "out",
    "ffn.lin1": "mlp",
    "ffn.lin2": "mlp",
}


def _role(name: str, module: Any) -> str | None:
    if isinstance(module, nn.Conv2d):
        plain = module.kernel_size == (1, 1) and module.groups == 1
        return "pointwise" if plain else None
    if not isinstance(module, nn.Linear) or "attn_pool." in name:
        return None
    # The longest suffix decides: BERT's attention.output.dense ends in output.dense too.
    fits = [s for s in _SUFFIXES if name.endswith(f".{s}")]
    return _SUFFIXES[max(fits, key=len)] if fits else None


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    out, width = weight.shape
    layer = nn.Linear(width, out, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer
