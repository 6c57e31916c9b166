"""The row that `table`, summary and page share: the runs of one method in one setting, with their figures.

A figure is a mean over seeds. Its interval is over seeds and examples together, and the same wherever it is shown.
Figures that need stored predictions or histories are computed on first access and cached.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from clipadapt.core.api.errors import RecordError
from clipadapt.core.records.history import accuracy_gap, loss_rise
from clipadapt.core.report.answers import LEVEL, join
from clipadapt.core.report.grouping import CHANGED_METRICS, refuse_unlike
from clipadapt.core.scoring.metrics import of_probabilities
from clipadapt.core.scoring.scores import class_counts, class_figures
from clipadapt.core.scoring.statistics import Interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from clipadapt.core.api.method import Setting
    from clipadapt.core.records.history import Epoch
    from clipadapt.core.records.predictions import Predictions
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.report.answers import Answers
    from clipadapt.core.report.grouping import Group
    from clipadapt.core.report.references import Published
    from clipadapt.core.report.run_files import RunFiles


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Figures of one class on the evaluated split, means over seeds.

    Attributes:
        name: Class name.
        support: Examples of the class.
        precision: Fraction of the examples predicted as this class that belong to it, 0 if there are none.
        recall: Fraction of the class's examples that are predicted as it, 0 if there are none.
        f1: Harmonic mean of both.
    """

    name: str
    support: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Row:
    """The runs of one method in one setting. Figures are means over the successful runs, None if unknown.

    Attributes:
        group: The records.
        files: Their files; with None, means over several seeds have no interval.
        on_val: Records of the same fits evaluated on val.
    """

    group: Group
    files: RunFiles | None = field(default=None, compare=False, repr=False)
    on_val: tuple[RunRecord, ...] = ()

    # ------------------------------------------------------------ which runs

    @property
    def first(self) -> RunRecord:
        """A record that represents all runs in what they are grouped by."""
        return self.group.first

    @cached_property
    def ok(self) -> tuple[RunRecord, ...]:
        """Records of the successful runs, by seed."""
        return self.group.ok

    @cached_property
    def failed(self) -> tuple[RunRecord, ...]:
        """Records of the runs that failed."""
        return tuple(r for r in self.group.records if r.status != "ok")

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Ids of all runs, by seed."""
        return tuple(r.run_id for r in self.group.records)

    @property
    def label(self) -> str:
        """Method, recipe and the settings that distinguish the row."""
        return self.group.label

    @property
    def setting(self) -> Setting:
        """Whether a prediction depends on the other inputs: inductive, transductive or online."""
        return self.first.method.setting

    @property
    def probabilities(self) -> str:
        """How scores become probabilities: a softmax, or one sigmoid per class."""
        return (self.ok or self.group.records)[0].probabilities

    @property
    def model(self) -> str | None:
        """Name of the backbone, or None."""
        return self.first.model.name if self.first.model else None

    @cached_property
    def published(self) -> tuple[Published, ...]:
        """Published numbers that match the row, or else the nearest one."""
        from clipadapt.core.report.references import published_for

        return published_for(self.group.records)

    # ------------------------------------------------------------ metrics

    def measure(self, metric: str) -> tuple[Interval | None, str]:
        """Return a metric with its 95 % interval, and what is wrong with unreadable predictions, if any are.

        One fit has the interval of its record. For several fits their predictions are needed; without them, and for
        metrics that are not means over examples (calibration errors, areas), there is no interval.

        Raises:
            RecordError: If the runs differ in more than their seed.
        """
        if metric not in self._measured:
            refuse_unlike(self.ok, metric)
            self._measured[metric] = measure(self.ok, metric, self.files)
        return self._measured[metric]

    @cached_property
    def _measured(self) -> dict[str, tuple[Interval | None, str]]:
        return {}

    @cached_property
    def accuracy(self) -> Interval | None:
        """Accuracy on the evaluated split."""
        return self.measure("accuracy")[0]

    @cached_property
    def val_accuracy(self) -> Interval | None:
        """Accuracy on val, if the same fits were evaluated there."""
        return measure(self.on_val, "accuracy", self.files)[0]

    def mean(self, metric: str) -> float | None:
        """Return the mean of a metric, without an interval."""
        if metric in CHANGED_METRICS and len({r.metrics_version for r in self.ok}) > 1:
            return None  # figures with two meanings have no mean
        if of_probabilities(metric) and len({r.probabilities for r in self.ok}) > 1:
            return None
        return _mean(r.metrics[metric].value for r in self.ok if metric in r.metrics)

    @cached_property
    def answers(self) -> Answers | None:
        """Answers of all seeds on each example, None without a successful run.

        Raises:
            RecordError: If predictions cannot be read.
        """
        found = [self._stored.answers(r) for r in self.ok]
        return join([a for a in found if a is not None]) if found else None

    def check_answers(self) -> None:
        """Read the answers of all seeds.

        Raises:
            RecordError: If predictions cannot be read, or an example has two labels.
        """
        _ = self.answers  # reading them checks them

    # ------------------------------------------------------------ classes

    @property
    def classnames(self) -> tuple[str, ...]:
        """Class names of the evaluated split by index, empty if the records do not list them."""
        known = next((r.per_class for r in self.ok if r.per_class), None)
        names: Any = known["classnames"] if known else ()
        return tuple(str(n) for n in names)

    @property
    def predictions(self) -> Iterator[Predictions]:
        """Stored predictions of the successful runs, one after another; large ones are read again each time."""
        return (self._stored.predictions(r) for r in self.ok)

    @cached_property
    def confusions(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """The non-zero cells of the confusion matrix: true classes, predicted classes and mean counts."""
        true, predicted, counts = (
            np.concatenate(x) for x in zip(*(p.confusions() for p in self.predictions), strict=True)
        )
        cells, of_cell = np.unique(np.stack([true, predicted]), axis=1, return_inverse=True)
        return cells[0], cells[1], np.bincount(of_cell.ravel(), counts) / len(self.ok)

    @cached_property
    def classes(self) -> tuple[ClassFigures, ...]:
        """Figures of every class, empty if the records do not list them."""
        names = self.classnames
        if not names:
            return ()
        answers = [a for r in self.ok if (a := self._stored.answers(r)) is not None]
        counts = [class_counts(a.predicted[0], a.labels, len(names)) for a in answers]
        support = np.mean([c[0] for c in counts], axis=0)
        means = np.mean([class_figures(*c) for c in counts], axis=0)  # (3, C)
        return tuple(
            ClassFigures(name, round(float(n)), float(precision), float(recall), float(f1))
            for name, n, (recall, precision, f1) in zip(names, support, means.T, strict=True)
        )

    # ------------------------------------------------------------ cost

    @property
    def n_trainable_params(self) -> int | None:
        """Trainable parameters."""
        return _rounded(r.n_trainable_params for r in self.ok)

    @property
    def n_total_params(self) -> int | None:
        """Parameters of the whole classifier."""
        return _rounded(r.n_total_params for r in self.ok if r.n_total_params is not None)

    @property
    def fit_seconds(self) -> float | None:
        """Seconds of fitting, without encoding."""
        return _mean(r.cost.fit_seconds for r in self.ok)

    @property
    def encode_seconds(self) -> float | None:
        """Seconds of encoding the frozen features used, including cached ones."""
        return _mean(r.cost.encode_seconds for r in self.ok)

    @property
    def predict_seconds(self) -> float | None:
        """Seconds of scoring the evaluated examples, without encoding."""
        return _mean(r.cost.predict_seconds for r in self.ok)

    @property
    def cold_seconds(self) -> float | None:
        """Seconds of fitting, encoding and scoring without a cache."""
        return _mean(r.cost.cold_seconds for r in self.ok)

    @property
    def examples_per_second(self) -> float | None:
        """Evaluated examples per second of scoring."""
        return _mean(
            r.data.n_test / r.cost.predict_seconds for r in self.ok if r.cost.predict_seconds > 0
        )

    @property
    def peak_memory_bytes(self) -> int | None:
        """Peak memory, the largest of the seeds."""
        known = [r.cost.peak_memory_bytes for r in self.ok]
        return max((n for n in known if n is not None), default=None)

    @property
    def saved_bytes(self) -> int | None:
        """Size of the saved classifier, the largest of the seeds."""
        return max((r.cost.saved_bytes for r in self.ok), default=None)

    # ------------------------------------------------------------ training

    @cached_property
    def _logged(self) -> tuple[tuple[tuple[Epoch, ...], ...], tuple[str, ...]]:
        epochs, faults = [], []
        for record in self.ok:
            try:
                epochs.append(self._stored.epochs(record))
            except RecordError as err:
                epochs.append(())
                faults.append(err.problem)
        return tuple(epochs), tuple(faults)

    @property
    def epochs(self) -> tuple[tuple[Epoch, ...], ...]:
        """What each successful run logged by epoch; empty for an unreadable history."""
        return self._logged[0]

    @property
    def history_faults(self) -> tuple[str, ...]:
        """What is wrong with unreadable histories."""
        return self._logged[1]

    @property
    def chosen_epochs(self) -> tuple[int | None, ...]:
        """Selected epoch of each successful run."""
        return tuple(r.selection.epoch if r.selection else None for r in self.ok)

    @property
    def loss_rise(self) -> float | None:
        """Val loss of the last epoch minus that of the best."""
        return _mean(x for e in self.epochs if (x := loss_rise(e)) is not None)

    @property
    def accuracy_gap(self) -> float | None:
        """Train minus val accuracy at the selected epoch."""
        runs = zip(self.epochs, self.chosen_epochs, strict=True)
        return _mean(x for e, chosen in runs if (x := accuracy_gap(e, chosen)) is not None)

    @cached_property
    def flags(self) -> dict[str, int]:
        """Flags with the number of runs that carry them, sorted by name."""
        return dict(sorted(Counter(f for r in self.ok for f in set(r.flags)).items()))

    @property
    def _stored(self) -> RunFiles:
        if self.files is None:
            raise ValueError("the row was made without the files of its runs")
        return self.files


def measure(
    records: Sequence[RunRecord], metric: str, files: RunFiles | None
) -> tuple[Interval | None, str]:
    """Return the mean of a metric over runs that differ in their seed; see :meth:`Row.measure`."""
    known = [r for r in records if metric in r.metrics]
    if not known:
        return None, ""
    values = [r.metrics[metric] for r in known]
    mean = Interval(fmean(v.value for v in values), None, None, LEVEL, values[0].n)
    own = dataclasses.replace(mean, low=values[0].low, high=values[0].high)
    if len(values) == 1:
        return own, ""
    if files is None:
        return mean, ""
    try:
        answers = [a for r in known if (a := files.answers(r, metric)) is not None]
        if answers:
            return join(answers).interval, ""
    except RecordError as err:
        return mean, err.problem
    if len({(v.value, v.low, v.high, v.n) for v in values}) == 1:  # copies of one classifier
        return dataclasses.replace(own, value=values[0].value), ""
    return mean, ""


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None


def _rounded(values: Iterable[int]) -> int | None:
    mean = _mean(values)
    return None if mean is None else round(mean)
