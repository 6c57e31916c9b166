"""TransCLIP: all test images are assigned to classes together, by a Gaussian mixture tied to the text predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

import numpy as np
from pydantic import Field, PositiveFloat

from clipadapt.core.api.method import MethodConfig
from clipadapt.core.files import saved
from clipadapt.methods._images import tensor
from clipadapt.methods._text import zero_shot_weights
from clipadapt.methods._training import nonempty
from clipadapt.models import ImageTextModel

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray
    from scipy.sparse import csr_array

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Task
    from clipadapt.core.api.method import ScoreKind, Setting

Alignment = Literal["corrected", "published"]
Observer = Callable[[str, Any], None]
BLOCK_BYTES: Final = 64 << 20
"""Maximum size of the similarities of one block in the search for neighbours."""
LEAST_VARIANCE: Final = 1e-6
"""Smallest variance of a dimension, as a fraction of the initial one; with one image it would be 0."""


class TransCLIPConfig(MethodConfig):
    """Hyperparameters of ``clip/transclip``.

    Attributes:
        few_shot: Use the training examples; without them, the method is zero-shot.
        alignment: ``corrected`` couples each image with its own neighbours. ``published`` does what the official
            code does with training examples: it stacks the neighbours of the training examples above those of the
            test images but the assignments the other way round, which couples the wrong rows.
        n_neighbors: Neighbours of each example among the test images.
        iterations: Updates of means and variances.
        inner_iterations: Updates of the assignments before each of them, and at the end.
        text_weight: Weight of the text predictions, lambda in the paper; None is 0.5 with training examples and 1
            without.
        gammas: Weights of the training examples, tried in this order, each from the result of the one before; the
            first with the best val accuracy is kept.
        gamma: Weight of the training examples without val.
        n_confident: Most confident images per class whose mean is the class's first mean, without training examples.
        temperature: The likelihood of the mixture is divided by it.
        logit_scale: Scale of the cosine in the text predictions.
    """

    few_shot: bool = True
    alignment: Alignment = "corrected"
    n_neighbors: int = Field(default=3, ge=1, le=1000)
    iterations: int = Field(default=10, ge=0, le=1000)
    inner_iterations: int = Field(default=5, ge=1, le=1000)
    text_weight: PositiveFloat | None = None
    gammas: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.002, 0.01, 0.02, 0.2)
    gamma: PositiveFloat = 0.02
    n_confident: int = Field(default=8, ge=1, le=1000)
    temperature: PositiveFloat = 50.0
    logit_scale: PositiveFloat = 100.0


class TransCLIP:
    """Alternate the assignments of all test images and the means and the variance of a Gaussian mixture.

    An assignment balances the likelihood under the mixture, agreement with nearest neighbours, and the text
    predictions. With training examples, these take part in means, variance and neighbours.

    References:
        M. Zanella, B. Gérin and I. Ben Ayed, "Boosting Vision-Language Models with Transduction", NeurIPS 2024,
        section 3 and Algorithm 1. arXiv:2406.01837
    """

    Config: ClassVar[type[MethodConfig]] = TransCLIPConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = ImageTextModel
    setting: ClassVar[Setting] = "transductive"

    def __init__(self, config: TransCLIPConfig) -> None:
        self.config = config

    @property
    def uses_train(self) -> bool:
        """Whether the training examples are used."""
        return self.config.few_shot

    @property
    def open_vocabulary(self) -> bool:
        """Without training examples, any classes can be predicted."""
        return not self.config.few_shot

    def fit(
        self, backbone: ImageTextModel, task: Task[Any], ctx: RunContext
    ) -> TransCLIPClassifier | FewShotTransCLIPClassifier:
        """Encode the prompts and, with ``few_shot``, train and val; the rest needs the test images."""
        text = zero_shot_weights(backbone, task.classnames, task.templates)
        text = ctx.initial("prototypes", text)
        if not self.config.few_shot:
            return TransCLIPClassifier(backbone, task.classnames, text, self.config, ctx.observe)
        train, val = task.require_train("transclip with few_shot=true"), nonempty(task.val)
        features = backbone.encode(train.inputs, "image")
        shots = Shots(features, train.labels, np.empty((0, features.shape[1]), np.float32),
                      np.empty(0, np.int64))  # fmt: skip
        if val is not None:
            val_features = backbone.encode(val.inputs, "image")
            shots = Shots(features, train.labels, val_features, val.labels)
        return FewShotTransCLIPClassifier(
            backbone, task.classnames, text, self.config, shots, ctx.observe
        )

    def load(
        self, directory: Path, backbone: ImageTextModel
    ) -> TransCLIPClassifier | FewShotTransCLIPClassifier:
        """Return the classifier saved in ``directory``."""
        names = tuple(saved.load_facts(directory, ("classnames",))["classnames"])
        D = (None, backbone.embed_dim)
        if not self.config.few_shot:
            text = saved.load_arrays(directory, {"text": D})["text"]
            return TransCLIPClassifier(backbone, names, text, self.config)
        shapes = {"text": D, "features": D, "labels": (None,), "val_features": D}
        arrays = saved.load_arrays(directory, shapes | {"val_labels": (None,)})
        text = arrays.pop("text")
        return FewShotTransCLIPClassifier(backbone, names, text, self.config, Shots(**arrays))


@dataclass(frozen=True, slots=True)
class Shots:
    """Features of the training and validation examples, unit norm.

    Attributes:
        features: Of train, shape ``(N, D)``.
        labels: Shape ``(N,)``.
        val_features: Of val, shape ``(M, D)``; ``M`` may be 0.
        val_labels: Shape ``(M,)``.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    val_features: NDArray[np.float32]
    val_labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TransCLIPClassifier:
    """Assign all inputs of a call together, without training examples.

    Attributes:
        model: The backbone.
        classnames: ``C`` class names; their number never depends on labels.
        text: Unit-norm text features, shape ``(C, D)``.
        config: The settings.
        observe: For reference tests, called with intermediate results.
        n_trainable_params: Always 0.
        score_kind: The scores are logarithms of the assignments, and so logits.
        export_reason: Why it has no export formats.
    """

    model: ImageTextModel
    classnames: tuple[str, ...]
    text: NDArray[np.float32]
    config: TransCLIPConfig
    observe: Observer | None = field(default=None, compare=False, repr=False)
    n_trainable_params: ClassVar[int] = 0
    score_kind: ClassVar[ScoreKind] = "logit"
    export_reason: ClassVar[str] = (
        "it assigns all images of a call together, in a loop that a graph does not have"
    )

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the logarithms of the assignments, shape ``(n, C)``; they depend on all inputs."""
        return self.refine(inputs, self.zero_shot_scores(inputs))

    def refine(self, inputs: Inputs[Any], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the scores with the logits ``(n, C)`` of another classifier in place of the text predictions."""
        queries = tensor(self.model.encode(inputs, "image"))  # (n, D)
        if not len(queries):
            return scores
        solver = _Solver(queries, tensor(scores), self.config, self.observe)
        return solver.solve(gamma=0.0).numpy()

    def zero_shot_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the logits of the prompts, shape ``(n, C)``."""
        return _text_logits(self.model, inputs, self.text, self.config)

    def with_classnames(
        self, classnames: tuple[str, ...], templates: tuple[str, ...]
    ) -> TransCLIPClassifier:
        """Return the classifier for other classes."""
        text = zero_shot_weights(self.model, classnames, templates)
        return TransCLIPClassifier(self.model, classnames, text, self.config)

    def save(self, directory: Path) -> None:
        """Write the text features and the class names."""
        saved.save(directory, {"text": self.text}, {"classnames": self.classnames})


@dataclass(frozen=True, slots=True)
class FewShotTransCLIPClassifier:
    """Assign all inputs of a call together, with training examples.

    The weight ``gamma`` of the training examples is selected in every call: a validation example is predicted as its
    nearest input is. On val itself, as in the fit of the softmax temperature, that input is the example.

    Attributes:
        model: The backbone.
        classnames: ``C`` class names; their number never depends on labels.
        text: Unit-norm text features, shape ``(C, D)``.
        config: The settings.
        shots: Features of train and val.
        observe: For reference tests, called with intermediate results.
        n_trainable_params: Always 0.
        score_kind: The scores are logarithms of the assignments, and so logits.
        export_reason: Why it has no export formats.
    """

    model: ImageTextModel
    classnames: tuple[str, ...]
    text: NDArray[np.float32]
    config: TransCLIPConfig
    shots: Shots
    observe: Observer | None = field(default=None, compare=False, repr=False)
    n_trainable_params: ClassVar[int] = 0
    score_kind: ClassVar[ScoreKind] = "logit"
    export_reason: ClassVar[str] = (
        "it assigns all images of a call together, in a loop that a graph does not have"
    )

    @property
    def selection(self) -> dict[str, Any] | None:
        """What is selected on val; the value differs between calls and is not recorded."""
        if not len(self.shots.val_labels):
            return None
        by = "val accuracy over gamma, in each evaluation"
        return {"epoch": None, "by": by, "value": None}

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the logarithms of the assignments, shape ``(n, C)``; they depend on all inputs."""
        return self.refine(inputs, self.zero_shot_scores(inputs))

    def refine(self, inputs: Inputs[Any], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the scores with the logits ``(n, C)`` of another classifier in place of the text predictions."""
        queries = tensor(self.model.encode(inputs, "image"))  # (n, D)
        if not len(queries):
            return scores
        shots = self.shots
        solver = _Solver(queries, tensor(scores), self.config, self.observe, self.text, shots)
        if not len(shots.val_labels):
            return solver.solve(self.config.gamma).numpy()
        nearest = _nearest(tensor(shots.val_features), queries)  # (M,)
        if self.observe:
            self.observe("val_neighbors", nearest)
        best, most = None, 0.0
        for gamma in self.config.gammas:
            found = solver.solve(gamma)
            predicted = found.argmax(dim=1)[nearest].numpy()
            accuracy = float((predicted == shots.val_labels).mean())
            if self.observe:
                self.observe("val_accuracy", accuracy)
            if best is None or accuracy > most:
                best, most = found, accuracy
        assert best is not None
        return best.numpy()

    def zero_shot_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the logits of the prompts, shape ``(n, C)``."""
        return _text_logits(self.model, inputs, self.text, self.config)

    def save(self, directory: Path) -> None:
        """Write the text features, the features and labels of train and val, and the class names."""
        shots = self.shots
        arrays: dict[str, NDArray[Any]] = {
            "text": self.text,
            "features": shots.features,
            "labels": shots.labels,
            "val_features": shots.val_features,
            "val_labels": shots.val_labels,
        }
        saved.save(directory, arrays, {"classnames": self.classnames})


class _Solver:
    """The state of one call: assignments, means and variance."""

    def __init__(
        self,
        queries: torch.Tensor,
        scores: torch.Tensor,
        config: TransCLIPConfig,
        observe: Observer | None = None,
        text: NDArray[np.float32] | None = None,
        shots: Shots | None = None,
    ) -> None:
        """Compute the neighbours and the initial values.

        Args:
            queries: Unit-norm features of the inputs, shape ``(Q, D)``.
            scores: Logits of the text predictions, shape ``(Q, C)``.
            config: The settings.
            observe: Called with intermediate results.
            text: Text features, the means of classes without a training example, shape ``(C, D)``.
            shots: Training examples, or None.
        """
        import torch

        self.queries, self.config, self.observe = queries, config, observe
        self.prior = torch.log_softmax(scores, dim=1)  # (Q, C)
        self.logits = self.prior
        self.z = self.prior.exp()
        (Q, C), D = scores.shape, queries.shape[1]
        self.weight = config.text_weight or (1.0 if shots is None else 0.5)
        self.shots = None if shots is None else tensor(shots.features)
        self.squares = queries.double().square().mean(dim=0)  # (D,)
        if shots is None or self.shots is None:
            self.mu = self._confident_means()
        else:
            assert text is not None
            self.labels = torch.from_numpy(shots.labels)
            self.sums = torch.zeros(C, D).index_add(0, self.labels, self.shots)
            self.counts = torch.bincount(self.labels, minlength=C).double()
            self.mu = _unit(self.sums, tensor(text))
            self.shot_squares = self.shots.double().square().mean(dim=0)
        self.var = torch.full((D,), 1 / D)
        self._couple(Q, C)
        self._saw("mu_init", self.mu)
        self._saw("z_init", self.z)

    def _confident_means(self) -> torch.Tensor:
        """Return the weighted mean of the images most confidently assigned to each class, unit norm, ``(C, D)``."""
        import torch

        n = min(self.config.n_confident, len(self.z))
        values, rows = self.z.topk(n, dim=0)  # (n, C)
        sums = torch.zeros(self.z.shape[1], self.queries.shape[1])
        for z, row in zip(values, rows, strict=True):  # one image of every class at a time
            sums += z[:, None] * self.queries[row]
        return _unit(sums, self.queries[rows[0]])

    def _couple(self, Q: int, C: int) -> None:
        """Compute the coupling of the assignments: sparse ``(Q, Q)``, and a constant ``(Q, C)`` of the labels."""
        from scipy.sparse import csr_array, vstack

        rows = self.queries
        parts = [_neighbors(rows, self.queries, self.config.n_neighbors)]
        if self.shots is not None:
            parts.append(_neighbors(self.shots, self.queries, self.config.n_neighbors))
            if self.config.alignment == "published":
                parts.reverse()
        W = csr_array(vstack(parts))  # (Q, Q) or (Q + N, Q)
        self._saw("affinity", W)
        own = W[:Q]
        # Of the official factor temperature / (2 n_neighbors), the temperature cancels.
        share = np.float32(1 / (2 * self.config.n_neighbors))
        self.coupling: csr_array = csr_array(share * (own + own.T))
        self.constant: torch.Tensor | float = 0.0
        if self.shots is not None:
            n = len(self.labels)
            ones = np.ones(n, dtype=np.float32)
            one_hot = csr_array((ones, (np.arange(n), self.labels.numpy())), shape=(n, C))
            self.constant = tensor((share * (W[Q:].T @ one_hot)).toarray())

    def solve(self, gamma: float) -> torch.Tensor:
        """Iterate from the current state; return the logarithms of the assignments, shape ``(Q, C)``."""
        for k in range(self.config.iterations + 1):
            self._assign()
            self._saw("z", self.z)
            if k < self.config.iterations:
                self._move(gamma * self.config.temperature)
                self._saw("mu", self.mu)
                self._saw("var", self.var)
        return self.logits.log_softmax(dim=1)

    def _assign(self) -> None:
        """Update the assignments, with means and variance fixed."""
        config = self.config
        # Terms that are equal for all classes of an image are left out: they cancel in the normalization.
        scaled = self.mu / self.var  # (C, D)
        fit = self.queries @ scaled.T - (0.5 * self.mu * scaled).sum(dim=1)  # (Q, C)
        fit = self.weight * self.prior + fit / config.temperature + self.constant
        for _ in range(config.inner_iterations):
            self.logits = tensor(self.coupling @ self.z.numpy()).add_(fit)
            self.z = self.logits.softmax(dim=1)

    def _move(self, g: float) -> None:
        """Update means and variance, with the assignments fixed; the training examples have the weight ``g``."""
        sums = (self.z.T @ self.queries).double() / len(self.z)  # (C, D)
        weights = self.z.sum(dim=0).double() / len(self.z)  # (C,)
        squares = self.squares
        if self.shots is not None:
            sums += g / len(self.shots) * self.sums.double()
            weights += g / len(self.shots) * self.counts
            squares = squares + g * self.shot_squares
        self.mu = _unit(sums, self.mu.double()).float()
        mu = self.mu.double()
        spread = squares - 2 * (mu * sums).sum(dim=0) + weights @ mu.square()  # (D,)
        least = LEAST_VARIANCE / len(spread)
        self.var = (spread / weights.sum()).clamp_min(least).float()

    def _saw(self, name: str, value: Any) -> None:
        if self.observe:
            self.observe(name, value)


def _neighbors(rows: torch.Tensor, queries: torch.Tensor, k: int) -> csr_array:
    """Return the similarities of each row to the queries ranked 2 to ``k + 1``, as a sparse ``(R, Q)`` array.

    The query ranked first is taken to be the row itself. Nothing of size ``R * Q`` is kept.
    """
    from scipy.sparse import csr_array

    (R, Q), k = (len(rows), len(queries)), min(k, len(queries) - 1)
    values, columns = np.empty((R, k), np.float32), np.empty((R, k), np.int64)
    step = max(1, BLOCK_BYTES // (4 * Q))
    for begin in range(0, R, step):
        top = (rows[begin : begin + step] @ queries.T).topk(k + 1, dim=1)
        values[begin : begin + step] = top.values[:, 1:].numpy()
        columns[begin : begin + step] = top.indices[:, 1:].numpy()
    starts = np.arange(0, R * k + 1, k) if k else np.zeros(R + 1, np.int64)
    return csr_array((values.ravel(), columns.ravel(), starts), shape=(R, Q))


def _nearest(rows: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Return the index of the query nearest to each row, shape ``(R,)``."""
    import torch

    step = max(1, BLOCK_BYTES // (4 * len(queries)))
    return torch.cat([(block @ queries.T).argmax(dim=1) for block in rows.split(step)])


def _unit(sums: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    """Return unit-norm rows; a row of zeros is replaced by that of ``otherwise``."""
    norm: torch.Tensor = sums.square().sum(dim=1, keepdim=True).sqrt()
    return (sums / norm).where(norm > 0, otherwise)


def _text_logits(
    model: ImageTextModel,
    inputs: Inputs[Any],
    text: NDArray[np.float32],
    config: TransCLIPConfig,
) -> NDArray[np.float32]:
    return np.float32(config.logit_scale) * (model.encode(inputs, "image") @ text.T)


METHOD = TransCLIP
