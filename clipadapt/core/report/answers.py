"""What the seeds of one method got on each example, and the one interval made of it.

Every table, summary and page takes the interval of a cell from here: Wilson's for one fit, else that of the crossed
model over seeds and examples, for all seeds meet the same examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.api.errors import RecordError
from clipadapt.core.records.history import run_folder
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.scoring.metrics import CALIBRATED, example_values, interval_of
from clipadapt.core.scoring.statistics import Interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from clipadapt.core.records.predictions import Predictions
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.scoring.metrics import ExampleValues, MetricValue

LEVEL: Final = 0.95


@dataclass(frozen=True, slots=True)
class Answers:
    """A metric's value on each example, for each seed of a method.

    Attributes:
        ids: ``n`` ids, sorted.
        labels: Shape ``(n,)``.
        values: Shape ``(S, n)``: for an accuracy bool, whether the example is right; the mean is the metric.
        seeds: ``S`` seeds.
        predicted: Classes given, shape ``(S, n)``.
        weight: See :func:`~clipadapt.core.scoring.metrics.ExampleValues`.
        unit: Unit of the metric.
    """

    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    values: NDArray[Any]
    seeds: tuple[int, ...]
    predicted: NDArray[np.int64]
    weight: float = 1.0
    unit: str = "fraction"

    @property
    def interval(self) -> Interval:
        """The metric, with its interval over examples and seeds together."""
        return interval_of(self.values, self.unit, weight=self.weight, level=LEVEL)


def read_answers(store: RunStore, record: RunRecord, metric: str = "accuracy") -> Answers | None:
    """Read what one run got on each example; None where the metric is no mean over examples.

    Raises:
        RecordError: If its predictions are missing, damaged or not those of the record.
    """
    found = RunStore.load_predictions(run_folder(store, record), record)
    valued = _values(found, record, metric)
    if valued is None:
        return None
    ids = np.asarray(found.ids, dtype=np.str_)
    order = np.argsort(ids)
    values, weight = valued.values, valued.weight
    unit = record.metrics[metric].unit if metric in record.metrics else "fraction"
    return Answers(
        ids[order],
        found.labels[order],
        values[order][None],
        (record.seed,),
        found.predicted[order][None],
        weight,
        unit,
    )


def join(answers: Sequence[Answers]) -> Answers:
    """Return the answers of several seeds on the examples that all were judged on.

    Raises:
        RecordError: If an example has two labels.
    """
    joined = answers[0]
    for one in answers[1:]:
        of_joined, of_one = shared(joined, one)
        joined = Answers(
            joined.ids[of_joined],
            joined.labels[of_joined],
            np.concatenate([joined.values[:, of_joined], one.values[:, of_one]]),
            joined.seeds + one.seeds,
            np.concatenate([joined.predicted[:, of_joined], one.predicted[:, of_one]]),
            fmean([joined.weight] * len(joined.seeds) + [one.weight]),
            joined.unit,
        )
    return joined


def shared(a: Answers, b: Answers) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return where the ids that both have stand in each, in one order.

    Raises:
        RecordError: If an example has two labels.
    """
    ids, of_a, of_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
    unlike = np.flatnonzero(a.labels[of_a] != b.labels[of_b])
    if unlike.size:
        raise RecordError(
            f"the example '{ids[unlike[0]]}' has two labels in runs that are to be compared",
            hint="the data changed between the runs; keep them in folders of their own",
        )
    return of_a, of_b


def cell(
    records: Sequence[RunRecord], metric: str, store: RunStore | None
) -> tuple[Interval | None, list[str]]:
    """Return a metric over the seeds of a group with its interval, and notes of predictions that cannot be read.

    One fit has the interval of its record. That of several needs their predictions: without them, and for what is no
    mean over examples (calibration errors, areas), the mean has none.

    Args:
        records: Runs of one group that are ok.
        metric: Name of the metric.
        store: Where their predictions are, or None.
    """
    known = [r for r in records if metric in r.metrics]
    values = [r.metrics[metric] for r in known]
    if not values:
        return None, []
    mean, n = fmean(v.value for v in values), values[0].n
    if len(values) == 1:
        return Interval(mean, values[0].low, values[0].high, LEVEL, n), []
    if store is None:
        return Interval(mean, None, None, LEVEL, n), []
    try:
        answers = [a for r in known if (a := read_answers(store, r, metric)) is not None]
        if answers:
            return join(answers).interval, []
    except RecordError as err:
        return Interval(mean, None, None, LEVEL, n), [f"{err.problem}: the mean has no interval."]
    if len(set(map(_figures, values))) == 1:  # one classifier on the same examples
        return Interval(values[0].value, values[0].low, values[0].high, LEVEL, n), []
    return Interval(mean, None, None, LEVEL, n), []


def _figures(value: MetricValue) -> tuple[float, float | None, float | None, int]:
    return value.value, value.low, value.high, value.n


def _values(found: Predictions, record: RunRecord, metric: str) -> ExampleValues | None:
    """Return a metric's value on each example; None where there is no such value."""
    temperature: float | None = 1.0
    if metric.endswith(CALIBRATED):
        temperature = record.calibration.temperature if record.calibration else None
    return None if temperature is None else example_values(metric, found.scored(temperature))
