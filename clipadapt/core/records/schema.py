"""The schema of a run record, and the ids of runs and fits.

:class:`RunRecord` describes one fit and its evaluation: config, data, model, method, metrics, cost and environment.
``record.json`` holds it as JSON. To add a field, give it a default, so that older records can still be read; to rename
one, raise ``SCHEMA_VERSION`` and extend :mod:`~clipadapt.core.records.migrations`.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import (
    AwareDatetime,
    Field,
    FiniteFloat,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from clipadapt.core.api.data import Classes
from clipadapt.core.api.method import Setting
from clipadapt.core.api.strict import StrictModel
from clipadapt.core.data.leakage import LeakageFacts
from clipadapt.core.records.migrations import SCHEMA_VERSION
from clipadapt.core.scoring.metrics import MetricValue
from clipadapt.core.scoring.prediction_sets import HEADLINE, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping


class DataFacts(StrictModel):
    """The training data, and counts of the evaluation data.

    Attributes:
        name: Dataset, without any absolute path.
        sha256: Fingerprint over ids, labels and bytes.
        n_train: Number of training examples.
        n_val: Number of validation examples.
        n_test: Number of evaluated examples.
        n_classes: Number of classes.
        shots: Training examples per class that were requested, None for all.
        manifest_sha256: Hash of the few-shot draw, None without one.
        skipped: Examples left out because they cannot be read.
        n_found: Files or rows found in the evaluated dataset, None where they are not counted.
        n_read: Examples read from it, over all splits; None in old records.
        left_out: Reason -> number of its files or rows that were found but not read.
        source: Where the data come from.
        revision: Commit of the hub repository, or None.
        licence: Licence of the data, or where to find it.
        citation: How to cite the data, or where to find it.
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
    """The evaluation data and the evaluation protocol.

    Attributes:
        dataset: Evaluated dataset; in cross-dataset protocols not the training dataset.
        split: Evaluated split.
        templates: Prompt templates, empty if there are none.
        classnames_sha256: Hash of the class names in their order.
        protocol: Name of the evaluation protocol.
        classes: ``all`` classes, the ``base`` ones or the ``new`` ones.
        sha256: Fingerprint of the evaluated dataset, None in records of version 1.
        order_sha256: Hash of the order in which an online method saw the examples, None for other methods.
    """

    dataset: str
    split: str
    templates: tuple[str, ...]
    classnames_sha256: str
    protocol: str
    classes: Classes = "all"
    sha256: str | None = None
    order_sha256: str | None = None


class ModelFacts(StrictModel):
    """The backbone.

    Attributes:
        name: Name, without any absolute path.
        weights_sha256: sha256 of the weights, and of the tokenizer where it is stored in files.
        dtype: Effective dtype: ``fp32``, ``bf16`` or ``fp16``.
        revision: Commit of the hub repository, or None.
        licence: Licence of the weights, or where to find it.
        citation: How to cite the model, or where to find it.
    """

    name: str
    weights_sha256: str
    dtype: str
    revision: str | None = None
    licence: str = ""
    citation: str = ""


class MethodFacts(StrictModel):
    """The method.

    Attributes:
        name: Registered name.
        version: Version of the method, raised when its results change.
        recipe: Name of the recipe that its settings come from, or None.
        deviations: How the run differs from the recipe's source.
        uses_train: Whether the method uses the training split; False for zero-shot classifiers.
        setting: Whether a prediction depends on the other inputs; ``inductive`` in older records.
        contents: sha256 of the content of each file that a setting names, by the setting's dotted key.
        prompts: What its prompts are if they are not the templates alone, in words; else empty.
        uses_templates: Whether the templates are part of its prompts.
    """

    name: str
    version: int
    recipe: str | None
    deviations: tuple[str, ...]
    uses_train: bool = True
    setting: Setting = "inductive"
    contents: dict[str, str] = Field(default_factory=dict)
    prompts: str = ""
    uses_templates: bool = True


class Selection(StrictModel):
    """Result of selection on validation data: the epoch (if any), the criterion and its value."""

    epoch: int | None
    by: str
    value: FiniteFloat | None


class Calibration(StrictModel):
    """Temperature fitted on validation data, None without validation data."""

    temperature: FiniteFloat | None


class SetPoint(StrictModel):
    """Prediction sets of one score and nominal coverage on the evaluated examples.

    Attributes:
        score: ``lac``, ``aps`` or ``raps``, deterministic.
        nominal: The coverage asked for.
        threshold: Largest nonconformity of a class in a set.
        coverage: Share of sets that contain the label.
        size: Mean number of classes in a set.
        empty: Share of empty sets.
    """

    score: Kind
    nominal: float
    threshold: FiniteFloat
    coverage: float
    size: float
    empty: float


class PredictionSets(StrictModel):
    """Prediction sets of the classifier; see :mod:`~clipadapt.core.scoring.prediction_sets`.

    Attributes:
        n_calibration: Number of calibration examples.
        calibrated_on: ``val``, or ``held_out``: the part of val that ``data.calibration_share`` keeps for it.
        caveats: Why calibration and evaluated examples are not exactly exchangeable: keys of
            :data:`~clipadapt.core.scoring.prediction_sets.CAVEATS`.
        points: One per score and nominal coverage for which there are enough calibration examples.
        coverage_by_class: Coverage of each class of the sets that the metrics ``set_coverage`` and ``set_size``
            measure; None for a class without an example. Empty if there are too few calibration examples.
        size_by_class: Mean number of classes in a set, likewise.
    """

    n_calibration: NonNegativeInt
    calibrated_on: Literal["val", "held_out"]
    caveats: tuple[str, ...] = ()
    points: tuple[SetPoint, ...] = ()
    coverage_by_class: tuple[float | None, ...] = ()
    size_by_class: tuple[float | None, ...] = ()

    @property
    def headline(self) -> SetPoint | None:
        """The sets that the metrics measure, None if there are too few calibration examples."""
        score, nominal = HEADLINE
        wanted = (p for p in self.points if p.score == score.kind and p.nominal == nominal)
        return next(wanted, None)


class Cost(StrictModel):
    """Time and memory of a run.

    Attributes:
        fit_seconds: Time to fit, without encoding.
        encode_seconds: Time to encode all features the run used, including cached ones.
        predict_seconds: Time to score the evaluated examples, without encoding.
        cold_seconds: Total time of the run with an empty feature cache.
        peak_memory_bytes: Peak memory since the start of the run: GPU memory on cuda, else resident memory; None
            if it cannot be measured.
        saved_bytes: Size of the saved classifier.
    """

    fit_seconds: NonNegativeFloat = 0.0
    encode_seconds: NonNegativeFloat = 0.0
    predict_seconds: NonNegativeFloat = 0.0
    cold_seconds: NonNegativeFloat = 0.0
    peak_memory_bytes: NonNegativeInt | None = None
    saved_bytes: NonNegativeInt = 0


class Environment(StrictModel):
    """Software and hardware of a run.

    Attributes:
        git_commit: Commit of the clipadapt checkout, None for an installed package.
        git_dirty: Whether tracked files had uncommitted changes, None without ``git_commit``.
        python: Python version.
        platform: Operating system, its version and the machine's architecture.
        cpu_flags: CPU features that matter for speed.
        device: Device of the model, such as ``cpu`` or ``cuda``.
        threads: Threads of the numeric libraries.
        packages: Installed versions of clipadapt and its dependencies.
        folder: Working directory; relative paths in the config start here. None in older records.
        devices: Device of each process if several did the fit together; empty for one process.
        gpu: Name of the GPU, of the first process if several did the fit; None for other devices and in older records.
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
    devices: tuple[str, ...] = ()
    gpu: str | None = None


class RunRecord(StrictModel):
    """One fit and its evaluation.

    Attributes:
        schema_version: Version of this schema; older records are upgraded when they are read.
        run_id: Identity of the run, see :func:`make_run_id`.
        fit_id: Identity of the fit; all evaluations of one fit share it.
        status: ``ok`` or ``failed``.
        error: Error message of a failed run, else None.
        attempt: 1, plus one for each earlier attempt that failed.
        config: The resolved config as plain data.
        seed: Seed of the run.
        data: The training data.
        evaluation: The evaluation data and protocol.
        model: The backbone, None if the method uses none.
        method: The method.
        selection: Result of selection on validation data, or None.
        calibration: The temperature fitted on validation data, or None.
        prediction_sets: Coverage and size of prediction sets; None without calibration examples, where the classes are
            not those of the fit, and in older records.
        probabilities: How scores become probabilities: a ``softmax`` over the classes, or one ``sigmoid`` per class,
            which need not sum to 1 (SigLIP).
        n_trainable_params: Number of trainable parameters.
        n_total_params: Parameters of the whole classifier, backbone included; None if unknown.
        metrics: Metrics by name; empty in a failed run.
        cost: Seconds and bytes.
        flags: Names of registered flags, such as ``collapse`` or ``below_zero_shot``; every table shows them.
        leakage: Duplicates between training and evaluation data, None if they were not searched for.
        per_class: ``classnames`` of the evaluation, or None; metrics per class are computed from the predictions.
        predictions_sha256: Hash of the content of the predictions, None in a failed run.
        files: sha256 of every other file of the run by its path in the folder; empty in records of version 1.
        environment: Software and hardware.
        started_at: Start time, UTC.
        metrics_version: Version of the metric definitions, see
            :data:`~clipadapt.core.scoring.metrics.METRICS_VERSION`.
    """

    schema_version: Literal[3] = SCHEMA_VERSION
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
    prediction_sets: PredictionSets | None = None
    probabilities: Literal["softmax", "sigmoid"] = "softmax"
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


def canonical_json(value: Any) -> str:
    """Return canonical JSON: sorted keys, no spaces, ASCII, so that equal values give equal text.

    Raises:
        ValueError: If a number is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def make_run_id(*, fit: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """Return the identity of one fit and evaluation, 16 hexadecimal digits.

    Args:
        fit: Plain data that determine the fitted classifier: resolved settings, effective dtype, seed, hashes of
            data and weights, method and its version. Paths, output folder and worker counts are not included.
        evaluation: Plain data that determine the evaluation.
    """
    return _short_sha256({"fit": dict(fit), "evaluation": dict(evaluation)})


def make_fit_id(*, fit: Mapping[str, Any]) -> str:
    """Return the identity of one fit, 16 hexadecimal digits; see :func:`make_run_id`."""
    return _short_sha256({"fit": dict(fit)})


def slug(name: str) -> str:
    """Return a file name for any name, unique on every file system.

    A plain lower-case name is returned as it is; any other name is simplified and gets a hash of itself as suffix.
    """
    plain = re.fullmatch(r"[a-z0-9]([a-z0-9._-]{0,58}[a-z0-9])?", name)
    if plain and not re.search(r"-[0-9a-f]{12}$", name):
        return name
    body = re.sub(r"[^a-z0-9._]+", "-", name.lower())[:48].strip("-._")
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return f"{body or 'x'}-{digest}"


def _short_sha256(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]
