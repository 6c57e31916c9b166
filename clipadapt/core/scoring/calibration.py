"""Calibration: does a confidence of 0.8 mean that 80 % are correct?

Softmax temperature, calibration error, reliability bins, and accuracy against coverage. The confidence is the
probability of the predicted class. The margins of an SVM are not logits: they have no probabilities, and so no
confidence, until a temperature is fitted on val.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from clipadapt.core.scoring.scores import check_scores, proper_scores
from clipadapt.core.scoring.statistics import wilson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from clipadapt.core.scoring.statistics import Interval

ECE_BINS: Final = 15
TEMPERATURES: Final = (1e-4, 1e3)
"""Bounds of the search for a temperature; useful scores have temperatures well within these bounds."""
COVERAGES: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
Binning = Literal["width", "mass"]


@dataclass(frozen=True, slots=True)
class Bin:
    """One bin of a reliability diagram.

    Attributes:
        low: Lower edge of the confidence.
        high: Upper edge.
        count: Examples in the bin.
        confidence: Their mean confidence, None in an empty bin.
        accuracy: Their accuracy with its 95 % Wilson interval, None in an empty bin.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: Interval | None


@dataclass(frozen=True, slots=True)
class Coverage:
    """Accuracy on the most confident examples.

    Attributes:
        coverage: Share of the examples that is answered.
        count: Number of examples that is answered.
        accuracy: Accuracy on them.
        threshold: Lowest confidence that is answered.
    """

    coverage: float
    count: int
    accuracy: float
    threshold: float


def fit_temperature(
    scores: NDArray[Any], labels: NDArray[np.int64], *, sigmoid: bool = False
) -> float | None:
    """Return the temperature of least negative log-likelihood, None at an end of :data:`TEMPERATURES`.

    If every label has the largest score (of sigmoids: the only positive one), no such temperature exists: the
    likelihood grows without bound as the temperature falls to 0. The targets are then smoothed by one example's worth,
    spread evenly over the classes. This keeps the confidence near ``n / (n + 1)``, as Platt did for two classes.
    Constant scores give 1.

    Args:
        scores: Validation scores, logits or margins, shape ``(n, C)``.
        labels: Class indices, shape ``(n,)``.
        sigmoid: Whether the probabilities are one sigmoid per class, not a softmax.

    Raises:
        RecordError: If a score is not finite, or the shapes of scores and labels do not match.

    References:
        C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2. arXiv:1706.04599.
        J. Platt, "Probabilistic Outputs for Support Vector Machines", 1999, section 2.2.
    """
    check_scores(scores, labels)
    largest = scores.max(axis=1)
    if (largest == scores.min(axis=1)).all():
        return 1.0
    from scipy.optimize import minimize_scalar

    own = scores[np.arange(len(labels)), labels]
    separated = (own == largest).all()
    if sigmoid:
        separated = separated and (own > 0).all() and int((scores > 0).sum()) == len(labels)
    smoothing = 1 / (len(labels) + 1) if separated else 0.0
    # Smoothed cross-entropy = NLL + smoothing * mean(own - row mean) / T: only the linear part changes.
    gap = float((own.astype(np.float64) - scores.mean(axis=1, dtype=np.float64)).mean())

    def loss(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        likelihood = float(proper_scores(scores, labels, temperature, sigmoid=sigmoid)[0].mean())
        return likelihood + smoothing * gap / temperature

    # The loss is convex in 1 / T, so it has a single minimum in log T.
    low, high = map(math.log, TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    minimum = float(found.x)
    # A bounded search ends near its bounds, never on them.
    return math.exp(minimum) if low + 1e-3 < minimum < high - 1e-3 else None


def calibration_error(
    confidence: NDArray[Any],
    correct: NDArray[np.bool_],
    *,
    bins: int = ECE_BINS,
    binning: Binning = "width",
) -> float:
    """Return the expected calibration error: the mean gap between confidence and accuracy of a bin, by examples.

    Args:
        confidence: Probability of the predicted class, shape ``(n,)``.
        correct: Whether it is the label, shape ``(n,)``.
        bins: Number of bins.
        binning: ``width``: bin ``k`` is ``[k / bins, (k + 1) / bins)``, the last one with its upper end;
            ``mass``: edges are quantiles of the confidence, equal confidences share a bin.

    References:
        C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2. arXiv:1706.04599.
        Equal mass: K. Nguyen and B. O'Connor, "Posterior Calibration and Exploratory Analysis for Natural
        Language Processing Models", EMNLP 2015.
    """
    _, index = _bin_index(confidence, bins, binning)
    count, hits, total = _bin_sums(index, correct, confidence, bins)
    gap = np.abs(hits - total)
    gap /= np.maximum(count, 1)
    return float(gap @ (count / len(confidence)))


def reliability(
    confidence: NDArray[Any],
    correct: NDArray[np.bool_],
    *,
    bins: int = ECE_BINS,
    binning: Binning = "width",
) -> tuple[Bin, ...]:
    """Return the bins of a reliability diagram, those of :func:`calibration_error`.

    Args:
        confidence: Probability of the predicted class, shape ``(n,)``.
        correct: Whether it is the label, shape ``(n,)``.
        bins: Number of bins.
        binning: ``width``: bins of equal width; ``mass``: edges are quantiles of the confidence.

    References:
        M. DeGroot and S. Fienberg, "The Comparison and Evaluation of Forecasters", The Statistician 1983.
    """
    edges, index = _bin_index(confidence, bins, binning)
    count, hits, total = _bin_sums(index, correct, confidence, bins)
    return tuple(
        Bin(
            float(edges[k]),
            float(edges[k + 1]),
            int(count[k]),
            float(total[k] / count[k]) if count[k] else None,
            wilson(int(hits[k]), int(count[k])) if count[k] else None,
        )
        for k in range(bins)
    )


def selective(
    confidence: NDArray[Any],
    correct: NDArray[np.bool_],
    coverages: Sequence[float] = COVERAGES,
) -> tuple[Coverage, ...]:
    """Return the accuracy if only the most confident examples are answered.

    Args:
        confidence: Shape ``(n,)``.
        correct: Shape ``(n,)``.
        coverages: Shares in (0, 1]; each is rounded up to a whole number of examples.

    References:
        Y. Geifman and R. El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017.
        arXiv:1705.08500
    """
    n = len(confidence)
    hits, ordered = _hits_by_confidence(confidence, correct)
    found = []
    for coverage in coverages:
        k = min(n, max(1, int(np.ceil(coverage * n - 1e-9))))
        found.append(Coverage(coverage, k, float(hits[k - 1] / k), float(ordered[k - 1])))
    return tuple(found)


def area_under_risk_coverage(confidence: NDArray[Any], correct: NDArray[np.bool_]) -> float:
    """Return the area under the risk-coverage curve: the mean error over the coverages ``1/n ... 1``.

    References:
        Y. Geifman et al., "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", ICLR 2019.
        arXiv:1805.08206
    """
    hits, _ = _hits_by_confidence(confidence, correct)
    return float((1 - hits / np.arange(1, len(hits) + 1)).mean())


def _hits_by_confidence(
    confidence: NDArray[Any], correct: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Return the hits among the ``k`` most confident examples, for every ``k``, and the confidences, descending.

    Hits of examples with equal confidence are spread evenly over them, so the order of the examples does not matter.
    """
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    _, group, size = np.unique(-ordered, return_inverse=True, return_counts=True)
    share = np.bincount(group, correct[order]) / size
    return np.cumsum(share[group]), ordered


def _bin_index(
    confidence: NDArray[Any], bins: int, binning: Binning
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the edges of the bins, shape ``(bins + 1,)``, and the bin of each example, shape ``(n,)``."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    edges = np.linspace(0, 1, bins + 1)
    if binning == "mass":
        edges = np.quantile(confidence, edges)
    # Inner edges only: a confidence of 1, or just above by rounding, belongs to the last bin. The edges take the
    # precision of the confidence; otherwise float32 0.7 would fall below the edge 0.7.
    inner = edges[1:-1].astype(confidence.dtype)
    return edges, np.searchsorted(inner, confidence, side="right")


def _bin_sums(
    index: NDArray[np.intp], correct: NDArray[np.bool_], confidence: NDArray[Any], bins: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return the examples, the hits and the sum of the confidences of each bin, shape ``(bins,)`` each."""
    return (
        np.bincount(index, minlength=bins),
        np.bincount(index, correct, bins),
        np.bincount(index, confidence, bins),
    )
