"""Evaluate: score the test inputs of one target and compute its metrics. No method is given its labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clipadapt.core.api.method import ZeroShotStart
from clipadapt.core.api.registry import tracks
from clipadapt.core.data import leakage
from clipadapt.core.data.classnames import token_warnings
from clipadapt.core.data.targets import is_val
from clipadapt.core.records import environment
from clipadapt.core.records.schema import PredictionSets, SetPoint
from clipadapt.core.runs.classes import for_classes
from clipadapt.core.runs.fit import check_scores, predict_scores, timed
from clipadapt.core.scoring import metrics
from clipadapt.core.scoring.prediction_sets import HEADLINE, by_class, measure_sets

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipadapt.core.api.data import Split
    from clipadapt.core.api.method import Classifier
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.data.targets import Target
    from clipadapt.core.runs.fit import FitResult
    from clipadapt.core.runs.plan import FitSpec


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A fitted classifier evaluated on one target.

    Attributes:
        target: The target.
        test: Its examples.
        classifier: The classifier for the target's classes.
        scores: Scores of the examples, shape ``(n, C)``.
        metrics: Every metric by name.
        prediction_sets: Coverage and size of prediction sets, or None.
        flags: Flags of this evaluation.
        leakage: Duplicates between the training and the evaluation data; None if they were not looked for.
        predict_seconds: Seconds of scoring, without encoding.
        encode_seconds: Seconds of encoding the features used, including cached ones.
        peak_memory_bytes: Peak memory since the fit began, or None.
    """

    target: Target
    test: Split[Any]
    classifier: Classifier
    scores: NDArray[np.float32]
    metrics: dict[str, metrics.MetricValue]
    prediction_sets: PredictionSets | None
    flags: tuple[str, ...]
    leakage: leakage.LeakageFacts | None
    predict_seconds: float
    encode_seconds: float
    peak_memory_bytes: int | None


def evaluate(spec: FitSpec, fitted: FitResult, target: Target, test: Split[Any]) -> Evaluation:
    """Evaluate a fitted classifier on the examples of one target.

    Args:
        spec: The fit.
        fitted: Its result.
        target: The target.
        test: The target's examples.

    Raises:
        DataError: If the classifier cannot score the target's classes.
        DivergedError: If a score is not finite.
    """
    services, home = fitted.services, spec.opened.home
    services.flags.clear()
    classifier, columns = for_classes(fitted.classifier, home, target)
    scores, seconds = timed(
        services.meter, lambda: _take(predict_scores(spec, classifier, test), columns)
    )
    encode_seconds = services.meter.used_seconds
    peak = environment.peak_memory(spec.opened.device)
    sets = None
    if classifier is fitted.classifier and columns is None and not is_val(home, target):
        elsewhere = target.dataset.fingerprint != home.dataset.fingerprint
        sets = _prediction_sets(fitted, scores, test.labels, elsewhere=elsewhere)
    values = metrics.compute_metrics(
        scores,
        test.labels,
        score_kind=classifier.score_kind,
        temperature=fitted.temperature,
        set_threshold=sets.headline.threshold if sets and sets.headline else None,
    )
    # After the costs are measured: the scores of the zero-shot start are not part of them.
    start = None
    if isinstance(classifier, ZeroShotStart):
        start = _start_accuracy(classifier, test, columns)
        values["zero_shot_accuracy"] = start
    warnings = _warnings(scores, test.labels, values["accuracy"].value, start)
    if tracks()[spec.experiment.track].reads_classnames:
        warnings |= token_warnings(fitted.backbone, target.classnames)
    for flag, why in warnings.items():
        services.progress.note(
            f"warning: {spec.experiment.method_name} on {target.dataset.name}, "
            f"seed {spec.seed}: {flag}: {why}"
        )
    return Evaluation(
        target=target,
        test=test,
        classifier=classifier,
        scores=scores,
        metrics=values,
        prediction_sets=sets,
        flags=(*warnings, *fitted.reported, *services.flags),
        leakage=_find_leaks(spec, target, services.progress),
        predict_seconds=seconds,
        encode_seconds=encode_seconds,
        peak_memory_bytes=peak,
    )


def _prediction_sets(
    fitted: FitResult, scores: NDArray[np.float32], labels: NDArray[np.int64], *, elsewhere: bool
) -> PredictionSets | None:
    """Return coverage and size of the prediction sets of labelled examples; None without calibration examples.

    Args:
        fitted: The fit.
        scores: Scores of the examples, shape ``(n, C)``.
        labels: Their labels, shape ``(n,)``.
        elsewhere: Whether the examples are of another dataset than the calibration examples.
    """
    data, n_classes = fitted.calibration, scores.shape[1]
    if data is None:
        return None
    temperature, sigmoid = fitted.temperature or 1.0, fitted.classifier.score_kind == "sigmoid"
    found = measure_sets(data.examples, scores, labels, temperature, sigmoid=sigmoid)
    headline = [m for m in found if (m.score, m.nominal) == HEADLINE]
    return PredictionSets(
        n_calibration=len(data.examples),
        calibrated_on=data.source,
        caveats=(*data.caveats, *(["dataset"] if elsewhere else [])),
        points=tuple(
            SetPoint(
                score=m.score.kind, nominal=m.nominal, threshold=m.threshold, **m.figures._asdict()
            )
            for m in found
        ),
        coverage_by_class=tuple(
            c for m in headline for c in by_class(m.covered, labels, n_classes)
        ),
        size_by_class=tuple(c for m in headline for c in by_class(m.size, labels, n_classes)),
    )


def _take(scores: NDArray[np.float32], columns: list[int] | None) -> NDArray[np.float32]:
    return scores if columns is None else np.ascontiguousarray(scores[:, columns])


def _start_accuracy(
    classifier: ZeroShotStart, test: Split[Any], columns: list[int] | None
) -> metrics.MetricValue:
    """Return the accuracy of the zero-shot classifier that the fit started from, on the same examples."""
    scores = classifier.zero_shot_scores(test.inputs)
    check_scores("zero_shot_scores", scores, (len(test), len(classifier.classnames)))
    return metrics.measure("accuracy", _take(scores, columns), test.labels)


def _warnings(
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    accuracy: float,
    start: metrics.MetricValue | None,
) -> dict[str, str]:
    """Return the flags of a fit that went wrong without an error, each with its reason."""
    n_classes = scores.shape[1]
    found = {}
    predicted = np.unique(scores.argmax(axis=1))
    if len(predicted) == 1 and len(np.unique(labels)) > 1:
        found["collapse"] = "every example is assigned to the same class"
    elif n_classes > 1 and accuracy <= 1 / n_classes:
        found["collapse"] = f"accuracy {accuracy:.1%}, at or below chance ({1 / n_classes:.1%})"
    if start is not None and accuracy < start.value:
        found["below_zero_shot"] = f"accuracy {accuracy:.1%}, its zero-shot start {start.value:.1%}"
    return found


def _copies(overlap: leakage.Overlap) -> str:
    """Return how many evaluated examples have an exact or a near copy among those used for training."""
    said = {"a copy": overlap.exact, "a near copy": overlap.near or 0}
    found = [f"{n:,} with {what}" for what, n in said.items() if n]
    return f"{overlap.evaluated} has examples that are also in {overlap.trained}: " + ", ".join(
        found
    )


def _find_leaks(spec: FitSpec, target: Target, progress: Progress) -> leakage.LeakageFacts | None:
    """Look for duplicates between the training and the evaluation data, and warn of them for the first seed."""
    config, home = spec.experiment.config, spec.opened.home
    if config.evaluation.leakage == "off":
        return None
    facts = leakage.examine(home.dataset, home.split, target.dataset, target.split)
    if target.classnames != home.classnames:
        both = leakage.class_overlap(home.classnames, target.classnames)
        facts = facts.model_copy(update={"shared_classes": len(both)})
    for overlap in facts.overlaps:
        if overlap.found and spec.seed == config.seeds[0]:
            progress.note(
                f"warning: {target.dataset.name}: {_copies(overlap)}: "
                + " ~ ".join(overlap.examples[0])
            )
    return facts
