"""BitFit: the biases of the encoder and a new head."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from clipadapt.core.api.limits import WarmupSteps
from textsent.methods import _training
from textsent.methods._task import TrainingConfig
from textsent.models import TextEncoder

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Task
    from clipadapt.core.api.method import MethodConfig
    from textsent.methods._training import SequenceClassifier


class BitFitConfig(TrainingConfig):
    """Hyperparameters of ``text/bitfit``.

    Attributes:
        lr: Peak learning rate, ten to twenty times that of full fine-tuning, as there are few trainable parameters.
        warmup_steps: Steps of linear warm-up; below 1 a fraction of all steps.
    """

    lr: float = Field(default=1e-3, gt=0)
    warmup_steps: WarmupSteps = 0.1


class BitFit:
    """Trains every bias (also those of normalization layers) and the head; everything else is frozen.

    References:
        E. Ben Zaken, S. Ravfogel and Y. Goldberg, "BitFit: Simple Parameter-efficient Fine-tuning for
        Transformer-based Masked Language-models", ACL 2022. arXiv:2106.10199
    """

    Config: ClassVar[type[MethodConfig]] = BitFitConfig
    version: ClassVar[int] = 2
    requires: ClassVar[type | None] = TextEncoder
    open_vocabulary: ClassVar[bool] = False
    several_processes: ClassVar[bool] = True

    def __init__(self, config: BitFitConfig) -> None:
        self.config = config

    def fit(self, backbone: TextEncoder, task: Task[str], ctx: RunContext) -> SequenceClassifier:
        """Train on ``task.train``; the epoch is selected on ``task.val``.

        Raises:
            DataError: If train has only one class.
            ModelError: If the model cannot read ``max_length`` tokens.
        """
        return _training.fit("bitfit", self.config, backbone, task, ctx, _train_biases)

    def load(self, directory: Path, backbone: TextEncoder) -> SequenceClassifier:
        """Return the classifier saved in ``directory``.

        Raises:
            RecordError: If a file is missing or damaged, or does not match the encoder.
        """
        return _training.load(directory, backbone, lambda model, _: _train_biases(model))


def _train_biases(model: PreTrainedModel) -> PreTrainedModel:
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.endswith(".bias") or _training.in_head(model, name)
    return model


METHOD = BitFit
