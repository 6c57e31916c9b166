"""Stored predictions and histories, read once per command; answers are remembered for the next one."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple

from clipadapt.core.api.errors import RecordError
from clipadapt.core.files.hardware import cpu_count, without_collection
from clipadapt.core.records.history import read_epochs, run_folder
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.report.answer_index import INDEXED, AnswerIndex, Examples, stamp_of
from clipadapt.core.report.answers import answers_from, answers_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from clipadapt.core.records.history import Epoch
    from clipadapt.core.records.predictions import Predictions
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.report.answer_index import Stamp
    from clipadapt.core.report.answers import Answers

_KEPT_BYTES: Final = 256 << 20
"""Memory for predictions that are kept; beyond it they are read again."""
_THREADS: Final = 4
"""Predictions that are read at a time; hashing and decompressing leave the interpreter to the others."""


class _Read(NamedTuple):
    """Predictions as they were read, their answers, and the stamp of the file before that."""

    predictions: Predictions
    answers: Answers | None
    stamp: Stamp | None


class RunFiles:
    """Predictions and histories of the runs in a store, checked against their records."""

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self._predictions: dict[str, Predictions] = {}  # by run_id
        self._room = _KEPT_BYTES
        self._answers: dict[tuple[str, str], Answers | None] = {}  # by run_id and metric
        self._folders: dict[str, Path] = {}
        self._examples: dict[str, Examples] = {}
        self._index = AnswerIndex(store.root)

    def folder(self, record: RunRecord) -> Path:
        """Return the folder of a run."""
        if record.run_id not in self._folders:
            self._folders[record.run_id] = run_folder(self.store, record)
        return self._folders[record.run_id]

    def predictions(self, record: RunRecord) -> Predictions:
        """Return the stored predictions of a successful run.

        Raises:
            RecordError: If they are missing, damaged or do not belong to the record.
        """
        found = self._predictions.get(record.run_id)
        if found is None:
            found = RunStore.load_predictions(self.folder(record), record)
        self._keep(record, found)
        return found

    def answers(self, record: RunRecord, metric: str = "accuracy") -> Answers | None:
        """Return the answers of a run; None if the metric is not a mean over examples.

        Raises:
            RecordError: As :meth:`predictions` does.
        """
        key = record.run_id, metric
        if key not in self._answers and not (metric == INDEXED and self._recall(record)):
            self._take_in(record, metric, self._read(record, metric))
        return self._answers[key]

    def read_ahead(self, records: Iterable[RunRecord], metric: str = "accuracy") -> dict[str, str]:
        """Find the answers of successful runs, and read several files at a time where they are not remembered.

        Returns:
            What is wrong with unreadable ones, by run_id.
        """
        with without_collection():
            missing = [
                r
                for r in records
                if r.status == "ok"
                and (r.run_id, metric) not in self._answers
                and not (metric == INDEXED and self._recall(r))
            ]
        faults = {}
        for record, read in zip(missing, self._reads(missing, metric), strict=True):
            if isinstance(read, RecordError):
                faults[record.run_id] = read.problem
            else:
                self._take_in(record, metric, read)
        return faults

    def remember(self) -> None:
        """Remember the answers that were read for the next command."""
        self._index.write()

    def _reads(self, records: Sequence[RunRecord], metric: str) -> Iterator[_Read | RecordError]:
        """Yield what was read of each run, or why it cannot be read; few are in memory at a time."""

        def read(record: RunRecord) -> _Read | RecordError:
            try:
                return self._read(record, metric)
            except RecordError as err:
                return err

        if len(records) < _THREADS:
            yield from map(read, records)
            return
        with ThreadPoolExecutor(min(_THREADS, cpu_count())) as pool:
            for i in range(0, len(records), 4 * _THREADS):
                yield from pool.map(read, records[i : i + 4 * _THREADS])

    def _read(self, record: RunRecord, metric: str) -> _Read:
        found = self._predictions.get(record.run_id)
        if found is not None:
            return _Read(found, answers_of(found, record, metric), None)
        folder = self.folder(record)
        stamp = stamp_of(folder)
        found = RunStore.load_predictions(folder, record)
        return _Read(found, answers_of(found, record, metric), stamp)

    def _take_in(self, record: RunRecord, metric: str, read: _Read) -> None:
        """Keep what was read, with one array of ids and labels for all runs on the same examples."""
        self._keep(record, read.predictions)
        answers = read.answers
        if answers is not None:
            own = Examples(answers.ids, answers.labels)
            key = own.key()
            shared = self._examples.setdefault(key, own)
            answers = dataclasses.replace(answers, ids=shared.ids, labels=shared.labels)
            if metric == INDEXED:
                at = self.folder(record)
                self._index.add(at, record, read.stamp, (key, shared), answers.predicted[0])
        self._answers[record.run_id, metric] = answers

    def _keep(self, record: RunRecord, predictions: Predictions) -> None:
        """Keep predictions for further metrics of their run; those used longest ago make room for them."""
        if self._predictions.pop(record.run_id, None) is None:
            self._room -= _size(predictions)
        self._predictions[record.run_id] = predictions
        while self._room < 0 and len(self._predictions) > 1:
            self._room += _size(self._predictions.pop(next(iter(self._predictions))))

    def _recall(self, record: RunRecord) -> bool:
        """Take the answers of a run from the index if it has them."""
        try:
            found = self._index.find(self.folder(record), record)
        except RecordError:  # there is no such folder; reading it says so
            return False
        if found is None:
            return False
        key, examples, predicted = found
        shared = self._examples.setdefault(key, examples)
        self._answers[record.run_id, INDEXED] = answers_from(*shared, predicted, record)
        return True

    def epochs(self, record: RunRecord) -> tuple[Epoch, ...]:
        """Return what a run logged by epoch.

        Raises:
            RecordError: If its history is damaged.
        """
        return read_epochs(self.folder(record), record)


def _size(predictions: Predictions) -> int:
    return predictions.scores.nbytes + 100 * len(predictions.ids)
