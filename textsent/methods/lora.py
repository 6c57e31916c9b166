"""LoRA: low-rank updates of the attention projections, and a new head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from clipadapt.core.api.errors import unknown
from clipadapt.core.api.limits import Rank, check_rank
from textsent.methods import _training
from textsent.methods._task import TrainingConfig
from textsent.models import TextEncoder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedModel

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Task
    from clipadapt.core.api.method import MethodConfig
    from textsent.methods._training import SequenceClassifier

SETTINGS = ("r", "lora_alpha", "lora_dropout", "target_modules")


class LoRAConfig(TrainingConfig):
    """Hyperparameters of ``text/lora``, with PEFT's names.

    Attributes:
        lr: Peak learning rate, ten times that of full fine-tuning.
        r: Rank of the updates.
        lora_alpha: The updates are scaled by ``lora_alpha / r``.
        lora_dropout: Dropout before the updates.
        target_modules: Linear layers to adapt, by the last parts of their names; None takes the query and value
            projections of a known architecture.
    """

    lr: float = Field(default=5e-4, gt=0)
    r: Rank = 16
    lora_alpha: int = Field(default=32, ge=1, le=1_000_000)
    lora_dropout: float = Field(default=0.1, ge=0, lt=1)
    target_modules: tuple[str, ...] | None = Field(default=None, min_length=1)


class LoRA:
    """LoRA with PEFT and frozen biases; the head is trained in full, as PEFT does for sequence classification.

    References:
        E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. arXiv:2106.09685
    """

    Config: ClassVar[type[MethodConfig]] = LoRAConfig
    version: ClassVar[int] = 2
    requires: ClassVar[type | None] = TextEncoder
    open_vocabulary: ClassVar[bool] = False
    several_processes: ClassVar[bool] = True

    def __init__(self, config: LoRAConfig) -> None:
        self.config = config

    def fit(self, backbone: TextEncoder, task: Task[str], ctx: RunContext) -> SequenceClassifier:
        """Train on ``task.train``; the epoch is selected on ``task.val``.

        Raises:
            DataError: If train has only one class.
            ModelError: If the architecture is unknown and no target is given, or the model cannot read
                ``max_length`` tokens.
            ConfigError: If a target's layer is narrower than the rank, or the warm-up is longer than the training.
            UnknownNameError: If a target matches no linear layer of the encoder.
        """
        config = self.config
        targets = (
            backbone.lora_targets() if config.target_modules is None else config.target_modules
        )
        settings = {
            "r": config.r,
            "lora_alpha": config.lora_alpha,
            "lora_dropout": config.lora_dropout,
            "target_modules": list(targets),
        }
        check_targets(backbone, targets, config.r)
        return _training.fit(
            "lora", config, backbone, task, ctx, lambda model: _adapted(model, settings), settings
        )

    def load(self, directory: Path, backbone: TextEncoder) -> SequenceClassifier:
        """Return the classifier saved in ``directory``.

        Raises:
            RecordError: If a file is missing or damaged, or does not match the encoder.
        """
        return _training.load(directory, backbone, _adapted, SETTINGS)


def check_targets(backbone: TextEncoder, targets: Sequence[str], r: int = 1) -> None:
    """Check that every target matches a linear layer of the encoder that is at least ``r`` wide.

    Raises:
        ConfigError: If a layer is narrower.
        UnknownNameError: If a target matches no layer.
    """
    from torch import nn

    widths = {
        name: min(m.in_features, m.out_features)
        for name, m in backbone.module.named_modules()
        if isinstance(m, nn.Linear)
    }
    for target in targets:
        found = {name: w for name, w in widths.items() if f".{name}".endswith(f".{target}")}
        if found:
            check_rank(r, found, backbone.name)
        else:
            known = sorted({name.rpartition(".")[2] for name in widths})
            raise unknown(
                f"target module of {backbone.name}",
                target,
                known,
                hint="name the linear layers to adapt by the last parts of their names in method.target_modules",
            )


def _adapted(model: PreTrainedModel, settings: dict[str, Any]) -> Any:
    """Return a PEFT model of a sequence classifier, with trainable adapters and head."""
    from peft import LoraConfig, TaskType, get_peft_model

    # With an empty name PEFT does not ask the hub whether the embeddings were resized.
    model.name_or_path = model.config.name_or_path = ""
    chosen = {key: settings[key] for key in SETTINGS}
    return get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, bias="none", **chosen))


METHOD = LoRA
