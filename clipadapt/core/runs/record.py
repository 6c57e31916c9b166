"""Record: write the result of a fit and its evaluation on one target, or why they failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipadapt.core.api.method import Selected, setting_of
from clipadapt.core.data import leakage
from clipadapt.core.data.classnames import classnames_sha256
from clipadapt.core.experiments.run_id import file_contents
from clipadapt.core.files.atomic import scratch_folder
from clipadapt.core.records import schema
from clipadapt.core.records.environment import environment
from clipadapt.core.records.predictions import Predictions
from clipadapt.core.runs.order import order_sha256
from clipadapt.core.scoring.metrics import METRICS_VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from clipadapt.core.api.method import Classifier
    from clipadapt.core.api.model import Backbone
    from clipadapt.core.data.draws import Draw
    from clipadapt.core.data.targets import Target
    from clipadapt.core.runs.evaluate import Evaluation
    from clipadapt.core.runs.fit import FitResult
    from clipadapt.core.runs.plan import FitSpec


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a fit or its evaluation failed.

    Attributes:
        error: The error message.
        flags: Flags for the records.
        draw: The examples of the fit, if it got that far.
        ids: Examples of the target that was being evaluated.
    """

    error: str
    flags: tuple[str, ...] = ()
    draw: Draw | None = None
    ids: tuple[str, ...] = ()


def write_record(
    spec: FitSpec, fitted: FitResult, evaluation: Evaluation, started_at: datetime
) -> None:
    """Write the record of a complete run, with predictions, history and, in the home target's run, the classifier."""
    target, classifier, backbone = evaluation.target, evaluation.classifier, fitted.backbone
    at_home = target is spec.opened.home
    encode_seconds = fitted.encode_seconds + evaluation.encode_seconds
    seconds = (fitted.load_seconds, encode_seconds, fitted.fit_seconds, evaluation.predict_seconds)
    with scratch_folder() as scratch:
        folder = scratch / "classifier"
        fitted.classifier.save(folder)
        record = schema.RunRecord(
            status="ok",
            selection=_selection(fitted.classifier),
            calibration=schema.Calibration(temperature=fitted.temperature),
            prediction_sets=evaluation.prediction_sets,
            probabilities="sigmoid" if classifier.score_kind == "sigmoid" else "softmax",
            n_trainable_params=classifier.n_trainable_params,
            n_total_params=_total_params(classifier, backbone),
            metrics=evaluation.metrics,
            per_class={"classnames": list(target.classnames)},
            cost=schema.Cost(
                fit_seconds=fitted.fit_seconds,
                encode_seconds=encode_seconds,
                predict_seconds=evaluation.predict_seconds,
                cold_seconds=sum(seconds),
                peak_memory_bytes=evaluation.peak_memory_bytes,
                saved_bytes=sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()),
            ),
            flags=_flags(spec, target, (*fitted.flags, *evaluation.flags), evaluation.leakage),
            leakage=evaluation.leakage,
            environment=environment(
                device=backbone.device if backbone is not None else "cpu",
                threads=spec.opened.threads,
                devices=spec.opened.devices,
            ),
            started_at=started_at,
            **_facts(spec, target, fitted.draw, evaluation.test.inputs.ids),
        )
        spec.opened.store.save(
            record,
            Predictions(evaluation.test.inputs.ids, evaluation.test.labels, evaluation.scores),
            history=fitted.history or None,
            classifier_dir=folder if at_home else None,
            manifest=fitted.draw.manifest,
            calibration=fitted.calibration.examples if at_home and fitted.calibration else None,
        )


def write_failure(spec: FitSpec, failure: Failure, started_at: datetime) -> None:
    """Write a failed record for every target of a fit that still needs a run."""
    for target in spec.missing():
        record = schema.RunRecord(
            status="failed",
            error=failure.error,
            flags=_flags(spec, target, failure.flags, None),
            environment=environment(
                device=spec.opened.device,
                threads=spec.opened.threads,
                devices=spec.opened.devices,
            ),
            started_at=started_at,
            **_facts(spec, target, failure.draw, failure.ids),
        )
        spec.opened.store.save_failure(record)


def _facts(spec: FitSpec, target: Target, draw: Draw | None, ids: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a record that do not depend on the outcome."""
    opened, experiment = spec.opened, spec.experiment
    identity, method = opened.identity, opened.method(experiment.method)
    return {
        "run_id": opened.run_id(spec.seed, target),
        "fit_id": spec.fit_id,
        "config": experiment.resolved(),
        "seed": spec.seed,
        "data": _data_facts(spec, target, draw, len(ids)),
        "evaluation": schema.EvaluationFacts(
            dataset=target.dataset.name,
            split=target.split,
            templates=target.templates,
            classnames_sha256=classnames_sha256(target.classnames),
            protocol=experiment.config.evaluation.protocol,
            classes=target.classes,
            sha256=target.dataset.fingerprint,
            order_sha256=order_sha256(experiment, ids),
        ),
        "model": None
        if identity is None
        else schema.ModelFacts(
            name=identity.name,
            weights_sha256=identity.weights_sha256,
            dtype=identity.dtype,
            revision=identity.revision,
            licence=identity.licence,
            citation=identity.citation,
        ),
        "method": schema.MethodFacts(
            name=experiment.method_name,
            version=opened.method.version,
            recipe=experiment.recipe,
            deviations=experiment.deviations,
            uses_train=getattr(method, "uses_train", True),
            setting=setting_of(opened.method),
            contents=file_contents(experiment.method),
            prompts=getattr(method, "prompts", ""),
            uses_templates=getattr(method, "uses_templates", True),
        ),
        "metrics_version": METRICS_VERSION,
    }


def _data_facts(spec: FitSpec, target: Target, draw: Draw | None, n_test: int) -> schema.DataFacts:
    home, manifest = spec.opened.home.dataset, draw.manifest if draw else None
    n_train = len(draw.task.train) if draw and draw.task.train else 0
    n_val = len(draw.task.val) if draw and draw.task.val else 0
    return schema.DataFacts(
        name=home.name,
        sha256=home.fingerprint,
        n_train=n_train + n_val if n_val and spec.opened.refits_on_val else n_train,
        n_val=n_val,
        n_test=n_test,
        n_classes=len(spec.opened.home.classnames),
        shots=manifest.shots if manifest else spec.experiment.config.data.shots,
        manifest_sha256=manifest.sha256 if manifest else None,
        skipped=target.dataset.skipped,
        n_found=getattr(target.dataset, "found", None),
        n_read=getattr(target.dataset, "n_read", None),
        left_out={r: n for r, n in getattr(target.dataset, "left_out", {}).items() if n},
        source=home.source,
        revision=getattr(home, "revision", None),
        licence=home.licence,
        citation=home.citation,
    )


def _flags(
    spec: FitSpec, target: Target, flags: Sequence[str], leaks: leakage.LeakageFacts | None
) -> tuple[str, ...]:
    """Return the flags of a record: those of the data, then ``flags``, then those of leakage."""
    home = spec.opened.home
    found = [*home.flags, *target.flags, *flags]
    # By content: the same data may have another name, or be a copy.
    same = target.dataset.fingerprint == home.dataset.fingerprint
    if same and target.split in leakage.trainable(home.dataset, home.split):
        found.append(f"evaluated_on_{target.split}")
    if leaks is not None:
        found += leaks.flags(len(target.dataset.split(target.split)))
        # The new classes of base-to-new must be new; under a domain shift the classes are the same on purpose.
        if leaks.shared_classes and spec.experiment.config.evaluation.protocol.startswith("base"):
            found.append("class_overlap")
    return tuple(dict.fromkeys(found))


def _total_params(classifier: Classifier, backbone: Backbone | None) -> int | None:
    """Return the classifier's own count if it has one, else the parameters of the backbone and the trained ones."""
    own: int | None = getattr(classifier, "n_total_params", None)
    if own is not None or backbone is None:
        return classifier.n_trainable_params if own is None else own
    frozen: int | None = getattr(backbone, "n_params", None)
    return None if frozen is None else frozen + classifier.n_trainable_params


def _selection(classifier: Classifier) -> schema.Selection | None:
    chosen = classifier.selection if isinstance(classifier, Selected) else None
    return None if chosen is None else schema.Selection(**chosen)
