"""What every method asks of its task and its encoder before it begins."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat

from clipadapt.core.api.errors import DataError
from clipadapt.core.api.limits import MAX_EPOCHS, BatchSize, WarmupSteps, check_warmup
from clipadapt.core.api.method import MethodConfig

if TYPE_CHECKING:
    from clipadapt.core.api.data import Split, Task
    from textsent.models import TextEncoder

LONGEST = 512  # pieces read where nothing is asked for; attention's cost grows with the square


class TrainingConfig(MethodConfig):
    """Hyperparameters of the Trainer; what is not named here is its default.

    Attributes:
        epochs: Passes over train.
        batch_size: Texts per step.
        eval_batch_size: Texts per forward pass over val.
        lr: Peak learning rate of AdamW; after the warm-up it falls linearly to zero.
        warmup_steps: Steps of linear warm-up; below 1 the share of all steps.
        weight_decay: Weight decay, not on biases and normalisations.
        keep: Which epoch is kept: ``best`` by val accuracy (the first of equals; without val the last), or ``last``.
        group_by_length: Batches of texts of like length, so that little is padded.
        max_length: Pieces read of a text; None reads what the model can, 512 at the most.
        precision: Arithmetic of training: ``fp32``, or ``bf16`` autocast over float32 weights.
    """

    epochs: int = Field(default=3, gt=0, le=MAX_EPOCHS)
    batch_size: BatchSize = 16
    eval_batch_size: BatchSize = 64
    lr: PositiveFloat = 5e-5
    warmup_steps: WarmupSteps = 500
    weight_decay: NonNegativeFloat = 0.01
    keep: Literal["best", "last"] = "best"
    group_by_length: bool = False
    max_length: int | None = Field(default=None, ge=3, le=1_000_000)
    precision: Literal["fp32", "bf16"] = "fp32"

    def check(self, task: Task[str]) -> None:
        """Refuse a schedule that ends before its warm-up does."""
        if task.train is not None and len(task.train):
            check_warmup(self.warmup_steps, self.steps_for(len(task.train)))

    def steps_for(self, n: int) -> int:
        """Return the steps of training on ``n`` texts."""
        return math.ceil(n / self.batch_size) * self.epochs


def labelled(task: Task[str], method: str) -> tuple[Split[str], Split[str] | None]:
    """Return the training split, and the validation split or None where it is absent or empty.

    Raises:
        DataError: If there is no training example, or examples of one class only.
    """
    train = task.require_train(method)
    seen = len(np.unique(train.labels))
    if seen < 2:
        raise DataError(
            f"{method} needs examples of at least two classes, got {seen}",
            hint="add training examples of the other classes",
        )
    return train, task.val if task.val is not None and len(task.val) else None


def pieces(encoder: TextEncoder, max_length: int | None) -> int:
    """Return how many pieces of a text are read: what is asked for, else what the model can, 512 at the most."""
    return min(encoder.max_length, LONGEST) if max_length is None else max_length
