"""Full fine-tuning of the image tower, with a head initialized from the zero-shot classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from clipadapt.methods import _finetune
from clipadapt.methods._finetune import FinetuneConfig, FinetunedClassifier
from clipadapt.models import ImageTextModel

if TYPE_CHECKING:
    from pathlib import Path

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Task
    from clipadapt.core.api.method import MethodConfig


class FullFinetuneConfig(FinetuneConfig):
    """Hyperparameters of ``clip/full_finetune``."""


class FullFinetune:
    """End-to-end fine-tuning from zero-shot weights, as WiSE-FT does before it interpolates.

    References:
        M. Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, section 4. arXiv:2109.01903
    """

    Config: ClassVar[type[MethodConfig]] = FullFinetuneConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = ImageTextModel
    open_vocabulary: ClassVar[bool] = False

    def __init__(self, config: FullFinetuneConfig) -> None:
        self.config = config

    def check_model(self, backbone: ImageTextModel) -> None:
        """Check that the image tower has the units to train; see :meth:`fit`."""
        _finetune.check_units(backbone, self.config.blocks)

    def fit(
        self, backbone: ImageTextModel, task: Task[Any], ctx: RunContext
    ) -> FinetunedClassifier:
        """Train on ``task.train``; with ``keep: best``, ``task.val`` selects the epoch.

        Raises:
            ConfigError: If the image tower has fewer than ``blocks`` units.
        """
        tuned, text, _, selection = _finetune.fit("full_finetune", self.config, backbone, task, ctx)
        return FinetunedClassifier(
            backbone, task.classnames, tuned, text, self.config.blocks, selection
        )

    def load(self, directory: Path, backbone: ImageTextModel) -> FinetunedClassifier:
        """Return the classifier saved in ``directory``."""
        return _finetune.load(directory, backbone)


METHOD = FullFinetune
