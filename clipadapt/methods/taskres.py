"""TaskRes: a trained residual added to the text features of each class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat

from clipadapt.core.api.limits import BatchSize
from clipadapt.methods import _linear_head, _training
from clipadapt.methods._images import FrozenFeatures, tensor
from clipadapt.methods._linear_head import LinearHead
from clipadapt.methods._text import mean_text_features, zero_shot_weights
from clipadapt.methods._training import Objective, TrainingConfig
from clipadapt.models import ImageTextModel

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Task
    from clipadapt.core.api.method import MethodConfig


class TaskResConfig(TrainingConfig):
    """Hyperparameters of ``clip/taskres``.

    Attributes:
        alpha: Factor of the residual.
        optimizer: Adam, with the weight decay as an L2 penalty on the residual.
        drop_last: Drop the last batch of an epoch if it is incomplete, as the official code does.
    """

    alpha: float = Field(default=0.5, gt=0, le=1000)
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    lr: PositiveFloat = 2e-3
    weight_decay: NonNegativeFloat = 5e-4
    batch_size: BatchSize = 256
    drop_last: bool = True


class TaskRes:
    """Cosine to ``t_c + alpha x_c``, where ``t_c`` are the unnormalized text features and ``x`` is trained from zero.

    References:
        T. Yu et al., "Task Residual for Tuning Vision-Language Models", CVPR 2023, section 3.3. arXiv:2211.10277
    """

    Config: ClassVar[type[MethodConfig]] = TaskResConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = ImageTextModel
    open_vocabulary: ClassVar[bool] = False

    def __init__(self, config: TaskResConfig) -> None:
        self.config = config

    def fit(self, backbone: ImageTextModel, task: Task[Any], ctx: RunContext) -> LinearHead:
        """Train the residual on ``task.train``; with ``keep: best``, ``task.val`` selects the epoch.

        Raises:
            ConfigError: If training ends before the warm-up.
        """
        import torch
        import torch.nn.functional as F

        config, device = self.config, backbone.device
        train = task.require_train("taskres")
        config.check(task)
        val = _training.nonempty(task.val)
        text = mean_text_features(backbone, task.classnames, task.templates)
        base = tensor(text, device)  # (C, D)
        residual = _training.parameter(ctx, "residuals", np.zeros_like(text), device)
        features = FrozenFeatures(backbone, train.inputs, config, "output")
        val_features = None
        if val is not None and config.epochs:
            val_features = tensor(backbone.encode(val.inputs, "image"), device)

        def weights() -> torch.Tensor:
            return F.normalize(base + config.alpha * residual, dim=-1)

        def loss(rows: NDArray[np.int64], view: int) -> torch.Tensor:
            logits = backbone.logits(features(rows, view), weights())  # (b, C)
            return _training.cross_entropy(logits, train.labels, rows)

        def val_scores() -> NDArray[np.float32]:
            assert val_features is not None
            with torch.no_grad():
                return backbone.logits(val_features, weights()).cpu().numpy()

        evaluate = None if val_features is None else val_scores
        objective = Objective.of("taskres", {"residuals": residual}, loss, evaluate, backbone, task)
        selection = _training.train(objective, config, ctx)
        if ctx.observe:
            ctx.observe("base", text)
            ctx.observe("residuals", residual.detach())
        return LinearHead(
            backbone,
            task.classnames,
            weights().detach().cpu().numpy(),
            np.full(len(text), backbone.logit_bias, dtype=np.float32),
            zero_shot_weights(backbone, task.classnames, task.templates),
            backbone.logit_scale,
            residual.numel(),
            selection,
        )

    def load(self, directory: Path, backbone: ImageTextModel) -> LinearHead:
        """Return the classifier saved in ``directory``."""
        return _linear_head.load(directory, backbone)


METHOD = TaskRes
