"""Full fine-tuning: every parameter of the encoder and a new head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

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


class FullFinetuneConfig(TrainingConfig):
    """Hyperparameters of ``text/full_finetune``; the defaults are those of the recipe."""


class FullFinetune:
    """Trains all parameters with Hugging Face's Trainer; the best epoch by val accuracy is kept.

    References:
        J. Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
        Understanding", NAACL 2019, section 3.2. arXiv:1810.04805
        V. Sanh et al., "DistilBERT, a distilled version of BERT", 2019. arXiv:1910.01108
    """

    Config: ClassVar[type[MethodConfig]] = FullFinetuneConfig
    version: ClassVar[int] = 2
    requires: ClassVar[type | None] = TextEncoder
    open_vocabulary: ClassVar[bool] = False
    several_processes: ClassVar[bool] = True

    def __init__(self, config: FullFinetuneConfig) -> None:
        self.config = config

    def fit(self, backbone: TextEncoder, task: Task[str], ctx: RunContext) -> SequenceClassifier:
        """Train on ``task.train``; the epoch is selected on ``task.val``.

        Raises:
            DataError: If train has only one class.
            ModelError: If the model cannot read ``max_length`` tokens.
        """
        return _training.fit("full_finetune", self.config, backbone, task, ctx, _train_all)

    def load(self, directory: Path, backbone: TextEncoder) -> SequenceClassifier:
        """Return the classifier saved in ``directory``.

        Raises:
            RecordError: If a file is missing or damaged, or does not match the encoder.
        """
        return _training.load(directory, backbone, lambda model, _: _train_all(model))


def _train_all(model: PreTrainedModel) -> Any:
    return model.requires_grad_(True)


METHOD = FullFinetune
