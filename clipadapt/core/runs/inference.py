"""Use a saved run: load its classifier, predict with it, inspect it and export it."""

from __future__ import annotations

import contextlib
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pydantic import ValidationError

from clipadapt.core.api.errors import (
    ClipAdaptError,
    ConfigError,
    ModelError,
    RecordError,
    did_you_mean,
)
from clipadapt.core.api.method import Exportable, Inspectable, OpenVocabulary
from clipadapt.core.api.model import calculating
from clipadapt.core.api.registry import METHODS, MODELS, program, track_of, tracks
from clipadapt.core.experiments.config import fault_lines
from clipadapt.core.experiments.settings import ModelConfig
from clipadapt.core.files.atomic import atomic_directory, write_text
from clipadapt.core.records.reading import check_files
from clipadapt.core.records.run_store import CLASSIFIER, RunStore
from clipadapt.core.runs import card
from clipadapt.core.runs.find import find_run
from clipadapt.core.runs.models import ModelLoader
from clipadapt.core.scoring.scores import probabilities

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from clipadapt.core.api.data import Inputs
    from clipadapt.core.api.method import Classifier, Method
    from clipadapt.core.api.model import Backbone, ModelIdentity, ModelOptions, ModelProvider
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.api.registry import Resolved
    from clipadapt.core.records.schema import ModelFacts, RunRecord

    More = Callable[[NDArray[np.float64], Sequence[str]], list[dict[str, Any]]]

CHUNK: Final = 4096
"""Inputs whose scores are in memory at a time."""
_RERUN: Final = "run the experiment again"


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A run's record and classifier, ready to predict.

    Attributes:
        record: The record.
        classifier: The fitted classifier.
        backbone: Its backbone, or None.
        folder: Folder of the run.
        home: Folder that has the classifier: this run's, or that of another run of the same fit.
        home_record: The record in it.
    """

    record: RunRecord
    classifier: Classifier
    backbone: Any
    folder: Path
    home: Path
    home_record: RunRecord

    @property
    def temperature(self) -> float | None:
        """Temperature fitted on val, or None."""
        return self.record.calibration.temperature if self.record.calibration else None

    @property
    def sigmoid(self) -> bool:
        """Whether the probability of each class is a sigmoid of its own score, as it was in the run's metrics."""
        return self.record.probabilities == "sigmoid"

    def scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the scores of inputs, shape ``(n, C)``, calculated as in the run."""
        return self.scores_of(self.classifier, inputs)

    def scores_of(self, classifier: Classifier, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the scores of another classifier on the model of the run."""
        with calculating(self.backbone):
            return classifier.predict_scores(inputs)

    def probabilities(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return probabilities at the temperature of the run, shape ``(n, C)``; without one, at 1."""
        return probabilities(
            scores.astype(np.float64), self.temperature or 1.0, sigmoid=self.sigmoid
        )

    def note_of(self, n: int) -> str | None:
        """Return a note for the user about predicting ``n`` inputs, or None."""
        name, setting = self.record.method.name, self.record.method.setting
        if setting == "transductive" and n == 1:
            return f"{name} is transductive and predicts all inputs together; a single one has none to learn from"
        return None

    def predict(
        self, inputs: Inputs[Any], top: int = 1, more: More | None = None
    ) -> list[dict[str, Any]]:
        """Predict the classes of unlabelled inputs.

        A transductive method predicts all of them together, an online one in their order.

        Args:
            inputs: ``n`` inputs.
            top: Classes to return per input.
            more: Given probabilities of shape ``(n, C)`` and class names, returns further entries of each input.

        Returns:
            One mapping per input: ``input`` (its id), ``label``, ``probability`` and ``top``. Probabilities are
            those of the run's metrics at the stored temperature; without one they are not calibrated.
        """
        return list(self._predictions(inputs, top, more))

    def _predictions(
        self, inputs: Inputs[Any], top: int, more: More | None
    ) -> Iterator[dict[str, Any]]:
        names = self.classifier.classnames
        # Without the inputs beside or before them, the scores of other settings would differ.
        step = CHUNK if self.record.method.setting == "inductive" else max(len(inputs), 1)
        for begin in range(0, len(inputs), step):
            part = inputs.take(np.arange(begin, min(begin + step, len(inputs))))
            scores = self.scores(part)  # (n, C)
            if scores.shape != (len(part), len(names)):
                raise RecordError(
                    f"the classifier returns {scores.shape[1]} scores per input for {len(names)} classes",
                    hint=f"its files are damaged: {_RERUN}",
                )
            found = self.probabilities(scores)
            added = more(found, names) if more else [{}] * len(part)
            shown = found.astype(np.float32)  # the precision of the scores
            order = np.argsort(-scores, axis=1, kind="stable")[:, : max(top, 1)]
            for i, best in enumerate(order):
                ranked = [{"label": names[c], "probability": float(shown[i, c])} for c in best]
                yield {"input": part.ids[i], **ranked[0], "top": ranked, **added[i]}


def load_run(
    run_dir: Path | str,
    progress: Progress | None = None,
    *,
    track: str | None = None,
    models: ModelLoader | None = None,
) -> LoadedRun:
    """Load the classifier of a run.

    Args:
        run_dir: A folder ``<out>/<dataset>/<method>/<run id>``, or ``hf:ORG/NAME[@REVISION]``; see
            :func:`~clipadapt.core.runs.find.find_run`.
        progress: Where bars are shown.
        track: Refuse runs of other tracks than this one, ``clip`` or ``text``.
        models: Loads the model, and may have it already.

    Raises:
        RecordError: If there is no such run, it failed, or its classifier is missing or damaged.
        ConfigError: If it is of another track.
        ModelError: If the model is not available, or its weights differ from those of the run.
    """
    folder = find_run(run_dir, progress)
    return _load(record_of(folder, track), folder, models or ModelLoader(progress))


def record_of(run_dir: Path, track: str | None = None) -> RunRecord:
    """Return the record of a successful run.

    Raises:
        RecordError: If there is no such run, or it failed.
        ConfigError: If it is of another track than ``track``.
    """
    record = RunStore.load(run_dir)
    own = track_of(record.method.name)
    if track not in {None, own}:
        raise ConfigError(
            f"the run in '{run_dir}' is of {record.method.name}, which reads {tracks()[own].inputs}",
            hint=f"use the same command of '{program(own)}'",
        )
    if record.status != "ok":
        raise RecordError(
            f"the run in '{run_dir}' failed and has no classifier: {record.error}", hint=_RERUN
        )
    return record


def load_fit(record: RunRecord, run_dir: Path, backbone: Backbone | None) -> Classifier:
    """Return the classifier of a run's fit, for the classes that it was trained on.

    Raises:
        RecordError: If it is missing or damaged.
    """
    folder, _ = saved_classifier(record, run_dir)
    return _method(record, run_dir).load(folder, backbone)


def saved_classifier(record: RunRecord, run_dir: Path) -> tuple[Path, RunRecord]:
    """Return the folder of a run's classifier, checked, and the record of the run it belongs to.

    Raises:
        RecordError: If it is missing or damaged.
    """
    folder, owner = _find_classifier(run_dir, record)
    check_files(folder.parent, owner, f"{CLASSIFIER}/")
    return folder, owner


def inspect_run(run_dir: Path | str, progress: Progress | None = None) -> dict[str, Any]:
    """Return the facts of a run's record and, if its classifier supports it, what was trained.

    Args:
        run_dir: Folder of the run, or ``hf:ORG/NAME[@REVISION]``; of a failed one only the record is read.
        progress: Where bars are shown.

    Returns:
        ``run``, ``method`` (with its ``settings``), ``model``, ``data``, ``evaluation``, ``metrics``, ``selection``,
        ``calibration``, ``prediction_sets`` (without their figures by class), ``flags``, ``parameters``, ``cost``,
        ``files`` (bytes by name) and ``trained``, which is None if the method does not support it.

    Raises:
        RecordError: If there is no such run, or its classifier is missing or damaged.
        ModelError: If the model is not available, or its weights differ from those of the run.
    """
    run_dir = find_run(run_dir, progress)
    record = RunStore.load(run_dir)
    check_files(run_dir, record)
    trained, files = None, {}
    if record.status == "ok":
        classifier = _load(record, run_dir, ModelLoader(progress), checked=True).classifier
        trained = classifier.inspect() if isinstance(classifier, Inspectable) else None
        folder, _ = _find_classifier(run_dir, record)
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
        "prediction_sets": None
        if record.prediction_sets is None
        else {k: v for k, v in plain["prediction_sets"].items() if not k.endswith("_by_class")},
        "flags": plain["flags"],
        "parameters": {"trainable": record.n_trainable_params, "total": record.n_total_params},
        "cost": plain["cost"],
        "files": files,
        "trained": trained,
    }


def export_run(
    run_dir: Path | str, form: str, output: Path, progress: Progress | None = None
) -> Path:
    """Write a run's classifier in the format of another library, with a ``README.md`` that says how to load it.

    Args:
        run_dir: Folder of the run, or ``hf:ORG/NAME[@REVISION]``.
        form: One of the classifier's formats.
        output: A path that does not exist yet.
        progress: Where bars and notes are shown.

    Raises:
        ConfigError: If the classifier does not support the format, or ``output`` exists.
        RecordError: If ``output`` cannot be written.
    """
    if output.exists() or output.is_symlink():
        raise ConfigError(
            f"'{output}' already exists and is not changed", hint="name a new path with --output"
        )
    loaded = load_run(run_dir, progress)
    classifier = loaded.classifier
    formats = classifier.export_formats if isinstance(classifier, Exportable) else ()
    if form not in formats or not isinstance(classifier, Exportable):
        reason = getattr(classifier, "export_reason", "")
        none = f"it has no export formats{': ' * bool(reason)}{reason}"
        accepted = f"accepted: {', '.join(formats)}" if formats else none
        near = [*difflib.get_close_matches(form, formats, n=1), *formats]
        hint = f"use --format {near[0]}" if near else _own_files(loaded.record)
        raise ConfigError(
            f"a run of {loaded.record.method.name} cannot be exported as '{form}'"
            f"{did_you_mean(form, formats) or ';'} {accepted}",
            hint=hint,
        )
    temperature = loaded.temperature
    try:
        with atomic_directory(output) as folder:
            exported = classifier.export(form, folder, temperature=temperature, output=output)
            if exported.stamp is not None:
                exported.stamp({
                    "run_id": loaded.record.run_id,
                    "method": loaded.record.method.name,
                })
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


def _load(
    record: RunRecord, run_dir: Path, models: ModelLoader, *, checked: bool = False
) -> LoadedRun:
    """Load the classifier of a complete run; ``checked`` means that its own files are known to be intact."""
    folder, owner = _find_classifier(run_dir, record)
    if not (checked and owner is record):
        check_files(folder.parent, owner, f"{CLASSIFIER}/")
    method = _method(record, run_dir)
    saved = record.model
    backbone = None if saved is None else _load_model(record, saved, run_dir, models)
    classifier = _for_evaluated_classes(method.load(folder, backbone), record, run_dir)
    return LoadedRun(record, classifier, backbone, run_dir, folder.parent, owner)


def _find_classifier(run_dir: Path, record: RunRecord) -> tuple[Path, RunRecord]:
    """Return the folder of the classifier and the record of the run it belongs to: this one, or one of the same fit.

    Raises:
        RecordError: If there is none.
    """
    if (run_dir / CLASSIFIER).is_dir():
        return run_dir / CLASSIFIER, record
    parents = run_dir.resolve().parents
    # Only in the layout <out>/<dataset>/<method>/<run id>: for a run that was copied, no other folders are searched.
    if run_dir.resolve().name == record.run_id and len(parents) > 2:
        for other in RunStore(parents[2]).folders():
            if not (other / CLASSIFIER).is_dir():
                continue
            try:
                found = RunStore.load(other)
            except RecordError:
                continue  # damage in another run is reported when that run is used
            if found.fit_id == record.fit_id:
                return other / CLASSIFIER, found
    raise RecordError(f"the run in '{run_dir}' has no saved classifier", hint=_RERUN)


def _method(record: RunRecord, run_dir: Path) -> Method:
    """Return the method of a run with its settings.

    Raises:
        RecordError: If the installed version of the method differs, or does not accept the settings.
    """
    method_class = METHODS.get(record.method.name)
    if method_class.version != record.method.version:
        raise RecordError(
            f"the run in '{run_dir}' was made by version {record.method.version} of "
            f"{record.method.name}; version {method_class.version} is installed",
            hint=_RERUN,
        )
    config: Any = record.config
    settings = {k: v for k, v in config["method"].items() if k != "name"}
    try:
        return method_class(method_class.Config.model_validate(settings))
    except ValidationError as err:
        faults = "\n".join(fault_lines(err, method_class.Config, "method."))
        raise RecordError(
            f"the settings saved in '{run_dir}' are not valid for the installed {record.method.name}:\n{faults}",
            hint=_RERUN,
        ) from None


def _load_model(
    record: RunRecord, saved: ModelFacts, run_dir: Path, models: ModelLoader
) -> Backbone:
    """Load the model that a run was made with.

    Raises:
        ModelError: If it is not available, or its weights differ.
    """
    config: Any = record.config
    name = config["model"]["name"]
    options = ModelConfig.model_validate(config["model"]).options
    track, local = track_of(record.method.name), local_name(name, record)
    try:
        resolved, identity = _identify(saved, local, track, options, run_dir)
    except ClipAdaptError as err:
        if local == name:
            raise
        try:  # the folder of that name may not be a model
            resolved, identity = _identify(saved, name, track, options, run_dir)
        except ClipAdaptError:
            raise err from None
    services = models.services()
    return models.backbone(resolved, options, identity, services).with_services(services)


def local_name(name: str, record: RunRecord) -> str:
    """Return the name of a model or dataset as it works from here: relative paths start where the run was started."""
    if record.environment.folder is None:
        return name
    start = Path(record.environment.folder)
    scheme, colon, rest = name.partition(":")
    arch, slash, file = name.partition("/")
    if (start / (rest if colon else name)).is_dir():
        return f"{scheme}{colon}{start / rest}" if colon else str(start / name)
    # After an architecture comes a file, or a tag, which has no suffix.
    if slash and (start / file).suffix and (start / file).is_file():
        return f"{arch}/{start / file}"
    return name


def _identify(
    saved: ModelFacts, name: str, track: str, options: ModelOptions, run_dir: Path
) -> tuple[Resolved[ModelProvider], ModelIdentity]:
    """Find the model of a run; if its weights have changed on the hub since, at the commit of the run.

    Raises:
        ModelError: If its weights differ from those of the run.
    """
    resolved = MODELS.resolve(name, track)
    now = resolved.provider.identify(resolved.argument, options)
    if now.weights_sha256 == saved.weights_sha256:
        return resolved, now
    commits = ("", "")
    if saved.revision is not None and saved.revision != now.revision:
        commits = (f", commit {saved.revision}", f", commit {now.revision}")
        with contextlib.suppress(ClipAdaptError):  # a name without revisions, or a deleted commit
            pinned = MODELS.resolve(f"{name}@{saved.revision}", track)
            before = pinned.provider.identify(pinned.argument, options)
            if before.weights_sha256 == saved.weights_sha256:
                return pinned, before
    raise ModelError(
        f"the run in '{run_dir}' was made with other weights of '{saved.name}': "
        f"sha256 {saved.weights_sha256[:16]}{commits[0]}; here {now.weights_sha256[:16]}{commits[1]}",
        hint=f"restore the weights, or {_RERUN}",
    )


def _for_evaluated_classes(classifier: Classifier, record: RunRecord, run_dir: Path) -> Classifier:
    """Return a classifier for the classes of the record's evaluation; its fit may have had others.

    Raises:
        RecordError: If the classifier does not support them.
    """
    facts: Any = record.per_class
    evaluated = tuple(map(str, facts["classnames"])) if facts else tuple(classifier.classnames)
    own = set(classifier.classnames)
    if evaluated == tuple(classifier.classnames) or set(evaluated) == own:
        return classifier
    if isinstance(classifier, OpenVocabulary):
        return classifier.with_classnames(evaluated, record.evaluation.templates)
    untrained = [name for name in evaluated if name not in own]
    if untrained:
        raise RecordError(
            f"the classifier in '{run_dir}' does not belong to this record: it has no class '{untrained[0]}'",
            hint=_RERUN,
        )
    return classifier


def _interval(metric: dict[str, Any]) -> dict[str, Any]:
    """Return value and interval of a metric; the rest follows from its name."""
    return {k: metric[k] for k in ("value", "low", "high") if metric[k] is not None}


def _own_files(record: RunRecord) -> str:
    """Return where the files of a run are and what reads them."""
    return (
        "the run's own files are in its folder 'classifier', which "
        f"'{program(track_of(record.method.name))} predict' reads"
    )
