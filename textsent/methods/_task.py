"""Hyperparameters of the methods that train a network, and the checks that every method makes before a fit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat

from clipadapt.core.api.errors import ConfigError, DataError
from clipadapt.core.api.limits import MAX_EPOCHS, BatchSize, WarmupSteps, check_warmup
from clipadapt.core.api.method import MethodConfig
from clipadapt.core.api.processes import launched

if TYPE_CHECKING:
    from clipadapt.core.api.data import Split, Task
    from textsent.models import TextEncoder

DEFAULT_LIMIT = 512  # tokens; the cost of attention grows with the square


class TrainingConfig(MethodConfig):
    """Hyperparameters of the Trainer; all others have the Trainer's defaults.

    Attributes:
        epochs: Passes over train.
        batch_size: Texts per step, of all processes together.
        eval_batch_size: Texts per forward pass over val.
        lr: Peak learning rate of AdamW; it decreases linearly to zero after the warm-up.
        warmup_steps: Steps of linear warm-up; below 1 a fraction of all steps.
        weight_decay: Weight decay, not applied to biases and normalization layers.
        keep: Which epoch is kept: ``best`` by val accuracy (ties: the first; without val: the last), or ``last``.
        group_by_length: Put texts of similar length into one batch, which needs less padding.
        max_length: Tokens read of a text; None reads as many as the model can, at most 512.
        precision: Precision of training: ``fp32``, ``bf16`` autocast with float32 weights, or ``auto``: bf16 if that is
            the precision of the model, as on a device that multiplies bfloat16 in hardware.
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
    precision: Literal["fp32", "bf16", "auto"] = "fp32"

    def with_precision(self, dtype: str) -> Self:
        """Return the settings with the precision of training that ``auto`` is with a model of this dtype."""
        if self.precision != "auto":
            return self
        return self.model_copy(update={"precision": "bf16" if dtype == "bf16" else "fp32"})

    def check(self, task: Task[str]) -> None:
        """Reject a warm-up that is longer than the training, and a batch that the processes cannot share."""
        launch = launched()
        if launch is not None and self.batch_size % launch.count:
            raise ConfigError(
                f"method.batch_size is {self.batch_size}, which {launch.count} processes cannot share equally",
                hint=f"start a number of processes that divides {self.batch_size}, or choose a multiple of "
                f"{launch.count} with --set method.batch_size",
            )
        if task.train is not None and len(task.train):
            check_warmup(self.warmup_steps, self.steps_for(len(task.train)))

    def steps_for(self, n: int) -> int:
        """Return the number of training steps on ``n`` texts."""
        return math.ceil(n / self.batch_size) * self.epochs


def labelled(task: Task[str], method: str) -> tuple[Split[str], Split[str] | None]:
    """Return the training split, and the validation split or None if it is missing or empty.

    Raises:
        DataError: If there are no training examples, or only of one class.
    """
    train = task.require_train(method)
    seen = len(np.unique(train.labels))
    if seen < 2:
        raise DataError(
            f"{method} needs examples of at least two classes, got {seen}",
            hint="add training examples of the other classes",
        )
    return train, task.val if task.val is not None and len(task.val) else None


def token_limit(encoder: TextEncoder, max_length: int | None) -> int:
    """Return how many tokens of a text are read: ``max_length``, or as many as the model can read, at most 512."""
    return min(encoder.max_length, DEFAULT_LIMIT) if max_length is None else max_length
