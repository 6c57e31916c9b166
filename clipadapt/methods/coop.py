"""CoOp: learned context vectors in the prompt; both towers are frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from clipadapt.methods import _prompts, _training
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


class CoOpConfig(PromptConfig):
    """Hyperparameters of ``clip/coop``: those of every method that trains one context, with CoOp's defaults."""


class CoOp:
    """Context Optimization: a prompt is ``[V]_1 ... [V]_M name.``, and V is trained with cross-entropy.

    References:
        K. Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, section 3.2. arXiv:2109.01134
    """

    Config: ClassVar[type[MethodConfig]] = CoOpConfig
    version: ClassVar[int] = 2
    requires: ClassVar[type | None] = PromptTunable

    def __init__(self, config: CoOpConfig) -> None:
        self.config = config

    def fit(self, backbone: PromptTunable, task: Task[Any], ctx: RunContext) -> PromptClassifier:
        """Train the context on ``task.train``; ``task.val`` is monitored, and selects the epoch with ``keep: best``.

        Raises:
            ConfigError: If ``ctx_init`` has no words, or is combined with class-specific context.
            ModelError: If a prompt is longer than the model's context length.
        """
        training = ContextTraining("coop", self.config, backbone, task, ctx)

        def loss(rows: NDArray[np.int64], view: int) -> torch.Tensor:
            logits = training.model.logits(training.features(rows, view), training.text())  # (b, C)
            return _training.cross_entropy(logits, training.train.labels, rows)

        return training.fitted(loss)

    def load(self, directory: Path, backbone: PromptTunable) -> PromptClassifier:
        """Return the classifier saved in ``directory``."""
        return _prompts.load(directory, backbone, self.config)


METHOD = CoOp
