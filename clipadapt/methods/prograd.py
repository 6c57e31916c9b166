"""ProGrad: CoOp whose gradient never opposes the direction of the zero-shot classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field, PositiveFloat

from clipadapt.core.api.errors import ConfigError
from clipadapt.methods import _prompts, _training
from clipadapt.methods._images import tensor
from clipadapt.methods._prompts import ContextTraining, PromptConfig
from clipadapt.models import PromptTunable

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Task
    from clipadapt.core.api.method import MethodConfig
    from clipadapt.methods._prompts import PromptClassifier, Prompts
    from clipadapt.methods._training import Gradients


class ProGradConfig(PromptConfig):
    """Hyperparameters of ``clip/prograd``.

    Attributes:
        LAMBDA: Share of the opposing part of the gradient that is removed.
        T: Temperature of the distillation loss.
        template_init: Initialize the last context vectors with the words of the first template, and the ones before
            them with zeros.
    """

    LAMBDA: float = Field(default=1.0, ge=0, le=100)
    T: PositiveFloat = 1.0
    template_init: bool = True


class ProGrad:
    """Gradient of the cross-entropy, without its part against that of the distillation from zero-shot logits.

    References:
        B. Zhu et al., "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023, section 3.2. arXiv:2205.14865
    """

    Config: ClassVar[type[MethodConfig]] = ProGradConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = PromptTunable

    def __init__(self, config: ProGradConfig) -> None:
        self.config = config

    def fit(self, backbone: PromptTunable, task: Task[Any], ctx: RunContext) -> PromptClassifier:
        """Train the context on ``task.train``; ``task.val`` is monitored, and selects the epoch with ``keep: best``.

        Raises:
            ConfigError: If the context is initialized in two ways, or the template has too many words.
            ModelError: If a prompt is longer than the model's context length.
        """
        import torch
        import torch.nn.functional as F

        config = self.config

        def initial(model: PromptTunable, prompts: Prompts) -> NDArray[np.float32]:
            return self._initial(model, prompts, task.templates)

        own = initial if self._uses_template() else None
        training = ContextTraining("prograd", config, backbone, task, ctx, own)
        written = tensor(training.start, training.model.device)  # (C, D)

        def loss(rows: NDArray[np.int64], view: int) -> torch.Tensor:
            features = training.features(rows, view)
            # Two losses need two backward passes through the text tower, and its graph has one.
            text = training.prompts.encode(training.context)  # (C, D)
            logits = training.model.logits(features, text)  # (b, C)
            with torch.no_grad():
                teacher = training.model.logits(features, written)
            ce = _training.cross_entropy(logits, training.train.labels, rows)
            T = config.T
            kl = T * T * F.cross_entropy(logits / T, F.softmax(teacher / T, dim=1))
            training.observe("loss_kl", kl)
            return torch.stack([ce, kl])

        def combine(gradients: list[Gradients]) -> Gradients:
            ((ce,), (kl,)) = gradients
            training.observe("grad_ce", ce)
            training.observe("grad_kl", kl)
            return (aligned(ce, kl, config.LAMBDA),)

        return training.fitted(loss, combine=combine)

    def load(self, directory: Path, backbone: PromptTunable) -> PromptClassifier:
        """Return the classifier saved in ``directory``."""
        return _prompts.load(directory, backbone, self.config)

    def _uses_template(self) -> bool:
        config = self.config
        if config.template_init and config.ctx_init is not None:
            raise ConfigError(
                f"the context has two initial values: method.ctx_init '{config.ctx_init}' and the template",
                hint="set method.template_init=false, or leave out method.ctx_init",
            )
        return config.template_init

    def _initial(
        self, model: PromptTunable, prompts: Prompts, templates: tuple[str, ...]
    ) -> NDArray[np.float32]:
        """Return zeros, then the embeddings of the template's words before the class name; ``([C,] n_ctx, W)``."""
        words = templates[0].partition("{}")[0].strip()
        out = np.zeros((prompts.n_ctx, prompts.width), dtype=np.float32)
        if words:
            tokens = model.context_tokens(words)
            if len(tokens) > prompts.n_ctx:
                raise ConfigError(
                    f"the template '{templates[0]}' has {len(tokens)} tokens before the class name, more than "
                    f"method.n_ctx={prompts.n_ctx}",
                    hint=f"set method.n_ctx to {len(tokens)} or more, or method.template_init=false",
                )
            out[prompts.n_ctx - len(tokens) :] = model.embed_tokens(tokens).cpu().numpy()
        if self.config.CSC:
            return np.repeat(out[None], len(prompts.classnames), axis=0)
        return out


def aligned(gradient: torch.Tensor, direction: torch.Tensor, share: float) -> torch.Tensor:
    """Remove a share of the part of ``gradient`` that opposes ``direction``; both are read as one vector.

    Args:
        gradient: Gradient of the loss.
        direction: Gradient of the distillation loss, of the same shape.
        share: 1 removes the whole opposing part.
    """
    import torch

    dot = (gradient * direction).sum()
    without = gradient - share * dot / (direction * direction).sum() * direction
    return torch.where(dot >= 0, gradient, without)  # a branch in Python would wait for a GPU


METHOD = ProGrad
