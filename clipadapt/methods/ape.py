"""APE: Tip-Adapter's cache on the channels that separate the classes, with weighted values; nothing is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat

from clipadapt.methods import _ape, _cache_model
from clipadapt.methods._ape import Channels, Weight, WeightedCacheClassifier
from clipadapt.methods._cache_model import SearchConfig
from clipadapt.methods._text import zero_shot_weights
from clipadapt.methods._training import nonempty
from clipadapt.models import ImageTextModel

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Split, Task
    from clipadapt.core.api.method import MethodConfig

EPS: Final = 1e-6
BLOCK_BYTES: Final = 32 << 20
"""Maximum size of the affinities of one block of val."""


class APEConfig(SearchConfig):
    """Hyperparameters of ``clip/ape``: the cache, its channels and its search.

    Attributes:
        channels: Number of channels to keep; a value up to 1 is a fraction of all channels.
        similarity_weight: Weight of the similarity between classes in the criterion of a channel.
        variance_weight: Weight of the variance of the text features over classes.
        gamma: Sharpness of the weights of the values if there is no search.
        gamma_max: End of the search range of ``gamma``, exclusive; it begins at 0.
        gamma_steps: Number of values of ``gamma``.
    """

    channels: Channels = 0.7
    similarity_weight: Weight = 0.7
    variance_weight: Weight = 0.3
    alpha: PositiveFloat = 1.0
    gamma: NonNegativeFloat = 0.1
    gamma_max: PositiveFloat = 1.0
    gamma_steps: int = Field(default=20, gt=0, le=1000)


class APE:
    """``logits = scale f W + alpha exp(-beta (1 - f' K')) (V exp(gamma div))`` on the selected channels.

    References:
        X. Zhu et al., "Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement", ICCV 2023,
        sections 3.1 and 3.2. arXiv:2304.01195
    """

    Config: ClassVar[type[MethodConfig]] = APEConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = ImageTextModel
    open_vocabulary: ClassVar[bool] = False

    def __init__(self, config: APEConfig) -> None:
        self.config = config

    def fit(
        self, backbone: ImageTextModel, task: Task[Any], ctx: RunContext
    ) -> WeightedCacheClassifier:
        """Build the cache from ``task.train``; search ``beta``, ``alpha`` and ``gamma`` on ``task.val``.

        Raises:
            ConfigError: If more channels are asked for than the features have.
        """
        config, C = self.config, len(task.classnames)
        train = task.require_train("ape")
        text = zero_shot_weights(backbone, task.classnames, task.templates)
        keys = _cache_model.build(backbone, train, config, C).keys.numpy()
        sim = _ape.similarity(text, keys, train.labels)
        value = _ape.criterion(text, sim, (config.similarity_weight, config.variance_weight))
        channels = _ape.largest(value, _ape.count_of(config.channels, text.shape[1]))
        few_keys, few_text = _ape.refined(keys, channels), _ape.refined(text, channels)
        divergence = _divergence(few_keys, few_text, train.labels)
        if ctx.observe:
            seen = {"keys": keys, "sim": sim, "criterion": value, "channels": channels}
            seen |= {"refined_keys": few_keys, "refined_text": few_text, "div": divergence}
            for name, array in seen.items():
                ctx.observe(name, array)
        val, selection = nonempty(task.val), None
        beta, alpha, gamma = config.beta, config.alpha, config.gamma
        if val is not None and config.search:
            cache = (few_keys, train.labels, divergence, channels)
            beta, alpha, gamma, selection = self._search(backbone, val, text, cache, ctx)
        return WeightedCacheClassifier(
            backbone,
            task.classnames,
            few_keys,
            train.labels,
            np.exp(gamma * divergence).astype(np.float32),
            channels,
            text,
            text,
            alpha,
            beta,
            config.logit_scale,
            0,
            selection,
        )

    def load(self, directory: Path, backbone: ImageTextModel) -> WeightedCacheClassifier:
        """Return the classifier saved in ``directory``."""
        return _ape.load(directory, backbone)

    def _search(
        self,
        model: ImageTextModel,
        val: Split[Any],
        text: NDArray[np.float32],
        cache: tuple[
            NDArray[np.float32], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]
        ],
        ctx: RunContext,
    ) -> tuple[float, float, float, dict[str, Any]]:
        """Return beta, alpha and gamma with the best val accuracy, the first on ties, and the selection.

        Args:
            model: The backbone.
            val: ``m`` examples.
            text: Text features, shape ``(C, D)``.
            cache: Refined keys ``(N, Q)``, labels and divergences ``(N,)``, and channels ``(Q,)``.
            ctx: Receives the progress and, for an observer, the grid of accuracies.
        """
        config = self.config
        keys, labels, divergence, channels = cache
        betas = _cache_model.grid(config.beta_max, config.beta_steps)
        alphas = _cache_model.grid(config.alpha_max, config.alpha_steps)
        gammas = np.arange(config.gamma_steps) * config.gamma_max / config.gamma_steps
        features = model.encode(val.inputs, "image")
        hits = np.zeros((len(betas), len(alphas), len(gammas)))
        factors = [np.exp(g * divergence).astype(np.float32) for g in gammas]
        step = max(1, BLOCK_BYTES // (4 * max(len(keys), len(text))))
        total = len(val) * len(betas)
        with ctx.progress.track("search alpha, beta and gamma", total, "val examples") as bar:
            for i in range(0, len(val), step):
                x = features[i : i + step]
                base = np.float32(config.logit_scale) * (x @ text.T)  # (b, C)
                few, y = _ape.refined(x, channels), val.labels[i : i + step]
                distances = _ape.distances(few, keys)  # (N, b)
                for b, beta in enumerate(betas.tolist()):
                    affinity = distances.mul(beta).exp_()
                    for g, factor in enumerate(factors):
                        votes = _ape.summed(affinity, labels, factor, len(text))
                        for a, alpha in enumerate(alphas.astype(np.float32)):
                            hits[b, a, g] += ((base + alpha * votes).argmax(axis=1) == y).sum()
                    bar.advance(len(x))
        accuracy = hits / len(val)
        b, a, g = map(int, np.unravel_index(int(accuracy.argmax()), accuracy.shape))
        if ctx.observe:
            ctx.observe("grid", accuracy)
            ctx.observe("best", np.array([betas[b], alphas[a], gammas[g]]))
        beta, alpha, gamma = float(betas[b]), float(alphas[a]), float(gammas[g])
        values = f"alpha={alpha:.4g}, beta={beta:.4g}, gamma={gamma:.4g}"
        by = f"val accuracy over alpha, beta and gamma ({values})"
        selection = {"epoch": None, "by": by, "value": float(accuracy[b, a, g])}
        return beta, alpha, gamma, selection


def _divergence(
    keys: NDArray[np.float32], text: NDArray[np.float32], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the divergence in bits of a key's label from its softmax over the text features, shape ``(N,)``."""
    out = np.empty(len(keys))
    step = max(1, BLOCK_BYTES // (8 * len(text)))
    for i in range(0, len(keys), step):
        cosine = (keys[i : i + step] @ text.T).astype(np.float64)  # (b, C)
        own = cosine[np.arange(len(cosine)), labels[i : i + step]]
        p = np.exp(own) / np.exp(cosine).sum(axis=1)  # cosines: no overflow
        out[i : i + step] = np.log2((1 + EPS) / (p + EPS))
    return out


METHOD = APE
