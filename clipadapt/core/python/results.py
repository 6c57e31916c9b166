"""Runs of a sweep or of a folder together: a table, a DataFrame, charts."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from clipadapt.core.python.frame import frame_of
from clipadapt.core.records.history import run_folder
from clipadapt.core.report import tables
from clipadapt.core.report.run_files import RunFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes

    from clipadapt.core.python.run import Run
    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.records.schema import RunRecord


class Results:
    """The runs of a sweep, in the order of its axes.

    Args:
        records: The records, also of failed runs.
        store: Where they are.
        failures: Title and message of each fit that failed now.
        run_of: Makes a run of a record and its folder.

    Attributes:
        records: As given.
        failures: As given.
    """

    def __init__(
        self,
        records: Sequence[RunRecord],
        store: RunStore,
        failures: Sequence[tuple[str, str]],
        run_of: Callable[[RunRecord, Path], Run],
    ) -> None:
        self.records, self.failures = tuple(records), tuple(failures)
        self._store, self._run_of = store, run_of

    @property
    def runs(self) -> list[Run]:
        """The successful runs."""
        return list(self)

    @property
    def _ok(self) -> list[RunRecord]:
        return [r for r in self.records if r.status == "ok"]

    def __len__(self) -> int:
        return len(self._ok)

    def __iter__(self) -> Iterator[Run]:
        return (self._run_of(r, run_folder(self._store, r)) for r in self._ok)

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice) -> list[Run]: ...
    def __getitem__(self, index: int | slice) -> Run | list[Run]:
        return list(self)[index]

    def frame(self) -> pd.DataFrame:
        """Return one row per record, see :mod:`clipadapt.core.python.frame` (extra ``pandas``).

        Raises:
            ClipAdaptError: If pandas is not installed.
        """
        return frame_of(self.records, self._store)

    def table(self, metric: str = "accuracy", format: str = "markdown") -> str:  # noqa: A002
        """Return the table that the command ``table`` prints: means over seeds with their 95 % intervals.

        Args:
            metric: Name of a metric.
            format: ``markdown``, ``csv``, ``latex`` or ``html``.

        Raises:
            RecordError: If there is no record, or unlike records would share a row.
            UnknownNameError: If no record has the metric.
        """
        return tables.render(
            tables.build_table(self.records, metric=metric, store=self._store), format
        )

    def plot_shots(self, ax: Axes | None = None, *, metric: str = "accuracy") -> Axes:
        """Draw a metric against the training examples per class, and return the axes (extra ``report``).

        Args:
            ax: Matplotlib axes to draw into; None makes a new figure.
            metric: Name of a metric.

        Raises:
            RecordError: If no run has the metric.
            ClipAdaptError: If matplotlib is not installed.
        """
        from clipadapt.core.report import figures

        return figures.metric_by_shots(self.records, RunFiles(self._store), metric, ax)

    def __repr__(self) -> str:
        failed = len(self.records) - len(self)
        more = f", {failed} failed" if failed else ""
        return f"<{len(self)} runs in {self._store.root}{more}>\n{self.table() if self.records else ''}"

    def _repr_html_(self) -> str:
        return self.table(format="html") if self.records else "<p>no runs</p>"
