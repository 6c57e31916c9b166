"""Run records: what was run, on what, what came out and what it cost.

One folder per fit and evaluation, written whole or not at all::

    <root>/<dataset>/<method>/<run_id>/record.json       RunRecord
                                       predictions.npz   ids, labels, scores
                                       history.jsonl     one line per logged step
                                       manifest.json     the few-shot draw
                                       classifier/       what was learnt
                                       attempt-1.json    an earlier attempt that failed

A record ends in the sha256 of its own bytes and holds that of every other file, so that none is read that is not what
was written. A run that is damaged counts as one that is not there; made anew, it takes the folder's place, and the
damaged one is kept beside it as ``.damaged-<run_id>``.

Metrics are fractions in [0, 1], nats, seconds or bytes; percent exists only in tables.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pydantic import (
    ValidationError,
)

from clipadapt.core.api.errors import DamagedError, RecordError
from clipadapt.core.files.atomic import atomic_directory, remove_leftovers
from clipadapt.core.files.checksums import has_seal, sealed, sha256_file
from clipadapt.core.records.migrations import SCHEMA_VERSION, upgrade
from clipadapt.core.records.predictions import Predictions
from clipadapt.core.records.reading import REMAKE, bytes_of
from clipadapt.core.records.schema import OTHER_CLIPADAPT, RunRecord, slug

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from clipadapt.core.data.sampling import Manifest


log = logging.getLogger(__name__)


RECORD: Final = "record.json"


PREDICTIONS: Final = "predictions.npz"


CLASSIFIER: Final = "classifier"


class RunStore:
    """A folder of runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._damaged: dict[Path, tuple[int, ...]] = {}

    def run_dir(self, record: RunRecord) -> Path:
        """Return the folder of a run."""
        dataset, method = slug(record.evaluation.dataset), slug(record.method.name)
        return self.root / dataset / method / record.run_id

    def find(self, run_id: str) -> RunRecord | None:
        """Return the record of a run, failed ones too, or None; a damaged one is not there.

        Raises:
            RecordError: If there is a record that cannot be read, or one of a newer clipadapt.
        """
        for path in self._records_of(run_id):
            if path in self._damaged and self._damaged[path] == _stamp(path):
                continue
            try:
                record = _read_if_there(path)
            except DamagedError:
                continue
            if record is not None:
                return record
        return None

    def damage(self, run_id: str) -> str:
        """Look at every file of a run; return what is damaged, or an empty text.

        A run found damaged is not there any more for :meth:`find`, until it is made anew.

        Raises:
            RecordError: If there is a record that cannot be read, or one of a newer clipadapt.
        """
        for path in self._records_of(run_id):
            why = _damage_in(path.parent)
            if why:
                self._damaged[path] = _stamp(path)
                return why
        return ""

    def _records_of(self, run_id: str) -> Iterator[Path]:
        for dataset in _folders_in(self.root):
            for method in _folders_in(dataset):
                path = method / run_id / RECORD
                if path.is_file():
                    yield path

    def folders(self) -> list[Path]:
        """Return the folders of all runs, by path."""
        return [
            run
            for dataset in _folders_in(self.root)
            for method in _folders_in(dataset)
            for run in _folders_in(method)
            if (run / RECORD).is_file()
        ]

    def is_complete(self, run_id: str) -> bool:
        """Tell whether the run is there and did not fail."""
        record = self.find(run_id)
        return record is not None and record.status == "ok"

    def save(
        self,
        record: RunRecord,
        predictions: Predictions,
        *,
        history: Sequence[Mapping[str, Any]] | None = None,
        classifier_dir: Path | None = None,
        manifest: Manifest | None = None,
    ) -> RunRecord:
        """Write the folder of a run that is ok, whole or not at all.

        Args:
            record: The record; ``predictions_sha256``, ``files`` and ``attempt`` are filled in here.
            predictions: Scores of every example evaluated; shortened above ten million scores.
            history: One mapping per logged step.
            classifier_dir: Folder of what was learnt, copied.
            manifest: The few-shot draw.

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
                (new / "history.jsonl").write_text("".join(lines), encoding="utf-8")
            if manifest is not None:
                manifest.write(new / "manifest.json")
            if classifier_dir is not None:
                shutil.copytree(classifier_dir, new / CLASSIFIER)

        return _write(record, self.run_dir(record), fill)

    def save_failure(self, record: RunRecord) -> RunRecord:
        """Write the record of a failed run; an earlier attempt is kept as ``attempt-1.json``.

        Returns:
            The record as written, ``attempt`` filled in; or the complete one that another process wrote.

        Raises:
            RecordError: If the folder cannot be written.
        """
        if record.status != "failed":
            raise ValueError(f"run {record.run_id} has status '{record.status}'; use save")
        there = self.find(record.run_id)
        if there is not None and there.status == "ok":
            return there
        return _write(record, self.run_dir(record), lambda _: None)

    def adopt(self, files: Mapping[str, bytes]) -> RunRecord:
        """Write a run that was made elsewhere, from the files of its folder; see :meth:`save`.

        Args:
            files: Content by relative path; the record is among them.

        Returns:
            The record as written, ``attempt`` counted here; or the complete one that is there already.

        Raises:
            RecordError: If the record is not valid, a file is not that of the record, or the folder cannot be written.
        """
        record = _parse_record(files[RECORD], Path(RECORD))
        for name, wanted in record.files.items():
            if hashlib.sha256(files.get(name, b"")).hexdigest() != wanted:
                raise DamagedError(
                    f"{name} of the run {record.run_id} arrived damaged", hint=REMAKE
                )
        there = self.find(record.run_id)
        if there is not None and there.status == "ok":
            return there

        def fill(new: Path) -> None:
            for name, content in files.items():
                path = new / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

        return _write(record, self.run_dir(record), fill)

    def load_all(self, note: Callable[[str], None] = log.warning) -> list[RunRecord]:
        """Return every record below the root that can be read, by path; unfinished folders are passed over.

        Args:
            note: Told of each record or folder that cannot be read; the others are returned.

        Raises:
            RecordError: If there is no such folder.
        """
        if not self.root.is_dir():
            raise RecordError(
                f"there is no folder '{self.root}'",
                hint="name the folder given as --out when the experiments were run",
            )
        faults: list[RecordError] = []

        def closed(err: OSError) -> None:
            if not isinstance(err, FileNotFoundError):  # another process removed that one
                faults.append(_unreadable(err))

        found = []
        for folder, folders, files in os.walk(self.root, onerror=closed):
            if RECORD in files:
                found.append(Path(folder, RECORD))
                folders.clear()  # what lies inside a run belongs to it
            else:
                folders[:] = [
                    f for f in folders if not f.startswith(".")
                ]  # claims, unfinished work
        records = []
        for path in sorted(found):
            try:
                record = _read_if_there(path)
            except RecordError as err:
                faults.append(err)
            else:
                records += [record] if record is not None else []
        for fault in faults:
            note(f"warning: left out: {fault.problem}" + (f" ({fault.hint})" if fault.hint else ""))
        return records

    @staticmethod
    def load(run_dir: Path) -> RunRecord:
        """Return the record in the folder of one run.

        Raises:
            RecordError: If there is none, or it cannot be read.
        """
        if not (run_dir / RECORD).is_file():
            raise RecordError(
                f"'{run_dir}' is not the folder of a run: it has no {RECORD}",
                hint="name a folder <out>/<dataset>/<method>/<run id>",
            )
        return _read_record(run_dir / RECORD)

    @staticmethod
    def load_predictions(run_dir: Path, record: RunRecord | None = None) -> Predictions:
        """Return the predictions of a run, checked against its record.

        Args:
            run_dir: Folder of the run.
            record: Its record, where it is read already.

        Raises:
            RecordError: If they are missing, damaged, or not those of the record.
        """
        record = record or RunStore.load(run_dir)
        if record.status != "ok":
            raise RecordError(
                f"the run in '{run_dir}' failed and has no predictions: {record.error}"
            )
        path = run_dir / PREDICTIONS
        content = read_file(run_dir, record, PREDICTIONS)
        if content is None:
            raise DamagedError(f"there are no predictions at {path}", hint=REMAKE)
        predictions = Predictions.parse(content, path)
        if predictions.sha256() != record.predictions_sha256:
            raise DamagedError(f"{path} is not what its record says (sha256 differs)", hint=REMAKE)
        return predictions


def read_file(run_dir: Path, record: RunRecord, name: str) -> bytes | None:
    """Return the content of one file of a run, or None where the run has no such file.

    Args:
        run_dir: Folder of the run.
        record: Its record.
        name: Path in the folder.

    Raises:
        DamagedError: If the file is missing, or not what was written.
        RecordError: If it cannot be read.
    """
    path, wanted = run_dir / name, record.files.get(name)
    if wanted is None and (record.files or not path.is_file()):
        return None
    content = bytes_of(path)
    if wanted is not None and hashlib.sha256(content).hexdigest() != wanted:
        raise _not_as_written(path)
    return content


def check_files(run_dir: Path, record: RunRecord, folder: str = "") -> None:
    """Check the files of a run, or those in one folder of it, against its record.

    Raises:
        DamagedError: If one is missing, or not what was written.
        RecordError: If one cannot be read.
    """
    for name, wanted in record.files.items():
        if not name.startswith(folder):
            continue
        path = run_dir / name
        if not path.is_file():
            raise DamagedError(f"the file {path} is missing", hint=REMAKE)
        try:
            found = sha256_file(path)
        except OSError as err:
            raise RecordError(f"cannot read {path}: {err.strerror or err}") from err
        if found != wanted:
            raise _not_as_written(path)


def _not_as_written(path: Path) -> DamagedError:
    return DamagedError(f"{path} is not what its record says (sha256 differs)", hint=REMAKE)


def _damage_in(folder: Path) -> str:
    """Return what is damaged in the folder of a run, or an empty text."""
    try:
        record = _read_if_there(folder / RECORD)
        if record is not None:
            check_files(folder, record)
    except DamagedError as err:
        return err.problem
    return ""


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        now = path.stat()
    except OSError:
        return ()
    return now.st_size, now.st_mtime_ns, now.st_ino


def _write(record: RunRecord, folder: Path, fill: Callable[[Path], None]) -> RunRecord:
    """Make a folder that takes its place in one step, earlier attempts included; return the record as written.

    Args:
        record: The record; ``attempt`` and ``files`` are filled in here.
        folder: Where it goes; a damaged run that is there is kept aside.
        fill: Writes the other files into an empty folder.
    """
    remove_leftovers(folder.parent)
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
            (new / RECORD).write_bytes(sealed(_record_text(record)))
            if damaged:
                with contextlib.suppress(FileNotFoundError):  # another process did so
                    folder.rename(_aside(folder))
    except OSError as err:
        raise RecordError(
            f"cannot write the run to '{folder}': {err.strerror or err}",
            hint="make room, or name another folder with --out DIR",
        ) from err
    return record


def _aside(folder: Path) -> Path:
    """Return a name for a damaged folder beside its place; hidden, so that it is never read as a run."""
    names = (f".damaged-{folder.name}{f'-{n}' if n > 1 else ''}" for n in count(1))
    return next(p for name in names if not (p := folder.with_name(name)).exists())


def _record_text(record: RunRecord) -> str:
    """Return JSON with one field a line: a confusion matrix would else fill a million lines."""
    # ASCII escapes, because names may hold bytes that are no UTF-8.
    fields = record.model_dump(mode="json")
    lines = [f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in fields.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _earlier_attempts(folder: Path) -> dict[str, bytes]:
    """Return file name and content of every attempt that failed before."""
    earlier = {p.name: p.read_bytes() for p in sorted(folder.glob("attempt-*.json"))}
    with contextlib.suppress(DamagedError):  # it is kept aside, whole
        record = _read_if_there(folder / RECORD)
        if record is not None and record.status == "failed":
            earlier[f"attempt-{record.attempt}.json"] = (folder / RECORD).read_bytes()
    return earlier


def _finite(step: Mapping[str, Any]) -> dict[str, Any]:
    """Return the step with nan and infinity, for which JSON has no word, as null."""
    return {
        k: None if isinstance(v, float | np.floating) and not math.isfinite(v) else v
        for k, v in step.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a value of type {type(value).__name__} cannot be written to the history")


def _folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder that may hold runs; other processes come and go in the hidden ones."""
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as err:
        raise _unreadable(err) from err


def _read_if_there(path: Path) -> RunRecord | None:
    """Return a record, or None where there is none or another process is just replacing it."""
    if not path.is_file():
        return None
    try:
        return _read_record(path)
    except RecordError:
        if path.is_file():
            raise
        return None


def _unreadable(err: OSError) -> RecordError:
    return RecordError(f"cannot read the folder {err.filename}: {err.strerror}")


def _read_record(path: Path) -> RunRecord:
    try:
        content = path.read_bytes()
    except OSError as err:
        raise RecordError(f"cannot read {path}: {err.strerror or err}") from err
    return _parse_record(content, path)


def _parse_record(content: bytes, path: Path) -> RunRecord:
    try:
        whole = has_seal(content)
    except ValueError as err:
        raise DamagedError(f"{path} is damaged: {err}", hint=REMAKE) from None
    try:
        raw = json.loads(content)
        version = raw["schema_version"]
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise RecordError(
                f"{path} has schema version {version}; this clipadapt reads up to {SCHEMA_VERSION}",
                hint="upgrade clipadapt: pip install --upgrade clipadapt",
            )
        if whole:
            del raw["sha256"]
        elif version != 1:  # which had no seal
            raise DamagedError(
                f"{path} is damaged: it does not end in the sha256 of its content", hint=REMAKE
            )
        return RunRecord.model_validate(upgrade(raw))
    except ValidationError as err:
        fault = err.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        kind, hint = (RecordError, OTHER_CLIPADAPT) if whole else (DamagedError, REMAKE)
        raise kind(f"{path} is not a valid record: {where}: {fault['msg']}", hint=hint) from err
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise DamagedError(f"{path} is truncated or not a record: {err}", hint=REMAKE) from err
