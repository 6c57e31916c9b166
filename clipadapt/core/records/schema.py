"""TODO."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final, Literal, Self

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
from clipadapt.core.api.strict import StrictModel
from clipadapt.core.data.leakage import LeakageFacts
from clipadapt.core.records.migrations import SCHEMA_VERSION
from clipadapt.core.scoring.metrics import MetricValue

if TYPE_CHECKING:
    from collections.abc import Mapping


OTHER_CLIPADAPT: Final = "read it with the clipadapt that wrote it, or name another folder"


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
        uses_train: Whether it is trained; False for zero-shot classifiers.
    """

    name: str
    version: int
    recipe: str | None
    deviations: tuple[str, ...]
    uses_train: bool = True


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
        schema_version: Version of this format; older records are upgraded when they are read.
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
        files: sha256 of every other file of the run by its path in the folder; empty in records of version 1.
        environment: Where the run took place.
        started_at: When it began, UTC.
        metrics_version: Version of what the metrics mean, see :data:`~clipadapt.core.scoring.metrics.METRICS_VERSION`.
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
