"""The run store: a folder of runs.

One folder per fit and evaluation, written completely or not at all::

    <root>/<dataset>/<method>/<run_id>/record.json       RunRecord
                                       predictions.npz   ids, labels, scores
                                       history.jsonl     one line per logged step
                                       manifest.json     the few-shot draw
                                       calibration.npz   calibration examples of prediction sets
                                       classifier/       the trained parameters
                                       attempt-1.json    an earlier attempt that failed

A damaged run (see :mod:`~clipadapt.core.records.reading`) counts as missing. When it is run again, the new folder takes
its place and the damaged one is kept beside it as ``.damaged-<run_id>``.

Metrics are fractions in [0, 1], nats, seconds or bytes; only tables show percent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import shutil
import zipfile
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from clipadapt.core.api.errors import DamagedError, RecordError
from clipadapt.core.files.atomic import atomic_directory
from clipadapt.core.files.checksums import sealed, sha256_file
from clipadapt.core.files.hardware import without_collection
from clipadapt.core.records.parsing import RecordParser
from clipadapt.core.records.predictions import Predictions, arrays_in, write_arrays
from clipadapt.core.records.reading import (
    RERUN,
    check_files,
    differs,
    parse_record,
    read_file,
    read_record,
    read_record_if_present,
)
from clipadapt.core.records.schema import slug
from clipadapt.core.scoring.prediction_sets import CalibrationExamples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from clipadapt.core.data.sampling import Manifest
    from clipadapt.core.records.schema import RunRecord

log = logging.getLogger(__name__)

RECORD: Final = "record.json"
PREDICTIONS: Final = "predictions.npz"
HISTORY: Final = "history.jsonl"
MANIFEST: Final = "manifest.json"
CALIBRATION: Final = "calibration.npz"
CLASSIFIER: Final = "classifier"


_Stamp = tuple[int, ...]
"""Size, time and inode of a file; empty if there is none."""


class Place(NamedTuple):
    """What decides in which folder a run is: the dataset evaluated and the method."""

    dataset: str
    method: str


class RunStore:
    """A folder of runs.

    It keeps the records that it wrote or read; one that another process replaced is read again.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._damaged: dict[Path, _Stamp] = {}
        self._known: dict[Path, tuple[_Stamp, RunRecord]] = {}
        self._listed: dict[str, list[Path]] | None = None
        self._folders: dict[str, Path | None] = {}

    def run_dir(self, record: RunRecord) -> Path:
        """Return the folder of a run."""
        return self._usual(record.run_id, Place(record.evaluation.dataset, record.method.name))

    def find(self, run_id: str, place: Place | None = None) -> RunRecord | None:
        """Return the record of a run, also of a failed one, or None if it is missing or damaged.

        Args:
            run_id: Id of the run.
            place: What it evaluates; its folder is then known. None searches the whole store.

        Raises:
            RecordError: If the record cannot be read, or was written by a newer clipadapt.
        """
        found = (self._record(path) for path in self._records_of(run_id, place))
        return next((record for record in found if record is not None), None)

    def damage(self, run_id: str, place: Place | None = None) -> str:
        """Check every file of a run; return a description of the first damage, or an empty string.

        After that :meth:`find` does not return a damaged run until it has been run again.

        Args:
            run_id: Id of the run.
            place: As in :meth:`find`.

        Raises:
            RecordError: If the record cannot be read, or was written by a newer clipadapt.
        """
        for path in self._records_of(run_id, place):
            stamp = _stamp(path)
            try:
                record = read_record_if_present(path)
                if record is not None:
                    check_files(path.parent, record)
                    self._known[path] = stamp, record
            except DamagedError as err:
                self._damaged[path] = stamp
                return err.problem
        return ""

    def _usual(self, run_id: str, place: Place) -> Path:
        return self.root / slug(place.dataset) / slug(place.method) / run_id

    def _records_of(self, run_id: str, place: Place | None) -> Iterator[Path]:
        """Yield the files that may be the record of a run, the usual one first."""
        if place is None:
            yield from (p for p in self._everywhere().get(run_id, ()) if p.is_file())
            return
        usual = self._usual(run_id, place) / RECORD
        if usual.is_file():
            yield usual
        if (
            self._listed is None
        ):  # once: runs are written to their usual place, but a user may move a folder
            self._listed = self._everywhere()
        yield from (p for p in self._listed.get(run_id, ()) if p != usual and p.is_file())

    def _everywhere(self) -> dict[str, list[Path]]:
        """Return the paths of all records by the name of their folder, from the names of the folders alone."""
        found: dict[str, list[Path]] = {}
        for dataset in _folders_in(self.root):
            for method in _folders_in(dataset):
                for run in _folders_in(method):
                    found.setdefault(run.name, []).append(run / RECORD)
        return found

    def _record(self, path: Path) -> RunRecord | None:
        """Return the record in a file, None if it is missing or damaged."""
        stamp = _stamp(path)
        if not stamp or self._damaged.get(path) == stamp:
            return None
        known = self._known.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            record = read_record_if_present(path)
        except DamagedError:
            return None
        if record is not None:
            self._known[path] = stamp, record
        return record

    def folders(self) -> list[Path]:
        """Return the folders of all runs, by path."""
        return [
            run
            for dataset in _folders_in(self.root)
            for method in _folders_in(dataset)
            for run in _folders_in(method)
            if (run / RECORD).is_file()
        ]

    def save(
        self,
        record: RunRecord,
        predictions: Predictions,
        *,
        history: Sequence[Mapping[str, Any]] | None = None,
        classifier_dir: Path | None = None,
        manifest: Manifest | None = None,
        calibration: CalibrationExamples | None = None,
    ) -> RunRecord:
        """Write the folder of a run with status ``ok``, completely or not at all.

        Args:
            record: The record; ``predictions_sha256``, ``files`` and ``attempt`` are set here.
            predictions: Scores of every evaluated example; shortened above ten million scores.
            history: One mapping per logged step.
            classifier_dir: Folder of the saved classifier; it is copied.
            manifest: The few-shot draw.
            calibration: Calibration examples of the classifier's prediction sets.

        Returns:
            The record as written.

        Raises:
            RecordError: If the folder cannot be written.
        """
        if record.status != "ok":
            raise ValueError(f"run {record.run_id} has status '{record.status}'; use save_failure")
        short = predictions.shortened()
        record = record.model_copy(update={"predictions_sha256": short.sha256()})

        def fill(new: Path) -> None:
            short.write(new / PREDICTIONS)
            if history is not None:
                lines = [json.dumps(_finite(step), default=_plain) + "\n" for step in history]
                (new / HISTORY).write_text("".join(lines), encoding="utf-8")
            if manifest is not None:
                manifest.write(new / MANIFEST)
            if calibration is not None:
                write_arrays(new / CALIBRATION, dataclasses.asdict(calibration))
            if classifier_dir is not None:
                shutil.copytree(classifier_dir, new / CLASSIFIER)

        return self._write(record, fill)

    def save_failure(self, record: RunRecord) -> RunRecord:
        """Write the record of a failed run; earlier attempts are kept as ``attempt-<n>.json``.

        Returns:
            The record as written, with ``attempt`` set; or the complete record if another process wrote one.

        Raises:
            RecordError: If the folder cannot be written.
        """
        if record.status != "failed":
            raise ValueError(f"run {record.run_id} has status '{record.status}'; use save")
        there = self.find(record.run_id, Place(record.evaluation.dataset, record.method.name))
        if there is not None and there.status == "ok":
            return there
        return self._write(record, lambda _: None)

    def adopt(self, files: Mapping[str, bytes]) -> RunRecord:
        """Write a run that was computed on another machine, from the files of its folder; see :meth:`save`.

        Args:
            files: Content by relative path, including the record.

        Returns:
            The record as written, with ``attempt`` set; or the complete record if there already is one.

        Raises:
            RecordError: If the record is not valid, a file does not match it, or the folder cannot be written.
        """
        record = parse_record(files[RECORD], Path(RECORD))
        for name, expected in record.files.items():
            if hashlib.sha256(files.get(name, b"")).hexdigest() != expected:
                raise DamagedError(f"{name} of the run {record.run_id} arrived damaged", hint=RERUN)
        there = self.find(record.run_id, Place(record.evaluation.dataset, record.method.name))
        if there is not None and there.status == "ok":
            return there

        def fill(new: Path) -> None:
            for name, content in files.items():
                path = new / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

        return self._write(record, fill)

    def _write(self, record: RunRecord, fill: Callable[[Path], None]) -> RunRecord:
        """Write a run folder in one atomic step, with its earlier attempts; return the record as written.

        Args:
            record: The record; ``attempt`` and ``files`` are set here.
            fill: Writes the other files into an empty folder.
        """
        folder = self.run_dir(record)
        damaged = _damage_in(folder)
        earlier = _earlier_attempts(folder)
        try:
            with atomic_directory(folder) as new:
                fill(new)
                for name, raw in earlier.items():
                    (new / name).write_bytes(raw)
                files = {
                    p.relative_to(new).as_posix(): sha256_file(p)
                    for p in sorted(new.rglob("*"))
                    if p.is_file() and p != new / RECORD
                }
                record = record.model_copy(update={"attempt": len(earlier) + 1, "files": files})
                (new / RECORD).write_bytes(sealed(record_text(record)))
                stamp = _stamp(new / RECORD)
                if damaged:
                    with contextlib.suppress(FileNotFoundError):  # another process moved it
                        folder.rename(_aside(folder))
        except OSError as err:
            raise RecordError(
                f"cannot write the run to '{folder}': {err.strerror or err}",
                hint="free some space, or choose another folder with --out DIR",
            ) from err
        self._known[folder / RECORD] = stamp, record
        return record

    def load_all(self, note: Callable[[str], None] = log.warning) -> list[RunRecord]:
        """Return every readable record below the root, sorted by path; unfinished folders are skipped.

        Args:
            note: Called with a warning for each record or folder that cannot be read.

        Raises:
            RecordError: If there is no such folder.
        """
        if not self.root.is_dir():
            raise RecordError(
                f"there is no folder '{self.root}'",
                hint="name the folder given as --out when the experiments were run",
            )
        faults: list[RecordError] = []
        self._folders.clear()

        def on_error(err: OSError) -> None:
            if not isinstance(err, FileNotFoundError):  # another process removed that one
                faults.append(_unreadable(err))

        records, parser = [], RecordParser()
        with without_collection():
            for path in sorted(_record_files(self.root, on_error)):
                try:
                    record = read_record_if_present(path, parser)
                except RecordError as err:
                    faults.append(err)
                    continue
                if record is not None:
                    records.append(record)
                    again = record.run_id in self._folders
                    self._folders[record.run_id] = None if again else path.parent
        for fault in faults:
            note(f"warning: left out: {fault.problem}" + (f" ({fault.hint})" if fault.hint else ""))
        return records

    def loaded_from(self, run_id: str) -> Path | None:
        """Return the folder from which :meth:`load_all` read a run; None if it did not, or there are copies of it."""
        return self._folders.get(run_id)

    @staticmethod
    def load(run_dir: Path) -> RunRecord:
        """Return the record in the folder of one run.

        Raises:
            RecordError: If there is none, or it cannot be read.
        """
        if not (run_dir / RECORD).is_file():
            hint = "name a folder <out>/<dataset>/<method>/<run id>"
            if runs := RunStore(run_dir).folders():
                latest = max(runs, key=lambda run: (run / RECORD).stat().st_mtime)
                hint = f"it contains {len(runs):,} of them; the latest is {latest}"
            raise RecordError(
                f"'{run_dir}' is not the folder of a run: it has no {RECORD}", hint=hint
            )
        return read_record(run_dir / RECORD)

    @staticmethod
    def load_predictions(run_dir: Path, record: RunRecord | None = None) -> Predictions:
        """Return the predictions of a run, checked against its record.

        Args:
            run_dir: Folder of the run.
            record: Its record, if it has been read already.

        Raises:
            RecordError: If they are missing, damaged, or do not match the record.
        """
        record = record or RunStore.load(run_dir)
        if record.status != "ok":
            raise RecordError(
                f"the run in '{run_dir}' failed and has no predictions: {record.error}"
            )
        path = run_dir / PREDICTIONS
        content = read_file(run_dir, record, PREDICTIONS)
        if content is None:
            raise DamagedError(f"there are no predictions at {path}", hint=RERUN)
        predictions = Predictions.parse(content, path)
        # Records of version 1 have no checksum of the file, which is compared above.
        if PREDICTIONS not in record.files and predictions.sha256() != record.predictions_sha256:
            raise differs(path)
        return predictions

    @staticmethod
    def load_calibration(run_dir: Path, record: RunRecord) -> CalibrationExamples | None:
        """Return the calibration examples of a run's prediction sets, or None if it has none.

        Raises:
            RecordError: If they are damaged, or do not match the record.
        """
        content = read_file(run_dir, record, CALIBRATION)
        if content is None:
            return None
        try:
            return CalibrationExamples(**arrays_in(content))
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as err:
            raise DamagedError(f"{run_dir / CALIBRATION} is damaged: {err}", hint=RERUN) from err


def _record_files(folder: Path, on_error: Callable[[OSError], None]) -> Iterator[Path]:
    """Yield the records below a folder; hidden folders hold locks and unfinished work, and no run is inside a run.

    The folders of runs are not listed, which would take longer than to find their records.
    """
    left = [os.fspath(folder)]
    while left:
        at = left.pop()
        if os.path.isfile(record := os.path.join(at, RECORD)):  # noqa: PTH113, PTH118  a path takes twice the time
            yield Path(record)
            continue
        try:
            with os.scandir(at) as entries:
                left += [
                    e.path
                    for e in entries
                    if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)
                ]
        except OSError as err:
            on_error(err)


def _damage_in(folder: Path) -> str:
    """Return a description of the first damage in the folder of a run, or an empty string."""
    try:
        record = read_record_if_present(folder / RECORD)
        if record is not None:
            check_files(folder, record)
    except DamagedError as err:
        return err.problem
    return ""


def _stamp(path: Path) -> _Stamp:
    try:
        now = path.stat()
    except OSError:
        return ()
    return now.st_size, now.st_mtime_ns, now.st_ino


def _aside(folder: Path) -> Path:
    """Return a free hidden name beside ``folder`` for a damaged run; hidden folders are never read as runs."""
    names = (f".damaged-{folder.name}{f'-{n}' if n > 1 else ''}" for n in count(1))
    return next(p for name in names if not (p := folder.with_name(name)).exists())


def record_text(record: RunRecord) -> str:
    """Return JSON with one field per line."""
    # ASCII escapes, because names may hold bytes that are not valid UTF-8.
    fields = record.model_dump(mode="json")
    lines = [f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in fields.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _earlier_attempts(folder: Path) -> dict[str, bytes]:
    """Return name and content of the record of every earlier attempt that failed."""
    earlier = {p.name: p.read_bytes() for p in sorted(folder.glob("attempt-*.json"))}
    with contextlib.suppress(DamagedError):  # the whole folder is kept aside
        record = read_record_if_present(folder / RECORD)
        if record is not None and record.status == "failed":
            earlier[f"attempt-{record.attempt}.json"] = (folder / RECORD).read_bytes()
    return earlier


def _finite(step: Mapping[str, Any]) -> dict[str, Any]:
    """Return the step with nan and infinity as null, as JSON has no numbers for them."""
    return {
        k: None if isinstance(v, float | np.floating) and not math.isfinite(v) else v
        for k, v in step.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a value of type {type(value).__name__} cannot be written to the history")


def _folders_in(folder: Path) -> list[Path]:
    """Return the visible subfolders; hidden ones belong to processes at work."""
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as err:
        raise _unreadable(err) from err


def _unreadable(err: OSError) -> RecordError:
    return RecordError(f"cannot read the folder {err.filename}: {err.strerror}")
