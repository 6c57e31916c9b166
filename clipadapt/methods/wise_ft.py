"""WiSE-FT: interpolation between the weights of the zero-shot and the fine-tuned model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from clipadapt.core.scoring.scores import nll, topk_accuracy
from clipadapt.methods import _finetune, _training
from clipadapt.methods._finetune import FinetuneConfig, FinetunedClassifier
from clipadapt.models import ImageTextModel

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Task
    from clipadapt.core.api.method import MethodConfig

ALPHAS = tuple(i / 10 for i in range(11))
WITHOUT_VAL = 0.5  # the paper's recommendation


class WiseFTConfig(FinetuneConfig):
    """Hyperparameters of ``clip/wise_ft``.

    Attributes:
        alpha: Weight of the fine-tuned model; None selects the best of 0, 0.1, ..., 1 on val (ties go to the lower
            val loss), or 0.5 without val.
    """

    alpha: float | None = Field(default=None, ge=0, le=1)


class WiseFT:
    """``theta = (1 - alpha) theta_zero_shot + alpha theta_fine_tuned`` for all weights of tower and head.

    References:
        M. Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, section 3. arXiv:2109.01903
    """

    Config: ClassVar[type[MethodConfig]] = WiseFTConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = ImageTextModel
    open_vocabulary: ClassVar[bool] = False

    def __init__(self, config: WiseFTConfig) -> None:
        self.config = config

    def check_model(self, backbone: ImageTextModel) -> None:
        """Check that the image tower has the units to train; see :meth:`fit`."""
        _finetune.check_units(backbone, self.config.blocks)

    def fit(
        self, backbone: ImageTextModel, task: Task[Any], ctx: RunContext
    ) -> FinetunedClassifier:
        """Fine-tune on ``task.train``, select ``alpha`` on ``task.val``, interpolate.

        Raises:
            ConfigError: If the image tower has fewer than ``blocks`` units.
        """
        tuned, text, start, selection = _finetune.fit("wise_ft", self.config, backbone, task, ctx)
        end = tuned.state()
        alpha = WITHOUT_VAL if self.config.alpha is None else self.config.alpha
        val = _training.nonempty(task.val)
        if self.config.alpha is None and val is not None:
            tried, states = [], tuned.tower.stored(val.inputs)
            for share in ALPHAS:
                tuned.put(between(start, end, share))
                scores = tuned.scores(val.inputs, states)
                accuracy = topk_accuracy(scores, val.labels, 1)
                loss = nll(scores, val.labels)
                ctx.log(alpha=share, val_accuracy=accuracy, val_loss=loss)
                tried.append((accuracy, -loss, share))
            best, _, alpha = max(tried)
            epoch = None if selection is None else selection["epoch"]
            by = f"val accuracy over alpha (alpha={alpha:.1f})"
            selection = {"epoch": epoch, "by": by, "value": best}
        tuned.put(between(start, end, alpha))
        return FinetunedClassifier(
            backbone, task.classnames, tuned, text, self.config.blocks, selection
        )

    def load(self, directory: Path, backbone: ImageTextModel) -> FinetunedClassifier:
        """Return the classifier saved in ``directory``."""
        return _finetune.load(directory, backbone)


def between(
    start: dict[str, torch.Tensor], end: dict[str, torch.Tensor], alpha: float
) -> dict[str, torch.Tensor]:
    """Return the weights at ``alpha`` on the line from ``start`` (0) to ``end`` (1)."""
    return {name: (1 - alpha) * start[name] + alpha * end[name] for name in end}


METHOD = WiseFT
