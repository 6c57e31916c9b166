"""KgCoOp: CoOp whose text features are held near those of the hand-written prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from clipadapt.core.api.limits import BatchSize, Epochs
from clipadapt.methods import _prompts, _training
from clipadapt.methods._images import tensor
from clipadapt.methods._prompts import ContextTraining, PromptConfig
from clipadapt.models import PromptTunable

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Task
    from clipadapt.core.api.method import MethodConfig
    from clipadapt.methods._prompts import PromptClassifier


class KgCoOpConfig(PromptConfig):
    """Hyperparameters of ``clip/kgcoop``.

    Attributes:
        W: Weight of the distance to the hand-written prompts, lambda in the paper.
    """

    W: float = Field(default=8.0, ge=0, le=1e6)
    ctx_init: str | None = "a photo of a"
    epochs: Epochs = 100
    batch_size: BatchSize = 128


class KgCoOp:
    """Cross-entropy plus ``W`` times one minus the mean cosine of learned and hand-written prompts of a class.

    References:
        H. Yao et al., "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", CVPR 2023,
        section 3.2. arXiv:2303.13283
    """

    Config: ClassVar[type[MethodConfig]] = KgCoOpConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = PromptTunable

    def __init__(self, config: KgCoOpConfig) -> None:
        self.config = config

    def fit(self, backbone: PromptTunable, task: Task[Any], ctx: RunContext) -> PromptClassifier:
        """Train the context on ``task.train``; ``task.val`` is monitored, and selects the epoch with ``keep: best``.

        Raises:
            ConfigError: If ``ctx_init`` has no words, or is combined with class-specific context.
            ModelError: If a prompt is longer than the model's context length.
        """
        training = ContextTraining("kgcoop", self.config, backbone, task, ctx)
        written = tensor(training.start, training.model.device)  # (C, D)

        def loss(rows: NDArray[np.int64], view: int) -> torch.Tensor:
            text = training.text()  # (C, D)
            logits = training.model.logits(training.features(rows, view), text)  # (b, C)
            ce = _training.cross_entropy(logits, training.train.labels, rows)
            distance = 1 - (text * written).sum(dim=1).mean()
            training.observe("loss_ce", ce)
            training.observe("distance", distance)
            return ce + self.config.W * distance

        return training.fitted(loss)

    def load(self, directory: Path, backbone: PromptTunable) -> PromptClassifier:
        """Return the classifier saved in ``directory``."""
        return _prompts.load(directory, backbone, self.config)


METHOD = KgCoOp
