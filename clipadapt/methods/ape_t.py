"""APE-T: a trained residual for the texts and keys of each class on selected channels, and trained value weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat

from clipadapt.core.api.limits import BatchSize, Epochs
from clipadapt.methods import _ape, _cache_model, _training
from clipadapt.methods._ape import Channels, Weight, WeightedCacheClassifier
from clipadapt.methods._cache_model import CacheModel, SearchConfig
from clipadapt.methods._images import FrozenFeatures, tensor
from clipadapt.methods._text import zero_shot_weights
from clipadapt.methods._training import Objective, TrainingConfig
from clipadapt.models import ImageTextModel

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Task
    from clipadapt.core.api.method import MethodConfig


class APETConfig(SearchConfig, TrainingConfig):
    """Hyperparameters of ``clip/ape_t``: the cache, its channels, its search and its training.

    Attributes:
        channels: Number of channels with a residual; a value up to 1 is a fraction of all channels.
        similarity: Compare classes by their ``text`` features, as the official code does alone, or with their keys,
            ``text_image``: the official code reads that value if APE has stored it before.
        similarity_weight: Weight of the similarity between classes in the criterion of a channel.
        variance_weight: Weight of the variance of the text features over classes.
        keep: The best epoch by val accuracy.
    """

    channels: Channels = 0.7
    similarity: Literal["text", "text_image"] = "text"
    similarity_weight: Weight = 0.2
    variance_weight: Weight = 0.8
    alpha: PositiveFloat = 1.0
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: PositiveFloat = 1e-3
    eps: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.1
    schedule: Literal["dassl", "dassl_step", "cosine", "constant"] = "cosine"
    epochs: Epochs = 20
    batch_size: BatchSize = 256
    keep: Literal["last", "best"] = "best"
    smallest_crop: float = Field(default=0.5, gt=0, le=1)


class APET:
    """``logits = scale f (W + r) + alpha exp(-beta (1 - f (K + r_y))) (V v)``; ``r`` and ``v`` are trained.

    References:
        X. Zhu et al., "Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement", ICCV 2023,
        section 3.3. arXiv:2304.01195
    """

    Config: ClassVar[type[MethodConfig]] = APETConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = ImageTextModel
    open_vocabulary: ClassVar[bool] = False

    def __init__(self, config: APETConfig) -> None:
        self.config = config

    def fit(
        self, backbone: ImageTextModel, task: Task[Any], ctx: RunContext
    ) -> WeightedCacheClassifier:
        """Train on ``task.train``; ``task.val`` selects the epoch, then ``beta`` and ``alpha``.

        Raises:
            ConfigError: If more channels are asked for than the features have.
        """
        config = self.config
        train = task.require_train("ape_t")
        config.check(task)
        text = zero_shot_weights(backbone, task.classnames, task.templates)
        keys = _cache_model.build(backbone, train, config, len(text)).keys.numpy()
        channels = self._channels(text, keys, train.labels, ctx)
        residual = _training.parameter(
            ctx, "res", np.zeros((len(text), len(channels))), backbone.device
        )
        values = _training.parameter(ctx, "value_weights", np.ones(len(keys)), backbone.device)
        selection = self._train((text, keys, channels), residual, values, backbone, task, ctx)
        r, v = residual.detach().cpu().numpy(), values.detach().cpu().numpy()
        if ctx.observe:
            ctx.observe("res", r)
            ctx.observe("value_weights", v)
        trained, trained_keys = text.copy(), keys.copy()
        trained[:, channels] += r
        trained_keys[:, channels] += r[train.labels]
        cache = CacheModel(tensor(trained_keys), train.labels, len(text), tensor(v))
        alpha, beta, selection = _cache_model.chosen(
            backbone, cache, task.val, tensor(trained), config, ctx, selection
        )
        if ctx.observe:
            ctx.observe("best", np.array([beta, alpha]))
        return WeightedCacheClassifier(
            backbone,
            task.classnames,
            trained_keys,
            train.labels,
            v,
            np.arange(text.shape[1]),
            trained,
            text,
            alpha,
            beta,
            config.logit_scale,
            r.size + v.size,
            selection,
        )

    def load(self, directory: Path, backbone: ImageTextModel) -> WeightedCacheClassifier:
        """Return the classifier saved in ``directory``."""
        return _ape.load(directory, backbone)

    def _channels(
        self,
        text: NDArray[np.float32],
        keys: NDArray[np.float32],
        labels: NDArray[np.int64],
        ctx: RunContext,
    ) -> NDArray[np.int64]:
        config, members = self.config, len(keys) if self.config.similarity == "text_image" else 0
        sim = _ape.similarity(text, keys[:members], labels[:members])
        value = _ape.criterion(text, sim, (config.similarity_weight, config.variance_weight))
        channels = _ape.largest(value, _ape.count_of(config.channels, text.shape[1]))
        if ctx.observe:
            ctx.observe("sim", sim)
            ctx.observe("channels", channels)
        return channels

    def _train(
        self,
        start: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]],
        residual: torch.Tensor,
        values: torch.Tensor,
        backbone: ImageTextModel,
        task: Task[Any],
        ctx: RunContext,
    ) -> dict[str, Any] | None:
        """Train the residual ``(C, Q)`` and the value weights ``(N,)`` in place; return the selected epoch.

        Args:
            start: Text features ``(C, D)``, keys ``(N, D)`` and channels ``(Q,)``.
            residual: Shape ``(C, Q)``.
            values: Shape ``(N,)``.
            backbone: The backbone.
            task: Train and val.
            ctx: The context.
        """
        import torch

        config, device, train = self.config, backbone.device, task.require_train("ape_t")
        W, K = (tensor(a, device) for a in start[:2])
        channels, y = (torch.from_numpy(a).to(device) for a in (start[2], train.labels))
        features = FrozenFeatures(backbone, train.inputs, config, "output")
        val = _training.nonempty(task.val)
        x_val = None
        if val is not None and config.epochs:
            x_val = tensor(backbone.encode(val.inputs, "image"), device)

        def logits(x: torch.Tensor) -> torch.Tensor:
            added = residual @ x[:, channels].T  # (C, b)
            affinity = K @ x.T + added[y] - 1  # (N, b)
            weighted = (config.beta * affinity).exp() * values[:, None]
            votes = weighted.new_zeros((len(W), len(x))).index_add(0, y, weighted)
            return (config.logit_scale * (W @ x.T + added) + config.alpha * votes).T

        def loss(rows: NDArray[np.int64], view: int) -> torch.Tensor:
            return _training.cross_entropy(logits(features(rows, view)), train.labels, rows)

        def val_scores() -> NDArray[np.float32]:
            assert x_val is not None
            step = max(1, _ape.BLOCK_BYTES // (4 * max(len(K), len(W))))
            with torch.no_grad():
                return torch.cat([logits(x).cpu() for x in x_val.split(step)]).numpy()

        parameters = {"res": residual, "value_weights": values}
        evaluate = None if x_val is None else val_scores
        objective = Objective.of("ape_t", parameters, loss, evaluate, backbone, task)
        return _training.train(objective, config, ctx)


METHOD = APET
