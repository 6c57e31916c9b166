"""Classification metrics from a matrix of scores, computed in float64.

The predicted class is the one with the largest score; among equal scores the first index wins, in top-k as in
top-1, so a result never depends on a sort. Scores are worked through in blocks of rows: whatever ``n`` and
``C``, nothing of the size of the scores is allocated beside them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import numpy as np
from pydantic import FiniteFloat

from clipadapt.core.api.errors import RecordError
from clipadapt.core.api.strict import StrictModel
from clipadapt.core.scoring.statistics import fraction_interval, t_interval, wilson

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from clipadapt.core.api.method import ScoreKind
    from clipadapt.core.scoring.statistics import Interval

METRICS_VERSION: Final = 2
"""Version of the figures' meaning. 2: macro F1 covers the classes that occur, where 1 counted absent ones as 0."""
ECE_BINS: Final = 15
BOUNDS: Final = {
    "fraction": (0.0, 1.0), "nats": (0.0, math.inf), "squared error": (0.0, 2.0),
    "seconds": (0.0, math.inf), "bytes": (0.0, math.inf),
}  # fmt: skip
"""Least and largest value of each unit."""
Norm = Literal["l1", "l2", "max"]
Binning = Literal["width", "mass"]

_BLOCK: Final = 1 << 20
"""Scores held in float64 at once, 8 MiB."""
TEMPERATURES: Final = (1e-4, 1e3)
"""Where a softmax temperature is looked for; scores that say something of their labels have theirs well inside."""
_F = TypeVar("_F", bound=np.floating[Any])


class MetricValue(StrictModel):
    """One metric of one run.

    Attributes:
        value: The figure, never nan.
        low: Lower bound of the 95 % interval, None where the metric has none.
        high: Upper bound, None with ``low``.
        n: Examples behind it.
        higher_is_better: Direction.
        unit: ``fraction`` (in [0, 1]), ``nats``, ``squared error`` (Brier, in [0, 2]), ``seconds`` or ``bytes``.
    """

    value: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    n: int
    higher_is_better: bool
    unit: str


def compute_metrics(
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    score_kind: ScoreKind = "logit",
    temperature: float | None = None,
) -> dict[str, MetricValue]:
    """Compute every metric of a record.

    ``accuracy``, ``top5_accuracy`` (left out below five classes), ``mean_per_class_recall`` (over the classes
    that occur in ``labels``), ``macro_f1`` (over the classes that occur in ``labels`` or are predicted),
    ``weighted_f1``, ``weighted_precision``, ``weighted_recall`` (weighted by support). ``nll``, ``brier``, ``ece``
    (bins of equal width), ``ece_mass`` (bins of equal mass) and ``aurc`` (area under the risk-coverage curve) are of
    ``softmax(scores)``, uncalibrated; margins are no logits, so they have none. With a temperature, the same names
    with ``_calibrated`` are those of ``softmax(scores / temperature)``, for logits and margins alike. Accuracies carry
    Wilson intervals, averages over classes the like (see :func:`example_values`), mean losses t intervals; calibration
    errors and areas carry none.

    Args:
        scores: Shape ``(n, C)``.
        labels: Class indices in ``[0, C)``, shape ``(n,)``.
        score_kind: What the scores are.
        temperature: Softmax temperature fitted on validation data, see :func:`fit_temperature`.

    Raises:
        RecordError: If a score is not finite, or scores and labels do not fit together.
        ValueError: If the temperature is not positive.
    """
    _check(scores, labels)
    n, n_classes = scores.shape
    predicted = scores.argmax(axis=1)

    def fraction(value: float, *, higher: bool = True) -> MetricValue:
        return MetricValue(
            value=value, low=None, high=None, n=n, higher_is_better=higher, unit="fraction"
        )

    hits = int((predicted == labels).sum())
    metrics = {"accuracy": _measured(wilson(hits, n), "fraction", higher=True)}
    if n_classes >= 5:
        near = int(topk_hits(scores, labels, 5).sum())
        metrics["top5_accuracy"] = _measured(wilson(near, n), "fraction", higher=True)
    for name in OVER_CLASSES:
        values, weight = example_values(name, predicted, labels)
        interval = fraction_interval(values[None], weight=weight)
        metrics[name] = _measured(interval, "fraction", higher=True)

    temperatures = {"": 1.0} if score_kind == "logit" else {}
    if temperature is not None:
        temperatures["_calibrated"] = temperature
    for suffix, value in temperatures.items():
        losses, squares, confidence = _proper_scores(scores, labels, value)
        right = predicted == labels
        metrics[f"nll{suffix}"] = _measured(t_interval(losses), "nats", higher=False)
        metrics[f"brier{suffix}"] = _measured(t_interval(squares), "squared error", higher=False)
        width = _calibration_error(confidence, right, ECE_BINS, "l1", "width")
        mass = _calibration_error(confidence, right, ECE_BINS, "l1", "mass")
        metrics[f"ece{suffix}"] = fraction(width, higher=False)
        metrics[f"ece_mass{suffix}"] = fraction(mass, higher=False)
        metrics[f"aurc{suffix}"] = fraction(aurc(confidence, right), higher=False)
    return metrics


OVER_CLASSES: Final = (
    "mean_per_class_recall", "macro_f1", "weighted_f1", "weighted_precision", "weighted_recall",
)  # fmt: skip


def example_values(
    name: str, predicted: NDArray[np.int64], labels: NDArray[np.int64]
) -> tuple[NDArray[Any], float]:
    """Return a value for each example, whose mean is an average over classes, and the examples' mean weight.

    For ``accuracy`` and ``weighted_recall``, which is the same, it is whether the example is right. For the others it
    is the average plus the example's influence on it, to first order (the infinitesimal jackknife): their spread is
    that of the average.

    Args:
        name: One of :data:`OVER_CLASSES`, or ``accuracy``.
        predicted: Classes given, shape ``(n,)``.
        labels: Classes, shape ``(n,)``.

    Returns:
        Values of shape ``(n,)``; the weight is above 1 where examples of rare classes count more.
    """
    n, right = len(labels), predicted == labels
    if name in {"accuracy", "weighted_recall"}:
        return right, 1.0
    n_classes = int(max(predicted.max(), labels.max())) + 1
    support, given, hits = class_counts(predicted, labels, n_classes)
    recall, f1 = hits / np.maximum(support, 1), 2 * hits / np.maximum(support + given, 1)
    if name in {"mean_per_class_recall", "macro_f1"}:
        present = support > 0
        among = present | (given > 0) if name == "macro_f1" else present
        share = n / among.sum()
        weight = float(share * (1 / support[present]).sum() / present.sum())
        if name == "mean_per_class_recall":
            mean = recall[present].mean()
            return mean + share * (right - recall[labels]) / support[labels], weight
        size = np.maximum(support + given, 1)
        own = (2 * right - f1[labels]) / size[labels] - f1[predicted] / size[predicted]
        return f1[among].mean() + share * own, weight
    if name == "weighted_f1":
        size = np.maximum(support + given, 1)
        own = support[labels] * (2 * right - f1[labels]) / size[labels]
        own = own - support[predicted] * f1[predicted] / size[predicted]
        return f1[labels] + own, 1.0
    if name == "weighted_precision":
        precision = hits / np.maximum(given, 1)
        own = support[predicted] * (right - precision[predicted]) / given[predicted]
        return precision[labels] + own, 1.0
    raise ValueError(f"no average over classes: {name}")


def accuracy(scores: NDArray[Any], labels: NDArray[np.int64]) -> MetricValue:
    """Return the accuracy with its Wilson interval, as it stands in a record."""
    hits = int((scores.argmax(axis=1) == labels).sum())
    return _measured(wilson(hits, len(labels)), "fraction", higher=True)


def softmax(scores: NDArray[_F], temperature: float = 1.0) -> NDArray[_F]:
    """Return ``exp(scores / temperature)`` with rows of sum 1, shape ``(n, C)``, in the dtype of the scores.

    Raises:
        ValueError: If the temperature is not positive.
    """
    probabilities = np.empty_like(scores)
    for rows in _blocks(scores):
        z = _shifted(scores[rows], temperature)
        np.exp(z, out=z)
        z /= z.sum(axis=1, keepdims=True)
        probabilities[rows] = z
    return probabilities


def topk_accuracy(scores: NDArray[Any], labels: NDArray[np.int64], k: int) -> float:
    """Return the fraction of examples whose label is among the ``k`` largest scores.

    Equal scores are ranked by class index, the first one highest; with ``k >= C`` the result is 1.

    Raises:
        RecordError: If a score is not finite, or scores and labels do not fit together.
        ValueError: If ``k`` is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    _check(scores, labels)
    return float(topk_hits(scores, labels, k).mean())


def topk_hits(scores: NDArray[Any], labels: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Return whether the label of each example is among the ``k`` largest scores, shape ``(n,)``."""
    return _ranks(scores, labels) < k


def example_losses(
    scores: NDArray[Any], labels: NDArray[np.int64], temperature: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return negative log-likelihood and squared error of ``softmax(scores / temperature)`` of each example."""
    losses, squares, _ = _proper_scores(scores, labels, temperature)
    return losses, squares


def confusion_matrix(scores: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the examples of each true (row) and predicted (column) class, shape ``(C, C)``.

    Raises:
        RecordError: If a score is not finite, or scores and labels do not fit together.
    """
    _check(scores, labels)
    n_classes = scores.shape[1]
    # A short integer type would overflow.
    index = labels.astype(np.int64) * n_classes + scores.argmax(axis=1)
    cells = np.bincount(index, minlength=n_classes**2)
    return cells.reshape(n_classes, n_classes).astype(np.int64, copy=False)


def per_class_recall(scores: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the recall of each class, 0 for a class without examples, shape ``(C,)``.

    Raises:
        RecordError: If a score is not finite, or scores and labels do not fit together.
    """
    _check(scores, labels)
    return class_figures(*class_counts(scores.argmax(axis=1), labels, scores.shape[1]))[0]


def mean_per_class_recall(scores: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Return the mean recall of the classes that have examples, also called balanced accuracy.

    Raises:
        RecordError: If a score is not finite, or scores and labels do not fit together.
    """
    return float(per_class_recall(scores, labels)[np.unique(labels)].mean())


def f1_scores(scores: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the F1 of each class, 0 for a class neither present nor predicted, shape ``(C,)``.

    Raises:
        RecordError: If a score is not finite, or scores and labels do not fit together.
    """
    _check(scores, labels)
    return class_figures(*class_counts(scores.argmax(axis=1), labels, scores.shape[1]))[2]


def class_counts(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], n_classes: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Return of each class the examples, how often it was given and how often rightly, shape ``(C,)`` each."""
    return (
        np.bincount(labels, minlength=n_classes),
        np.bincount(predicted, minlength=n_classes),
        np.bincount(labels[predicted == labels], minlength=n_classes),
    )


def class_figures(
    support: NDArray[np.intp], given: NDArray[np.intp], hits: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return recall, precision and F1 of each class, shape ``(C,)`` each; 0 where there is nothing to divide by."""
    recall: NDArray[np.float64] = hits / np.maximum(support, 1)
    precision: NDArray[np.float64] = hits / np.maximum(given, 1)
    f1: NDArray[np.float64] = 2 * hits / np.maximum(support + given, 1)
    return recall, precision, f1


def nll(scores: NDArray[Any], labels: NDArray[np.int64], temperature: float = 1.0) -> float:
    """Return the mean negative log-likelihood of ``softmax(scores / temperature)`` in nats.

    It is taken from the scores, not from rounded probabilities, so it is finite however sure a wrong answer is.

    Raises:
        RecordError: If a score is not finite, or scores and labels do not fit together.
        ValueError: If the temperature is not positive.
    """
    _check(scores, labels)
    return float(_proper_scores(scores, labels, temperature)[0].mean())


def brier(probabilities: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Return the mean over examples of the squared error summed over classes, in [0, 2].

    Raises:
        RecordError: If probabilities and labels do not fit together.
        ValueError: If a probability is outside [0, 1].

    References:
        G. Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather Review 1950.
    """
    _check_probabilities(probabilities, labels)
    total = 0.0
    for rows in _blocks(probabilities):
        total += float(_squared_errors(probabilities[rows].astype(np.float64), labels[rows]).sum())
    return total / len(labels)


def expected_calibration_error(
    probabilities: NDArray[Any],
    labels: NDArray[np.int64],
    *,
    bins: int = ECE_BINS,
    norm: Norm = "l1",
    binning: Binning = "width",
) -> float:
    """Return how far the confidence, the largest probability, is from the accuracy.

    Args:
        probabilities: Rows of sum 1, shape ``(n, C)``.
        labels: Class indices, shape ``(n,)``.
        bins: Number of bins.
        norm: ``l1``: mean gap, weighted by the examples of a bin (ECE); ``l2``: root of the weighted mean square;
            ``max``: the largest gap (MCE).
        binning: ``width``: bin ``k`` is ``[k / bins, (k + 1) / bins)``, the last one with its upper end;
            ``mass``: edges are quantiles of the confidence, equal confidences share a bin.

    Raises:
        RecordError: If probabilities and labels do not fit together.
        ValueError: If a probability is outside [0, 1], or there is no bin.

    References:
        C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2. arXiv:1706.04599.
        Equal mass: K. Nguyen and B. O'Connor, "Posterior Calibration and Exploratory Analysis for Natural
        Language Processing Models", EMNLP 2015.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    _check_probabilities(probabilities, labels)
    correct = probabilities.argmax(axis=1) == labels
    return _calibration_error(probabilities.max(axis=1), correct, bins, norm, binning)


def aurc(confidence: NDArray[Any], right: NDArray[np.bool_]) -> float:
    """Return the area under the risk-coverage curve: the mean error over all coverages ``1/n ... 1``; less is better.

    References:
        Y. Geifman et al., "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", ICLR 2019.
        arXiv:1805.08206
    """
    hits, _ = hits_by_confidence(confidence, right)
    return float((1 - hits / np.arange(1, len(hits) + 1)).mean())


def hits_by_confidence(
    confidence: NDArray[Any], right: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Return hits among the ``k`` most confident, for every ``k``, and the confidences, descending.

    Equal confidences share their hits evenly, so that the order of the examples has no say.
    """
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    _, group, size = np.unique(-ordered, return_inverse=True, return_counts=True)
    share = np.bincount(group, right[order]) / size
    return np.cumsum(share[group]), ordered


def fit_temperature(scores: NDArray[Any], labels: NDArray[np.int64]) -> float | None:
    """Return the softmax temperature of least negative log-likelihood, or None at an end of :data:`TEMPERATURES`.

    Where no score exceeds its label's there is no such temperature: the likelihood grows without end as it
    falls to 0. The targets are then smoothed by one example's worth, spread evenly over the classes, which
    keeps the confidence near ``n / (n + 1)``, as Platt did for two classes. Scores that do not differ give 1.

    Args:
        scores: Validation scores, logits or margins, shape ``(n, C)``.
        labels: Class indices, shape ``(n,)``.

    Raises:
        RecordError: If a score is not finite, or scores and labels do not fit together.

    References:
        C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2. arXiv:1706.04599.
        J. Platt, "Probabilistic Outputs for Support Vector Machines", 1999, section 2.2.
    """
    _check(scores, labels)
    largest = scores.max(axis=1)
    if (largest == scores.min(axis=1)).all():
        return 1.0
    from scipy.optimize import minimize_scalar

    own = scores[np.arange(len(labels)), labels]
    smoothing = 1 / (len(labels) + 1) if (own == largest).all() else 0.0
    # Smoothed cross-entropy = NLL + smoothing * mean(own - row mean) / T: only the linear part changes.
    gap = float((own.astype(np.float64) - scores.mean(axis=1, dtype=np.float64)).mean())

    def loss(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        likelihood = float(_proper_scores(scores, labels, temperature)[0].mean())
        return likelihood + smoothing * gap / temperature

    # The loss is convex in 1 / T, so it has one valley in log T.
    low, high = map(math.log, TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    place = float(found.x)
    # A search between bounds ends beside them, not on them.
    return math.exp(place) if low + 1e-3 < place < high - 1e-3 else None


def _check(scores: NDArray[Any], labels: NDArray[np.int64]) -> None:
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
            f"labels run from {labels.min()} to {labels.max()}; {n_classes} scores per example "
            f"allow 0 to {n_classes - 1}"
        )
    # The extremes of a row are finite exactly when all of it is, and need no second matrix.
    bad = np.flatnonzero(~(np.isfinite(scores.min(axis=1)) & np.isfinite(scores.max(axis=1))))
    if bad.size:
        raise RecordError(
            f"the scores of {bad.size} of {n} examples hold nan or infinity (first: row {bad[0]})",
            hint="training diverged or a half-precision value overflowed: lower the learning rate, "
            "or use '--set model.precision=fp32'",
        )


def _check_probabilities(probabilities: NDArray[Any], labels: NDArray[np.int64]) -> None:
    _check(probabilities, labels)
    low, high = float(probabilities.min()), float(probabilities.max())
    if low < 0 or high > 1 + 1e-6:
        raise ValueError(
            f"probabilities must lie in [0, 1], got {low:g} to {high:g}; apply softmax first"
        )


def _blocks(matrix: NDArray[Any]) -> Iterator[slice]:
    rows = max(1, _BLOCK // matrix.shape[1])
    return (slice(start, start + rows) for start in range(0, len(matrix), rows))


def _shifted(scores: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """Return scores / temperature in float64, moved so that each row's largest is 0."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    z = scores.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    z /= temperature
    return z


def _proper_scores(
    scores: NDArray[Any], labels: NDArray[np.int64], temperature: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return negative log-likelihood, squared error and confidence of every example, shape (n,) each."""
    losses, squares, confidence = np.empty((3, len(labels)))
    for rows in _blocks(scores):
        z = _shifted(scores[rows], temperature)
        own = z[np.arange(len(z)), labels[rows]]
        np.exp(z, out=z)
        total = z.sum(axis=1)
        losses[rows] = np.log(total) - own
        confidence[rows] = 1 / total  # the largest entry is exp(0)
        z /= total[:, None]
        squares[rows] = _squared_errors(z, labels[rows])
    return losses, squares, confidence


def _squared_errors(p: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum ``(p - onehot)^2`` over the classes; overwrites ``p``."""
    p[np.arange(len(p)), labels] -= 1
    errors: NDArray[np.float64] = np.square(p, out=p).sum(axis=1)
    return errors


def _ranks(scores: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many classes stand before the label: larger scores, and equal ones of lower index."""
    ranks = np.empty(len(labels), dtype=np.int64)
    for rows in _blocks(scores):
        block, own = scores[rows], labels[rows, None]  # (b, C), (b, 1)
        value = np.take_along_axis(block, own, axis=1)
        before = (block == value) & (np.arange(block.shape[1]) < own)
        before |= block > value
        ranks[rows] = before.sum(axis=1)
    return ranks


def bin_index(
    confidence: NDArray[Any], bins: int, binning: Binning
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the edges of bins of confidence, shape ``(bins + 1,)``, and each example's bin."""
    edges = np.linspace(0, 1, bins + 1)
    if binning == "mass":
        edges = np.quantile(confidence, edges)
    # Inner edges only: a confidence of 1 (or a rounding above it) belongs to the last bin. They take the
    # confidence's own precision, else float32 0.7 would fall below the edge 0.7.
    inner = edges[1:-1].astype(confidence.dtype)
    return edges, np.searchsorted(inner, confidence, side="right")


def bin_sums(
    index: NDArray[np.intp], correct: NDArray[np.bool_], confidence: NDArray[Any], bins: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return of every bin the examples, the right ones and the sum of their confidences."""
    return (
        np.bincount(index, minlength=bins),
        np.bincount(index, correct, bins),
        np.bincount(index, confidence, bins),
    )


def top_probabilities(scores: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    """Return the largest probability of ``softmax(scores / temperature)`` of each example, shape ``(n,)``."""
    found = np.empty(len(scores))
    for rows in _blocks(scores):
        found[rows] = 1 / np.exp(_shifted(scores[rows], temperature)).sum(axis=1)
    return found


def _calibration_error(
    confidence: NDArray[Any], correct: NDArray[np.bool_], bins: int, norm: Norm, binning: Binning
) -> float:
    _, index = bin_index(confidence, bins, binning)
    count, hits, total = bin_sums(index, correct, confidence, bins)
    gap = np.abs(hits - total)
    gap /= np.maximum(count, 1)
    weight = count / len(confidence)
    match norm:
        case "l1":
            return float(gap @ weight)
        case "l2":
            return math.sqrt(float(gap**2 @ weight))
        case "max":
            return float(gap.max())


def _measured(interval: Interval, unit: str, *, higher: bool) -> MetricValue:
    least, most = BOUNDS[unit]
    return MetricValue(
        value=interval.value,
        low=None if interval.low is None else max(interval.low, least),
        high=None if interval.high is None else min(interval.high, most),
        n=interval.n,
        higher_is_better=higher,
        unit=unit,
    )
