"""CLAP: a linear probe that starts at the text features and is held close to them, class by class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat

from clipadapt.core.api.limits import BatchSize, Epochs
from clipadapt.methods import _linear_head, _training
from clipadapt.methods._images import tensor
from clipadapt.methods._linear_head import LinearHead
from clipadapt.methods._text import mean_text_features, zero_shot_weights
from clipadapt.methods._training import Objective, TrainingConfig
from clipadapt.methods._views import view_features
from clipadapt.models import ImageTextModel

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Task
    from clipadapt.core.api.method import MethodConfig

Constraint = Literal[
    "none", "l2", "cosine", "l2_balanced", "l2_corrected", "l2_constant", "l2_adaptative"
]
BLOCK: Final = 4096
"""Images whose zero-shot probabilities are computed at a time."""


class CLAPConfig(TrainingConfig):
    """Hyperparameters of ``clip/clap``.

    Attributes:
        constraint: Distance ``d_c`` of a prototype to its text features, and the multipliers ``alpha_c`` of the
            classes. ``l2`` is CLAP: squared L2 distance, ``alpha_c`` is the mean zero-shot probability of class ``c``
            on its training images. ``cosine`` uses the cosine distance. ``l2_balanced``: every multiplier is 1.
            ``l2_corrected``: scaled to a mean of 1. ``l2_constant``: all equal to their mean. ``l2_adaptative``:
            updated after each epoch. ``none`` is ZS-LP, the same probe without a constraint.
        views: Number of random crops of each image that form the training set; 0 uses the image itself.
        augment: Always ``none``: the crops are encoded once, before training.
        drop_last: Drop the last batch of an epoch if it is incomplete, as the official code does.
    """

    constraint: Constraint = "l2"
    views: int = Field(default=20, ge=0, le=1000)
    lr: PositiveFloat = 0.1
    weight_decay: NonNegativeFloat = 0.0
    epochs: Epochs = 300
    batch_size: BatchSize = 256
    drop_last: bool = True
    augment: Literal["none"] = "none"


class CLAP:
    """Cosine to prototypes ``p_c`` that start at the text features ``t_c``; loss ``CE + mean_c alpha_c d(p_c, t_c)``.

    A class without training images has the mean multiplier of the others.

    References:
        J. Silva-Rodriguez et al., "A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models",
        CVPR 2024, sections 4.1 and 4.2. arXiv:2312.12730
    """

    Config: ClassVar[type[MethodConfig]] = CLAPConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = ImageTextModel
    open_vocabulary: ClassVar[bool] = False

    def __init__(self, config: CLAPConfig) -> None:
        self.config = config

    def fit(self, backbone: ImageTextModel, task: Task[Any], ctx: RunContext) -> LinearHead:
        """Train the prototypes on ``task.train``; with ``keep: best``, ``task.val`` selects the epoch.

        Raises:
            ConfigError: If training ends before the warm-up.
        """
        import torch.nn.functional as F

        config, device = self.config, backbone.device
        train = task.require_train("clap")
        config.check(task)
        val = _training.nonempty(task.val)
        text = mean_text_features(backbone, task.classnames, task.templates)
        views = view_features(backbone, train.inputs, config.views, config.smallest_crop)
        features = tensor(views.reshape(-1, views.shape[-1]), device)  # (V * N, D)
        labels = np.tile(train.labels, len(views))
        probe = _Probe(backbone, features, labels, text, config.constraint, ctx)
        val_features = None
        if val is not None and config.epochs:
            val_features = tensor(backbone.encode(val.inputs, "image"), device)

        def val_scores() -> NDArray[np.float32]:
            assert val_features is not None
            return probe.scores(val_features).detach().cpu().numpy()

        objective = Objective(
            "clap",
            {"prototypes": probe.prototypes},
            probe.loss,
            len(labels),
            None if val_features is None else val_scores,
            None if val is None else val.labels,
            _training.key_of(backbone, task),
            {"alpha": probe.alpha, "rho": probe.rho},
            probe.after_epoch if config.constraint == "l2_adaptative" else None,
            max_batches=self._batches(len(train)),
        )
        selection = _training.train(objective, config, ctx)
        prototypes = probe.prototypes.detach()
        if ctx.observe:
            ctx.observe("base", text)
            ctx.observe("prototypes", prototypes)
        return LinearHead(
            backbone,
            task.classnames,
            F.normalize(prototypes, dim=-1).cpu().numpy(),
            np.full(len(text), backbone.logit_bias, dtype=np.float32),
            zero_shot_weights(backbone, task.classnames, task.templates),
            backbone.logit_scale,
            prototypes.numel(),
            selection,
        )

    def load(self, directory: Path, backbone: ImageTextModel) -> LinearHead:
        """Return the classifier saved in ``directory``."""
        return _linear_head.load(directory, backbone)

    def _batches(self, n: int) -> int:
        """Return the number of batches per epoch, which has as many images as train, drawn from all views."""
        whole, rest = divmod(n, self.config.batch_size)
        return max(1, whole + bool(rest and not self.config.drop_last))


class _Probe:
    """Prototypes, multipliers, and the loss of a batch."""

    def __init__(
        self,
        model: ImageTextModel,
        features: torch.Tensor,
        labels: NDArray[np.int64],
        text: NDArray[np.float32],
        constraint: Constraint,
        ctx: RunContext,
    ) -> None:
        """Start at the text features.

        Args:
            model: The backbone.
            features: Unit-norm image features, shape ``(M, D)``.
            labels: Shape ``(M,)``.
            text: Unnormalized text features, shape ``(C, D)``.
            constraint: The constraint.
            ctx: Initial values and observer.
        """
        import torch

        self.model, self.features, self.labels = model, features, labels
        self.constraint, self.observe = constraint, ctx.observe
        self.base = tensor(text, model.device)
        self.prototypes = _training.parameter(ctx, "prototypes", text, model.device)
        self.alpha = self._multipliers()  # (C,)
        self.rho = torch.zeros_like(self.alpha)
        if self.observe:
            self.observe("alpha", self.alpha.clone())

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of unit-norm features ``(n, D)``, shape ``(n, C)``."""
        import torch.nn.functional as F

        return self.model.logits(x, F.normalize(self.prototypes, dim=-1))

    def loss(self, rows: NDArray[np.int64], view: int) -> torch.Tensor:  # noqa: ARG002
        """Return the cross-entropy of a batch plus the constraint."""
        x = self.features[tensor(rows, self.features.device)]
        total = _training.cross_entropy(self.scores(x), self.labels, rows)
        if self.constraint == "none":
            return total
        constraint = (self.alpha * self._distance()).mean()
        if self.observe:
            self.observe("constraint", constraint.detach())
        return total + constraint

    def after_epoch(self, epoch: int) -> None:  # noqa: ARG002
        """Update the multipliers, one outer step of an augmented Lagrangian method."""
        import torch

        with torch.no_grad():
            distance = self._distance()
            self.alpha.add_(self.rho * distance).clamp_(min=0)
            self.rho.copy_(distance)
        if self.observe:
            self.observe("alpha", self.alpha.clone())

    def _distance(self) -> torch.Tensor:
        """Return the distance of each prototype to its text features, shape ``(C,)``."""
        import torch.nn.functional as F

        if self.constraint == "cosine":
            return 1 - F.cosine_similarity(self.prototypes, self.base)
        return (self.prototypes - self.base).square().sum(-1)

    def _multipliers(self) -> torch.Tensor:
        """Return the initial multipliers of the classes, shape ``(C,)``."""
        import torch
        import torch.nn.functional as F

        C, device = len(self.base), self.base.device
        if self.constraint in {"l2_balanced", "none"}:
            return torch.ones(C, device=device)
        y = torch.from_numpy(self.labels).to(device)
        total = torch.zeros(C, device=device)
        weights = F.normalize(self.base, dim=-1)
        for begin in range(0, len(y), BLOCK):
            part = slice(begin, begin + BLOCK)
            p = self.model.logits(self.features[part], weights).softmax(-1).detach()  # (b, C)
            total.index_add_(0, y[part], p.gather(1, y[part, None])[:, 0])
        counts = torch.bincount(y, minlength=C)
        seen = counts > 0
        alpha = total / counts
        alpha[~seen] = alpha[seen].mean()
        if self.constraint == "l2_corrected":
            alpha = alpha * C / alpha.sum()
        if self.constraint == "l2_constant":
            alpha = alpha.mean().expand(C).clone()
        return alpha


METHOD = CLAP
