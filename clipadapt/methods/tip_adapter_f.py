"""Tip-Adapter-F: Tip-Adapter with trained cache keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat

from clipadapt.core.api.limits import MAX_EPOCHS, BatchSize, Epochs
from clipadapt.methods import _cache_model, _training
from clipadapt.methods._cache_model import CacheClassifier, CacheModel, SearchConfig
from clipadapt.methods._images import tensor
from clipadapt.methods._text import zero_shot_weights
from clipadapt.methods._training import Objective, TrainingConfig
from clipadapt.models import ImageTextModel

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Task
    from clipadapt.core.api.method import MethodConfig

FIRST_TRAINING_VIEW = 1001  # smaller views are used for the keys


class TipAdapterFConfig(SearchConfig, TrainingConfig):
    """Hyperparameters of ``clip/tip_adapter_f``: the cache, its search and its training.

    Attributes:
        keep: The best epoch by val accuracy. The official code selects it by test accuracy.
        training_views: Number of random crops of each image that the epochs cycle through, cached and equal for all
            seeds; 0 trains on the images without augmentation, None uses new crops in each epoch.
    """

    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: PositiveFloat = 1e-3
    eps: PositiveFloat = 1e-4
    weight_decay: float = Field(default=0.01, ge=0)
    schedule: Literal["dassl", "cosine", "constant"] = "cosine"
    epochs: Epochs = 20
    batch_size: BatchSize = 256
    keep: Literal["last", "best"] = "best"
    smallest_crop: float = Field(default=0.5, gt=0, le=1)
    training_views: int | None = Field(default=None, ge=0, le=MAX_EPOCHS)


class TipAdapterF:
    """Train the keys with cross-entropy, then search ``alpha`` and ``beta``; all are selected on val.

    References:
        R. Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022,
        section 3.2. arXiv:2207.09519
    """

    Config: ClassVar[type[MethodConfig]] = TipAdapterFConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = ImageTextModel
    open_vocabulary: ClassVar[bool] = False

    def __init__(self, config: TipAdapterFConfig) -> None:
        self.config = config

    def fit(self, backbone: ImageTextModel, task: Task[Any], ctx: RunContext) -> CacheClassifier:
        """Train the keys on ``task.train``; ``task.val`` selects the epoch, ``alpha`` and ``beta``."""
        config = self.config
        train = task.require_train("tip_adapter_f")
        config.check(task)
        val = _training.nonempty(task.val)
        text = zero_shot_weights(backbone, task.classnames, task.templates)
        weights = tensor(text)
        built = _cache_model.build(backbone, train, config, len(task.classnames))
        keys = _training.parameter(ctx, "keys", built.keys.numpy())
        cache = CacheModel(keys, built.labels, built.n_classes)
        views: dict[int, torch.Tensor] = {}
        val_features = None if val is None else tensor(backbone.encode(val.inputs, "image"))

        def features(view: int) -> torch.Tensor:
            if view not in views:
                views.clear()
                encoded = backbone.encode(
                    train.inputs, "image", "output", view, config.smallest_crop
                )
                views[view] = tensor(encoded)
            return views[view]

        def scores(x: torch.Tensor) -> torch.Tensor:
            return _cache_model.logits(
                cache, x, weights, config.alpha, config.beta, config.logit_scale
            )

        def loss(rows: NDArray[np.int64], view: int) -> torch.Tensor:
            return _training.cross_entropy(
                scores(features(self._view(view))[rows]), train.labels, rows
            )

        def val_scores() -> NDArray[np.float32]:
            assert val_features is not None
            args = (config.alpha, config.beta, config.logit_scale)
            return cache.scores(val_features, weights, *args)

        objective = Objective.of(
            "tip_adapter_f", {"keys": keys}, loss, val_scores if val else None, backbone, task
        )
        selection = _training.train(objective, config, ctx)
        trained = CacheModel(keys.detach(), built.labels, built.n_classes)
        alpha, beta, selection = _cache_model.chosen(
            backbone, trained, val, weights, config, ctx, selection
        )
        return CacheClassifier(
            backbone,
            task.classnames,
            trained,
            text,
            alpha,
            beta,
            config.logit_scale,
            keys.numel(),
            selection,
        )

    def load(self, directory: Path, backbone: ImageTextModel) -> CacheClassifier:
        """Return the classifier saved in ``directory``."""
        return _cache_model.load(directory, backbone)

    def _view(self, view: int) -> int:
        """Return the cached view that serves as the view of an epoch."""
        config = self.config
        if not view or config.training_views == 0:
            return 0
        if config.training_views is not None:
            return FIRST_TRAINING_VIEW + (view - 1) % config.training_views
        return FIRST_TRAINING_VIEW + view - 1


METHOD = TipAdapterF
