"""A fit with its evaluation, as ``fit``, ``evaluate`` and ``load_run`` return it."""

from __future__ import annotations

from functools import cached_property
from os import fspath
from typing import TYPE_CHECKING, Any

import numpy as np

from clipadapt.core.api.errors import ConfigError, RecordError
from clipadapt.core.api.flags import FLAGS
from clipadapt.core.python import show
from clipadapt.core.python.sets import PredictedSets
from clipadapt.core.records.history import read_epochs
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.report.formats import method_title, metric_title
from clipadapt.core.runs import inference, sets
from clipadapt.core.runs.models import ModelLoader
from clipadapt.core.scoring.metrics import find_metric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import PathLike
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from clipadapt.core.api.data import Inputs
    from clipadapt.core.api.method import Classifier
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.records.history import Epoch
    from clipadapt.core.records.predictions import Predictions
    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.report.figures import Value
    from clipadapt.core.runs.inference import LoadedRun
    from clipadapt.core.scoring.prediction_sets import Kind


class Run:
    """One fit and its evaluation: the record on disk, and the classifier, which is loaded when it is first used.

    Args:
        record: The record.
        path: The folder of the run.
        inputs: Turns the examples of a caller into inputs.
        progress: Where bars and warnings are shown.
        models: Loads the model, and may have it already.

    Attributes:
        record: Everything that is known about the run, see :class:`~clipadapt.core.records.schema.RunRecord`.
        path: The folder of the run, which ``predict``, ``inspect`` and ``export`` take on the command line.
        models: As given, or new.
    """

    def __init__(
        self,
        record: RunRecord,
        path: Path,
        inputs: Callable[[Any], Inputs[Any]],
        progress: Progress,
        models: ModelLoader | None = None,
    ) -> None:
        self.record, self.path = record, path.absolute()
        self.progress = progress
        self._inputs = inputs
        self.models = models or ModelLoader(progress)

    # ------------------------------------------------------------ figures

    @property
    def run_id(self) -> str:
        """Identity of the fit and its evaluation; equal ids mean equal results."""
        return self.record.run_id

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics by name: fractions in [0, 1], nats. ``record.metrics`` has their intervals."""
        return {name: m.value for name, m in self.record.metrics.items()}

    @property
    def accuracy(self) -> float:
        """Accuracy on the evaluated split, in [0, 1]."""
        return self.record.metrics["accuracy"].value

    @property
    def classnames(self) -> tuple[str, ...]:
        """Class names in the order of the scores."""
        return self.classifier.classnames

    @cached_property
    def predictions(self) -> Predictions:
        """The stored scores of the evaluated examples: ``ids``, ``labels`` and ``scores``.

        Raises:
            RecordError: If they are missing or damaged.
        """
        return RunStore.load_predictions(self.path, self.record)

    @cached_property
    def history(self) -> tuple[Epoch, ...]:
        """What the method logged by epoch; empty if it is not trained by epochs."""
        return read_epochs(self.path, self.record)

    # ------------------------------------------------------------ prediction

    @cached_property
    def loaded(self) -> LoadedRun:
        """The loaded run: record, classifier and backbone.

        Raises:
            RecordError: If the classifier is missing or damaged.
            ModelError: If the model is not available, or its weights differ from those of the run.
        """
        return inference.load_run(self.path, self.progress, models=self.models)

    @property
    def classifier(self) -> Classifier:
        """The fitted classifier of the method."""
        return self.loaded.classifier

    def predict_scores(self, examples: Any) -> NDArray[np.float32]:
        """Return the scores of the method, logits or margins, shape ``(n, C)``.

        A transductive method predicts all examples of a call together, an online one in their order.

        Args:
            examples: A list of ``n`` examples: images (PIL images, paths, arrays or tensors), or texts.

        Raises:
            DataError: If they are not of an accepted type, or cannot be read.
        """
        inputs = self._inputs(examples)
        if note := self.loaded.note_of(len(inputs)):
            self.progress.note(f"note: {note}")
        return self.loaded.scores(inputs)

    def predict_proba(self, examples: Any) -> NDArray[np.float64]:
        """Return the class probabilities at the temperature fitted on val, shape ``(n, C)``.

        Without a temperature (``record.calibration``) they are not calibrated. Of a model with a sigmoid loss (SigLIP)
        they are one sigmoid per class and need not sum to 1.
        """
        return self.loaded.probabilities(self.predict_scores(examples))

    def predict(self, examples: Any) -> NDArray[np.str_]:
        """Return the name of the predicted class of each example, shape ``(n,)``."""
        best = self.predict_scores(examples).argmax(axis=1)
        names: NDArray[np.str_] = np.array(self.classnames)[best]
        return names

    def predict_sets(
        self,
        examples: Any,
        coverage: float | None = 0.9,
        *,
        score: Kind = "lac",
        reject_rate: float | None = None,
        calibrate_on: str | PathLike[str] | None = None,
    ) -> PredictedSets:
        """Return the set of classes of each example that contains the true one with a probability of ``coverage``.

        The sets are those of ``predict --coverage`` on the command line, calibrated on examples that the run was
        neither trained nor evaluated on.

        Args:
            examples: A list of ``n`` examples, as for :meth:`predict_scores`.
            coverage: Probability with which a set should contain the true class; None makes no sets.
            score: Nonconformity score: ``lac`` gives the smallest sets; ``aps`` and ``raps`` cover hard inputs better.
            reject_rate: Also reject examples as none of the classes: the share of examples of known classes that may
                be rejected. None rejects nothing.
            calibrate_on: Folder, file or name of other labelled examples; None is the run's own val split.

        Raises:
            ConfigError: If an argument is out of range, or neither sets nor rejection are asked for.
            DataError: If there are too few calibration examples, they do not have the run's classes, or the run is
                evaluated on one of them.
            RecordError: If the run has no calibration examples and none are given.
        """
        on = None if calibrate_on is None else fspath(calibrate_on)
        asked = sets.SetOptions(coverage, score, reject_rate, on)
        if not asked.wanted:
            raise ConfigError(
                "predict_sets needs a coverage or a reject rate", hint="for example coverage=0.9"
            )
        rule = sets.make_rule(self.loaded, asked)
        found = rule.apply(self.predict_proba(examples), self.classnames)
        return PredictedSets(
            tuple(tuple(one["set"]) for one in found if "set" in one),
            None
            if reject_rate is None
            else np.array([x["none_of_these"] for x in found], np.bool_),
            rule,
        )

    def score(self, examples: Any, labels: Sequence[str] | NDArray[Any]) -> float:
        """Return the accuracy on examples whose class names are ``labels``.

        Raises:
            RecordError: If a label is not a class of the classifier.
        """
        given = np.array([str(label) for label in labels])
        strange = sorted(set(given.tolist()) - set(self.classnames))
        if strange:
            raise RecordError(
                f"'{strange[0]}' is not a class of the classifier; its classes are "
                f"{', '.join(self.classnames[:10])}{' ...' if len(self.classnames) > 10 else ''}",
                hint="give the class names as labels",
            )
        return float((self.predict(examples) == given).mean())

    # ------------------------------------------------------------ charts

    def plot_curve(self, ax: Axes | None = None, *, value: Value = "loss") -> Axes:
        """Draw the loss or the accuracy by epoch, and return the axes (extra ``report``).

        Args:
            ax: Matplotlib axes to draw into; None makes a new figure.
            value: ``loss`` or ``accuracy``.

        Raises:
            RecordError: If the run logged no epoch.
            ClipAdaptError: If matplotlib is not installed.
        """
        from clipadapt.core.report import curves, figures

        label = method_title(self.record.method.name, self.record.method.recipe)
        return figures.learning_curve(curves.curve_of(label, self.record, self.history), value, ax)

    def plot_reliability(self, ax: Axes | None = None, *, calibrated: bool = True) -> Axes:
        """Draw a reliability diagram of the evaluated split, and return the axes (extra ``report``).

        Args:
            ax: Matplotlib axes to draw into; None makes a new figure.
            calibrated: Apply the temperature fitted on val, if there is one.

        Raises:
            RecordError: If the scores are margins and there is no temperature: they have no probabilities.
            ClipAdaptError: If matplotlib is not installed.
        """
        from clipadapt.core.report import figures

        fitted = self.record.calibration.temperature if self.record.calibration else None
        temperature = fitted if calibrated else None
        return figures.reliability_diagram(self.record, self.predictions, temperature, ax)

    # ------------------------------------------------------------ display

    def __repr__(self) -> str:
        accuracy = show.metric_text(self.record.metrics["accuracy"])
        flags = f"; flags: {', '.join(self.record.flags)}" if self.record.flags else ""
        return f"<run {self.run_id}: {show.title_of(self.record)}: accuracy {accuracy}{flags}>"

    def _repr_html_(self) -> str:
        record = self.record
        facts = {"run": show.title_of(record)}
        for name, value in record.metrics.items():
            known = find_metric(name)
            if known is not None and (known.summary or name == "accuracy"):
                facts[metric_title(name, "")] = show.metric_text(value)
        data = record.data
        facts["examples"] = f"train {data.n_train:,}, val {data.n_val:,}, evaluated {data.n_test:,}"
        if record.calibration and record.calibration.temperature is not None:
            facts["temperature"] = f"{record.calibration.temperature:.3g}"
        facts["trainable parameters"] = f"{record.n_trainable_params:,}"
        for flag in record.flags:
            facts[flag] = FLAGS[flag].meaning if flag in FLAGS else "flag of a plug-in"
        return show.html_facts({**facts, "folder": show.folder(self.path)})
