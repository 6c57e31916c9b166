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
import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import re
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np
from pydantic import (
    AwareDatetime,
    Field,
    FiniteFloat,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from clipadapt.core import hardware
from clipadapt.core._files import (
    atomic_directory,
    has_seal,
    remove_leftovers,
    sealed,
    sha256_file,
)
from clipadapt.core._strict import StrictModel
from clipadapt.core.errors import DamagedError, RecordError
from clipadapt.core.leakage import LeakageFacts
from clipadapt.core.metrics import MetricValue
from clipadapt.core.protocols import Classes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from clipadapt.core.sampling import Manifest

log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 2
"""Version 1 had no checksums, and a whole confusion matrix in ``per_class``."""
MAX_SCORES: Final = 10_000_000
"""Above so many scores only the best of each example are kept."""
KEPT_SCORES: Final = 20

LIBRARIES: Final = (
    "torch", "torchvision", "open-clip-torch", "timm", "transformers", "tokenizers", "pillow", "peft", "scikit-learn",
)  # fmt: skip
"""Packages whose version decides numbers: runs of different ones have no mean."""

RECORD: Final = "record.json"
PREDICTIONS: Final = "predictions.npz"
CLASSIFIER: Final = "classifier"

_REMAKE: Final = "run the experiment again; what is damaged is kept aside"
_OTHER: Final = "read it with the clipadapt that wrote it, or name another folder"


class DataFacts(StrictModel):
    """What was learnt from.

    Attributes:
        name: Data set, without any absolute path.
        sha256: Fingerprint over ids, labels and bytes.
        n_train: Training examples drawn.
        n_val: Validation examples drawn.
        n_test: Examples evaluated.
        n_classes: Number of classes.
        shots: Training examples per class asked for, None for all.
        manifest_sha256: Hash of the few-shot draw, None without one.
        skipped: Examples left out because they cannot be read.
        n_found: Files or rows found in the data set evaluated, None where that is not counted.
        n_read: Examples read of it, over all splits; None in old records.
        left_out: Reason -> files or rows of it that were found and not read.
        source: Where the data come from.
        revision: Commit of the hub's repository that they are of, or None.
        licence: Licence of the data, or where it stands.
        citation: How to cite the data, or where it stands.
    """

    name: str
    sha256: str
    n_train: NonNegativeInt
    n_val: NonNegativeInt
    n_test: NonNegativeInt
    n_classes: NonNegativeInt
    shots: PositiveInt | None
    manifest_sha256: str | None
    skipped: NonNegativeInt
    n_found: NonNegativeInt | None = None
    n_read: NonNegativeInt | None = None
    left_out: dict[str, NonNegativeInt] = Field(default_factory=dict)
    source: str = ""
    revision: str | None = None
    licence: str = ""
    citation: str = ""


class EvaluationFacts(StrictModel):
    """What was judged on, and by which rules.

    Attributes:
        dataset: Data set evaluated; another than the one learnt from in cross-dataset protocols.
        split: Split evaluated.
        templates: Prompt templates, empty where there are none.
        classnames_sha256: Hash of the class names in their order.
        protocol: Name of the rules.
        classes: ``all`` classes, the ``base`` ones or the ``new`` ones.
        sha256: Fingerprint of the data set evaluated, None in records of version 1.
    """

    dataset: str
    split: str
    templates: tuple[str, ...]
    classnames_sha256: str
    protocol: str
    classes: Classes = "all"
    sha256: str | None = None


class ModelFacts(StrictModel):
    """Which backbone.

    Attributes:
        name: Name without any absolute path.
        weights_sha256: sha256 of its weights, its tokenizer included where that comes in files.
        dtype: Effective dtype: ``fp32``, ``bf16`` or ``fp16``.
        revision: Commit of the hub's repository that the weights are of, or None.
        licence: Licence of the weights, or where it stands.
        citation: How to cite the model, or where it stands.
    """

    name: str
    weights_sha256: str
    dtype: str
    revision: str | None = None
    licence: str = ""
    citation: str = ""


class MethodFacts(StrictModel):
    """Which method.

    Attributes:
        name: Registered name.
        version: Version of its results.
        recipe: Name of the recipe its settings come from, or None.
        deviations: What differs from the recipe's source.
    """

    name: str
    version: int
    recipe: str | None
    deviations: tuple[str, ...]


class Selection(StrictModel):
    """What was selected on validation data: the epoch if it was one, by which figure, and its value."""

    epoch: int | None
    by: str
    value: FiniteFloat | None


class Calibration(StrictModel):
    """Softmax temperature fitted on validation data, None where there was none to fit on."""

    temperature: FiniteFloat | None


class Cost(StrictModel):
    """What a run cost.

    Attributes:
        fit_seconds: Fitting without encoding.
        encode_seconds: Encoding of all features used, whoever paid for them.
        predict_seconds: Scoring the evaluated examples, without encoding.
        cold_seconds: All of it from nothing.
        peak_memory_bytes: Peak memory since the start of the run: the card's on cuda, else the resident memory; None
            where it cannot be measured.
        saved_bytes: Size of the saved classifier.
    """

    fit_seconds: NonNegativeFloat = 0.0
    encode_seconds: NonNegativeFloat = 0.0
    predict_seconds: NonNegativeFloat = 0.0
    cold_seconds: NonNegativeFloat = 0.0
    peak_memory_bytes: NonNegativeInt | None = None
    saved_bytes: NonNegativeInt = 0


class Environment(StrictModel):
    """Where a run took place.

    Attributes:
        git_commit: Commit of the checkout the code came from, None for an installed package.
        git_dirty: Whether tracked files were changed, None with ``git_commit``.
        python: Version of Python.
        platform: Operating system, its version and the machine's architecture.
        cpu_flags: CPU features that matter for speed.
        device: Device of the model, such as ``cpu`` or ``cuda``.
        threads: Threads of the numeric libraries.
        packages: Installed versions of the package's dependencies.
        folder: Where the run was started: relative paths in its config begin there. None in older records.
    """

    git_commit: str | None
    git_dirty: bool | None
    python: str
    platform: str
    cpu_flags: tuple[str, ...]
    device: str
    threads: int
    packages: dict[str, str]
    folder: str | None = None


class RunRecord(StrictModel):
    """One fit and its evaluation.

    Attributes:
        schema_version: Version of this format.
        run_id: Identity of the run, see :func:`make_run_id`.
        fit_id: Identity of the fit; evaluations of one fit share it.
        status: ``ok``, or ``failed``.
        error: What went wrong in a failed run, else None.
        attempt: 1, or more where earlier attempts failed.
        config: The resolved config as plain data.
        seed: Seed of the run.
        data: What was learnt from.
        evaluation: What was judged on.
        model: The backbone, None where the method uses none.
        method: The method.
        selection: What was selected on validation data, or None.
        calibration: The temperature fitted on validation data, or None.
        n_trainable_params: Number of parameters learnt.
        n_total_params: Parameters of the whole classifier, backbone included, where it is known.
        metrics: Figures by name; empty in a failed run.
        cost: Seconds and bytes.
        flags: Facts every table shows, such as ``collapse`` or ``below_zero_shot``.
        leakage: Duplicates between what was learnt from and what was judged, None where they were not looked for.
        per_class: ``classnames`` of what was judged, or None; figures by class follow from the predictions.
        predictions_sha256: Hash of the content of the predictions, None in a failed run.
        files: sha256 of every other file of the run by its path in the folder; empty in version 1.
        environment: Where the run took place.
        started_at: When it began, UTC.
        metrics_version: Version of what the metrics mean, see :data:`~clipadapt.core.metrics.METRICS_VERSION`.
    """

    schema_version: Literal[1, 2] = 2
    run_id: str
    fit_id: str
    status: Literal["ok", "failed"]
    error: str | None = None
    attempt: PositiveInt = 1
    config: dict[str, JsonValue]
    seed: int
    data: DataFacts
    evaluation: EvaluationFacts
    model: ModelFacts | None
    method: MethodFacts
    selection: Selection | None = None
    calibration: Calibration | None = None
    n_trainable_params: NonNegativeInt = 0
    n_total_params: NonNegativeInt | None = None
    metrics: dict[str, MetricValue] = Field(default_factory=dict)
    cost: Cost = Cost()
    flags: tuple[str, ...] = ()
    leakage: LeakageFacts | None = None
    per_class: dict[str, JsonValue] | None = None
    predictions_sha256: str | None = None
    files: dict[str, str] = Field(default_factory=dict)
    environment: Environment
    started_at: AwareDatetime
    metrics_version: PositiveInt = 1

    @model_validator(mode="after")
    def _status_agrees(self) -> Self:
        if self.status == "failed" and (not self.error or self.metrics):
            raise ValueError("a failed run has an error and no metrics")
        if self.status == "ok" and self.error is not None:
            raise ValueError("a run that is ok has no error")
        return self


# ---------------------------------------------------------------- identity


def canonical_json(value: Any) -> str:
    """Return JSON that is equal for equal content: sorted keys, no spaces, ASCII.

    Raises:
        ValueError: If a number is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def make_run_id(*, fit: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """Return the identity of one fit and evaluation, 16 hexadecimal digits.

    Args:
        fit: Plain data that decide what is learnt: resolved settings, effective dtype, seed, the hashes of data
            and weights, method and version. Paths, output folder and worker counts stay out.
        evaluation: Plain data that decide what it is judged on.
    """
    return _short_sha256({"fit": dict(fit), "evaluation": dict(evaluation)})


def make_fit_id(*, fit: Mapping[str, Any]) -> str:
    """Return the identity of one fit, 16 hexadecimal digits; see :func:`make_run_id`."""
    return _short_sha256({"fit": dict(fit)})


def slug(name: str) -> str:
    """Return a file name for any name; two names never share one, on any file system.

    A plain lower-case name is its own; any other gets a hash of itself at its end.
    """
    plain = re.fullmatch(r"[a-z0-9]([a-z0-9._-]{0,58}[a-z0-9])?", name)
    if plain and not re.search(r"-[0-9a-f]{12}$", name):
        return name
    body = re.sub(r"[^a-z0-9._]+", "-", name.lower())[:48].strip("-._")
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return f"{body or 'x'}-{digest}"


def _short_sha256(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


# ---------------------------------------------------------------- predictions


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Scores of every example evaluated.

    Attributes:
        ids: ``n`` unique ids.
        labels: Class indices, shape ``(n,)``, int64.
        scores: Shape ``(n, C)``, float32; in the short form the best ``k`` of each example, descending.
        classes: Short form: class of each score kept, shape ``(n, k)``, int32. None in the full form.
        label_scores: Short form: score of the label, shape ``(n,)``.
        logsumexp: Short form: logsumexp over all ``C`` scores, shape ``(n,)``.
    """

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    classes: NDArray[np.int32] | None = None
    label_scores: NDArray[np.float32] | None = None
    logsumexp: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n = len(self.ids)
        if len(set(self.ids)) != n:
            raise ValueError("ids are not unique")
        if self.labels.shape != (n,) or self.labels.dtype != np.int64:
            raise ValueError(
                f"labels must be int64 ({n},), got {self.labels.dtype} {self.labels.shape}"
            )
        if self.scores.ndim != 2 or len(self.scores) != n or self.scores.dtype != np.float32:
            raise ValueError(
                f"scores must be float32 ({n}, C), got {self.scores.dtype} {self.scores.shape}"
            )

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Class of the highest score, the first one among equals, shape ``(n,)``."""
        if self.classes is not None:
            return self.classes[:, 0].astype(np.int64)
        best: NDArray[np.int64] = self.scores.argmax(axis=1)
        return best

    def confusions(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the confusion matrix without its zeros: true classes, classes given and counts, in that order.

        There are at most as many as there are examples; the whole matrix of 20,000 classes has 400 million cells.
        """
        given = self.predicted
        width = int(max(given.max(initial=0), self.labels.max(initial=0))) + 1
        cells, counts = np.unique(self.labels * width + given, return_counts=True)
        return cells // width, cells % width, counts

    def shortened(self, most: int = MAX_SCORES, keep: int = KEPT_SCORES) -> Predictions:
        """Return the short form where there are more than ``most`` scores, else these predictions.

        Args:
            most: Number of scores (examples times classes) that may be kept whole.
            keep: Scores kept of each example otherwise; equal scores in the order of their classes.
        """
        if self.classes is not None or self.scores.size <= most or self.scores.shape[1] <= keep:
            return self
        from scipy.special import logsumexp

        n, n_classes = self.scores.shape
        classes = np.empty((n, keep), dtype=np.int32)
        sums = np.empty(n, dtype=np.float32)
        step = max(1, 1_000_000 // n_classes)  # bounds the memory of the sort
        for i in range(0, n, step):
            block = self.scores[i : i + step]
            classes[i : i + step] = np.argsort(-block, axis=1, kind="stable")[:, :keep]
            sums[i : i + step] = logsumexp(block.astype(np.float64), axis=1)
        return Predictions(
            self.ids,
            self.labels,
            np.take_along_axis(self.scores, classes.astype(np.int64), axis=1),
            classes,
            self.scores[np.arange(n), self.labels],
            sums,
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays as they are stored, little-endian."""
        out: dict[str, NDArray[Any]] = {
            "ids": np.asarray(self.ids, dtype=np.str_),
            "labels": self.labels,
            "scores": self.scores,
        }
        for name in ("classes", "label_scores", "logsumexp"):
            value = getattr(self, name)
            if value is not None:
                out[name] = value
        return {k: np.ascontiguousarray(v, v.dtype.newbyteorder("<")) for k, v in out.items()}

    def sha256(self) -> str:
        """Return the hash of the content: names, dtypes, shapes and bytes of the arrays."""
        total = hashlib.sha256()
        for name, array in sorted(self.arrays().items()):
            total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            total.update(array.tobytes())
        return total.hexdigest()

    def write(self, path: Path) -> None:
        """Write an ``.npz`` file; equal content gives equal bytes, for no time of day is in it."""
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in sorted(self.arrays().items()):
                entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                # Ids are padded to the longest; scores hardly shrink and would take seconds.
                entry.compress_type = zipfile.ZIP_DEFLATED if name == "ids" else zipfile.ZIP_STORED
                with archive.open(entry, "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)

    @classmethod
    def read(cls, path: Path) -> Predictions:
        """Read what :meth:`write` wrote.

        Raises:
            RecordError: If the file is missing or not such a file.
        """
        return cls.parse(_bytes_of(path), path)

    @classmethod
    def parse(cls, content: bytes, path: Path) -> Predictions:
        """Return the predictions in the content of the file ``path``; see :meth:`read`."""
        try:
            arrays = _arrays_in(content)
            return cls(tuple(arrays.pop("ids").tolist()), **arrays)
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as err:
            raise DamagedError(f"{path} is damaged: {err}", hint=_REMAKE) from err


def _arrays_in(content: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of an ``.npz`` file; none is larger than the bytes that are there for it.

    Raises:
        ValueError: If a header claims another size than its entry has, or objects.
    """
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.infolist():
            # Deflate shrinks to a thousandth at the most.
            if entry.file_size > 1100 * entry.compress_size + 1024:
                raise ValueError(f"{entry.filename} claims {entry.file_size} bytes")
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                header = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, by_columns, dtype = header(file)
                size = math.prod(shape) * dtype.itemsize
                if dtype.hasobject or min(shape, default=0) < 0:
                    raise ValueError(f"{entry.filename} holds {dtype} {shape}")
                if size != entry.file_size - file.tell():
                    raise ValueError(
                        f"{entry.filename} claims {dtype} {shape}, {size} bytes, and has "
                        f"{entry.file_size - file.tell()}"
                    )
                flat = np.frombuffer(bytearray(file.read()), dtype)
            arrays[entry.filename.removesuffix(".npy")] = flat.reshape(
                shape, order="F" if by_columns else "C"
            )
    return arrays


# ---------------------------------------------------------------- the store of runs


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
                    f"{name} of the run {record.run_id} arrived damaged", hint=_REMAKE
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
            raise DamagedError(f"there are no predictions at {path}", hint=_REMAKE)
        predictions = Predictions.parse(content, path)
        if predictions.sha256() != record.predictions_sha256:
            raise DamagedError(f"{path} is not what its record says (sha256 differs)", hint=_REMAKE)
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
    if wanted is None and (record.schema_version > 1 or not path.is_file()):
        return None
    content = _bytes_of(path)
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
            raise DamagedError(f"the file {path} is missing", hint=_REMAKE)
        try:
            found = sha256_file(path)
        except OSError as err:
            raise RecordError(f"cannot read {path}: {err.strerror or err}") from err
        if found != wanted:
            raise _not_as_written(path)


def _not_as_written(path: Path) -> DamagedError:
    return DamagedError(f"{path} is not what its record says (sha256 differs)", hint=_REMAKE)


def _bytes_of(path: Path) -> bytes:
    if not path.is_file():
        raise DamagedError(f"the file {path} is missing", hint=_REMAKE)
    try:
        return path.read_bytes()
    except OSError as err:
        raise RecordError(f"cannot read {path}: {err.strerror or err}") from err


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
            record = record.model_copy(
                update={"attempt": len(earlier) + 1, "files": files, "schema_version": 2}
            )
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
        raise DamagedError(f"{path} is damaged: {err}", hint=_REMAKE) from None
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
                f"{path} is damaged: it does not end in the sha256 of its content", hint=_REMAKE
            )
        return RunRecord.model_validate(raw)
    except ValidationError as err:
        fault = err.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        kind, hint = (RecordError, _OTHER) if whole else (DamagedError, _REMAKE)
        raise kind(f"{path} is not a valid record: {where}: {fault['msg']}", hint=hint) from err
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise DamagedError(f"{path} is truncated or not a record: {err}", hint=_REMAKE) from err


# ---------------------------------------------------------------- environment and memory


def environment(*, device: str | None = None, threads: int | None = None) -> Environment:
    """Describe where a run takes place; no framework is imported.

    Args:
        device: Device of the model, None for the CPU.
        threads: Threads of the numeric libraries; None takes ``OMP_NUM_THREADS``, or the processors there are.
    """
    commit, dirty = _git()
    if threads is None:
        given = os.environ.get("OMP_NUM_THREADS", "")
        threads = int(given) if given.isdecimal() else hardware.cpu_count()
    return Environment(
        git_commit=commit,
        git_dirty=dirty,
        python=platform.python_version(),
        platform=platform.platform(),
        cpu_flags=hardware.cpu_flags(),
        device=device or "cpu",
        threads=threads,
        packages=_packages(),
        folder=_folder(),
    )


def _folder() -> str | None:
    try:
        return str(Path.cwd())
    except OSError:  # it was removed
        return None


def _git() -> tuple[str | None, bool | None]:
    """Return commit and state of the checkout that this code lies in, if it lies in one."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
        return done.stdout.strip()

    try:
        # An environment inside somebody's own repository is not a checkout of this code.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None, None
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


@cache
def _packages() -> dict[str, str]:
    """Return the installed versions of this package and of all it may use at run time."""
    versions = {}
    try:
        requirements = importlib.metadata.requires("clipadapt") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    names = [re.split(r"[^A-Za-z0-9._-]", r)[0] for r in requirements if "'dev'" not in r]
    for name in ["clipadapt", *names, "tokenizers"]:  # the last comes with transformers
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name.replace("_", "-").lower()] = importlib.metadata.version(name)
    return versions


_peak_was_reset = False


def reset_peak_memory(device: str = "cpu") -> bool:
    """Begin a new measurement of peak memory; return whether the system allows it (Linux does)."""
    global _peak_was_reset  # noqa: PLW0603  the kernel's counter is one per process, too
    hardware.reset_device_peak(device)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        _peak_was_reset = False
    else:
        _peak_was_reset = True
    return _peak_was_reset


def peak_memory(device: str = "cpu") -> int | None:
    """Return the peak bytes since :func:`reset_peak_memory`, None where they are not known.

    Args:
        device: A GPU's own memory is counted on ``cuda``, the process's resident memory on ``cpu``.
    """
    if device != "cpu":
        return hardware.device_peak(device)
    if not _peak_was_reset:
        return None
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, flags=re.MULTILINE)
    return int(found[1]) * 1024 if found else None
