"""Base to new: fits evaluated on base and on new classes, and H, the harmonic mean of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipadapt.core.api.errors import RecordError
from clipadapt.core.report.answers import LEVEL, join
from clipadapt.core.report.formats import format_interval
from clipadapt.core.report.rows import measure
from clipadapt.core.scoring.combined import harmonic, harmonic_interval
from clipadapt.core.scoring.statistics import Interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.report.rows import Row
    from clipadapt.core.report.run_files import RunFiles


@dataclass(frozen=True, slots=True)
class BaseToNew:
    """The fits of one method that were evaluated on base and on new classes.

    Attributes:
        base_row: Row of the base classes.
        new_row: Row of the new classes.
        base: The metric on the base classes, over the fits that both rows contain.
        new: The metric on the new classes, over the same fits.
        harmonic: H, the harmonic mean of both means.
        n_fits: Fits that both rows contain.
        fault: Problem of predictions that cannot be read; H then has no interval.
    """

    base_row: Row
    new_row: Row
    base: Interval
    new: Interval
    harmonic: Interval
    n_fits: int
    fault: str = ""


def base_to_new(rows: Sequence[Row], metric: str = "accuracy") -> Iterable[BaseToNew]:
    """Yield H of every pair of rows that evaluate the same fits on base and on new classes."""
    for base_row in _of_classes(rows, "base"):
        for new_row in _of_classes(rows, "new"):
            if _evaluation(base_row) != _evaluation(new_row):
                continue
            of_new = {r.fit_id: r for r in new_row.ok if metric in r.metrics}
            pairs = [
                (r, of_new[r.fit_id])
                for r in base_row.ok
                if r.fit_id in of_new and metric in r.metrics
            ]
            if pairs:
                yield _harmonic(base_row, new_row, pairs, metric)


def base_to_new_cells(pair: BaseToNew) -> list[str]:
    """Return dataset, shots, method, the metric on base and on new classes, H in percent, and the test examples."""
    first = pair.base_row.first
    accuracies = map(format_interval, (pair.base, pair.new, pair.harmonic))
    n = f"{pair.base.n:,} + {pair.new.n:,}"
    shots = str(first.data.shots or "all")
    return [first.evaluation.dataset, shots, pair.base_row.label, *accuracies, n]


def _of_classes(rows: Sequence[Row], classes: str) -> list[Row]:
    return [r for r in rows if r.first.evaluation.classes == classes]


def _evaluation(row: Row) -> tuple[str, str, str]:
    evaluation = row.first.evaluation
    return evaluation.dataset, evaluation.split, evaluation.protocol


def _harmonic(
    base_row: Row, new_row: Row, pairs: Sequence[tuple[RunRecord, RunRecord]], metric: str
) -> BaseToNew:
    files = base_row.files
    sides = [list(side) for side in zip(*pairs, strict=True)]
    base, new = (measure(side, metric, files)[0] for side in sides)
    assert base is not None
    assert new is not None
    fault = ""
    found = None
    if files is not None:
        try:
            found = _interval(sides, metric, files)
        except RecordError as err:
            fault = err.problem
    if found is None:
        h = harmonic(base.value, new.value)
        found = Interval(h, None, None, LEVEL, base.n + new.n)
    return BaseToNew(base_row, new_row, base, new, found, len(pairs), fault)


def _interval(
    sides: Sequence[Sequence[RunRecord]], metric: str, files: RunFiles
) -> Interval | None:
    """Return H with its interval, None if the metric is not a mean over examples."""
    joined = []
    for side in sides:
        answers = [a for r in side if (a := files.answers(r, metric)) is not None]
        if len(answers) < len(side):
            return None
        joined.append(join(answers))
    base, new = joined
    return harmonic_interval(base.values, new.values, LEVEL, weights=(base.weight, new.weight))
