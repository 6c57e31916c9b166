"""LP++: a linear probe plus class-wise multiples of the text features, with step sizes computed from the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat

from clipadapt.core.api.limits import MAX_EPOCHS, BatchSize, Epochs
from clipadapt.methods import _linear_head, _training
from clipadapt.methods._images import tensor
from clipadapt.methods._linear_head import LinearHead
from clipadapt.methods._text import zero_shot_weights
from clipadapt.methods._training import Objective, TrainingConfig
from clipadapt.methods._views import view_features
from clipadapt.models import ImageTextModel

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Split, Task
    from clipadapt.core.api.method import MethodConfig

FULL_BATCH: Final = 65_536


class LPPlusPlusConfig(TrainingConfig):
    """Hyperparameters of ``clip/lp_plus_plus``.

    Attributes:
        views: Number of random crops of each image that form the training set; 0 uses the image itself.
        alpha_init: Factor of the initial ``alpha``, see :class:`Start`.
        alpha_every: Epochs between two steps of ``alpha``.
        lr: Factor of both step sizes, which are computed from the data.
        batch_size: Images per step; as in the official code, the default is more than a few-shot task has.
        keep: The best epoch by val accuracy, the last one on ties.
        augment: Always ``none``: the crops are encoded once, before training.
    """

    views: int = Field(default=1, ge=0, le=1000)
    smallest_crop: float = Field(default=0.5, gt=0, le=1)
    alpha_init: PositiveFloat = 250.0
    alpha_every: int = Field(default=10, gt=0, le=MAX_EPOCHS)
    lr: PositiveFloat = 1.0
    weight_decay: NonNegativeFloat = 0.0
    schedule: Literal["dassl", "dassl_step", "cosine", "constant"] = "constant"
    epochs: Epochs = 300
    batch_size: BatchSize = FULL_BATCH
    keep: Literal["last", "best"] = "best"
    augment: Literal["none"] = "none"

    def examples_for(self, train: Split[Any]) -> int:
        """Return the number of images and crops in an epoch."""
        return max(1, self.views) * len(train)


@dataclass(frozen=True, slots=True)
class Start:
    """Initial values and step sizes.

    Attributes:
        weight: Sum of the features of each class, shape ``(C, D)``.
        alpha: ``alpha_init`` times the mean similarity of images to the text of their class, averaged over classes;
            the same value for every class, shape ``(C,)``.
        lr_weight: ``4 N / lambda_max(F^T F)``.
        lr_alpha: ``N / (4 max_c sum_i (f_i t_c)^2)``.
    """

    weight: NDArray[np.float32]
    alpha: NDArray[np.float32]
    lr_weight: float
    lr_alpha: float

    @classmethod
    def of(
        cls,
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        text: NDArray[np.float32],
        alpha_init: float,
    ) -> Start:
        """Compute them from features ``(N, D)``, labels ``(N,)`` and unit-norm text features ``(C, D)``."""
        C, N = len(text), len(features)
        weight = np.zeros((C, features.shape[1]))
        np.add.at(weight, labels, features)
        counts = np.bincount(labels, minlength=C)
        seen = counts > 0
        similarity = (weight * text).sum(axis=1)[seen] / counts[seen]
        tall = N > features.shape[1]
        gram = features.T @ features if tall else features @ features.T  # of the smaller side
        largest = float(np.linalg.eigvalsh(gram.astype(np.float64))[-1])
        squares = float(((features @ text.T) ** 2).sum(axis=0, dtype=np.float64).max())
        alpha = np.full(C, alpha_init * similarity.mean(), dtype=np.float32)
        return cls(weight.astype(np.float32), alpha, 4 * N / largest, N / (4 * squares))


class LPPlusPlus:
    """``logits_c = f w_c + b_c + alpha_c f t_c``, trained with full batches.

    ``w`` and ``b`` take a step of SGD in each epoch; ``alpha`` takes one every ``alpha_every`` epochs, along the sum of
    all its gradients so far, as in the official code.

    References:
        Y. Huang et al., "LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP", CVPR 2024, section 3.
        arXiv:2404.02285
    """

    Config: ClassVar[type[MethodConfig]] = LPPlusPlusConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = ImageTextModel
    open_vocabulary: ClassVar[bool] = False

    def __init__(self, config: LPPlusPlusConfig) -> None:
        self.config = config

    def fit(self, backbone: ImageTextModel, task: Task[Any], ctx: RunContext) -> LinearHead:
        """Train ``w``, ``b`` and ``alpha`` on ``task.train``; ``task.val`` selects the epoch."""
        config, device = self.config, backbone.device
        train = task.require_train("lp_plus_plus")
        config.check(task)
        val = _training.nonempty(task.val)
        text = zero_shot_weights(backbone, task.classnames, task.templates)  # (C, D)
        views = view_features(backbone, train.inputs, config.views, config.smallest_crop)
        features = views.reshape(-1, views.shape[-1])  # (V * N, D)
        labels = np.tile(train.labels, len(views))
        start = Start.of(features, labels, text, config.alpha_init)
        probe = _Probe(start, tensor(features, device), labels, tensor(text, device), config, ctx)
        val_features = None
        if val is not None and config.epochs:
            val_features = tensor(backbone.encode(val.inputs, "image"), device)

        def val_scores() -> NDArray[np.float32]:
            assert val_features is not None
            return probe.scores(val_features).detach().cpu().numpy()

        objective = Objective(
            "lp_plus_plus",
            {"weight": probe.weight, "bias": probe.bias},
            probe.loss,
            len(labels),
            None if val_features is None else val_scores,
            None if val is None else val.labels,
            _training.key_of(backbone, task),
            {"alpha": probe.alpha, "alpha_grad": probe.alpha_grad},
            probe.after_epoch,
            prefer_last=True,
        )
        sized = config.model_copy(update={"lr": config.lr * start.lr_weight})
        selection = _training.train(objective, sized, ctx)
        final = probe.weight.detach(), probe.bias.detach(), probe.alpha.detach()
        if ctx.observe:
            ctx.observe("start", start)
            ctx.observe("final", final)
        return LinearHead(
            backbone,
            task.classnames,
            probe.classifier().detach().cpu().numpy(),
            probe.bias.detach().cpu().numpy(),
            text,
            1.0,
            sum(values.numel() for values in final),
            selection,
        )

    def load(self, directory: Path, backbone: ImageTextModel) -> LinearHead:
        """Return the classifier saved in ``directory``."""
        return _linear_head.load(directory, backbone)


class _Probe:
    """The parameters, and the loss of a batch."""

    def __init__(
        self,
        start: Start,
        features: torch.Tensor,
        labels: NDArray[np.int64],
        text: torch.Tensor,
        config: LPPlusPlusConfig,
        ctx: RunContext,
    ) -> None:
        """Create the parameters from features ``(N, D)``, labels ``(N,)`` and text features ``(C, D)``."""
        import torch

        self.features, self.labels, self.text = features, labels, text
        self.every, self.lr_alpha = config.alpha_every, config.lr * start.lr_alpha
        rng = ctx.rng("lp_plus_plus.init")
        drawn = _training.linear_start(rng, (len(text),), features.shape[1])
        device = str(features.device)
        self.weight = _training.parameter(ctx, "weight", start.weight, device)
        self.bias = _training.parameter(ctx, "bias", drawn, device)
        self.alpha = _training.parameter(ctx, "alpha", start.alpha, device)
        # The backward pass adds to this gradient in place, and it is never set to zero.
        self.alpha.grad = self.alpha_grad = torch.zeros_like(self.alpha)

    def classifier(self) -> torch.Tensor:
        """Return ``w_c + alpha_c t_c``, shape ``(C, D)``."""
        return self.weight + self.alpha[:, None] * self.text

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of unit-norm features ``(n, D)``, shape ``(n, C)``."""
        return x @ self.classifier().T + self.bias

    def loss(self, rows: NDArray[np.int64], view: int) -> torch.Tensor:  # noqa: ARG002
        """Return the cross-entropy of a batch."""
        x = self.features[tensor(rows, self.features.device)]
        return _training.cross_entropy(self.scores(x), self.labels, rows)

    def after_epoch(self, epoch: int) -> None:
        """Take a step of ``alpha`` every few epochs."""
        import torch

        if (epoch + 1) % self.every == 0:
            with torch.no_grad():
                self.alpha.sub_(self.lr_alpha * self.alpha_grad)


METHOD = LPPlusPlus
