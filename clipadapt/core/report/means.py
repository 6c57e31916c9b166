"""Means over datasets: the last rows of a table whose methods have a figure on each of several datasets.

Rows are of one kind if they differ only in their dataset: same model, method, recipe, shots, protocol, split, classes
and settings. A mean is shown only if the kind has a figure on every dataset of the table that its protocol, split and
classes have, because means over different datasets are not comparable. Each dataset has the same weight, as in
publications. On base and on new classes there is a mean each, and H is the harmonic mean of both.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import RecordError
from clipadapt.core.experiments.settings import settings_that_affect_results
from clipadapt.core.report.answers import LEVEL, join
from clipadapt.core.report.formats import (
    NOTHING,
    Column,
    format_count,
    format_interval,
    method_title,
    split_title,
)
from clipadapt.core.scoring.combined import harmonic, harmonic_mean_interval, mean_interval
from clipadapt.core.scoring.metrics import of_val
from clipadapt.core.scoring.statistics import Interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from clipadapt.core.report.answers import Answers
    from clipadapt.core.report.rows import Row

NOTE: Final = (
    "Mean: over datasets, each with the same weight. The datasets are fixed: its interval is over seeds and test "
    "examples together, and says nothing about other datasets."
)


@dataclass(frozen=True, slots=True)
class DatasetMean:
    """The mean of one kind of row over datasets.

    Attributes:
        rows: One for each dataset, by its name.
        classes: ``all`` classes, the ``base`` or the ``new`` ones; ``H`` is the harmonic mean of the last two means.
        interval: The mean; without bounds if the metric is not a mean over examples, or predictions cannot be read.
    """

    rows: tuple[Row, ...]
    classes: str
    interval: Interval

    @property
    def title(self) -> str:
        """What stands in the place of the dataset."""
        return f"mean of {len(self.rows)} datasets"

    @property
    def split(self) -> str:
        """Split, or splits, evaluated."""
        return ", ".join(dict.fromkeys(row.first.evaluation.split for row in self.rows))

    @property
    def seeds(self) -> int | None:
        """Runs on each dataset, None if their numbers differ."""
        counts = {len(row.ok) for row in self.rows}
        return counts.pop() if len(counts) == 1 else None

    def plain(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        first = self.rows[0].first
        return {
            "datasets": [row.first.evaluation.dataset for row in self.rows],
            "split": self.split,
            "protocol": first.evaluation.protocol,
            "classes": self.classes,
            "model": self.rows[0].model,
            "label": self.rows[0].label,
            "shots": _shots(self.rows[0], "accuracy"),
            "value": dataclasses.asdict(self.interval),
        }


def mean_cells(means: Sequence[DatasetMean]) -> tuple[list[Column], list[list[str]]]:
    """Return columns and cells of a table of mean accuracies."""
    given = [Column(x, text=True, given=True) for x in ("datasets", "split", "protocol", "model")]
    columns = [
        *given,
        Column("method", text=True),
        Column("shots", given=True),
        Column("seeds", rank=1),
        Column("accuracy, %", figure=True),
        Column("n", rank=2),
    ]
    rows = []
    for m in means:
        row, first = m.rows[0], m.rows[0].first
        rows.append([
            str(len(m.rows)), split_title(m.split, m.classes), first.evaluation.protocol, row.model or NOTHING,
            row.label, shots_title(row, "accuracy"), str(m.seeds or NOTHING), format_interval(m.interval),
            format_count(m.interval.n),
        ])  # fmt: skip
    return columns, rows


def shots_title(row: Row, metric: str) -> str:
    """Return the shots of a row for a reader: ``all``, or ``-`` where they do not change the metric."""
    if not _has_shots(row, metric):
        return NOTHING
    return "all" if row.first.data.shots is None else str(row.first.data.shots)


def _has_shots(row: Row, metric: str) -> bool:
    """Return whether the shots may change a metric: of an untrained method, only if it is calibrated on val."""
    return row.first.method.uses_train or bool(row.first.data.shots and of_val(metric))


def _shots(row: Row, metric: str) -> int | None:
    return row.first.data.shots if _has_shots(row, metric) else None


def dataset_means(rows: Sequence[Row], metric: str) -> tuple[list[DatasetMean], tuple[str, ...]]:
    """Return the means over datasets of a metric, and notes: what they are, and which kinds of rows have none."""
    kinds: dict[tuple[Any, ...], dict[str, Row]] = {}
    needed: dict[tuple[Any, ...], dict[str, None]] = {}
    for row in rows:
        dataset = row.first.evaluation.dataset
        kinds.setdefault(_kind(row, metric), {})[dataset] = row
        needed.setdefault(_family(row), {})[dataset] = None
    found: list[DatasetMean] = []
    lacking: list[str] = []
    means: dict[tuple[Any, ...], tuple[DatasetMean, list[Answers] | None]] = {}
    for kind, by_dataset in kinds.items():
        first = next(iter(by_dataset.values()))
        datasets = sorted(needed[_family(first)])
        having = [d for d in datasets if d in by_dataset and _has(by_dataset[d], metric)]
        if len(datasets) < 2 or len(having) < len(datasets):
            if len(having) > 1:
                lacking.append(_without(first, metric, [d for d in datasets if d not in having]))
            continue
        members = tuple(by_dataset[d] for d in datasets)
        mean, answers = _mean(members, metric)
        found.append(mean)
        means[kind] = mean, answers
        other = means.get(_with_classes(kind, {"base": "new", "new": "base"}.get(mean.classes)))
        if other is not None:
            pair = (means[kind], other) if mean.classes == "base" else (other, means[kind])
            found.append(_harmonic(*pair))
    notes: tuple[str, ...] = (NOTE, *_unlike_settings(found, metric)) if found else ()
    if found and lacking:
        notes += (f"Without a mean, because a dataset has no figure: {'; '.join(lacking)}.",)
    return found, notes


def _unlike_settings(means: Sequence[DatasetMean], metric: str) -> tuple[str, ...]:
    """Return a note of the methods whose settings are not the same on every dataset."""
    found = []
    for mean in means:
        settings = [settings_that_affect_results(row.first.config) for row in mean.rows]
        names = sorted({k for s in settings for k in s if k.startswith("method.")})
        unlike = [k for k in names if any(s.get(k) != settings[0].get(k) for s in settings)]
        if unlike:
            found.append(f"{_title(mean.rows[0], metric)} ({', '.join(unlike)})")
    if not found:
        return ()
    return (
        f"Settings that differ between the datasets of a mean: {'; '.join(dict.fromkeys(found))}.",
    )


def _kind(row: Row, metric: str) -> tuple[Any, ...]:
    """Return everything but the dataset in which the rows of a table differ; the classes come last."""
    first = row.first
    return (
        *_family(row)[:-1], row.model, first.method.name, first.method.recipe, _shots(row, metric), row.setting,
        row.probabilities, row.group.settings, first.evaluation.classes,
    )  # fmt: skip


def _with_classes(kind: tuple[Any, ...], classes: str | None) -> tuple[Any, ...]:
    return (*kind[:-1], classes)


def _family(row: Row) -> tuple[Any, ...]:
    """Return what decides over which datasets a mean is taken.

    A dataset without splits is evaluated whole by methods that are not trained: ``all`` stands beside ``test``.
    """
    evaluation, trained_on = row.first.evaluation, row.first.data.name
    elsewhere = trained_on if trained_on != evaluation.dataset else None
    split = "test" if evaluation.split == "all" else evaluation.split
    return evaluation.protocol, split, elsewhere, evaluation.classes


def _has(row: Row, metric: str) -> bool:
    return any(metric in r.metrics for r in row.ok)


def _without(row: Row, metric: str, datasets: Sequence[str]) -> str:
    return f"{_title(row, metric)} (not on {', '.join(datasets)})"


def _title(row: Row, metric: str) -> str:
    first, n = row.first, _shots(row, metric)
    shots = "" if n is None else f", {n} shots"
    return f"{method_title(first.method.name, first.method.recipe)}{shots}"


def _mean(rows: tuple[Row, ...], metric: str) -> tuple[DatasetMean, list[Answers] | None]:
    """Return the mean of rows, and the answers of each dataset if all are known."""
    values = [v for row in rows if (v := row.measure(metric)[0]) is not None]
    classes = rows[0].first.evaluation.classes
    answers = _answers(rows, metric)
    if answers is None:
        n = sum(v.n for v in values)
        plain = Interval(fmean(v.value for v in values), None, None, LEVEL, n)
        return DatasetMean(rows, classes, plain), None
    interval = mean_interval(
        [a.values for a in answers],
        LEVEL,
        unit=answers[0].unit,
        weights=[a.weight for a in answers],
        same_seeds=_same_seeds(answers),
        largest=fmean(a.largest for a in answers),
    )
    return DatasetMean(rows, classes, interval), answers


def _harmonic(
    base: tuple[DatasetMean, list[Answers] | None], new: tuple[DatasetMean, list[Answers] | None]
) -> DatasetMean:
    """Return the harmonic mean of the mean on base and the mean on new classes."""
    (of_base, a), (of_new, b) = base, new
    n = of_base.interval.n + of_new.interval.n
    value = harmonic(of_base.interval.value, of_new.interval.value)
    interval = Interval(value, None, None, LEVEL, n)
    if a and b and a[0].unit == "fraction" and _same_seeds([*a, *b]):
        interval = harmonic_mean_interval(
            [x.values for x in a],
            [x.values for x in b],
            LEVEL,
            weights=[x.weight for x in (*a, *b)],
        )
    return DatasetMean(of_base.rows, "H", interval)


def _answers(rows: Iterable[Row], metric: str) -> list[Answers] | None:
    """Return the answers of each dataset, None if they are not all known."""
    found = []
    for row in rows:
        files = row.files
        if files is None:
            return None
        try:
            of_seeds = [files.answers(r, metric) for r in row.ok if metric in r.metrics]
            known = [a for a in of_seeds if a is not None]
            if len(known) < len(of_seeds):
                return None
            found.append(join(known))
        except RecordError:  # the row's own interval has the note
            return None
    return found


def _same_seeds(answers: Sequence[Answers]) -> bool:
    return len({a.seeds for a in answers}) == 1
