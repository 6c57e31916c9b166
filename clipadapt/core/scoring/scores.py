"""Scores of labelled examples, and what is computed from them in float64: ranks, probabilities, losses.

The predicted class is the one with the largest score. Among equal scores the first index wins, in top-k as in top-1,
so a result never depends on a sort. Scores are processed in blocks of rows: for any ``n`` and ``C``, no second array
of their size is allocated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from clipadapt.core.api.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

BLOCK: Final = 1 << 20
"""Number of scores held in float64 at a time, 8 MiB."""
_F = TypeVar("_F", bound=np.floating[Any])


@dataclass(frozen=True, eq=False)
class LabelledScores:
    """Scores of labelled examples: everything a metric may read.

    Predictions of very large splits are stored in a short form, which keeps only the best scores of each example.
    A property that needs more than was kept is None.

    Attributes:
        labels: Class indices, shape ``(n,)``.
        scores: Shape ``(n, C)``; in the short form the best ``k`` of each example, descending.
        temperature: Softmax temperature of the probabilities.
        classes: Short form: class of each score kept, shape ``(n, k)``.
        label_scores: Short form: score of the label, shape ``(n,)``.
        logsumexp: Short form: logsumexp over all ``C`` scores, shape ``(n,)``.
        sigmoid: Whether the probability of each class is a sigmoid of its own score, not a softmax.
        set_threshold: Largest value of one minus the probability of a class in a prediction set, or None.
    """

    labels: NDArray[np.int64]
    scores: NDArray[Any]
    temperature: float = 1.0
    classes: NDArray[np.int32] | None = None
    label_scores: NDArray[np.float32] | None = None
    logsumexp: NDArray[np.float32] | None = None
    sigmoid: bool = False
    set_threshold: float | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """Class of the highest score, the first of equal ones, shape ``(n,)``."""
        if self.classes is not None:
            return self.classes[:, 0].astype(np.int64)
        best: NDArray[np.int64] = self.scores.argmax(axis=1)
        return best

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the predicted class is the label, shape ``(n,)``."""
        correct: NDArray[np.bool_] = self.predicted == self.labels
        return correct

    @cached_property
    def class_counts(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
        """Support, predictions and hits of each class up to the last one that occurs; see :func:`class_counts`."""
        n_classes = int(max(self.predicted.max(), self.labels.max())) + 1
        return class_counts(self.predicted, self.labels, n_classes)

    def in_top(self, k: int) -> NDArray[np.bool_]:
        """Return whether the label of each example is among the ``k`` largest scores, shape ``(n,)``."""
        if self.classes is not None:
            kept: NDArray[np.bool_] = (self.classes[:, :k] == self.labels[:, None]).any(axis=1)
            return kept
        return _ranks(self.scores, self.labels) < k

    @property
    def losses(self) -> NDArray[np.float64] | None:
        """Negative log-likelihood of each example in nats, summed over classes for sigmoids, shape ``(n,)``."""
        if self.logsumexp is None or self.label_scores is None:
            return self._proper_scores[0]
        if self.temperature != 1 or self.sigmoid:
            return None
        return self.logsumexp.astype(np.float64) - self.label_scores

    @property
    def squared_errors(self) -> NDArray[np.float64] | None:
        """Squared error of the probabilities of each example, summed over classes, shape ``(n,)``."""
        return self._proper_scores[1] if self.logsumexp is None else None

    @property
    def confidence(self) -> NDArray[np.float64] | None:
        """Probability of the predicted class, shape ``(n,)``."""
        if self.logsumexp is None:
            return self._proper_scores[2]
        best: NDArray[np.float64] = self.scores[:, 0].astype(np.float64)
        if self.sigmoid:
            return _sigmoid(best / self.temperature)
        if self.temperature != 1:
            return None
        return np.exp(best - self.logsumexp)

    @cached_property
    def sets(self) -> tuple[NDArray[np.bool_], NDArray[np.int64]] | None:
        """Whether the prediction set contains the label, and its size, shape ``(n,)`` each; None without a threshold.

        See :mod:`~clipadapt.core.scoring.prediction_sets`; the score is ``lac``.
        """
        if self.set_threshold is None or self.classes is not None:
            return None
        covered, sizes = np.empty(len(self), dtype=np.bool_), np.empty(len(self), dtype=np.int64)
        for rows in blocks(self.scores):
            z = self.scores[rows].astype(np.float64)
            inside = (
                1 - probabilities(z, self.temperature, sigmoid=self.sigmoid) <= self.set_threshold
            )
            covered[rows] = inside[np.arange(len(z)), self.labels[rows]]
            sizes[rows] = inside.sum(axis=1)
        return covered, sizes

    @cached_property
    def _proper_scores(
        self,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        return proper_scores(self.scores, self.labels, self.temperature, sigmoid=self.sigmoid)


def probabilities(
    scores: NDArray[_F], temperature: float = 1.0, *, sigmoid: bool = False
) -> NDArray[_F]:
    """Return the probability of each class, shape ``(n, C)``, in the dtype of the scores.

    Args:
        scores: Shape ``(n, C)``.
        temperature: Divisor of the scores.
        sigmoid: One sigmoid per class, which need not sum to 1, instead of a softmax.

    Raises:
        ValueError: If the temperature is not positive.

    References:
        X. Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023. arXiv:2303.15343
    """
    if not sigmoid:
        return softmax(scores, temperature)
    found = np.empty_like(scores)
    for rows in blocks(scores):
        found[rows] = _sigmoid(_divided(scores[rows], temperature))
    return found


def _sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``1 / (1 + exp(-z))`` without overflow."""
    found: NDArray[np.float64] = np.exp(-np.logaddexp(0, -z))
    return found


def softmax(scores: NDArray[_F], temperature: float = 1.0) -> NDArray[_F]:
    """Return ``exp(scores / temperature)`` with rows of sum 1, shape ``(n, C)``, in the dtype of the scores.

    Raises:
        ValueError: If the temperature is not positive.
    """
    probabilities = np.empty_like(scores)
    for rows in blocks(scores):
        z = _shifted(scores[rows], temperature)
        np.exp(z, out=z)
        z /= z.sum(axis=1, keepdims=True)
        probabilities[rows] = z
    return probabilities


def topk_accuracy(scores: NDArray[Any], labels: NDArray[np.int64], k: int) -> float:
    """Return the fraction of examples whose label is among the ``k`` largest scores.

    Equal scores are ranked by class index, lowest first. With ``k >= C`` the result is 1.

    Raises:
        RecordError: If a score is not finite, or the shapes of scores and labels do not match.
        ValueError: If ``k`` is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    check_scores(scores, labels)
    return float(LabelledScores(labels, scores).in_top(k).mean())


def nll(
    scores: NDArray[Any],
    labels: NDArray[np.int64],
    temperature: float = 1.0,
    *,
    sigmoid: bool = False,
) -> float:
    """Return the mean negative log-likelihood of ``softmax(scores / temperature)`` in nats.

    It is computed from the scores, not from rounded probabilities, so it is finite even for a confident wrong answer.
    With ``sigmoid`` it is that of one sigmoid per class, summed over the classes.

    Raises:
        RecordError: If a score is not finite, or the shapes of scores and labels do not match.
        ValueError: If the temperature is not positive.
    """
    check_scores(scores, labels)
    return float(proper_scores(scores, labels, temperature, sigmoid=sigmoid)[0].mean())


def class_counts(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], n_classes: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Return the examples, predictions and correct predictions of each class, shape ``(C,)`` each."""
    return (
        np.bincount(labels, minlength=n_classes),
        np.bincount(predicted, minlength=n_classes),
        np.bincount(labels[predicted == labels], minlength=n_classes),
    )


def class_figures(
    support: NDArray[np.intp], predicted: NDArray[np.intp], hits: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return recall, precision and F1 of each class, shape ``(C,)`` each; 0 where the denominator is 0."""
    recall: NDArray[np.float64] = hits / np.maximum(support, 1)
    precision: NDArray[np.float64] = hits / np.maximum(predicted, 1)
    f1: NDArray[np.float64] = 2 * hits / np.maximum(support + predicted, 1)
    return recall, precision, f1


def check_scores(scores: NDArray[Any], labels: NDArray[np.int64]) -> None:
    """Check shapes, the range of the labels, and that every score is finite.

    Raises:
        RecordError: If one of these does not hold.
    """
    if scores.ndim != 2 or 0 in scores.shape:
        raise RecordError(
            f"scores have shape {scores.shape}; expected (n, C) with at least one example and one class"
        )
    n, n_classes = scores.shape
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise RecordError(
            f"labels are {labels.dtype} of shape {labels.shape}; expected integers of shape ({n},) "
            f"for scores of shape {scores.shape}"
        )
    if labels.min() < 0 or labels.max() >= n_classes:
        raise RecordError(
            f"labels range from {labels.min()} to {labels.max()}; {n_classes} scores per example "
            f"allow 0 to {n_classes - 1}"
        )
    # A row is finite exactly when its extremes are, and these need no second matrix.
    bad = np.flatnonzero(~(np.isfinite(scores.min(axis=1)) & np.isfinite(scores.max(axis=1))))
    if bad.size:
        raise RecordError(
            f"the scores of {bad.size} of {n} examples contain nan or infinity (first: row {bad[0]})",
            hint="the fit diverged, or a half-precision value overflowed; "
            "'--set model.precision=fp32' avoids the second",
        )


def blocks(matrix: NDArray[Any]) -> Iterator[slice]:
    """Return slices of rows with at most :data:`BLOCK` entries each, or of one row."""
    rows = max(1, BLOCK // matrix.shape[1])
    return (slice(start, start + rows) for start in range(0, len(matrix), rows))


def _shifted(scores: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """Return ``scores / temperature`` in float64, shifted so that the largest of each row is 0."""
    _check_temperature(temperature)
    z = scores.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    z /= temperature
    return z


def _divided(scores: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """Return ``scores / temperature`` in float64."""
    _check_temperature(temperature)
    z = scores.astype(np.float64)
    z /= temperature
    return z


def _check_temperature(temperature: float) -> None:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def proper_scores(
    scores: NDArray[Any], labels: NDArray[np.int64], temperature: float, *, sigmoid: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return negative log-likelihood, squared error and confidence of each example, shape ``(n,)`` each.

    Of sigmoids, the likelihood is that of all classes: the label's is 1 and the others are 0.
    """
    losses, squares, confidence = np.empty((3, len(labels)))
    if sigmoid:
        for rows in blocks(scores):
            z = _divided(scores[rows], temperature)
            of_label = np.arange(len(z)), labels[rows]
            above = np.logaddexp(0, z)  # (b, C): -log(1 - p)
            losses[rows] = above.sum(axis=1) - z[of_label]
            p = np.exp(z - above)
            confidence[rows] = p.max(axis=1)
            p[of_label] -= 1
            squares[rows] = np.square(p, out=p).sum(axis=1)
        return losses, squares, confidence
    for rows in blocks(scores):
        z = _shifted(scores[rows], temperature)
        of_label = np.arange(len(z)), labels[rows]
        label_scores = z[of_label]
        np.exp(z, out=z)
        total = z.sum(axis=1)
        losses[rows] = np.log(total) - label_scores
        confidence[rows] = 1 / total  # the largest entry is exp(0)
        z /= total[:, None]  # (b, C) probabilities
        z[of_label] -= 1
        squares[rows] = np.square(z, out=z).sum(axis=1)
    return losses, squares, confidence


def _ranks(scores: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many classes rank above the label: larger scores, and equal ones of lower index."""
    ranks = np.empty(len(labels), dtype=np.int64)
    for rows in blocks(scores):
        block, own = scores[rows], labels[rows, None]  # (b, C), (b, 1)
        value = np.take_along_axis(block, own, axis=1)
        above = (block == value) & (np.arange(block.shape[1]) < own)
        above |= block > value
        ranks[rows] = above.sum(axis=1)
    return ranks
