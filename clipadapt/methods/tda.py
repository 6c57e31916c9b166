"""TDA: caches of test images that were seen before correct the zero-shot predictions; nothing is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, field_validator

from clipadapt.core.api.limits import OrderSeed
from clipadapt.core.api.method import MethodConfig
from clipadapt.core.files import saved
from clipadapt.methods import _test_views
from clipadapt.methods._text import zero_shot_weights
from clipadapt.models import ImageTextModel

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Task
    from clipadapt.core.api.method import ScoreKind, Setting

Observer = Callable[[str, Any], None]
BLOCK: Final = 256
"""Images whose final scores are computed together."""
CONFIDENT: Final = 0.1
"""Fraction of the views that are kept."""
LEAST_VIEWS: Final = 10
"""With fewer views, none would be kept."""


class TDAConfig(MethodConfig):
    """Hyperparameters of ``clip/tda``.

    Attributes:
        order_seed: Seed of the order in which the test images are seen; the result depends on it.
        capacity: Images per class in the positive cache; 0 is no such cache.
        alpha: Weight of the positive cache.
        beta: Sharpness of its affinities.
        negative_capacity: Images per class in the negative cache; 0 is no such cache.
        negative_alpha: Weight of the negative cache.
        negative_beta: Sharpness of its affinities.
        entropy_low: An image enters the negative cache if its entropy is above this. The unit is nats divided by
            log2 of the number of classes, so it is at most ln 2.
        entropy_high: And below this.
        mask_low: A class is negative for an image if its probability is above this.
        mask_high: And below this.
        views: Views of each image, the image itself included, of which the most confident tenth is kept; 0 uses the
            image alone.
        smallest_crop: Minimum fraction of the image area in a view.
        logit_scale: Scale of the cosine.
    """

    order_seed: OrderSeed = 1
    capacity: int = Field(default=3, ge=0, le=100_000)
    alpha: NonNegativeFloat = 2.0
    beta: NonNegativeFloat = 5.0
    negative_capacity: int = Field(default=2, ge=0, le=100_000)
    negative_alpha: NonNegativeFloat = 0.117
    negative_beta: NonNegativeFloat = 1.0
    entropy_low: float = 0.2
    entropy_high: float = 0.5
    mask_low: float = 0.03
    mask_high: float = 1.0
    views: int = Field(default=0, ge=0, le=1000)
    smallest_crop: float = Field(default=0.08, gt=0, le=1)
    logit_scale: PositiveFloat = 100.0

    @field_validator("views")
    @classmethod
    def _enough_views(cls, views: int) -> int:
        if 0 < views < LEAST_VIEWS:
            raise ValueError(
                f"a tenth of the views is kept, so use at least {LEAST_VIEWS}, or 0 for the image alone"
            )
        return views


class TDA:
    """Keep the most confident images of each predicted class in a cache, and uncertain ones in a negative cache.

    An image enters the caches before it is predicted. The caches are empty at the start of every call.

    References:
        A. Karmanov et al., "Efficient Test-Time Adaptation of Vision-Language Models", CVPR 2024, section 3.
        arXiv:2403.18293
    """

    Config: ClassVar[type[MethodConfig]] = TDAConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = ImageTextModel
    uses_train: ClassVar[bool] = False
    setting: ClassVar[Setting] = "online"

    def __init__(self, config: TDAConfig) -> None:
        self.config = config

    def fit(self, backbone: ImageTextModel, task: Task[Any], ctx: RunContext) -> TDAClassifier:
        """Encode the prompts; no example is used."""
        text = zero_shot_weights(backbone, task.classnames, task.templates)
        return TDAClassifier(backbone, task.classnames, text, self.config, ctx.observe)

    def load(self, directory: Path, backbone: ImageTextModel) -> TDAClassifier:
        """Return the classifier saved in ``directory``."""
        names = tuple(saved.load_facts(directory, ("classnames",))["classnames"])
        text = saved.load_arrays(directory, {"text": (None, backbone.embed_dim)})["text"]
        return TDAClassifier(backbone, names, text, self.config)


@dataclass(frozen=True, slots=True)
class TDAClassifier:
    """Zero-shot logits plus the votes of a positive cache, minus those of a negative one.

    Attributes:
        model: The backbone.
        classnames: ``C`` class names.
        text: Unit-norm text features, shape ``(C, D)``.
        config: The settings.
        observe: For reference tests, called with intermediate results.
        n_trainable_params: Always 0.
        score_kind: The scores are logits.
        export_reason: Why it has no export formats.
    """

    model: ImageTextModel
    classnames: tuple[str, ...]
    text: NDArray[np.float32]
    config: TDAConfig
    observe: Observer | None = field(default=None, compare=False, repr=False)
    n_trainable_params: ClassVar[int] = 0
    score_kind: ClassVar[ScoreKind] = "logit"
    export_reason: ClassVar[str] = (
        "its scores depend on the images before, which a graph does not keep"
    )

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``; each depends on the inputs before it, in their order."""
        config = self.config
        stream = _read(self.model, inputs, self.text, config)
        positive = _cache(stream, np.arange(len(inputs)), config.capacity)
        uncertain = np.flatnonzero(
            (stream.entropy_share > config.entropy_low)
            & (stream.entropy_share < config.entropy_high)
        )
        negative = _cache(stream, uncertain, config.negative_capacity)
        if self.observe:
            self.observe("entropy_share", stream.entropy_share)
            self.observe("positive", (positive, stream))
            self.observe("negative", (negative, stream))
        _add_votes(stream, positive, negative, config)
        return stream.logits

    def zero_shot_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the logits of the prompts without caches and views, shape ``(n, C)``."""
        return _logits(self.model.encode(inputs, "image"), self.text, self.config)

    def with_classnames(
        self, classnames: tuple[str, ...], templates: tuple[str, ...]
    ) -> TDAClassifier:
        """Return the classifier for other classes."""
        text = zero_shot_weights(self.model, classnames, templates)
        return TDAClassifier(self.model, classnames, text, self.config)

    def save(self, directory: Path) -> None:
        """Write the text features and the class names; the caches are not kept."""
        saved.save(directory, {"text": self.text}, {"classnames": self.classnames})


@dataclass(frozen=True, slots=True)
class _Stream:
    """What the caches need of each image; it does not depend on them.

    Attributes:
        features: Shape ``(n, D)``.
        logits: Zero-shot logits, to which the votes are added, shape ``(n, C)``.
        predicted: Zero-shot prediction, shape ``(n,)``.
        entropy: In nats, shape ``(n,)``.
        entropy_share: Entropy divided by log2 of the number of classes, float64, shape ``(n,)``.
        negative: Whether the probability of a class is between the bounds of the mask, shape ``(n, C)``.
    """

    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    predicted: NDArray[np.int64]
    entropy: NDArray[np.float32]
    entropy_share: NDArray[np.float64]
    negative: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Cache:
    """The images that were in a cache at some time, in the order in which they entered.

    Attributes:
        rows: Place of each in the stream, shape ``(M,)``.
        classes: Class under which it was stored, shape ``(M,)``.
        until: Place in the stream of the image that replaced it; the length of the stream if none did. Shape ``(M,)``.
    """

    rows: NDArray[np.int64]
    classes: NDArray[np.int64]
    until: NDArray[np.int64]

    def during(self, begin: int, end: int) -> NDArray[np.int64]:
        """Return the indices of the entries that are in the cache for some image of ``begin`` to ``end``."""
        return np.flatnonzero((self.rows < end) & (self.until > begin))


def _read(
    model: ImageTextModel, inputs: Inputs[Any], text: NDArray[np.float32], config: TDAConfig
) -> _Stream:
    """Encode a stream of images and predict each zero-shot."""
    n, (C, D) = len(inputs), text.shape
    stream = _Stream(
        np.empty((n, D), np.float32),
        np.empty((n, C), np.float32),
        np.empty(n, np.int64),
        np.empty(n, np.float32),
        np.empty(n, np.float64),
        np.empty((n, C), np.bool_),
    )
    views = max(config.views, 1)
    for rows, given in _test_views.blocks(model, inputs, views, config.smallest_crop, C):
        features = given.transpose(1, 0, 2)  # (V, b, D)
        logits = _logits(features, text, config)  # (V, b, C)
        log_p = _test_views.log_softmax(logits)
        if config.views:
            kept = max(1, int(len(features) * CONFIDENT))
            order = np.argsort(_test_views.entropy(log_p), axis=0, kind="stable")[
                :kept, :, None
            ]  # (k, b, 1)
            features, logits, log_p = (
                np.take_along_axis(x, order, axis=0) for x in (features, logits, log_p)
            )
        p = np.exp(log_p).mean(axis=0)  # (b, C)
        log_p = log_p[0] if len(log_p) == 1 else np.log(np.maximum(p, np.finfo(np.float32).tiny))
        stream.features[rows] = features.mean(axis=0)
        stream.logits[rows] = logits.mean(axis=0)
        stream.predicted[rows] = stream.logits[rows].argmax(axis=1)
        stream.entropy[rows] = _test_views.entropy(log_p)
        stream.negative[rows] = (p > config.mask_low) & (p < config.mask_high)
    stream.entropy_share[:] = stream.entropy / np.float64(max(np.log2(C), 1e-12))
    return stream


def _cache(stream: _Stream, candidates: NDArray[np.int64], capacity: int) -> _Cache:
    """Let candidates enter a cache one after another, each under its predicted class.

    A full class keeps the images of lowest entropy: a candidate replaces the one of highest entropy if its own is
    lower. Of equal ones, the last that entered is replaced.
    """
    until: list[int] = []
    entered: list[int] = []
    slots: dict[int, list[tuple[float, int]]] = {}  # class -> (entropy, number in entered)
    for row in candidates.tolist() if capacity else ():
        held = slots.setdefault(int(stream.predicted[row]), [])
        entry = (float(stream.entropy[row]), len(entered))
        if len(held) == capacity:
            highest = max(held)
            if not entry[0] < highest[0]:
                continue
            until[highest[1]] = row
            held.remove(highest)
        held.append(entry)
        entered.append(row)
        until.append(len(stream.entropy))
    rows = np.array(entered, dtype=np.int64)
    return _Cache(rows, stream.predicted[rows], np.array(until, dtype=np.int64))


def _add_votes(stream: _Stream, positive: _Cache, negative: _Cache, config: TDAConfig) -> None:
    """Add the votes of the caches to the logits of a stream, in place.

    The contents of the caches at every time are known, so the votes of a block of images are matrix products over the
    entries that are in a cache at some time of the block.
    """
    n = len(stream.logits)
    for begin in range(0, n, BLOCK):
        end = min(begin + BLOCK, n)
        if len(here := positive.during(begin, end)):
            votes = config.alpha * _affinities(stream, positive, here, begin, end, config.beta)
            order = np.argsort(positive.classes[here], kind="stable")
            classes, starts = np.unique(positive.classes[here][order], return_index=True)
            stream.logits[begin:end, classes] += np.add.reduceat(votes[:, order], starts, axis=1)
        if len(here := negative.during(begin, end)):
            votes = _affinities(stream, negative, here, begin, end, config.negative_beta)
            mask = stream.negative[negative.rows[here]].astype(np.float32)  # (m, C)
            stream.logits[begin:end] -= config.negative_alpha * (votes @ mask)


def _affinities(
    stream: _Stream,
    cache: _Cache,
    here: NDArray[np.int64],
    begin: int,
    end: int,
    beta: float,
) -> NDArray[np.float32]:
    """Return ``exp(-beta (1 - x k))`` of images and entries, 0 while an entry is not in the cache, ``(b, m)``."""
    rows = cache.rows[here]
    cosine = stream.features[begin:end] @ stream.features[rows].T  # (b, m)
    votes: NDArray[np.float32] = np.exp(np.float32(beta) * (cosine - np.float32(1)))
    now = np.arange(begin, end)[:, None]
    votes[(now < rows) | (now >= cache.until[here])] = 0
    return votes


def _logits(
    features: NDArray[np.float32], text: NDArray[np.float32], config: TDAConfig
) -> NDArray[np.float32]:
    return np.float32(config.logit_scale) * (features @ text.T)


METHOD = TDA
