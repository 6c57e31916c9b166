"""GDA: Gaussian discriminant analysis on image features, added to the zero-shot classifier; nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
from pydantic import Field, PositiveFloat

from clipadapt.core.api.method import MethodConfig
from clipadapt.core.files import saved
from clipadapt.methods import _linear_head
from clipadapt.methods._linear_head import LinearHead
from clipadapt.methods._text import zero_shot_weights
from clipadapt.methods._training import nonempty
from clipadapt.methods._views import view_features
from clipadapt.models import ImageTextModel

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Split, Task
    from clipadapt.core.api.method import Exported, ScoreKind

    Wide = NDArray[np.float64]

BLOCK_BYTES: Final = 64 << 20
"""Maximum size of the scores of one block of examples."""
NO_VARIANCE: Final = 1e-12
"""Variance, relative to the squared length of the vectors, that the rounding of float32 features alone can cause."""


class GDAConfig(MethodConfig):
    """Hyperparameters of ``clip/gda``.

    Attributes:
        estimator: ``pooled``: one shrunk covariance of all vectors. ``per_class``: the pseudo-inverse of the mean of
            the classes' covariances, without shrinkage; the paper uses it for base-to-new, and classes without
            training examples are then estimated from their nearest training vectors.
        views: Number of random crops of each image, each of them a vector; 0 uses the image itself.
        smallest_crop: Minimum fraction of the image area in a crop.
        alpha: Weight of the discriminant scores without val.
        alphas: Values of ``alpha`` searched on val; empty for no search.
        logit_scale: Scale of the zero-shot logits.
        neighbours: Nearest training vectors of a new class.
        text_copies: Number of times that the text feature counts in the mean of a new class.
    """

    estimator: Literal["pooled", "per_class"] = "pooled"
    views: int = Field(default=10, ge=0, le=1000)
    smallest_crop: float = Field(default=0.5, gt=0, le=1)
    alpha: PositiveFloat = 1.0
    alphas: tuple[PositiveFloat, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    logit_scale: PositiveFloat = 100.0
    neighbours: int = Field(default=64, ge=1, le=100_000)
    text_copies: int = Field(default=16, ge=0, le=100_000)


class GDA:
    """``logits = scale f W_text + alpha (f W + b)`` with ``W = S^-1 mu`` and ``b = log(1/C) - mu S^-1 mu / 2``.

    If the vectors of each class are equal, as with one image per class, there is no covariance, and the classifier is
    zero-shot: ``W`` is zero.

    References:
        Z. Wang et al., "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation", ICLR 2024, sections 3.1 to
        3.3. arXiv:2402.04087
    """

    Config: ClassVar[type[MethodConfig]] = GDAConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = ImageTextModel

    def __init__(self, config: GDAConfig) -> None:
        self.config = config

    @property
    def open_vocabulary(self) -> bool:
        """Whether the classifiers accept other class names."""
        return self.config.estimator == "per_class"

    def fit(
        self, backbone: ImageTextModel, task: Task[Any], ctx: RunContext
    ) -> LinearHead | OpenGDA:
        """Estimate means and precision on ``task.train``; search ``alpha`` on ``task.val``."""
        config, C = self.config, len(task.classnames)
        train = task.require_train("gda")
        text = zero_shot_weights(backbone, task.classnames, task.templates)
        views = view_features(backbone, train.inputs, config.views, config.smallest_crop)
        bank = views.reshape(-1, views.shape[-1])  # (M, D)
        labels = np.tile(train.labels, len(views))
        means, centred = _means(bank, labels, C)
        estimate = _pooled if config.estimator == "pooled" else _per_class
        W, b = _discriminant(means, estimate(centred, labels, C, means, ctx))
        if ctx.observe:
            for name, value in {"means": means, "W": W, "b": b}.items():
                ctx.observe(name, value)
        alpha, selection = self._alpha(backbone, task.val, text, W, b, ctx)
        scale = config.logit_scale
        head = _head(backbone, task.classnames, text, W, b, alpha, scale, selection)
        return OpenGDA(head, bank, alpha, config) if self.open_vocabulary else head

    def load(self, directory: Path, backbone: ImageTextModel) -> LinearHead | OpenGDA:
        """Return the classifier saved in ``directory``."""
        if not self.open_vocabulary:
            return _linear_head.load(directory, backbone)
        head = _linear_head.load(directory / HEAD, backbone)
        alpha = float(saved.load_facts(directory, ("alpha",))["alpha"])
        bank = saved.load_arrays(directory, {"bank": (None, backbone.embed_dim)})["bank"]
        return OpenGDA(head, bank, alpha, self.config)

    def _alpha(
        self,
        model: ImageTextModel,
        val: Split[Any] | None,
        text: NDArray[np.float32],
        W: Wide,
        b: Wide,
        ctx: RunContext,
    ) -> tuple[float, dict[str, Any] | None]:
        """Return ``alpha`` and the selection of the record; the first best on val."""
        val, alphas = nonempty(val), self.config.alphas
        if val is None or not alphas:
            return self.config.alpha, None
        features = model.encode(val.inputs, "image")
        hits = np.zeros(len(alphas))
        step = max(1, BLOCK_BYTES // (8 * len(text)))
        for begin in range(0, len(val), step):
            x = features[begin : begin + step].astype(np.float64)
            base, added = self.config.logit_scale * x @ text.T, x @ W.T + b  # (m, C)
            y = val.labels[begin : begin + step]
            hits += [((base + a * added).argmax(axis=1) == y).sum() for a in alphas]
        accuracy = hits / len(val)
        best = int(accuracy.argmax())
        if ctx.observe:
            ctx.observe("grid", accuracy)
        by = f"val accuracy over alpha (alpha={alphas[best]:.4g})"
        return alphas[best], {"epoch": None, "by": by, "value": float(accuracy[best])}


HEAD: Final = "base"
"""Folder of the head of the training classes."""


def _head(
    model: ImageTextModel,
    classnames: tuple[str, ...],
    text: NDArray[np.float32],
    W: Wide,
    b: Wide,
    alpha: float,
    scale: float,
    selection: dict[str, Any] | None,
) -> LinearHead:
    weights = (text + alpha / scale * W).astype(np.float32)
    bias = (alpha * b).astype(np.float32)
    return LinearHead(model, classnames, weights, bias, text, scale, 0, selection)


def _means(
    bank: NDArray[np.float32], labels: NDArray[np.int64], n_classes: int
) -> tuple[Wide, Wide]:
    """Return the class means ``(C, D)`` and the vectors minus the mean of their class ``(M, D)``.

    A class without examples gets the mean of all vectors.
    """
    x = bank.astype(np.float64)
    counts = np.bincount(labels, minlength=n_classes)
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    means = np.tile(x.mean(axis=0), (n_classes, 1))
    means[counts > 0] = np.add.reduceat(x[order], starts) / counts[counts > 0, None]
    x -= means[labels]
    return means, x


def _pooled(centred: Wide, labels: NDArray[np.int64], C: int, means: Wide, ctx: RunContext) -> Wide:
    """Return ``P mu``, shape ``(C, D)``, with ``P = D ((M-1) S + tr(S) I)^-1``; zeros without variance."""
    del labels, C
    M, D = centred.shape
    scatter = centred.T @ centred  # (M - 1) S
    trace = float(np.trace(scatter)) / max(M - 1, 1)
    if ctx.observe:
        ctx.observe("cov", scatter / max(M - 1, 1))
    if _is_rounding(trace, means):
        if ctx.observe:
            ctx.observe("precision", np.zeros((D, D)))
        return np.zeros_like(means)
    scatter[np.diag_indices(D)] += trace
    if ctx.observe:
        ctx.observe("precision", D * _solve(scatter, np.eye(D)))
    projected: Wide = D * _solve(scatter, means.T).T
    return projected


def _is_rounding(variance: float, means: NDArray[Any]) -> bool:
    """Return whether a total variance is zero up to the rounding of vectors as long as ``means``, shape ``(C, D)``."""
    return variance <= NO_VARIANCE * float((means**2).sum(axis=1).max())


def _solve(matrix: Wide, right: Wide) -> Wide:
    """Solve a symmetric positive definite system by Cholesky."""
    from scipy.linalg import cho_factor, cho_solve

    solved: Wide = cho_solve(cho_factor(matrix, lower=True, check_finite=False), right)
    return solved


def _per_class(
    centred: Wide, labels: NDArray[np.int64], C: int, means: Wide, ctx: RunContext
) -> Wide:
    """Return ``P mu``, shape ``(C, D)``; ``P`` is the pseudo-inverse of the mean of the classes' covariances.

    A class with fewer than two vectors has no covariance and is left out. Without variance, ``P`` is zero.
    """
    counts = np.bincount(labels, minlength=C)
    used = counts > 1
    weight = np.where(used, 1.0 / np.maximum(counts - 1, 1), 0.0) / max(int(used.sum()), 1)
    mean = (centred * weight[labels, None]).T @ centred  # (D, D)
    values, vectors = np.linalg.eigh(mean)
    kept = values > len(values) * np.finfo(np.float32).eps * max(float(values[-1]), 0.0)
    kept &= not _is_rounding(float(np.trace(mean)), means)
    inverse = np.where(kept, 1.0 / np.where(kept, values, 1.0), 0.0)
    if ctx.observe:
        ctx.observe("cov", mean)
        ctx.observe("precision", (vectors * inverse) @ vectors.T)
    projected: Wide = ((means @ vectors) * inverse) @ vectors.T
    return projected


def _discriminant(means: Wide, projected: Wide) -> tuple[Wide, Wide]:
    """Return ``W = P mu`` of shape ``(C, D)`` and ``b`` of shape ``(C,)``, with equal priors."""
    return projected, -np.log(len(means)) - 0.5 * (means * projected).sum(axis=1)


@dataclass(frozen=True, slots=True)
class OpenGDA:
    """A head for the training classes, with the training vectors from which other classes are estimated.

    Attributes:
        head: The classifier of the training classes.
        bank: Image features of all views, shape ``(M, D)``.
        alpha: Weight of the discriminant scores, also for other classes.
        config: Settings of the estimate.
        score_kind: The scores are logits.
        export_formats: Those of the head.
    """

    head: LinearHead
    bank: NDArray[np.float32]
    alpha: float
    config: GDAConfig
    score_kind: ClassVar[ScoreKind] = "logit"
    export_formats: ClassVar[tuple[str, ...]] = LinearHead.export_formats

    @property
    def classnames(self) -> tuple[str, ...]:
        """Class names."""
        return self.head.classnames

    @property
    def n_trainable_params(self) -> int:
        """Always 0."""
        return self.head.n_trainable_params

    @property
    def selection(self) -> dict[str, Any] | None:
        """What was selected on val, or None."""
        return self.head.selection

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``."""
        return self.head.predict_scores(inputs)

    def zero_shot_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the scores of the prompts alone, shape ``(n, C)``."""
        return self.head.zero_shot_scores(inputs)

    def with_classnames(
        self, classnames: tuple[str, ...], templates: tuple[str, ...]
    ) -> LinearHead:
        """Estimate other classes from their text features and the training vectors nearest to these."""
        model, config = self.head.model, self.config
        text = zero_shot_weights(model, classnames, templates)
        means, near = synthesized(self.bank, text, config.neighbours, config.text_copies)
        W, b = _discriminant(means, _near_precision(self.bank, text, near, means.T).T)
        return _head(model, classnames, text, W, b, self.alpha, config.logit_scale, None)

    def export(
        self,
        form: str,
        path: Path,
        /,
        *,
        temperature: float | None = None,
        output: Path | None = None,
    ) -> Exported:
        """Write the head of the training classes; see :meth:`LinearHead.export`."""
        return self.head.export(form, path, temperature=temperature, output=output)

    def save(self, directory: Path) -> None:
        """Write the head and the training vectors."""
        self.head.save(directory / HEAD)
        saved.save(directory, {"bank": self.bank}, {"alpha": self.alpha})


def synthesized(
    bank: NDArray[np.float32], text: NDArray[np.float32], neighbours: int, copies: int
) -> tuple[Wide, NDArray[np.int64]]:
    """Return means ``(C, D)`` of classes without examples, and their nearest vectors ``(C, k)``.

    Args:
        bank: Training vectors, shape ``(M, D)``.
        text: Text features of the classes, shape ``(C, D)``.
        neighbours: ``k``, at most ``M``.
        copies: Number of times that the text feature counts in the mean.
    """
    k = min(neighbours, len(bank))
    near = np.empty((len(text), k), dtype=np.int64)
    means = np.empty(text.shape)
    step = max(1, BLOCK_BYTES // (4 * max(len(bank), k * text.shape[1])))
    for i in range(0, len(text), step):
        cosine = text[i : i + step] @ bank.T  # (c, M)
        near[i : i + step] = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        total = bank[near[i : i + step]].sum(axis=1, dtype=np.float64)
        means[i : i + step] = (total + copies * text[i : i + step]) / (k + copies)
    return means, near


def _near_precision(
    bank: NDArray[np.float32], text: NDArray[np.float32], near: NDArray[np.int64], right: Wide
) -> Wide:
    """Return ``P right``, where ``P`` is the mean over classes of ``D ((k-1) S + tr(S) I)^-1``.

    ``S`` is the covariance of the ``k`` nearest vectors of a class around its text feature ``t``. With the rows
    ``x - t`` in ``X (k, D)``, the inverse is ``(I - X^T (X X^T + r I)^-1 X) / r``: a ``(k, k)`` system per class.
    """
    from scipy.linalg import solve_triangular

    D, k = text.shape[1], near.shape[1]
    mean, diagonal = np.zeros((D, D)), 0.0
    for t, rows in zip(text, near, strict=True):
        X = bank[rows].astype(np.float64) - t
        gram = X @ X.T
        r = float(np.trace(gram)) / max(k - 1, 1)
        if _is_rounding(r, text):
            continue
        gram[np.diag_indices(k)] += r
        half = solve_triangular(np.linalg.cholesky(gram), X, lower=True, check_finite=False)
        mean -= half.T @ half / r
        diagonal += 1 / r
    mean[np.diag_indices(D)] += diagonal
    projected: Wide = D / len(text) * (mean @ right)
    return projected


METHOD = GDA
