"""Reference CoOp: prompts of full context length, the image tower at every step, float32, SGD.

K. Zhou et al., IJCV 2022, arXiv:2109.01134. Where the sources allow two implementations, this is the cheaper one.
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

INIT_STD: Final = 0.02


class PromptLearner(torch.nn.Module):
    """Context vectors and the fixed embeddings around them; the towers are frozen and not among its parameters."""

    def __init__(
        self,
        clip: Any,
        tokenizer: Any,
        classnames: Sequence[str],
        n_ctx: int = 16,
        *,
        ctx_init: str = "",
        position: str = "end",
        csc: bool = False,
    ) -> None:
        """Tokenize ``X ... X name.`` and keep the embeddings except those of the ``X``.

        Args:
            clip: open_clip's ``CLIP``.
            tokenizer: Its tokenizer.
            classnames: ``C`` names; ``_`` means a space.
            n_ctx: Number of context vectors; ignored with ``ctx_init``, whose words are counted.
            ctx_init: Words to start from.
            position: Position of the class name: ``end``, ``middle`` or ``front``.
            csc: Whether each class has its own vectors.
        """
        super().__init__()
        words = ctx_init.replace("_", " ")
        self.n_ctx = len(words.split()) if words else n_ctx
        self.position = position
        names = [name.replace("_", " ") for name in classnames]
        begin = words or " ".join(["X"] * self.n_ctx)
        device = clip.token_embedding.weight.device
        self.tokens = tokenizer([f"{begin} {name}." for name in names]).to(device)  # (C, 77)
        self.name_lengths = [len(tokenizer.encode(name)) for name in names]
        with torch.no_grad():
            embedded = clip.token_embedding(self.tokens).float()  # (C, 77, W)
        self.prefix = embedded[:, :1]
        self.suffix = embedded[:, 1 + self.n_ctx :]
        if words:
            start = embedded[0, 1 : 1 + self.n_ctx].clone()
        else:
            own = (len(names),) if csc else ()
            start = INIT_STD * torch.randn(*own, self.n_ctx, embedded.shape[2]).to(device)
        self.ctx = torch.nn.Parameter(start)

    def forward(self) -> torch.Tensor:
        """Return the embeddings of all prompts, shape ``(C, 77, W)``."""
        C = len(self.tokens)
        ctx = self.ctx if self.ctx.dim() == 3 else self.ctx.expand(C, -1, -1)  # (C, n_ctx, W)
        if self.position == "end":
            return torch.cat([self.prefix, ctx, self.suffix], dim=1)
        before = self.n_ctx // 2 if self.position == "middle" else 0
        rows = []
        for c, n in enumerate(self.name_lengths):
            name, rest = self.suffix[c, :n], self.suffix[c, n:]
            parts = [self.prefix[c], ctx[c, :before], name, ctx[c, before:], rest]
            rows.append(torch.cat(parts))
        return torch.stack(rows)


class CoOp:
    """A frozen CLIP with a prompt learner.

    Attributes:
        clip: open_clip's ``CLIP``, float32.
        learner: What is trained.
    """

    def __init__(self, clip: Any, learner: PromptLearner) -> None:
        self.clip = clip.requires_grad_(False).eval()
        self.learner = learner

    def text_features(self) -> torch.Tensor:
        """Run all prompts through the text tower at full length; un-normalised ``(C, D)``."""
        clip, tokens = self.clip, self.learner.tokens
        x = self.learner() + clip.positional_embedding
        x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask))  # (C, 77, W)
        ends = x[torch.arange(len(x)), tokens.argmax(dim=-1)]  # (C, W)
        return ends @ clip.text_projection

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits ``(b, C)`` of pixels ``(b, 3, H, W)``; both towers run."""
        images = F.normalize(self.clip.encode_image(pixels), dim=-1)
        text = F.normalize(self.text_features(), dim=-1)
        return self.clip.logit_scale.exp() * images @ text.T

    def train(
        self,
        batches: Batches,
        epochs: int,
        *,
        lr: float = 0.002,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        warmup_lr: float = 1e-5,
        half: bool = False,
    ) -> Iterator[tuple[float, float]]:
        """Train; yield learning rate and loss after each step.

        The first epoch runs at ``warmup_lr``; the cosine then starts from its top and ends above zero. ``half`` is the
        official ``PREC=amp``, on a GPU: float16 autocast with a scaled loss.
        """
        kind = self.learner.ctx.device.type
        scaler = torch.amp.GradScaler(kind, enabled=half)
        sgd = torch.optim.SGD(
            [self.learner.ctx], lr=lr, momentum=momentum, weight_decay=weight_decay
        )
        for epoch in range(epochs):
            cosine = 0.5 * lr * (1 + math.cos(math.pi * (epoch - 1) / epochs))
            rate = warmup_lr if epoch == 0 else cosine
            for group in sgd.param_groups:
                group["lr"] = rate
            for pixels, labels in batches(epoch):
                device = self.learner.ctx.device
                with torch.autocast(kind, torch.float16, enabled=half):
                    loss = F.cross_entropy(self.logits(pixels.to(device)), labels.to(device))
                sgd.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(sgd)
                scaler.update()
                yield rate, loss.item()
