"""The result file of a sweep: every row of its tables with all metrics, for other programs.

``results_schema.json`` beside this module is the JSON schema of the file. A field is only added, with a default;
anything else raises :data:`VERSION`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, Literal

from pydantic import Field, FiniteFloat, JsonValue, NonNegativeFloat, NonNegativeInt, PositiveInt

from clipadapt.core.api.data import Classes
from clipadapt.core.api.errors import RecordError
from clipadapt.core.api.method import Setting
from clipadapt.core.api.strict import StrictModel
from clipadapt.core.report.grouping import group_records
from clipadapt.core.report.rows import Row
from clipadapt.core.report.run_files import RunFiles

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.records.schema import RunRecord

VERSION: Final = 1
NAME: Final = "results.json"


class ResultMetric(StrictModel):
    """One metric of a row: the mean over its successful runs.

    Attributes:
        value: The mean; a fraction is in [0, 1].
        low: Lower bound of the 95 % interval, over examples for one run, over seeds and examples for several; null if
            the metric has no interval.
        high: Upper bound, null with ``low``.
        n: Number of evaluated examples.
        n_runs: Number of runs in the mean.
        unit: ``fraction``, ``nats``, ``squared error``, ``seconds``, ``bytes`` or another unit of the metric.
        higher_is_better: Direction.
        by_seed: Value of each run by its seed.
    """

    value: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    n: NonNegativeInt
    n_runs: PositiveInt
    unit: str
    higher_is_better: bool
    by_seed: dict[str, FiniteFloat]


class ResultCost(StrictModel):
    """Cost of a row.

    Attributes:
        fit_seconds: Mean seconds to fit, without encoding.
        encode_seconds: Mean seconds to encode the features that were used, including cached ones.
        predict_seconds: Mean seconds to score the evaluated examples, without encoding.
        cold_seconds: Mean seconds of a run with an empty feature cache.
        peak_memory_bytes: Largest peak memory, null if unknown.
        saved_bytes: Largest saved classifier.
        n_trainable_params: Trainable parameters.
        n_total_params: Parameters of the whole classifier, null if unknown.
    """

    fit_seconds: NonNegativeFloat | None
    encode_seconds: NonNegativeFloat | None
    predict_seconds: NonNegativeFloat | None
    cold_seconds: NonNegativeFloat | None
    peak_memory_bytes: NonNegativeInt | None
    saved_bytes: NonNegativeInt | None
    n_trainable_params: NonNegativeInt | None
    n_total_params: NonNegativeInt | None


class ResultRow(StrictModel):
    """The runs that differ only in their seed.

    Attributes:
        dataset: Evaluated dataset.
        trained_on: Training dataset; another one in cross-dataset protocols.
        split: Evaluated split.
        classes: ``all`` classes, the ``base`` ones or the ``new`` ones.
        protocol: Evaluation protocol.
        setting: Whether a prediction depends on the other inputs.
        templates: Prompt templates.
        n_classes: Number of classes of the dataset.
        classnames_sha256: Hash of the class names.
        data_sha256: Fingerprint of the training dataset.
        model: Name of the backbone, null without one.
        model_sha256: Hash of its weights, null without one.
        dtype: Precision, null without a backbone.
        method: Registered name.
        method_version: Version of the method.
        recipe: Recipe of the settings, null for one's own.
        label: Method, recipe and the settings that distinguish the row from those that look alike.
        settings: Settings of the method.
        deviations: How the runs differ from the recipe's source.
        shots: Training examples per class, null for all.
        seeds: Seeds of the successful runs.
        metrics: Metrics by name; empty if no run succeeded.
        flags: Flag -> number of successful runs that carry it.
        cost: Seconds, bytes and parameters.
        run_ids: Ids of the successful runs, by seed.
        failed: Id -> error of each run that failed.
        problems: Why metrics or intervals are missing.
    """

    dataset: str
    trained_on: str
    split: str
    classes: Classes
    protocol: str
    setting: Setting
    templates: tuple[str, ...]
    n_classes: NonNegativeInt
    classnames_sha256: str
    data_sha256: str
    model: str | None
    model_sha256: str | None
    dtype: str | None
    method: str
    method_version: int
    recipe: str | None
    label: str
    settings: dict[str, JsonValue]
    deviations: tuple[str, ...]
    shots: PositiveInt | None
    seeds: tuple[int, ...]
    metrics: dict[str, ResultMetric]
    flags: dict[str, PositiveInt]
    cost: ResultCost
    run_ids: tuple[str, ...]
    failed: dict[str, str]
    problems: tuple[str, ...]


class Conditions(StrictModel):
    """Software and hardware of some of the runs.

    Attributes:
        git_commit: Commit of the checkout, null for an installed package.
        git_dirty: Whether it had uncommitted changes.
        python: Python version.
        platform: Operating system and architecture.
        device: Device of the model.
        threads: Threads of the numeric libraries.
        packages: Installed versions.
        runs: Number of runs under these conditions.
        gpu: Name of the GPU, null for other devices.
    """

    git_commit: str | None
    git_dirty: bool | None
    python: str
    platform: str
    device: str
    threads: int
    packages: dict[str, str]
    runs: PositiveInt
    gpu: str | None = None


class Results(StrictModel):
    """The result file of a sweep.

    Attributes:
        schema_version: Version of this format.
        sweep: Name of the sweep.
        rows: One per method in one setting, in the order of tables.
        conditions: Distinct software and hardware of the runs; one entry if they are equal for all.
    """

    schema_version: Literal[1] = VERSION
    sweep: str
    rows: tuple[ResultRow, ...]
    conditions: tuple[Conditions, ...] = Field(default=())


def build_results(store: RunStore, sweep: str, records: Iterable[RunRecord]) -> Results:
    """Collect the results of a sweep; runs that failed are counted and never averaged.

    Args:
        store: Where the runs are; predictions are read for the intervals of several seeds.
        sweep: Name of the sweep.
        records: Its records, in any order.
    """
    distinct = list({r.run_id: r for r in records}.values())
    files = RunFiles(store)
    rows = tuple(_row(Row(group, files)) for group in group_records(distinct))
    files.remember()
    return Results(sweep=sweep, rows=rows, conditions=_conditions(distinct))


def render_results(results: Results) -> str:
    """Return the text of the file: JSON, one line per field of a row."""
    return json.dumps(results.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"


def _row(row: Row) -> ResultRow:
    first, model = row.first, row.first.model
    settings = first.model_dump(mode="json")["config"].get("method") or {}
    metrics, problems = _metrics(row)
    return ResultRow(
        dataset=first.evaluation.dataset,
        trained_on=first.data.name,
        split=first.evaluation.split,
        classes=first.evaluation.classes,
        protocol=first.evaluation.protocol,
        setting=row.setting,
        templates=first.evaluation.templates,
        n_classes=first.data.n_classes,
        classnames_sha256=first.evaluation.classnames_sha256,
        data_sha256=first.data.sha256,
        model=model.name if model else None,
        model_sha256=model.weights_sha256 if model else None,
        dtype=model.dtype if model else None,
        method=first.method.name,
        method_version=first.method.version,
        recipe=first.method.recipe,
        label=row.label,
        settings={k: v for k, v in settings.items() if k != "name"},
        deviations=first.method.deviations,
        shots=first.data.shots,
        seeds=tuple(r.seed for r in row.ok),
        metrics=metrics,
        flags=row.flags,
        cost=ResultCost(**{name: getattr(row, name) for name in ResultCost.model_fields}),
        run_ids=tuple(r.run_id for r in row.ok),
        failed={r.run_id: r.error or "" for r in row.failed},
        problems=problems,
    )


def _metrics(row: Row) -> tuple[dict[str, ResultMetric], tuple[str, ...]]:
    """Return the metrics of a row, and why some are missing."""
    found: dict[str, ResultMetric] = {}
    problems: list[str] = []
    for name in dict.fromkeys(name for r in row.ok for name in r.metrics):
        try:
            interval, problem = row.measure(name)
        except RecordError as err:  # the runs differ in more than their seed
            problems.append(err.problem)
            continue
        problems += [problem] if problem else []
        known = {str(r.seed): r.metrics[name] for r in row.ok if name in r.metrics}
        one = next(iter(known.values()))
        if interval is not None:
            found[name] = ResultMetric(
                value=interval.value,
                low=interval.low,
                high=interval.high,
                n=one.n,
                n_runs=len(known),
                unit=one.unit,
                higher_is_better=one.higher_is_better,
                by_seed={seed: m.value for seed, m in known.items()},
            )
    return found, tuple(dict.fromkeys(problems))


def _conditions(records: Sequence[RunRecord]) -> tuple[Conditions, ...]:
    kept = [name for name in Conditions.model_fields if name != "runs"]
    found: dict[str, Conditions] = {}
    for record in records:
        facts = record.environment.model_dump(include=set(kept))
        key = json.dumps(facts, sort_keys=True)
        before = found[key].runs if key in found else 0
        found[key] = Conditions(**facts, runs=before + 1)
    return tuple(found.values())
