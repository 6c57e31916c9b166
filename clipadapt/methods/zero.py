"""ZERO: a vote of the random crops on which zero-shot classification is most confident."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field, PositiveFloat

from clipadapt.core.api.method import MethodConfig
from clipadapt.core.files import saved
from clipadapt.methods import _test_views
from clipadapt.methods._text import cosine_scores, zero_shot_weights
from clipadapt.models import ImageTextModel

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Task
    from clipadapt.core.api.method import ScoreKind


class ZeroConfig(MethodConfig):
    """Hyperparameters of ``clip/zero``.

    Attributes:
        views: Number of views of each test image: the image itself and random crops.
        gamma: Share of the views that vote.
        temperature: Temperature of the probabilities from which the entropy is computed; None uses that of the model.
        smallest_crop: Minimum fraction of the image area in a crop.
    """

    views: int = Field(default=64, gt=0, le=10_000)
    gamma: float = Field(default=0.3, gt=0, le=1)
    temperature: PositiveFloat | None = None
    smallest_crop: float = Field(default=0.08, gt=0, le=1)

    def check(self, task: Task[Any]) -> None:  # noqa: ARG002
        """Check that at least one view votes."""
        _test_views.n_confident(self.views, self.gamma, "gamma")


class Zero:
    """Majority vote of the views of lowest entropy; each image is treated alone.

    References:
        M. Farina et al., "Frustratingly Easy Test-Time Adaptation of Vision-Language Models", NeurIPS 2024,
        section 3.3. arXiv:2405.18330
    """

    Config: ClassVar[type[MethodConfig]] = ZeroConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = ImageTextModel
    uses_train: ClassVar[bool] = False

    def __init__(self, config: ZeroConfig) -> None:
        self.config = config

    def fit(self, backbone: ImageTextModel, task: Task[Any], ctx: RunContext) -> ZeroClassifier:
        """Embed the class names; no example is used.

        Raises:
            ConfigError: If no view would vote.
        """
        self.config.check(task)
        weights = zero_shot_weights(backbone, task.classnames, task.templates)
        weights = ctx.initial("weights", weights)
        return ZeroClassifier(backbone, task.classnames, weights, self.config)

    def load(self, directory: Path, backbone: ImageTextModel) -> ZeroClassifier:
        """Return the classifier saved in ``directory``."""
        facts = saved.load_facts(directory, ("classnames",))
        arrays = saved.load_arrays(directory, {"weights": (None, backbone.embed_dim)})
        return ZeroClassifier(backbone, tuple(facts["classnames"]), arrays["weights"], self.config)


@dataclass(frozen=True, slots=True)
class Votes:
    """The votes of some images.

    Attributes:
        logits: Cosines of all views divided by the temperature, shape ``(b, V, C)``.
        entropy: Entropy of each view in nats, shape ``(b, V)``.
        confident: The views that vote, by entropy, shape ``(b, k)``.
        counts: Votes per class; the class that won a tie has one more, shape ``(b, C)``.
        tie: Whether a tie was broken, shape ``(b,)``.
    """

    logits: NDArray[np.float32]
    entropy: NDArray[np.float32]
    confident: NDArray[np.int64]
    counts: NDArray[np.float32]
    tie: NDArray[np.bool_]


def vote(logits: NDArray[np.float32], kept: int) -> Votes:
    """Let the ``kept`` views of lowest entropy vote for their best class.

    Of classes with equally many votes, the one wins that the most confident of the other views chooses; if none of
    them chooses one of these classes, the first does.

    Args:
        logits: Logits of all views, shape ``(b, V, C)``.
        kept: Number of views that vote.
    """
    b, _, C = logits.shape
    entropy = _test_views.entropy(_test_views.log_softmax(logits))
    order = np.argsort(entropy, axis=1, kind="stable")  # (b, V)
    choices = np.take_along_axis(
        logits.argmax(axis=2), order, axis=1
    )  # (b, V), most confident first
    counts = np.zeros((b, C), dtype=np.float32)
    np.add.at(counts, (np.arange(b)[:, None], choices[:, :kept]), 1)
    tied = counts == counts.max(axis=1, keepdims=True)  # (b, C)
    tie = tied.sum(axis=1) > 1
    for i in np.flatnonzero(tie):
        deciding = [c for c in choices[i, kept:] if tied[i, c]]
        if deciding:
            counts[i, deciding[0]] += 1
    return Votes(logits, entropy, order[:, :kept], counts, tie)


@dataclass(frozen=True, slots=True)
class ZeroClassifier:
    """Votes of the confident views of each image.

    Attributes:
        model: The backbone that encodes images.
        classnames: ``C`` class names.
        weights: Unit-norm text embeddings, shape ``(C, D)``.
        config: Number of views and share of the votes.
        n_trainable_params: Always 0.
        score_kind: The scores are numbers of votes.
        export_reason: Why it has no export formats.
    """

    model: ImageTextModel
    classnames: tuple[str, ...]
    weights: NDArray[np.float32]
    config: ZeroConfig
    n_trainable_params: ClassVar[int] = 0
    score_kind: ClassVar[ScoreKind] = "margin"
    export_reason: ClassVar[str] = "it draws random views of each image, and a graph takes one"

    def votes(self, features: NDArray[np.float32]) -> Votes:
        """Let the views of some images vote.

        Args:
            features: Unit-norm features of all views, shape ``(b, V, D)``.
        """
        config = self.config
        scale = self.model.logit_scale if config.temperature is None else 1 / config.temperature
        logits = np.float32(scale) * (features @ self.weights.T)  # (b, V, C)
        kept = _test_views.n_confident(features.shape[1], config.gamma, "gamma")
        return vote(logits, kept)

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the number of votes for each class, shape ``(n, C)``."""
        config, C = self.config, len(self.classnames)
        out = np.zeros((len(inputs), C), dtype=np.float32)
        for rows, features in _test_views.blocks(
            self.model, inputs, config.views, config.smallest_crop, C
        ):
            out[rows] = self.votes(features).counts
        return out

    def zero_shot_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the scores of the images without crops, shape ``(n, C)``."""
        return cosine_scores(self.model, inputs, self.weights)

    def with_classnames(
        self, classnames: tuple[str, ...], templates: tuple[str, ...]
    ) -> ZeroClassifier:
        """Return a classifier for other classes."""
        weights = zero_shot_weights(self.model, classnames, templates)
        return ZeroClassifier(self.model, tuple(classnames), weights, self.config)

    def save(self, directory: Path) -> None:
        """Write the text embeddings and the class names."""
        saved.save(directory, {"weights": self.weights}, {"classnames": self.classnames})


METHOD = Zero
