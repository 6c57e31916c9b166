"""What a saved run can do: load its classifier, predict on new inputs, say what it is, export it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pydantic import ValidationError

from clipadapt.core.api.context import Services
from clipadapt.core.api.errors import (
    ClipAdaptError,
    ConfigError,
    ModelError,
    RecordError,
    did_you_mean,
)
from clipadapt.core.api.method import Exportable, Inspectable, OpenVocabulary
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import METHODS, MODELS, program, track_of, tracks
from clipadapt.core.experiments.config import fault_lines
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.files.atomic import atomic_directory, write_text
from clipadapt.core.files.identity import require_same
from clipadapt.core.records.reading import check_files
from clipadapt.core.records.run_store import CLASSIFIER, RunStore
from clipadapt.core.runs import card
from clipadapt.core.scoring.scores import softmax

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clipadapt.core.api.data import Inputs
    from clipadapt.core.api.method import Classifier
    from clipadapt.core.api.model import ModelIdentity, ModelProvider
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.api.registry import Resolved
    from clipadapt.core.records.schema import ModelFacts, RunRecord

AT_ONCE: Final = 4096
"""Inputs whose scores are held at a time."""


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A run's record and its classifier, ready to predict.

    Attributes:
        record: The record.
        classifier: The fitted classifier.
        backbone: Its backbone, or None.
    """

    record: RunRecord
    classifier: Classifier
    backbone: Any

    @property
    def temperature(self) -> float | None:
        """Softmax temperature fitted on val, or None."""
        return self.record.calibration.temperature if self.record.calibration else None

    def predict(self, inputs: Inputs[Any], top: int = 1) -> list[dict[str, Any]]:
        """Predict the classes of unlabelled inputs.

        Args:
            inputs: ``n`` inputs.
            top: Classes to name per input.

        Returns:
            One mapping per input: ``input`` (its id), ``label``, ``probability``, ``top``. The probabilities are
            those of the softmax at the stored temperature, or uncalibrated where there is none.
        """
        return list(self._predictions(inputs, top))

    def _predictions(self, inputs: Inputs[Any], top: int) -> Iterator[dict[str, Any]]:
        names = self.classifier.classnames
        for begin in range(0, len(inputs), AT_ONCE):
            part = inputs.take(np.arange(begin, min(begin + AT_ONCE, len(inputs))))
            scores = self.classifier.predict_scores(part)  # (n, C)
            if scores.shape != (len(part), len(names)):
                raise RecordError(
                    f"the classifier gives {scores.shape[1]} scores an input but names {len(names)} classes",
                    hint="its files are damaged: run the experiment again",
                )
            probabilities = softmax(scores, self.temperature or 1.0)
            order = np.argsort(-scores, axis=1, kind="stable")[:, : max(top, 1)]
            for i, best in enumerate(order):
                ranked = [
                    {"label": names[c], "probability": float(probabilities[i, c])} for c in best
                ]
                yield {"input": part.ids[i], **ranked[0], "top": ranked}


def load_run(
    run_dir: Path, progress: Progress | None = None, *, track: str | None = None
) -> LoadedRun:
    """Load the classifier of a run.

    Args:
        run_dir: A folder ``<out>/<dataset>/<method>/<run id>``.
        progress: Where bars are shown.
        track: ``clip`` or ``text`` where only a run of that track will do.

    Raises:
        RecordError: If there is no such run, it failed, holds no classifier, or a damaged one.
        ConfigError: If it is of another track.
        ModelError: If the model's weights are not those of the run.
    """
    record = RunStore.load(run_dir)
    own = track_of(record.method.name)
    if track not in {None, own}:
        raise ConfigError(
            f"the run in '{run_dir}' is of {record.method.name}, which reads {tracks()[own].inputs}",
            hint=f"take the same command of '{program(own)}'",
        )
    if record.status != "ok":
        raise RecordError(
            f"the run in '{run_dir}' failed and has no classifier: {record.error}",
            hint="run the experiment again",
        )
    folder = _classifier_dir(run_dir, record, check=True)
    method_class = METHODS.get(record.method.name)
    if method_class.version != record.method.version:
        raise RecordError(
            f"the run in '{run_dir}' was made by version {record.method.version} of "
            f"{record.method.name}; installed is version {method_class.version}",
            hint="run the experiment again",
        )
    given: Any = record.config
    settings = {k: v for k, v in given["method"].items() if k != "name"}
    try:
        method = method_class(method_class.Config.model_validate(settings))
    except ValidationError as err:
        faults = "\n".join(fault_lines(err, method_class.Config, "method."))
        raise RecordError(
            f"the settings in '{run_dir}' are none of the installed {record.method.name}:\n{faults}",
            hint="run the experiment again",
        ) from None
    backbone = None
    if record.model is not None:
        services = Services(FeatureCache())
        if progress is not None:
            services.progress = progress
        name = given["model"]["name"]
        options = ModelOptions(given["model"]["precision"], given["model"]["device"])
        there = _findable(name, record)
        try:
            resolved, identity = _identified(record.model, there, own, options, run_dir)
        except ClipAdaptError as err:
            if there == name:
                raise
            try:  # a folder that is no model may have the name of one
                resolved, identity = _identified(record.model, name, own, options, run_dir)
            except ClipAdaptError:
                raise err from None
        backbone = resolved.provider.load(resolved.argument, options, services)
        require_same(backbone, identity)
    classifier = _for_judged(method.load(folder, backbone), record, run_dir)
    return LoadedRun(record, classifier, backbone)


def _findable(name: str, record: RunRecord) -> str:
    """Return a model's name as it works from here: a relative path in it begins where the run was started."""
    if record.environment.folder is None:
        return name
    start = Path(record.environment.folder)
    scheme, colon, rest = name.partition(":")
    arch, slash, file = name.partition("/")
    if (start / (rest if colon else name)).is_dir():
        return f"{scheme}{colon}{start / rest}" if colon else str(start / name)
    # Behind an architecture stands a file or else a tag, which has no suffix.
    if slash and (start / file).suffix and (start / file).is_file():
        return f"{arch}/{start / file}"
    return name


def _identified(
    then: ModelFacts, name: str, track: str, options: ModelOptions, run_dir: Path
) -> tuple[Resolved[ModelProvider], ModelIdentity]:
    """Return where the model of a run comes from, at the commit of then where another one is taken today.

    Raises:
        ModelError: If its weights are not those of the run.
    """
    resolved = MODELS.resolve(name, track)
    now = resolved.provider.identify(resolved.argument, options)
    if now.weights_sha256 == then.weights_sha256:
        return resolved, now
    commits = ("", "")
    if then.revision is not None and then.revision != now.revision:
        commits = (f", commit {then.revision}", f", commit {now.revision}")
        with contextlib.suppress(
            ClipAdaptError
        ):  # a name without revisions, or a commit that is gone
            pinned = MODELS.resolve(f"{name}@{then.revision}", track)
            before = pinned.provider.identify(pinned.argument, options)
            if before.weights_sha256 == then.weights_sha256:
                return pinned, before
    raise ModelError(
        f"the run in '{run_dir}' was made with other weights of '{then.name}': "
        f"sha256 {then.weights_sha256[:16]}{commits[0]}; here {now.weights_sha256[:16]}{commits[1]}",
        hint="restore the weights, or run the experiment again",
    )


def _for_judged(classifier: Classifier, record: RunRecord, run_dir: Path) -> Classifier:
    """Return a classifier for the classes that the record was judged on; its fit may have had others.

    Raises:
        RecordError: If it cannot be had for them.
    """
    facts: Any = record.per_class
    judged = tuple(map(str, facts["classnames"])) if facts else tuple(classifier.classnames)
    own = set(classifier.classnames)
    if judged == tuple(classifier.classnames) or set(judged) == own:
        return classifier
    if isinstance(classifier, OpenVocabulary):
        return classifier.with_classnames(judged, record.evaluation.templates)
    unlearnt = [name for name in judged if name not in own]
    if unlearnt:
        raise RecordError(
            f"the classifier in '{run_dir}' is not of this record: it has no class '{unlearnt[0]}'",
            hint="run the experiment again",
        )
    return classifier


def inspect_run(run_dir: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Say what a run is: the facts of its record and, where its classifier is inspectable, what was learnt.

    Args:
        run_dir: Folder of the run; of a failed one the record is all there is.
        progress: Where bars are shown.

    Returns:
        ``run``, ``method`` (with its ``settings``), ``model``, ``data``, ``evaluation``, ``metrics``, ``selection``,
        ``calibration``, ``flags``, ``parameters``, ``cost``, ``files`` (name -> bytes) and ``learnt``, None where the
        method does not say.

    Raises:
        RecordError: If there is no such run, or it holds no classifier.
        ModelError: If the model's weights are not those of the run.
    """
    record = RunStore.load(run_dir)
    check_files(run_dir, record)
    learnt, files = None, {}
    if record.status == "ok":
        classifier = load_run(run_dir, progress).classifier
        learnt = classifier.inspect() if isinstance(classifier, Inspectable) else None
        folder = _classifier_dir(run_dir, record)
        files = {
            p.relative_to(folder).as_posix(): p.stat().st_size
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        }
    plain = record.model_dump(mode="json")
    config: dict[str, Any] = plain["config"]
    settings = {k: v for k, v in config["method"].items() if k != "name"}
    run = ("run_id", "fit_id", "status", "error", "attempt", "seed", "started_at")
    return {
        "run": {key: plain[key] for key in run},
        "method": {**plain["method"], "settings": settings},
        "model": plain["model"],
        "data": plain["data"],
        "evaluation": plain["evaluation"],
        "metrics": {name: _interval(m) for name, m in plain["metrics"].items()},
        "selection": plain["selection"],
        "calibration": plain["calibration"],
        "flags": plain["flags"],
        "parameters": {"trainable": record.n_trainable_params, "total": record.n_total_params},
        "cost": plain["cost"],
        "files": files,
        "learnt": learnt,
    }


def _interval(metric: dict[str, Any]) -> dict[str, Any]:
    """Return a metric without what its name tells already."""
    return {k: metric[k] for k in ("value", "low", "high") if metric[k] is not None}


def export_run(run_dir: Path, form: str, output: Path, progress: Progress | None = None) -> Path:
    """Write a run's classifier in a format of another library, with a ``README.md`` that says how to load it.

    Args:
        run_dir: Folder of the run.
        form: One of the classifier's formats.
        output: A path that does not exist yet.
        progress: Where bars and notes are shown.

    Raises:
        ConfigError: If the method has no such format, or ``output`` exists.
    """
    if output.exists() or output.is_symlink():
        raise ConfigError(
            f"'{output}' exists already and is left alone", hint="name a new path with --output"
        )
    loaded = load_run(run_dir, progress)
    classifier = loaded.classifier
    formats = classifier.export_formats if isinstance(classifier, Exportable) else ()
    if form not in formats or not isinstance(classifier, Exportable):
        accepted = f"accepted: {', '.join(formats)}" if formats else "it has no export formats"
        hint = f"take --format {formats[0]}" if formats else _own_files(loaded.record)
        raise ConfigError(
            f"a run of {loaded.record.method.name} cannot be exported as '{form}'"
            f"{did_you_mean(form, formats) or ';'} {accepted}",
            hint=hint,
        )
    temperature = loaded.temperature
    try:
        with atomic_directory(output) as folder:
            exported = classifier.export(form, folder, temperature=temperature, output=output)
            text = card.render(loaded.record, form, classifier.classnames, temperature, exported)
            write_text(folder / card.NAME, text)
    except OSError as err:
        raise RecordError(
            f"cannot write '{output}': {err.strerror or err}",
            hint="name another path with --output",
        ) from None
    if progress is not None:
        for note in exported.notes:
            progress.note(f"note: {note}")
    return output


def _own_files(record: RunRecord) -> str:
    """Say where a run's own files are and what reads them."""
    return (
        "its own files are in the run's folder 'classifier', which "
        f"'{program(track_of(record.method.name))} predict' reads"
    )


def _classifier_dir(run_dir: Path, record: RunRecord, *, check: bool = False) -> Path:
    """Return the folder of the classifier: the run's own, or that of the run it shares its fit with.

    Args:
        run_dir: Folder of the run.
        record: Its record.
        check: Whether every file in it is compared with its record.

    Raises:
        RecordError: If there is none, or a file in it is not what was written.
    """
    own = run_dir / CLASSIFIER
    if own.is_dir():
        if check:
            check_files(run_dir, record, f"{CLASSIFIER}/")
        return own
    above = run_dir.resolve().parents
    # Only in the layout <out>/<dataset>/<method>/<run id>: a run copied elsewhere searches no stranger's folders.
    if run_dir.resolve().name == record.run_id and len(above) > 2:
        for other in RunStore(above[2]).folders():
            if not (other / CLASSIFIER).is_dir():
                continue
            try:
                found = RunStore.load(other)
            except RecordError:
                continue  # another run's damage is told where that run is asked for
            if found.fit_id == record.fit_id:
                if check:
                    check_files(other, found, f"{CLASSIFIER}/")
                return other / CLASSIFIER
    raise RecordError(f"the run in '{run_dir}' holds no classifier", hint="run it again")
