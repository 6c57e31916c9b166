"""Stored predictions and histories, read once per command."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import RecordError
from clipadapt.core.records.history import read_epochs, run_folder
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.report.answers import answers_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from clipadapt.core.records.history import Epoch
    from clipadapt.core.records.predictions import Predictions
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.report.answers import Answers

_KEPT_BYTES: Final = 256 << 20
"""Memory for predictions that are kept; beyond it they are read again."""


class RunFiles:
    """Predictions and histories of the runs in a store, checked against their records."""

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self._predictions: dict[str, Predictions] = {}  # by run_id
        self._room = _KEPT_BYTES
        self._answers: dict[tuple[str, str], Answers | None] = {}  # by run_id and metric
        self._ids: dict[bytes, NDArray[np.str_]] = {}

    def folder(self, record: RunRecord) -> Path:
        """Return the folder of a run."""
        return run_folder(self.store, record)

    def predictions(self, record: RunRecord) -> Predictions:
        """Return the stored predictions of a successful run.

        Raises:
            RecordError: If they are missing, damaged or do not belong to the record.
        """
        found = self._predictions.get(record.run_id)
        if found is None:
            found = RunStore.load_predictions(self.folder(record), record)
            size = found.scores.nbytes + 100 * len(found.ids)
            if size <= self._room:
                self._room -= size
                self._predictions[record.run_id] = found
        return found

    def answers(self, record: RunRecord, metric: str = "accuracy") -> Answers | None:
        """Return the answers of a run; None if the metric is not a mean over examples.

        Raises:
            RecordError: As :meth:`predictions` does.
        """
        key = record.run_id, metric
        if key not in self._answers:
            found = answers_of(self.predictions(record), record, metric)
            self._answers[key] = None if found is None else self._with_shared_ids(found)
        return self._answers[key]

    def _with_shared_ids(self, answers: Answers) -> Answers:
        """Return the answers with one array of ids for all runs that were evaluated on the same examples."""
        key = hashlib.sha256(answers.ids.tobytes()).digest()
        return dataclasses.replace(answers, ids=self._ids.setdefault(key, answers.ids))

    def read_answers(self, records: Iterable[RunRecord]) -> dict[str, str]:
        """Read and keep the answers of successful runs; return what is wrong with unreadable ones, by run_id."""
        faults = {}
        for record in records:
            if record.status != "ok":
                continue
            try:
                self.answers(record)
            except RecordError as err:
                faults[record.run_id] = err.problem
        return faults

    def epochs(self, record: RunRecord) -> tuple[Epoch, ...]:
        """Return what a run logged by epoch.

        Raises:
            RecordError: If its history is damaged.
        """
        return read_epochs(self.folder(record), record)
