"""Fit: train a classifier on one draw, and calibrate it on val. The evaluation split is never read here."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np

from clipadapt.core.api.context import RunContext
from clipadapt.core.api.errors import DivergedError
from clipadapt.core.api.method import Selected, SelfCalibrated, setting_of
from clipadapt.core.runs.order import evaluation_order
from clipadapt.core.scoring import calibration
from clipadapt.core.scoring.prediction_sets import CalibrationExamples
from clipadapt.core.scoring.scores import probabilities

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.context import Meter, Services
    from clipadapt.core.api.data import Split
    from clipadapt.core.api.method import Classifier
    from clipadapt.core.api.model import Backbone
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.data.draws import Draw
    from clipadapt.core.runs.models import LoadedModel
    from clipadapt.core.runs.plan import FitSpec

Value = TypeVar("Value")
_Scored: TypeAlias = "tuple[NDArray[np.float32], NDArray[np.int64]]"


@dataclass(frozen=True, slots=True)
class CalibrationData:
    """What prediction sets are calibrated on.

    Attributes:
        examples: The examples.
        source: ``val``, or ``held_out``: the part of val that is used for nothing else.
        caveats: Why they and the test examples are not exactly exchangeable: keys of
            :data:`~clipadapt.core.scoring.prediction_sets.CAVEATS`.
    """

    examples: CalibrationExamples
    source: Literal["val", "held_out"]
    caveats: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FitResult:
    """A fitted classifier and what it cost.

    Attributes:
        draw: The examples it was trained and calibrated on.
        classifier: The classifier.
        backbone: The model it was fitted with, or None.
        services: Services of the fit; the evaluations use them, too.
        temperature: Temperature fitted on val, or None.
        calibration: What prediction sets are calibrated on, or None.
        history: One mapping per logged step.
        flags: Flags of the fit.
        reported: Flags that the model or the method reported.
        fit_seconds: Seconds of the fit, without encoding.
        encode_seconds: Seconds of encoding the features used, including cached ones.
        load_seconds: Seconds of loading the model.
    """

    draw: Draw
    classifier: Classifier
    backbone: Backbone | None
    services: Services
    temperature: float | None
    calibration: CalibrationData | None
    history: tuple[Mapping[str, Any], ...]
    flags: tuple[str, ...]
    reported: tuple[str, ...]
    fit_seconds: float
    encode_seconds: float
    load_seconds: float


def fit(spec: FitSpec, draw: Draw, model: LoadedModel, work_dir: Path) -> FitResult:
    """Fit the method of an experiment with one seed.

    Args:
        spec: The fit.
        draw: Its training and validation examples.
        model: Its model.
        work_dir: Folder for checkpoints.

    Raises:
        DivergedError: If the scores of val are not finite.
    """
    services = model.services
    ctx = RunContext(spec.seed, work_dir, services, spec.opened.threads)
    method = spec.opened.method(spec.experiment.method)
    classifier, seconds = timed(services.meter, lambda: method.fit(model.backbone, draw.task, ctx))
    temperature, sets, bounded = calibrate(spec, classifier, draw, services.progress)
    return FitResult(
        draw=draw,
        classifier=classifier,
        backbone=model.backbone,
        services=services,
        temperature=temperature,
        calibration=sets,
        history=tuple(ctx.history),
        flags=(*draw_flags(spec, draw), *bounded),
        reported=tuple(services.flags),
        fit_seconds=seconds,
        encode_seconds=services.meter.used_seconds,
        load_seconds=model.load_seconds,
    )


def calibrate(
    spec: FitSpec, classifier: Classifier, draw: Draw, progress: Progress
) -> tuple[float | None, CalibrationData | None, tuple[str, ...]]:
    """Return the temperature of a fitted classifier, what its prediction sets are calibrated on, and flags.

    Raises:
        DivergedError: If the scores of val are not finite.
    """
    val = _val_scores(spec, classifier, draw)
    temperature, bounded = _calibrate(spec, classifier, draw, val, progress)
    return temperature, _calibration_data(spec, classifier, draw, val, temperature), bounded


def timed(meter: Meter, work: Callable[[], Value]) -> tuple[Value, float]:
    """Call ``work``; return the result and the seconds without encoding, which the meter records."""
    meter.reset()
    begun = time.perf_counter()
    value = work()
    return value, max(time.perf_counter() - begun - meter.spent_seconds, 0.0)


def draw_flags(spec: FitSpec, draw: Draw) -> tuple[str, ...]:
    """Return the flags that follow from the draw."""
    refits = draw.task.val and spec.opened.refits_on_val
    return (*draw.flags, "refit_on_val") if refits else draw.flags


def warn_of_untrained_classes(spec: FitSpec, draw: Draw, progress: Progress) -> None:
    """Warn about classes without a training example, for the first seed only."""
    # Those of the whole dataset are reported when it is opened.
    known = set(draw.flags) & set(spec.opened.home.dataset.flags)
    untrained = draw.untrained_classes
    if untrained and not known and spec.seed == spec.experiment.config.seeds[0]:
        progress.note(
            f"warning: {spec.experiment.method_name} on {spec.opened.home.dataset.name}: {len(untrained)} of "
            f"{len(draw.task.classnames)} classes have no training example: {', '.join(untrained[:5])}; "
            "their scores are not trained, and no probability is reliable"
        )


def predict_scores(spec: FitSpec, classifier: Classifier, split: Split[Any]) -> NDArray[np.float32]:
    """Return the scores of a split's inputs, shape ``(n, C)``, checked.

    The split is one call: a transductive method predicts all of it together, and an online method sees it in the
    order of its ``order_seed``.

    Raises:
        DivergedError: If a score is not finite.
        TypeError: If the classifier returns an array of another shape or dtype.
    """
    order = evaluation_order(spec.experiment, len(split))
    inputs = split.inputs if order is None else split.inputs.take(order)
    scores = classifier.predict_scores(inputs)
    check_scores("predict_scores", scores, (len(split), len(classifier.classnames)))
    if order is not None:
        scores = scores[np.argsort(order)]
    if not np.isfinite(scores).all():
        raise DivergedError(
            f"seed {spec.seed}: the scores are not finite; the run diverged",
            hint=_against_divergence(spec),
        )
    return scores


def _against_divergence(spec: FitSpec) -> str:
    """Return what may help if scores are not finite: only what this method and this model have."""
    rate, identity = spec.experiment.method.learning_rate, spec.opened.identity
    found = [] if rate is None else [f"lower the learning rate ({rate:g})"]
    if identity is not None and identity.dtype != "fp32":
        found.append("add --set model.precision=fp32")
    if not found:
        found = ["compare the settings of the method with those of its recipe"]
    return ", or ".join(found)


def check_scores(source: str, scores: NDArray[Any], shape: tuple[int, int]) -> None:
    """Raise TypeError if scores do not have the given shape, or are not float32."""
    if scores.shape != shape or scores.dtype != np.float32:
        raise TypeError(
            f"{source} returned {scores.dtype} {scores.shape}, expected float32 {shape}"
        )


def _val_scores(spec: FitSpec, classifier: Classifier, draw: Draw) -> _Scored | None:
    """Return scores and labels of val, or None if nothing is calibrated on it.

    The scores of val are those of an evaluation on val alone: a transductive method predicts val together, without
    the test inputs, and an online method starts on val in its own order. Val is smaller than test, so the temperature
    of such a method may suit test less well than that of an inductive one.
    """
    val = draw.task.val
    if val is None or not len(val) or not spec.experiment.config.evaluation.calibrate:
        return None
    # A method that brings its own temperature may have trained on val.
    if isinstance(classifier, SelfCalibrated) and (spec.opened.refits_on_val or draw.calibration):
        return None
    return predict_scores(spec, classifier, val), val.labels


def _calibrate(
    spec: FitSpec,
    classifier: Classifier,
    draw: Draw,
    val: _Scored | None,
    progress: Progress,
) -> tuple[float | None, tuple[str, ...]]:
    """Return the classifier's own temperature, or fit one on val; and a flag if val does not determine one."""
    temperature: float | None
    if isinstance(classifier, SelfCalibrated):
        temperature = classifier.temperature
        if draw.task.val is None or not len(draw.task.val):
            return temperature, ()
    elif val is None:
        return None, ()
    else:
        sigmoid = classifier.score_kind == "sigmoid"
        temperature = calibration.fit_temperature(*val, sigmoid=sigmoid)
    if temperature is not None:
        return temperature, ()
    low, high = calibration.TEMPERATURES
    progress.note(
        f"warning: {spec.experiment.method_name}, seed {spec.seed}: temperature_at_bound: the temperature "
        f"that fits val best is at the end of [{low:g}, {high:g}]; it is not applied"
    )
    return None, ("temperature_at_bound",)


def _calibration_data(
    spec: FitSpec,
    classifier: Classifier,
    draw: Draw,
    val: _Scored | None,
    temperature: float | None,
) -> CalibrationData | None:
    """Return the calibration examples of prediction sets: the part of val kept for it, else val itself.

    A val split that the method was trained on calibrates nothing.
    """
    caveats: list[str] = [s for s in (setting_of(spec.opened.method),) if s != "inductive"]
    if draw.task.few_shot:
        caveats.append("balanced")
    sigmoid = classifier.score_kind == "sigmoid"
    if draw.calibration is not None:
        held = draw.calibration
        scores, labels = predict_scores(spec, classifier, held), held.labels
    elif val is None or spec.opened.refits_on_val:
        return None
    else:
        scores, labels = val
        selected = isinstance(classifier, Selected) and classifier.selection is not None
        caveats += ["temperature"] * (temperature is not None) + ["selection"] * selected
    p = probabilities(scores.astype(np.float64), temperature or 1.0, sigmoid=sigmoid)
    examples = CalibrationExamples.of(p, labels)
    return CalibrationData(
        examples, "val" if draw.calibration is None else "held_out", tuple(caveats)
    )
