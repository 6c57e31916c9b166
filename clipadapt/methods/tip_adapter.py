"""Tip-Adapter: a cache of few-shot features added to the zero-shot classifier; nothing is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from clipadapt.methods import _cache_model
from clipadapt.methods._cache_model import CacheClassifier, SearchConfig
from clipadapt.methods._images import tensor
from clipadapt.methods._text import zero_shot_weights
from clipadapt.models import ImageTextModel

if TYPE_CHECKING:
    from pathlib import Path

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Task
    from clipadapt.core.api.method import MethodConfig


class TipAdapterConfig(SearchConfig):
    """Hyperparameters of ``clip/tip_adapter``: the cache and its search."""


class TipAdapter:
    """``logits = scale f W + alpha exp(-beta (1 - f K)) V``; ``alpha`` and ``beta`` are selected on val.

    The official code searches on the test split of ImageNet; here the test split is never used.

    References:
        R. Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022,
        section 3.1. arXiv:2207.09519
    """

    Config: ClassVar[type[MethodConfig]] = TipAdapterConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = ImageTextModel
    open_vocabulary: ClassVar[bool] = False

    def __init__(self, config: TipAdapterConfig) -> None:
        self.config = config

    def fit(self, backbone: ImageTextModel, task: Task[Any], ctx: RunContext) -> CacheClassifier:
        """Build the cache from ``task.train``; search ``alpha`` and ``beta`` on ``task.val``."""
        train = task.require_train("tip_adapter")
        weights = zero_shot_weights(backbone, task.classnames, task.templates)
        cache = _cache_model.build(backbone, train, self.config, len(task.classnames))
        alpha, beta, selection = _cache_model.chosen(
            backbone, cache, task.val, tensor(weights), self.config, ctx
        )
        return CacheClassifier(
            backbone,
            task.classnames,
            cache,
            weights,
            alpha,
            beta,
            self.config.logit_scale,
            0,
            selection,
        )

    def load(self, directory: Path, backbone: ImageTextModel) -> CacheClassifier:
        """Return the classifier saved in ``directory``."""
        return _cache_model.load(directory, backbone)


METHOD = TipAdapter
