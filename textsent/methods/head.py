"""The model's own classification head on a frozen encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from clipadapt.core.api.limits import MAX_EPOCHS, WarmupSteps
from textsent.methods import _training
from textsent.methods._task import TrainingConfig
from textsent.models import TextEncoder

if TYPE_CHECKING:
    from pathlib import Path

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Task
    from clipadapt.core.api.method import MethodConfig
    from textsent.methods._training import SequenceClassifier


class HeadConfig(TrainingConfig):
    """Hyperparameters of ``text/head``.

    Attributes:
        epochs: Passes over train; cheap, as the features are cached.
        lr: Peak learning rate; high, as the head is newly initialized.
        warmup_steps: Steps of linear warm-up; below 1 a fraction of all steps.
    """

    epochs: int = Field(default=20, ge=1, le=MAX_EPOCHS)
    lr: float = Field(default=1e-3, gt=0)
    warmup_steps: WarmupSteps = 0.1


class Head:
    """Trains only the parameters outside the encoder.

    For DistilBERT these are ``pre_classifier`` and ``classifier``; for BERT only ``classifier``, since its
    pooler is part of the pretrained encoder; for RoBERTa ``classifier.dense`` and ``classifier.out_proj``.
    If the head only reads the last layer's first state (checked against the whole model), it is trained on
    cached features, without dropout in the encoder; otherwise the Trainer runs the whole model with the
    encoder frozen.
    """

    Config: ClassVar[type[MethodConfig]] = HeadConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = TextEncoder
    open_vocabulary: ClassVar[bool] = False

    def __init__(self, config: HeadConfig) -> None:
        self.config = config

    def fit(self, backbone: TextEncoder, task: Task[str], ctx: RunContext) -> SequenceClassifier:
        """Train on ``task.train``; the epoch is selected on ``task.val``.

        Raises:
            DataError: If train has only one class.
            ModelError: If the model cannot read ``max_length`` tokens.
        """
        return _training.fit(
            "head", self.config, backbone, task, ctx, _training.train_head, head_only=True
        )

    def load(self, directory: Path, backbone: TextEncoder) -> SequenceClassifier:
        """Return the classifier saved in ``directory``.

        Raises:
            RecordError: If a file is missing or damaged, or does not match the encoder.
        """
        return _training.load(directory, backbone, lambda model, _: _training.train_head(model))


METHOD = Head
