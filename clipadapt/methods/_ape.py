"""What APE and APE-T share: the criterion of the channels, and a classifier with a weighted cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

import numpy as np
from pydantic import AfterValidator, Field, NonNegativeFloat

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.files import saved
from clipadapt.methods import _export
from clipadapt.methods._text import cosine_scores

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.data import Inputs
    from clipadapt.core.api.method import Exported, ScoreKind
    from clipadapt.models import ImageTextModel

BLOCK_BYTES: Final = 64 << 20
"""Maximum size of the affinities of one block of examples."""
FACTS: Final = (
    "classnames",
    "alpha",
    "beta",
    "logit_scale",
    "n_trainable_params",
    "selection",
)
FORMULA: Final = """r = x[:, a['channels']]
r = r / np.linalg.norm(r, axis=1, keepdims=True)
values = np.eye(len(a['weight']))[a['labels']] * a['value_weights'][:, None]
votes = np.exp(a['beta'] * (r @ a['keys'].T - 1)) @ values
scores = a['logit_scale'] * x @ a['weight'].T + a['alpha'] * votes"""


def _whole_or_share(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError("must be a whole number of channels, or a fraction of all channels")
    return value


Channels = Annotated[float, Field(gt=0, le=65_536), AfterValidator(_whole_or_share)]
"""Number of channels to keep; a value up to 1 is a fraction of all channels."""
Weight = NonNegativeFloat


def count_of(channels: float, width: int) -> int:
    """Return the number of channels to keep.

    Raises:
        ConfigError: If the features have fewer.
    """
    if channels <= 1:
        return max(1, round(channels * width))
    if channels > width:
        raise ConfigError(
            f"method.channels={channels:.0f}, but the features of the model have {width} channels",
            hint=f"set method.channels to {width} or less, or to a fraction such as 0.7",
        )
    return int(channels)


def similarity(
    text: NDArray[np.float32], keys: NDArray[np.float32], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the mean product of each channel over all pairs of members of different classes, shape ``(D,)``.

    The members of a class are its text feature and its keys. The sum over pairs is ``(sum S)^2 - sum S^2``, where
    ``S`` are the sums of the classes.

    Args:
        text: Text features, shape ``(C, D)``.
        keys: Keys, shape ``(N, D)``; none to compare the text features alone.
        labels: Labels of the keys, shape ``(N,)``.
    """
    sums, counts = text.astype(np.float64), np.ones(len(text))
    np.add.at(sums, labels, keys)
    np.add.at(counts, labels, 1)
    pairs = counts.sum() ** 2 - (counts**2).sum()
    products: NDArray[np.float64] = sums.sum(axis=0) ** 2 - (sums**2).sum(axis=0)
    return products / pairs if pairs else np.zeros(text.shape[1])


def criterion(
    text: NDArray[np.float32], sim: NDArray[np.float64], weights: tuple[float, float]
) -> NDArray[np.float64]:
    """Return ``-w0 sim + w1 var``, the variance of the text features over classes; shape ``(D,)``."""
    wide = text.astype(np.float64)
    variance = wide.var(axis=0, ddof=1) if len(text) > 1 else np.zeros(text.shape[1])
    found: NDArray[np.float64] = -weights[0] * sim + weights[1] * variance
    return found


def largest(values: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Return the ascending indices of the ``k`` largest values."""
    return np.sort(np.argsort(-values, kind="stable")[:k])


def refined(features: NDArray[np.float32], channels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the selected channels, normalized again, shape ``(n, Q)``; all channels are returned unchanged."""
    if len(channels) == features.shape[1]:
        return features
    kept = np.ascontiguousarray(
        features[:, channels]
    )  # as after loading, so that products are equal
    norm = np.linalg.norm(kept, axis=1, keepdims=True)
    unit: NDArray[np.float32] = kept / np.maximum(norm, np.finfo(np.float32).tiny)
    return unit


def votes(
    features: NDArray[np.float32],
    keys: NDArray[np.float32],
    labels: NDArray[np.int64],
    value_weights: NDArray[np.float32],
    beta: float,
    n_classes: int,
) -> NDArray[np.float32]:
    """Return ``exp(-beta (1 - f K)) V`` with weighted one-hot ``V``, shape ``(n, C)``, in blocks."""
    out = np.empty((len(features), n_classes), dtype=np.float32)
    step = max(1, BLOCK_BYTES // (4 * max(len(keys), n_classes)))
    for i in range(0, len(features), step):
        affinity = distances(features[i : i + step], keys).mul_(beta).exp_()
        out[i : i + step] = summed(affinity, labels, value_weights, n_classes)
    return out


def distances(features: NDArray[np.float32], keys: NDArray[np.float32]) -> torch.Tensor:
    """Return ``f K - 1``, shape ``(N, b)``."""
    import torch

    return torch.from_numpy(keys @ features.T).sub_(1)


def summed(
    affinity: torch.Tensor,
    labels: NDArray[np.int64],
    value_weights: NDArray[np.float32],
    n_classes: int,
) -> NDArray[np.float32]:
    """Sum affinities ``(N, b)`` times the weights of their keys over each class, shape ``(b, C)``."""
    import torch

    weighted = affinity * torch.from_numpy(value_weights)[:, None]
    sums = weighted.new_zeros((n_classes, weighted.shape[1]))
    found: NDArray[np.float32] = sums.index_add_(0, torch.from_numpy(labels), weighted).T.numpy()
    return found


@dataclass(frozen=True, slots=True)
class WeightedCacheClassifier:
    """Text logits plus the votes of a cache whose values are weighted.

    Attributes:
        model: The backbone.
        classnames: ``C`` class names.
        keys: Shape ``(N, Q)``.
        labels: Labels of the keys, shape ``(N,)``.
        value_weights: Weight of each key's vote, shape ``(N,)``.
        channels: The ``Q`` channels of the features that are compared with the keys, ascending.
        weights: Text features, trained or not, shape ``(C, D)``.
        start: Text features of the prompts, shape ``(C, D)``.
        alpha: Weight of the votes.
        beta: Sharpness of the affinities.
        logit_scale: Scale of the text logits.
        n_trainable_params: Number of trained parameters.
        selection: What was selected on val, or None.
        score_kind: The scores are logits.
        export_formats: ``classifier`` alone, or ``openclip`` together with the model.
    """

    model: ImageTextModel
    classnames: tuple[str, ...]
    keys: NDArray[np.float32]
    labels: NDArray[np.int64]
    value_weights: NDArray[np.float32]
    channels: NDArray[np.int64]
    weights: NDArray[np.float32]
    start: NDArray[np.float32]
    alpha: float
    beta: float
    logit_scale: float
    n_trainable_params: int
    selection: dict[str, Any] | None
    score_kind: ClassVar[ScoreKind] = "logit"
    export_formats: ClassVar[tuple[str, ...]] = _export.FORMATS

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``."""
        features = self.model.encode(inputs, "image")  # (n, D)
        cache = (self.keys, self.labels, self.value_weights, self.beta, len(self.classnames))
        scores = votes(refined(features, self.channels), *cache)
        scores *= np.float32(self.alpha)
        scores += np.float32(self.logit_scale) * (features @ self.weights.T)
        return scores

    def zero_shot_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the scores of the prompts alone, shape ``(n, C)``."""
        return cosine_scores(self.model, inputs, self.start, self.logit_scale)

    def export(
        self,
        form: str,
        path: Path,
        /,
        *,
        temperature: float | None = None,
        output: Path | None = None,
    ) -> Exported:
        """Write the cache and text features; see :func:`_export.export`."""
        arrays = self._arrays() | {
            name: np.array(getattr(self, name), dtype=np.float32)
            for name in ("alpha", "beta", "logit_scale")
        }
        arrays["weight"] = arrays.pop("weights")
        del arrays["start"]
        return _export.export(
            form,
            path,
            self.model,
            self.classnames,
            arrays,
            FORMULA,
            temperature=temperature,
            output=output,
        )

    def save(self, directory: Path) -> None:
        """Write the cache, the text features and the settings."""
        saved.save(directory, self._arrays(), {name: getattr(self, name) for name in FACTS})

    def _arrays(self) -> dict[str, NDArray[Any]]:
        names = ("keys", "labels", "value_weights", "channels", "weights", "start")
        return {name: getattr(self, name) for name in names}


def load(directory: Path, backbone: ImageTextModel) -> WeightedCacheClassifier:
    """Return the classifier saved in ``directory``."""
    facts = saved.load_facts(directory, FACTS)
    names, D = tuple(facts.pop("classnames")), backbone.embed_dim
    shapes: dict[str, tuple[int | None, ...]] = {
        "keys": (None, None),
        **dict.fromkeys(("labels", "value_weights", "channels"), (None,)),
        **dict.fromkeys(("weights", "start"), (len(names), D)),
    }
    facts |= saved.load_arrays(directory, shapes)
    return WeightedCacheClassifier(backbone, names, **facts)
