"""Per-example results of a method's seeds, and the interval over seeds and examples made from it.

Every seed is evaluated on the same examples, so the design is crossed. One fit has Wilson's interval, which is the
same model with a single seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.api.errors import RecordError
from clipadapt.core.scoring.metrics import CALIBRATED, example_values, find_metric, interval_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from clipadapt.core.records.predictions import Predictions
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.scoring.statistics import Interval

LEVEL: Final = 0.95


@dataclass(frozen=True, slots=True)
class Answers:
    """A metric's value on each example, for each seed of a method.

    Attributes:
        ids: ``n`` ids, sorted.
        labels: Shape ``(n,)``.
        values: Shape ``(S, n)``; their mean is the metric. For an accuracy bool: whether the example is correct.
        seeds: ``S`` seeds.
        predicted: Predicted classes, shape ``(S, n)``.
        weight: See :class:`~clipadapt.core.scoring.metrics.ExampleValues`.
        unit: Unit of the metric.
        largest: Largest possible value of an example.
    """

    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    values: NDArray[Any]
    seeds: tuple[int, ...]
    predicted: NDArray[np.int64]
    weight: float = 1.0
    unit: str = "fraction"
    largest: float = math.inf

    @property
    def interval(self) -> Interval:
        """The metric with its interval over examples and seeds."""
        return interval_of(
            self.values, self.unit, weight=self.weight, largest=self.largest, level=LEVEL
        )


def answers_of(
    predictions: Predictions, record: RunRecord, metric: str = "accuracy"
) -> Answers | None:
    """Return the answers of one run; None if the metric is not a mean over examples."""
    temperature: float | None = 1.0
    known, threshold = find_metric(metric), None
    if metric.endswith(CALIBRATED):
        temperature = record.calibration.temperature if record.calibration else None
    if temperature is None:
        return None
    if known is not None and known.sets:
        temperature = (record.calibration and record.calibration.temperature) or 1.0
        headline = record.prediction_sets and record.prediction_sets.headline
        threshold = headline.threshold if headline else None
    scored = predictions.scored(temperature, sigmoid=record.probabilities == "sigmoid")
    scored = replace(scored, set_threshold=threshold)
    found = example_values(metric, scored)
    if found is None:
        return None
    ids = np.asarray(predictions.ids, dtype=np.str_)
    order = np.argsort(ids)
    return Answers(
        ids[order],
        predictions.labels[order],
        found.values[order][None],
        (record.seed,),
        scored.predicted[order][None],
        found.weight,
        record.metrics[metric].unit if metric in record.metrics else "fraction",
        found.largest,
    )


def answers_from(
    ids: NDArray[np.str_],
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    record: RunRecord,
) -> Answers:
    """Return the accuracy of one run on each example, as :func:`answers_of` does, from its predicted classes.

    Args:
        ids: ``n`` ids, sorted.
        labels: Shape ``(n,)``.
        predicted: Predicted classes, shape ``(n,)``.
        record: The record of the run.
    """
    unit = record.metrics["accuracy"].unit if "accuracy" in record.metrics else "fraction"
    correct = (predicted == labels)[None]
    return Answers(ids, labels, correct, (record.seed,), predicted[None], unit=unit)


def join(answers: Sequence[Answers]) -> Answers:
    """Return the answers of several seeds on the examples that all of them were evaluated on.

    Raises:
        RecordError: If an example has two labels.
    """
    joined = answers[0]
    if all(a.ids is joined.ids and a.labels is joined.labels for a in answers):
        return replace(
            joined,
            values=np.concatenate([a.values for a in answers]),
            seeds=tuple(seed for a in answers for seed in a.seeds),
            predicted=np.concatenate([a.predicted for a in answers]),
            weight=fmean(a.weight for a in answers for _ in a.seeds),
            largest=max(a.largest for a in answers),
        )
    for one in answers[1:]:
        in_joined, in_one = shared(joined, one)
        all_of_them = in_joined.size == joined.ids.size
        joined = Answers(
            joined.ids if all_of_them else joined.ids[in_joined],
            joined.labels if all_of_them else joined.labels[in_joined],
            np.concatenate([joined.values[:, in_joined], one.values[:, in_one]]),
            joined.seeds + one.seeds,
            np.concatenate([joined.predicted[:, in_joined], one.predicted[:, in_one]]),
            fmean([joined.weight] * len(joined.seeds) + [one.weight]),
            joined.unit,
            max(joined.largest, one.largest),
        )
    return joined


def shared(a: Answers, b: Answers) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices of the examples that both contain, in ``a`` and in ``b``, in the same order.

    Raises:
        RecordError: If an example has two labels.
    """
    if a.ids is b.ids:  # as runs on one dataset: see RunFiles
        ids, in_a = a.ids, np.arange(a.ids.size)
        in_b = in_a
        if a.labels is b.labels:
            return in_a, in_b
    else:
        ids, in_a, in_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
    unlike = np.flatnonzero(a.labels[in_a] != b.labels[in_b])
    if unlike.size:
        raise RecordError(
            f"the example '{ids[unlike[0]]}' has two labels in runs that are to be compared",
            hint="the data changed between the runs; keep them in separate folders",
        )
    return in_a, in_b
