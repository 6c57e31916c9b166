"""Try a saved run on a few inputs: classes, sets and near training examples as plain data, for the page of ``app``."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from clipadapt.core.api.errors import ClipAdaptError, ConfigError, DataError
from clipadapt.core.api.method import OpenVocabulary
from clipadapt.core.api.registry import track_of, tracks
from clipadapt.core.data.classnames import duplicate_names
from clipadapt.core.runs.neighbours import features_of, neighbourhood
from clipadapt.core.runs.sets import SetOptions, calibration_of, make_rule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from clipadapt.core.api.data import Inputs
    from clipadapt.core.api.method import Classifier
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.runs.inference import LoadedRun
    from clipadapt.core.runs.neighbours import Neighbour, Neighbourhood
    from clipadapt.core.runs.sets import Calibration, SetRule

MOST_PROMPTS: Final = 100_000
"""Class names times templates that a user may type."""
MOST_INPUTS: Final = 100
"""Inputs of one call."""
_KEPT: Final = 8
"""Scores of the last inputs that are kept, so that a slider computes nothing again."""


class Asked(NamedTuple):
    """What a user asks for.

    Attributes:
        coverage: Coverage of the sets, None for no sets.
        reject_rate: Share of inputs of known classes that may be called none of these, None for none.
        top: Classes to show for each input.
        classnames: Other class names, one per line; empty for those of the run.
        templates: Other templates, one per line, or the name of a set; empty for those of the run.
    """

    coverage: float | None = None
    reject_rate: float | None = None
    top: int = 5
    classnames: str = ""
    templates: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What is known of one input.

    Attributes:
        name: Name of the file, or the text.
        example: The image or text; None if it cannot be read.
        error: Why it cannot be read, or an empty string.
        top: The most probable classes, each with its probability.
        members: Classes of the prediction set, None without one.
        none_of_these: Whether the confidence is below that of inputs of known classes.
        neighbours: The nearest training examples, each with the example itself.
    """

    name: str
    example: Any = None
    error: str = ""
    top: tuple[tuple[str, float], ...] = ()
    members: tuple[str, ...] | None = None
    none_of_these: bool = False
    neighbours: tuple[tuple[Neighbour, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """Results of all inputs, in order, and what a user should know about them, one sentence each."""

    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()


@dataclass(eq=False)
class Trial:
    """A loaded run that is tried on inputs; calls from several threads wait for each other.

    Attributes:
        run: The run.
        options: How sets are made; ``coverage`` and ``reject_rate`` are those of each call.
        k: Training examples to show for each input; 0 shows none.
        progress: Where bars and warnings are shown while the training examples are encoded.
        near: The training examples, None if they cannot be shown.
        why_not_near: Why they cannot be shown, one sentence, or an empty string.
    """

    run: LoadedRun
    options: SetOptions = field(default_factory=SetOptions)
    k: int = 6
    progress: Progress | None = None
    near: Neighbourhood | None = field(init=False, default=None)
    why_not_near: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self.track = tracks()[track_of(self.run.record.method.name)]
        self._lock = threading.Lock()
        self._scores: OrderedDict[Any, NDArray[np.float32]] = OrderedDict()
        self._other: tuple[Any, Classifier] | None = None
        self._calibration: Calibration | ClipAdaptError | None = None
        self._rules: dict[tuple[float | None, float | None], SetRule | ClipAdaptError] = {}
        if self.options.calibrate_on is not None:
            self._calibration = calibration_of(self.run, self.options.calibrate_on)
        if self.k:
            try:
                self.near = neighbourhood(self.run, self.progress)
            except (ClipAdaptError, OSError, ImportError) as err:
                why = err.problem if isinstance(err, ClipAdaptError) else str(err)
                self.why_not_near = f"no training examples are shown: {why}"

    # ------------------------------------------------------------ what the page offers

    @property
    def classnames(self) -> tuple[str, ...]:
        """Class names of the run."""
        return tuple(self.run.classifier.classnames)

    @property
    def templates(self) -> tuple[str, ...]:
        """Templates of the run that can be changed; empty if they have no part in the prompts."""
        record = self.run.record
        return tuple(record.evaluation.templates) if record.method.uses_templates else ()

    @property
    def open_vocabulary(self) -> bool:
        """Whether the classifier works with other class names."""
        return isinstance(self.run.classifier, OpenVocabulary)

    def set_error(self) -> str:
        """Return why the run has no sets at any coverage, or an empty string."""
        found = self._calibrated()
        return "" if not isinstance(found, ClipAdaptError) else _sentence(found)

    # ------------------------------------------------------------ predictions

    def predict(self, given: Sequence[str], asked: Asked) -> Answer:
        """Return classes, sets and near training examples of inputs.

        A transductive method predicts all of them together. One that cannot be read has a message, and the others are
        predicted.

        Args:
            given: Paths of files, or texts.
            asked: What a user asks for.

        Raises:
            ConfigError: If there are too many inputs, or a class name or template is not valid.
            ClipAdaptError: If the method cannot use them.
        """
        if len(given) > MOST_INPUTS:
            raise ConfigError(
                f"the page takes at most {MOST_INPUTS} {self.track.inputs} at a time (got {len(given)})",
                hint=f"use '{self.track.program} predict' for more",
            )
        with self._lock:
            results = [self._read(one) for one in given]
            good = [i for i, r in enumerate(results) if not r.error]
            classifier, changed = self._classifier(asked)
            if not good:
                return Answer(tuple(results))
            readable = tuple(given[i] for i in good)
            inputs = self.track.trial.inputs(readable)
            scores = self._scored(classifier, inputs, (readable, *self._vocabulary(asked)))
            notes = []
            if (
                changed
                and classifier.classnames == self.classnames
                and self._is_own(scores, inputs, readable)
            ):
                changed, notes = (
                    False,
                    [f"{self.run.record.method.name} predicts without templates."],
                )
            rule, about = self._rule(asked, changed=changed)
            for i, one in zip(
                good, self._results(inputs, scores, classifier, rule, asked.top), strict=True
            ):
                results[i] = replace(results[i], **one)
            return Answer(
                tuple(results), (*self._about(len(good), changed=changed), *notes, *about)
            )

    def _results(
        self,
        inputs: Inputs[Any],
        scores: NDArray[np.float32],
        classifier: Classifier,
        rule: SetRule | None,
        top: int,
    ) -> Iterator[dict[str, Any]]:
        """Yield what is known of each input, as fields of a :class:`Result`."""
        p, names = self.run.probabilities(scores), classifier.classnames  # (n, C)
        sets = rule.apply(p, names) if rule else [{}] * len(inputs)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : max(top, 1)]
        for row, (one, near) in enumerate(zip(sets, self._near(inputs), strict=True)):
            yield {
                "top": tuple((names[c], float(p[row, c])) for c in order[row]),
                "members": tuple(one["set"]) if "set" in one else None,
                "none_of_these": bool(one.get("none_of_these")),
                "neighbours": near,
            }

    def _scored(self, classifier: Classifier, inputs: Inputs[Any], key: Any) -> NDArray[np.float32]:
        """Return the scores of inputs, shape ``(n, C)``, computed once for all positions of a slider."""
        if key not in self._scores:
            self._scores[key] = self.run.scores_of(classifier, inputs)
            while len(self._scores) > _KEPT:
                self._scores.popitem(last=False)
        return self._scores[key]

    def _is_own(
        self, scores: NDArray[np.float32], inputs: Inputs[Any], given: tuple[str, ...]
    ) -> bool:
        """Return whether scores are those of the run's own templates, as for trained prompts."""
        key = (given, self.classnames, self.run.record.evaluation.templates)
        return np.array_equal(scores, self._scored(self.run.classifier, inputs, key))

    def _read(self, given: str) -> Result:
        """Return the result of an input so far: the example, or why it cannot be read."""
        name = PurePath(given).name if self.track.trial.files else given
        try:
            return Result(name, self.track.trial.inputs([given]).examples[0])
        except ClipAdaptError as err:
            # A user does not know where the uploaded file is.
            return Result(name, error=_sentence_of(err.problem).replace(given, name))

    def _near(self, inputs: Inputs[Any]) -> list[tuple[tuple[Neighbour, Any], ...]]:
        near = self.near
        if near is None:
            return [()] * len(inputs)
        found = near.nearest(features_of(self.run, inputs), self.k)
        return [tuple((n, near.examples[n.row]) for n in one) for one in found]

    # ------------------------------------------------------------ class names and templates

    def _vocabulary(self, asked: Asked) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the class names and templates asked for.

        Raises:
            ConfigError: If one is not valid.
        """
        names, templates = _lines(asked.classnames), _lines(asked.templates)
        own = self.run.record.evaluation.templates
        if not self.open_vocabulary:
            return self.classnames, own
        return (
            read_names(names) if names else self.classnames,
            read_templates(templates, self.track.template_sets)
            if templates and self.templates
            else own,
        )

    def _classifier(self, asked: Asked) -> tuple[Classifier, bool]:
        """Return the classifier for the classes asked for, and whether it is another one than that of the run.

        Raises:
            ClipAdaptError: If the method cannot use the class names or templates.
        """
        names, templates = wanted = self._vocabulary(asked)
        own = self.run.classifier
        if wanted == (self.classnames, self.run.record.evaluation.templates):
            return own, False
        if len(names) * max(len(templates), 1) > MOST_PROMPTS:
            raise ConfigError(
                f"{len(names):,} class names with {len(templates):,} templates are more than "
                f"{MOST_PROMPTS:,} prompts",
                hint="use fewer of them",
            )
        if self._other is None or self._other[0] != wanted:
            assert isinstance(own, OpenVocabulary)
            self._other = (wanted, own.with_classnames(names, templates))
        return self._other[1], True

    # ------------------------------------------------------------ sets

    def _calibrated(self) -> Calibration | ClipAdaptError:
        if self._calibration is None:
            try:
                self._calibration = calibration_of(self.run)
            except ClipAdaptError as err:
                self._calibration = err
        return self._calibration

    def _rule(self, asked: Asked, *, changed: bool) -> tuple[SetRule | None, list[str]]:
        """Return how sets are made, and sentences about it; without enough examples only a sentence."""
        if asked.coverage is None and asked.reject_rate is None:
            return None, []
        if changed:
            return None, [
                "There are no sets: they are calibrated for the run's own classes and templates."
            ]
        both = self._made(asked.coverage, asked.reject_rate)
        if not isinstance(both, ClipAdaptError):
            return both, [_sentence_of(s) for s in both.sentences()]
        if asked.coverage is None or asked.reject_rate is None:
            return None, [_sentence(both)]
        # There may be enough examples for one of the two.
        said = []
        for pair in ((asked.coverage, None), (None, asked.reject_rate)):
            one = self._made(*pair)
            if not isinstance(one, ClipAdaptError):
                return one, [_sentence_of(s) for s in one.sentences()] + [_sentence(both)]
            said.append(_sentence(one))
        return None, list(dict.fromkeys(said))

    def _made(self, coverage: float | None, rate: float | None) -> SetRule | ClipAdaptError:
        key = (coverage, rate)
        if key not in self._rules:
            calibration = self._calibrated()
            if isinstance(calibration, ClipAdaptError):
                return calibration
            kind = self.options.kind if coverage is not None else "lac"
            options = SetOptions(coverage, kind, rate)
            try:
                self._rules[key] = make_rule(self.run, options, calibration)
            except ClipAdaptError as err:
                self._rules[key] = err
        return self._rules[key]

    def _about(self, n: int, *, changed: bool) -> list[str]:
        """Return what a user should know about the probabilities."""
        run, said = self.run, []
        if note := run.note_of(n):
            said.append(_sentence_of(note))
        if run.sigmoid:
            said.append("The probabilities are one sigmoid per class and need not sum to 1.")
        if run.temperature is None:
            said.append(
                "The probabilities are not calibrated: the run has no temperature fitted on val."
            )
        elif changed:
            said.append(
                "The temperature was fitted with the run's own classes and templates, so these probabilities are "
                "not calibrated."
            )
        if self.why_not_near:
            said.append(_sentence_of(self.why_not_near))
        return said


def read_names(lines: Sequence[str]) -> tuple[str, ...]:
    """Return class names as typed.

    Raises:
        ConfigError: If there are fewer than two, or two are equal.
    """
    names = lines[0].split(",") if len(lines) == 1 else lines
    found = tuple(name.strip() for name in names if name.strip())
    if len(found) < 2:
        raise ConfigError(
            f"a classifier needs at least 2 class names (got {len(found)}: {', '.join(found)})",
            hint="write one class name per line",
        )
    if same := duplicate_names(found):
        first, second = same[0]
        raise ConfigError(
            f"the class names '{first}' and '{second}' are the same for the model",
            hint="remove one of them",
        )
    return found


def read_templates(lines: Sequence[str], sets: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return templates as typed, or the set that is named. Files are not read: the page may have other users.

    Raises:
        DataError: If a template does not have exactly one ``{}``.
    """
    if len(lines) == 1 and lines[0] in sets:
        return sets[lines[0]]
    for line in lines:
        if line.count("{}") != 1:
            named = f", or the name of a set: {', '.join(sets)}" if sets else ""
            raise DataError(
                f"the template '{line}' needs exactly one '{{}}' for the class name",
                hint=f"write one template per line, for example 'a photo of a {{}}.'{named}",
            )
    return tuple(lines)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _sentence(err: ClipAdaptError) -> str:
    hint = f" Hint: {err.hint}." if err.hint else ""
    return f"{_sentence_of(err.problem)}{hint}"


def _sentence_of(text: str) -> str:
    return f"{text[0].upper()}{text[1:].removesuffix('.')}."
