"""Reference CLIP-LoRA: both towers at every step, the texts of all classes at full length, float32.

M. Zanella and I. Ben Ayed, CVPRW 2024, arXiv:2405.18541. Where the sources allow two
implementations, this is the cheaper one: the update is computed as ``B (A x)``, never as a matrix of the layer's size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Batches = Callable[[int], Iterable[tuple[torch.Tensor, torch.Tensor]]]
    """Batches of an epoch: pixels ``(b, 3, H, W)`` and labels ``(b,)``."""

TOWERS: Final = {"both": ("visual", "text"), "vision": ("visual",), "text": ("text",)}
LOGIT_SCALE: Final = 100.0


class LoRALinear(torch.nn.Module):
    """A frozen linear layer plus ``alpha / sqrt(r) * B A`` of its input after dropout."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor, r: int, alpha: float, dropout: float
    ) -> None:
        super().__init__()
        self.weight, self.bias = weight.detach().clone(), bias.detach().clone()
        start = torch.nn.init.kaiming_uniform_(torch.empty(r, weight.shape[1]), a=math.sqrt(5))
        self.A = torch.nn.Parameter(start.to(weight.device))
        self.B = torch.nn.Parameter(torch.zeros(weight.shape[0], r, device=weight.device))
        self.scaling = alpha / math.sqrt(r)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output with the update, shape ``(..., out)``."""
        update = F.linear(F.linear(self.dropout(x), self.A), self.B)
        return F.linear(x, self.weight, self.bias) + self.scaling * update


class Attention(torch.nn.Module):
    """Self-attention with separate projections that replaces an ``nn.MultiheadAttention``."""

    def __init__(self, reference: Any, roles: Sequence[str], settings: dict[str, Any]) -> None:
        super().__init__()
        self.heads = reference.num_heads
        weights = [*reference.in_proj_weight.chunk(3), reference.out_proj.weight]
        biases = [*reference.in_proj_bias.chunk(3), reference.out_proj.bias]
        for role, weight, bias in zip("qkvo", weights, biases, strict=True):
            if role in roles:
                layer: torch.nn.Module = LoRALinear(weight, bias, **settings)
            else:
                layer = torch.nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
                layer.load_state_dict({"weight": weight, "bias": bias})
                layer.requires_grad_(False)
            setattr(self, role, layer)

    def forward(
        self,
        query: torch.Tensor,
        _key: torch.Tensor,
        _value: torch.Tensor,
        *,
        need_weights: bool = False,  # noqa: ARG002  the signature is that of what it replaces
        attn_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """Attend; shape ``(n, L, W)``."""
        n, length, width = query.shape
        q, k, v = (
            getattr(self, role)(query).view(n, length, self.heads, -1).transpose(1, 2)
            for role in "qkv"
        )  # (n, heads, L, W / heads)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.o(mixed.transpose(1, 2).reshape(n, length, width)), None


class CLIPLoRA:
    """A CLIP with low-rank updates in its attention; the network is changed in place.

    Attributes:
        clip: open_clip's ``CLIP``, float32.
        encoder: Towers with updates: ``both``, ``vision`` or ``text``.
        parameters: Matrices of the updates, ``TOWER.BLOCK.ROLE.A`` and ``.B``.
    """

    def __init__(
        self,
        clip: Any,
        encoder: str = "both",
        roles: Sequence[str] = ("q", "k", "v"),
        *,
        r: int = 2,
        alpha: float = 1,
        dropout: float = 0.25,
    ) -> None:
        self.clip, self.encoder = clip.requires_grad_(False), encoder
        self.parameters: dict[str, torch.nn.Parameter] = {}
        settings = {"r": r, "alpha": alpha, "dropout": dropout}
        for tower in TOWERS[encoder]:
            blocks = (clip.visual if tower == "visual" else clip).transformer.resblocks
            for i, block in enumerate(blocks):
                block.attn = Attention(block.attn, roles, settings)
                for role in roles:
                    layer = getattr(block.attn, role)
                    self.parameters |= {f"{tower}.{i}.{role}.{m}": getattr(layer, m) for m in "AB"}
        clip.eval()

    def text_features(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return unit-norm features ``(C, D)`` of tokens ``(C, 77)``."""
        return F.normalize(self.clip.encode_text(tokens), dim=-1)

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return unit-norm features ``(b, D)``."""
        return F.normalize(self.clip.encode_image(pixels), dim=-1)

    def logits(self, pixels: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Return logits ``(b, C)``; the scale is constant."""
        return LOGIT_SCALE * self.image_features(pixels) @ text.T

    def train(
        self,
        batches: Batches,
        tokens: torch.Tensor,
        steps: int,
        *,
        lr: float = 2e-4,
        min_lr: float = 1e-6,
        half: bool = False,
    ) -> Iterator[tuple[float, float]]:
        """Train for ``steps``; yield learning rate and loss after each.

        A text tower with updates reads the prompts of all classes at every step. With ``half``, on a GPU, it trains as
        the official code does there: float16 autocast with a scaled loss.
        """
        optimizer = torch.optim.AdamW(self.parameters.values(), lr=lr, weight_decay=1e-2)
        adapted = TOWERS[self.encoder]
        device = self.clip.positional_embedding.device
        scaler = torch.amp.GradScaler(device.type, enabled=half)
        tokens = tokens.to(device)
        with torch.no_grad():
            frozen = None if "text" in adapted else self.text_features(tokens)
        self.clip.train()
        step, epoch = 0, 0
        while step < steps:
            for pixels, labels in batches(epoch):
                rate = min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * step / steps))
                for group in optimizer.param_groups:
                    group["lr"] = rate
                with torch.autocast(device.type, torch.float16, enabled=half):
                    text = self.text_features(tokens) if frozen is None else frozen
                    logits = self._training_logits(pixels.to(device), text)
                    loss = F.cross_entropy(logits, labels.to(device))
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                yield rate, loss.item()
                step += 1
                if step == steps:
                    break
            epoch += 1
        self.clip.eval()

    def _training_logits(self, pixels: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        if "visual" in TOWERS[self.encoder]:
            return self.logits(pixels, text)
        with torch.no_grad():
            images = self.image_features(pixels)
        return LOGIT_SCALE * images @ text.T
