"""The metrics of a record. A metric is one function below, registered by :func:`metric` under its own name.

It returns the value of each example, whose mean is the metric. The interval is computed from these values: over the
examples of one run here, over seeds and examples in tables. A figure that is not a mean over examples, such as a
calibration error, is returned as a number and has no interval. Records, tables, summary and page find name, title,
unit and direction in :data:`METRICS`; there is no other list of metrics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import numpy as np
from pydantic import FiniteFloat

from clipadapt.core.api.strict import StrictModel
from clipadapt.core.scoring.calibration import area_under_risk_coverage, calibration_error
from clipadapt.core.scoring.scores import LabelledScores, check_scores, class_figures
from clipadapt.core.scoring.statistics import crossed_interval, fraction_interval

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from clipadapt.core.api.method import ScoreKind
    from clipadapt.core.scoring.statistics import Interval

METRICS_VERSION: Final = 2
"""Version of what the metrics mean; raise it with the ``version`` of every metric whose meaning changes."""
BOUNDS: Final = {
    "fraction": (0.0, 1.0), "nats": (0.0, math.inf), "squared error": (0.0, math.inf),
    "seconds": (0.0, math.inf), "bytes": (0.0, math.inf), "classes": (0.0, math.inf),
}  # fmt: skip
"""Smallest and largest value of each unit; a metric may state a smaller range, see :class:`ExampleValues`."""
CALIBRATED: Final = "_calibrated"
"""Suffix of a metric of probabilities at the temperature fitted on val."""
_Compute = TypeVar("_Compute", bound="Callable[[LabelledScores], ExampleValues | float | None]")


class MetricValue(StrictModel):
    """One metric of one run.

    Attributes:
        value: The figure, never nan.
        low: Lower bound of the 95 % interval, None if the metric has none.
        high: Upper bound, None with ``low``.
        n: Number of examples.
        higher_is_better: Direction.
        unit: ``fraction`` (in [0, 1]), ``nats``, ``squared error`` (see :func:`brier`), ``classes``, ``seconds`` or
            ``bytes``.
    """

    value: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    n: int
    higher_is_better: bool
    unit: str


class ExampleValues(NamedTuple):
    """A metric's value of each example, whose mean is the metric.

    For an average over classes it is the average plus the example's influence on it, to first order (the infinitesimal
    jackknife): the spread of these values is the spread of the average.

    Attributes:
        values: Shape ``(n,)``; bool for an accuracy.
        weight: Mean weight of an example, above 1 if examples of rare classes count more.
        largest: Largest possible value of an example.
    """

    values: NDArray[Any]
    weight: float = 1.0
    largest: float = math.inf


@dataclass(frozen=True, slots=True)
class Metric:
    """A registered metric; see :func:`metric` for the attributes."""

    name: str
    compute: Callable[[LabelledScores], ExampleValues | float | None]
    title: str
    unit: str
    higher_is_better: bool
    probabilities: bool
    sets: bool
    least_classes: int
    version: int
    leaderboard: tuple[str, ...]
    summary: bool
    note: str


METRICS: Final[dict[str, Metric]] = {}
"""Every metric by name, in the order of a record."""


def metric(
    title: str,
    *,
    unit: str = "fraction",
    higher_is_better: bool = True,
    probabilities: bool = False,
    sets: bool = False,
    least_classes: int = 1,
    version: int = 1,
    leaderboard: tuple[str, ...] = (),
    summary: bool = False,
    note: str = "",
) -> Callable[[_Compute], _Compute]:
    """Register the decorated function as a metric; its name is the name in records.

    The function takes :class:`~clipadapt.core.scoring.scores.LabelledScores` and returns the value of each example, or
    a number that is not a mean over examples, or None if the stored scores are not enough.

    Args:
        title: Name shown in tables and on the page, without the unit.
        unit: A key of :data:`BOUNDS`.
        higher_is_better: Direction.
        probabilities: Whether it reads probabilities. It is then computed for logits as they are, and at the
            temperature fitted on val with the suffix ``_calibrated``; margins have only the second.
        sets: Whether it reads prediction sets. It is then computed only where calibration examples give a threshold,
            at the temperature fitted on val if there is one.
        least_classes: Minimum number of classes for which it is computed.
        version: :data:`METRICS_VERSION` since which its values have their present meaning.
        leaderboard: Suffixes, empty or :data:`CALIBRATED`, with which it has a column on the report page.
        summary: Whether it has a column in summaries.
        note: What a reader of the column should know.
    """

    def register(compute: _Compute) -> _Compute:
        name = compute.__name__
        METRICS[name] = Metric(
            name, compute, title, unit, higher_is_better, probabilities, sets, least_classes, version,
            leaderboard, summary, note,
        )  # fmt: skip
        return compute

    return register


def compute_metrics(
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    score_kind: ScoreKind = "logit",
    temperature: float | None = None,
    set_threshold: float | None = None,
) -> dict[str, MetricValue]:
    """Compute every metric of a record.

    Args:
        scores: Shape ``(n, C)``.
        labels: Class indices in ``[0, C)``, shape ``(n,)``.
        score_kind: What the scores are; margins have no probabilities without a temperature.
        temperature: Temperature fitted on validation data, see
            :func:`~clipadapt.core.scoring.calibration.fit_temperature`.
        set_threshold: Threshold of the prediction sets of :data:`~clipadapt.core.scoring.prediction_sets.HEADLINE`.

    Raises:
        RecordError: If a score is not finite, or the shapes of scores and labels do not match.
        ValueError: If the temperature is not positive.
    """
    check_scores(scores, labels)
    sigmoid = score_kind == "sigmoid"
    plain = LabelledScores(labels, scores, sigmoid=sigmoid)
    found = [(m.name, m, plain) for m in METRICS.values() if not m.probabilities and not m.sets]
    of_probabilities = [m for m in METRICS.values() if m.probabilities]
    if score_kind != "margin":
        found += [(m.name, m, plain) for m in of_probabilities]
    if temperature is not None:
        calibrated = LabelledScores(labels, scores, temperature, sigmoid=sigmoid)
        found += [(m.name + CALIBRATED, m, calibrated) for m in of_probabilities]
    if set_threshold is not None:
        of_sets = LabelledScores(
            labels, scores, temperature or 1.0, sigmoid=sigmoid, set_threshold=set_threshold
        )
        found += [(m.name, m, of_sets) for m in METRICS.values() if m.sets]
    return {
        name: _measure(m, scored) for name, m, scored in found if scores.shape[1] >= m.least_classes
    }


def measure(name: str, scores: NDArray[Any], labels: NDArray[np.int64]) -> MetricValue:
    """Compute one metric by name, as in a record; the scores are used as they are."""
    return _measure(METRICS[name], LabelledScores(labels, scores))


def find_metric(name: str) -> Metric | None:
    """Return the metric of a name with or without :data:`CALIBRATED`, None if it is not registered."""
    return METRICS.get(name) or METRICS.get(name.removesuffix(CALIBRATED))


def of_val(name: str) -> bool:
    """Return whether the values of a metric depend on val, on which a temperature or prediction sets are calibrated."""
    known = find_metric(name)
    return known is not None and (known.sets or name.endswith(CALIBRATED))


def of_probabilities(name: str) -> bool:
    """Return whether a metric reads probabilities, so that its values depend on how scores become probabilities."""
    known = find_metric(name)
    return known is not None and known.probabilities


def example_values(name: str, scored: LabelledScores) -> ExampleValues | None:
    """Return a metric's value of each example; None if it is not a mean over examples, or not enough is stored.

    Args:
        name: Name with or without :data:`CALIBRATED`.
        scored: Scores with the temperature that the name stands for.
    """
    known = find_metric(name)
    found = None if known is None else known.compute(scored)
    return found if isinstance(found, ExampleValues) else None


def interval_of(
    values: NDArray[Any],
    unit: str,
    *,
    weight: float = 1.0,
    largest: float = math.inf,
    level: float = 0.95,
) -> Interval:
    """Return the mean over seeds and examples with its interval, which stays within the range of the metric.

    Args:
        values: Value of each example for each seed, shape ``(S, n)``.
        unit: Unit of the metric.
        weight: Mean weight of an example; see :class:`ExampleValues`.
        largest: Largest possible value of an example, if it is below that of the unit.
        level: Nominal coverage.
    """
    if unit == "fraction":
        return fraction_interval(values, level, weight=weight)
    found = crossed_interval(values, level)
    if found.low is None or found.high is None:
        return found
    least, most = BOUNDS[unit]
    return replace(found, low=max(found.low, least), high=min(found.high, most, largest))


def _measure(m: Metric, scored: LabelledScores) -> MetricValue:
    found = m.compute(scored)
    if found is None:
        raise ValueError(f"{m.name} needs the scores of all classes")
    if isinstance(found, ExampleValues):
        interval = interval_of(
            found.values[None], m.unit, weight=found.weight, largest=found.largest
        )
        value, low, high = interval.value, interval.low, interval.high
    else:
        value, low, high = found, None, None
    return MetricValue(
        value=value, low=low, high=high, n=len(scored), higher_is_better=m.higher_is_better, unit=m.unit
    )  # fmt: skip


# ---------------------------------------------------------------- of the predicted classes


@metric("accuracy")
def accuracy(s: LabelledScores) -> ExampleValues:
    """Share of examples whose predicted class is the label."""
    return ExampleValues(s.correct)


@metric("top-5 accuracy", least_classes=5)
def top5_accuracy(s: LabelledScores) -> ExampleValues:
    """Share of examples whose label is among the five largest scores."""
    return ExampleValues(s.in_top(5))


@metric("mean per-class recall")
def mean_per_class_recall(s: LabelledScores) -> ExampleValues:
    """Mean recall of the classes that occur in the labels, also called balanced accuracy."""
    support, _, hits = s.class_counts
    present = support > 0
    recall = hits / np.maximum(support, 1)
    share = len(s) / present.sum()
    own = share * (s.correct - recall[s.labels]) / support[s.labels]
    return ExampleValues(recall[present].mean() + own, _mean_weight(share, support))


@metric("macro F1", version=2, leaderboard=("",), summary=True)
def macro_f1(s: LabelledScores) -> ExampleValues:
    """Mean F1 of the classes that occur in the labels or are predicted."""
    support, predicted, _ = s.class_counts
    f1, size = class_figures(*s.class_counts)[2], np.maximum(support + predicted, 1)
    among = (support > 0) | (predicted > 0)
    share = len(s) / among.sum()
    own = (2 * s.correct - f1[s.labels]) / size[s.labels] - f1[s.predicted] / size[s.predicted]
    return ExampleValues(f1[among].mean() + share * own, _mean_weight(share, support))


@metric("weighted F1")
def weighted_f1(s: LabelledScores) -> ExampleValues:
    """Mean F1 of the classes, weighted by support."""
    support, predicted, _ = s.class_counts
    f1, size = class_figures(*s.class_counts)[2], np.maximum(support + predicted, 1)
    own = support[s.labels] * (2 * s.correct - f1[s.labels]) / size[s.labels]
    own = own - support[s.predicted] * f1[s.predicted] / size[s.predicted]
    return ExampleValues(f1[s.labels] + own)


@metric("weighted precision", summary=True)
def weighted_precision(s: LabelledScores) -> ExampleValues:
    """Mean precision of the classes, weighted by support."""
    support, predicted, _ = s.class_counts
    precision = class_figures(*s.class_counts)[1]
    own = support[s.predicted] * (s.correct - precision[s.predicted]) / predicted[s.predicted]
    return ExampleValues(precision[s.labels] + own)


@metric("weighted recall", summary=True)
def weighted_recall(s: LabelledScores) -> ExampleValues:
    """Mean recall of the classes, weighted by support, which is the accuracy."""
    return ExampleValues(s.correct)


def _mean_weight(share: float, support: NDArray[np.intp]) -> float:
    present = support > 0
    return float(share * (1 / support[present]).sum() / present.sum())


# ---------------------------------------------------------------- of the probabilities


@metric("NLL", unit="nats", higher_is_better=False, probabilities=True, leaderboard=("",))
def nll(s: LabelledScores) -> ExampleValues | None:
    """Mean negative log-likelihood of the label; with one sigmoid per class, of all classes."""
    return None if s.losses is None else ExampleValues(s.losses)


@metric("Brier", unit="squared error", higher_is_better=False, probabilities=True)
def brier(s: LabelledScores) -> ExampleValues | None:
    """Mean over examples of the squared error of the probabilities, summed over ``C`` classes.

    It is in [0, 2] for a softmax, and in [0, C] for one sigmoid per class: these need not sum to 1, and each may be
    wrong by 1.

    References:
        G. Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather Review 1950.
    """
    if s.squared_errors is None:
        return None
    largest = float(s.scores.shape[1]) if s.sigmoid else 2.0
    return ExampleValues(s.squared_errors, largest=largest)


@metric(
    "ECE",
    higher_is_better=False,
    probabilities=True,
    leaderboard=("", CALIBRATED),
    note="15 bins of equal width",
)
def ece(s: LabelledScores) -> float | None:
    """Expected calibration error over bins of equal width; see :func:`~.calibration.calibration_error`."""
    return None if s.confidence is None else calibration_error(s.confidence, s.correct)


@metric("ECE, equal mass", higher_is_better=False, probabilities=True)
def ece_mass(s: LabelledScores) -> float | None:
    """Expected calibration error over bins of equal mass."""
    if s.confidence is None:
        return None
    return calibration_error(s.confidence, s.correct, binning="mass")


@metric("AURC", higher_is_better=False, probabilities=True)
def aurc(s: LabelledScores) -> float | None:
    """Area under the risk-coverage curve; see :func:`~.calibration.area_under_risk_coverage`."""
    if s.confidence is None:
        return None
    return area_under_risk_coverage(s.confidence, s.correct)


# ---------------------------------------------------------------- of prediction sets


@metric("coverage of 90 % sets", sets=True)
def set_coverage(s: LabelledScores) -> ExampleValues | None:
    """Share of examples whose prediction set contains the label, of sets with a nominal coverage of 90 %."""
    return None if s.sets is None else ExampleValues(s.sets[0])


@metric("size of 90 % sets", unit="classes", higher_is_better=False, sets=True)
def set_size(s: LabelledScores) -> ExampleValues | None:
    """Mean number of classes in a prediction set with a nominal coverage of 90 %."""
    if s.sets is None:
        return None
    return ExampleValues(s.sets[1].astype(np.float64), largest=float(s.scores.shape[1]))
