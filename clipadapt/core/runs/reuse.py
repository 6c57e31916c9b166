"""Use a saved fit again, without fitting: evaluate it on a further target, or open what it was trained on."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import ConfigError, RecordError
from clipadapt.core.api.registry import METHODS
from clipadapt.core.data.draws import draw_task, joined
from clipadapt.core.data.targets import OpenDatasets
from clipadapt.core.experiments import config
from clipadapt.core.records.environment import reset_peak_memory
from clipadapt.core.records.reading import read_file
from clipadapt.core.records.run_store import HISTORY
from clipadapt.core.runs.evaluate import evaluate
from clipadapt.core.runs.fit import FitResult, calibrate, draw_flags
from clipadapt.core.runs.inference import load_fit, local_name
from clipadapt.core.runs.plan import FitSpec, check_dataset_names, open_home, read_manifests
from clipadapt.core.runs.record import write_record
from clipadapt.core.runs.session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from clipadapt.core.api.data import Split
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.data.targets import Target
    from clipadapt.core.experiments.config import Experiment
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.runs.models import ModelLoader
    from clipadapt.core.runs.plan import OpenExperiment

REPORTED: Final = frozenset({"texts_cut"})
"""Flags that a model reports while its examples are encoded for the fit."""


def evaluate_saved(
    record: RunRecord,
    run_dir: Path,
    out: Path,
    target: Mapping[str, Any],
    progress: Progress,
    *,
    datasets: OpenDatasets | None = None,
    models: ModelLoader | None = None,
) -> RunRecord:
    """Evaluate the classifier of a run on another dataset, split or classes.

    The record has the id and the figures that the run would have had with this target in ``evaluation.also``. The costs
    of the fit are those of the run.

    Args:
        record: A successful run.
        run_dir: Its folder.
        out: Folder of the records.
        target: ``dataset``, ``split`` and ``classes``, as an entry of ``evaluation.also``.
        progress: Where bars and warnings are shown.
        datasets: Datasets that are already open.
        models: Loads the model, and may have it already.

    Returns:
        The record of the evaluation; one that is complete is read, not repeated.

    Raises:
        RecordError: If the run has no classifier, or the training data, the model or the library have changed since.
        ClipAdaptError: If the target cannot be evaluated.
    """
    experiment = experiment_of(record, [target])
    threads = record.environment.threads
    session = Session(out, progress, threads, datasets=datasets, models=models)
    opened = session.open(experiment)
    if opened.fit_id(record.seed) != record.fit_id:
        raise RecordError(
            f"the run in '{run_dir}' cannot be evaluated further: its training data, its model, its settings or the "
            "installed method have changed since the fit",
            hint="fit it again",
        )
    if len(opened.targets) < 2:  # dropped, because the fit is trained on it
        raise ConfigError(
            f"the fit of '{run_dir}' is trained on {opened.home.dataset.name} ({target['split']}) too, so it is not "
            "evaluated there",
            hint="evaluate on test",
        )
    check_dataset_names([opened])
    chosen = opened.targets[-1]
    known = opened.record(record.seed, chosen)
    if known is not None and known.status == "ok":
        return known
    return _evaluate(session, opened, record, run_dir, chosen)


def _evaluate(
    session: Session, opened: OpenExperiment, record: RunRecord, run_dir: Path, target: Target
) -> RunRecord:
    session.models.use_threads(opened)
    started_at = datetime.now(UTC)
    reset_peak_memory(opened.device)
    draw = draw_task(opened.home, opened.experiment, opened.manifests.get(record.seed), record.seed)
    spec = FitSpec(opened, record.seed, draw, {})
    model = session.models.load(opened)
    classifier, cost = load_fit(record, run_dir, model.backbone), record.cost
    temperature, sets, bounded = calibrate(spec, classifier, draw, model.services.progress)
    fitted = FitResult(
        draw=draw,
        classifier=classifier,
        backbone=model.backbone,
        services=model.services,
        temperature=temperature,
        calibration=sets,
        history=_history(record, run_dir),
        flags=(*draw_flags(spec, draw), *bounded),
        reported=tuple(f for f in record.flags if f in REPORTED),
        fit_seconds=cost.fit_seconds,
        encode_seconds=cost.encode_seconds,
        load_seconds=model.load_seconds,
    )
    test = target.examples(opened.experiment.config.data.limit)
    write_record(spec, fitted, evaluate(spec, fitted, target, test), started_at)
    written = opened.record(record.seed, target)
    assert written is not None
    return written


def training_split(record: RunRecord, progress: Progress) -> Split[Any]:
    """Return the training examples of a run.

    Raises:
        RecordError: If they are not those of the run.
        ClipAdaptError: If they cannot be opened.
    """
    experiment = experiment_of(record)
    method = METHODS.get(record.method.name)
    home = open_home(experiment, method, progress, OpenDatasets())
    if home.dataset.fingerprint != record.data.sha256:
        raise RecordError(f"'{home.dataset.name}' has changed since the run")
    manifests = read_manifests(experiment, home, progress)
    draw = draw_task(home, experiment, manifests.get(record.seed), record.seed)
    train, drawn = draw.task.train, draw.manifest and draw.manifest.sha256
    if train is not None and draw.task.val is not None and "refit_on_val" in record.flags:
        train = joined(train, draw.task.val)
    if train is None or len(train) != record.data.n_train or drawn != record.data.manifest_sha256:
        raise RecordError("the draw of the run cannot be repeated here")
    return train


def experiment_of(record: RunRecord, also: Sequence[Mapping[str, Any]] = ()) -> Experiment:
    """Return the experiment of a record with its one seed.

    Args:
        record: The record.
        also: Targets to evaluate, as in ``evaluation.also``, in place of those of the record.

    Raises:
        ConfigError: If its settings are not valid for the installed version.
    """
    plain: dict[str, Any] = dict(record.config)
    evaluation = {**plain["evaluation"], "also": [dict(one) for one in also]}
    data = {**plain["data"], "name": local_name(plain["data"]["name"], record)}
    own: dict[str, Any] = {**plain, "data": data, "evaluation": evaluation, "seeds": [record.seed]}
    if own.get("model") is None:
        own.pop("model", None)
    built = config.build([("--set", own)], source="the record of the run")
    origins = _origins_of(record, built)
    stated = frozenset(key for key in origins if not key.startswith("method."))
    return replace(built, recipe=record.method.recipe, origins=origins, stated=stated)


def _origins_of(record: RunRecord, experiment: Experiment) -> dict[str, str]:
    """Return the origins of settings that deviate from the recipe; the record has them as ``key=value (origin)``."""
    found = {}
    for text in record.method.deviations:
        if text not in experiment.config.recipe.deviations:
            head, _, origin = text.removesuffix(")").rpartition(" (")
            found[head.partition("=")[0]] = origin
    return found


def _history(record: RunRecord, run_dir: Path) -> tuple[Mapping[str, Any], ...]:
    content = read_file(run_dir, record, HISTORY) or b""
    return tuple(json.loads(line) for line in content.splitlines())
