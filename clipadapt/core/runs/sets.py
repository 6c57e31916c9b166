"""Prediction sets of a saved run: calibrated on its own calibration examples or on a labelled dataset."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clipadapt.core.api.errors import ConfigError, RecordError, did_you_mean
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.runs.calibration_data import open_labelled
from clipadapt.core.scoring.prediction_sets import (
    CAVEATS,
    KINDS,
    CalibrationExamples,
    SetScore,
    prediction_sets,
    require_examples,
)
from clipadapt.core.scoring.scores import blocks
from clipadapt.core.scoring.statistics import wilson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from clipadapt.core.runs.inference import LoadedRun
    from clipadapt.core.scoring.statistics import Interval


@dataclass(frozen=True, slots=True)
class SetOptions:
    """What a user asks for.

    Attributes:
        coverage: Probability with which a set should contain the label; None makes no sets.
        kind: Nonconformity score.
        reject_rate: Share of inputs of known classes that may be rejected as none of them; None rejects nothing.
        calibrate_on: A labelled dataset to calibrate on; None uses the run's own calibration examples.
    """

    coverage: float | None = None
    kind: str = "lac"
    reject_rate: float | None = None
    calibrate_on: str | None = None

    def __post_init__(self) -> None:
        for option, value, usual in (
            ("--coverage", self.coverage, 0.9),
            ("--reject-rate", self.reject_rate, 0.05),
        ):
            if value is not None and not 0 < value < 1:
                meant = value / 100 if abs(value / 100 - usual) < 0.5 else usual  # percent
                hint = f"{option} {meant if 0 < meant < 1 else usual:g}"
                raise ConfigError(f"{option} must be between 0 and 1 (got {value:g})", hint=hint)
        if self.kind not in KINDS:
            raise ConfigError(
                f"--set-score must be one of {', '.join(KINDS)} (got '{self.kind}')"
                f"{did_you_mean(self.kind, KINDS)}",
                hint="lac gives the smallest sets",
            )
        if self.kind != "lac" and self.coverage is None:
            raise ConfigError("--set-score only matters with --coverage", hint="add --coverage 0.9")
        if self.calibrate_on is not None and not self.wanted:
            raise ConfigError(
                "--calibrate-on only matters for prediction sets",
                hint="add --coverage 0.9 or --reject-rate 0.05",
            )

    @property
    def score(self) -> SetScore:
        """The nonconformity score."""
        return next(SetScore(kind) for kind in KINDS if kind == self.kind)

    @property
    def wanted(self) -> bool:
        """Whether anything is to be calibrated."""
        return self.coverage is not None or self.reject_rate is not None


class Measured(NamedTuple):
    """What a rule does on the evaluated examples of its run, which it was not calibrated on.

    Attributes:
        split: The evaluated split.
        coverage: Share of sets that contain the label, None without sets.
        size: Mean number of classes in a set, None without sets.
        rejected: Share of the examples that are rejected although their class is known, None without rejection.
    """

    split: str
    coverage: Interval | None
    size: float | None
    rejected: Interval | None


@dataclass(frozen=True, slots=True)
class SetRule:
    """How the sets of one command are made.

    Attributes:
        options: What was asked for.
        n: Number of calibration examples.
        calibrated_on: What they are, for a message.
        caveats: Why they and new inputs are not exactly exchangeable, one clause each.
        threshold: Largest nonconformity of a class in a set, None without sets.
        least_confidence: Confidence below which an input is rejected, None without rejection.
        measured: What the rule does on the evaluated examples of the run, None if that cannot be computed.
    """

    options: SetOptions
    n: int
    calibrated_on: str
    caveats: tuple[str, ...]
    threshold: float | None
    least_confidence: float | None
    measured: Measured | None = None

    def apply(self, p: NDArray[np.float64], names: Sequence[str]) -> list[dict[str, Any]]:
        """Return ``set`` (class names, the most probable first) and ``none_of_these`` of each input, as asked for.

        Args:
            p: Probabilities, shape ``(n, C)``.
            names: ``C`` class names.
        """
        found: list[dict[str, Any]] = [{} for _ in p]
        if self.threshold is not None:
            sets = prediction_sets(p, self.threshold, self.options.score)
            order = np.argsort(-p, axis=1, kind="stable")
            for one, inside, ranked in zip(found, sets, order, strict=True):
                one["set"] = [names[c] for c in ranked if inside[c]]
        if self.least_confidence is not None:
            for one, rejected in zip(found, p.max(axis=1) < self.least_confidence, strict=True):
                one["none_of_these"] = bool(rejected)
        return found

    def facts(self) -> dict[str, Any]:
        """Return the rule as plain data for ``--json``."""
        measured = self.measured
        return {
            "coverage": self.options.coverage,
            "score": None if self.threshold is None else self.options.kind,
            "threshold": self.threshold,
            "reject_rate": self.options.reject_rate,
            "least_confidence": self.least_confidence,
            "n_calibration": self.n,
            "calibrated_on": self.calibrated_on,
            "caveats": list(self.caveats),
            "measured": measured
            and {
                "split": measured.split,
                "coverage": _plain(measured.coverage),
                "size": measured.size,
                "rejected": _plain(measured.rejected),
            },
        }

    def sentences(self) -> list[str]:
        """Return the rule for people, one sentence each."""
        found, m, o = [], self.measured, self.options
        of = f"calibrated on {self.n} examples of {self.calibrated_on}"
        if self.threshold is not None:
            text = f"a set contains the true class with probability {o.coverage:g} ({o.kind}, {of})"
            if m and m.coverage:
                text += (
                    f"; on the run's {m.split} examples: {_percent(m.coverage)}, "
                    f"with {m.size:.2f} classes on average"
                )
            found.append(text)
        if self.least_confidence is not None:
            text = (
                f"'none of these' means a confidence below {self.least_confidence:.3f}, which at most "
                f"{100 * (o.reject_rate or 0):g} % of inputs of a known class have ({of})"
            )
            if m and m.rejected:
                text += f"; of the run's {m.split} examples: {_percent(m.rejected)}"
            found.append(text)
        if self.caveats:
            found.append(f"these rates are approximate: {'; '.join(self.caveats)}")
        return found


class Calibration(NamedTuple):
    """What the sets of a run are calibrated on.

    Attributes:
        examples: The calibration examples.
        source: What they are, for a message.
        caveats: Why they and new inputs are not exactly exchangeable: keys of ``CAVEATS``.
    """

    examples: CalibrationExamples
    source: str
    caveats: tuple[str, ...]


def calibration_of(run: LoadedRun, calibrate_on: str | None = None) -> Calibration:
    """Return the calibration examples of a run, or the scored examples of a labelled dataset.

    Raises:
        DataError: If the dataset cannot be opened, is not of the run's classes, or has examples that the run is
            evaluated on.
        RecordError: If the run has no calibration examples and no dataset is given.
    """
    if calibrate_on is None:
        return _own_examples(run)
    data, found = open_labelled(run, calibrate_on)
    scores = run.scores(data.inputs)
    examples = CalibrationExamples.of(run.probabilities(scores), data.labels)
    caveats = (*found, *({run.record.method.setting} & CAVEATS.keys()))
    return Calibration(examples, f"'{calibrate_on}'", caveats)


def make_rule(
    run: LoadedRun, options: SetOptions, calibration: Calibration | None = None
) -> SetRule:
    """Calibrate the sets of a run.

    Args:
        run: The run.
        options: What a user asks for.
        calibration: Its calibration examples, if they are at hand.

    Raises:
        DataError: If there are too few calibration examples, or the given ones are not of the run's classes or include
            examples that the run is evaluated on.
        RecordError: If the run has no calibration examples and none are given.
    """
    examples, source, caveats = calibration or calibration_of(run, options.calibrate_on)
    threshold = least = None
    if options.coverage is not None:
        require_examples(len(examples), options.coverage)
        threshold = examples.threshold(options.score, options.coverage)
    if options.reject_rate is not None:
        least = examples.least_confidence(options.reject_rate)
    said = tuple(CAVEATS[c] for c in caveats)
    rule = SetRule(options, len(examples), source, said, threshold, least)
    return replace(rule, measured=_measure(run, rule))


def _own_examples(run: LoadedRun) -> Calibration:
    """Return the run's own calibration examples.

    Raises:
        RecordError: If it has none.
    """
    record, home = run.record, run.home_record
    facts = record.prediction_sets
    of_home: Any = (home.per_class or {}).get("classnames")
    if facts is None and tuple(of_home or ()) == tuple(run.classifier.classnames):
        facts = home.prediction_sets  # of an evaluation on val itself, which measures no sets
    examples = RunStore.load_calibration(run.home, run.home_record)
    if examples is None or facts is None:
        why = "it has no val split, or did not use it"
        if examples is not None:
            why = "those of its fit have other classes"
        elif "refit_on_val" in record.flags:
            why = "its val split was trained on too"
        raise RecordError(
            f"the run {record.run_id} has no calibration examples for prediction sets: {why}",
            hint="give labelled examples with --calibrate-on PATH, or keep a part of val with "
            "--set data.calibration_share=0.5 and run the experiment again",
        )
    source = {"val": "val", "held_out": "the held-out part of val"}[facts.calibrated_on]
    overlaps = record.leakage.overlaps if record.leakage else ()
    copied = any(o.trained == "val" and o.found and not o.before for o in overlaps)
    return Calibration(examples, source, (*facts.caveats, *(["copies"] if copied else [])))


def _measure(run: LoadedRun, rule: SetRule) -> Measured | None:
    """Apply a rule to the evaluated examples of its run; None if their classes or stored scores do not allow it."""
    record, names = run.record, tuple(run.classifier.classnames)
    evaluated: Any = (record.per_class or {}).get("classnames")
    if tuple(evaluated or ()) != names or {"evaluated_on_val", "evaluated_on_train"} & set(
        record.flags
    ):
        return None
    try:
        stored = RunStore.load_predictions(run.folder, record)
    except RecordError:
        return None  # predicting does not need them
    if stored.classes is not None:  # the short form
        return None
    n = len(stored.labels)
    covered, sizes, rejected = np.zeros(n, np.bool_), np.zeros(n), np.zeros(n, np.bool_)
    for rows in blocks(stored.scores):
        p = run.probabilities(stored.scores[rows])
        if rule.threshold is not None:
            sets = prediction_sets(p, rule.threshold, rule.options.score)
            covered[rows] = sets[np.arange(len(p)), stored.labels[rows]]
            sizes[rows] = sets.sum(axis=1)
        if rule.least_confidence is not None:
            rejected[rows] = p.max(axis=1) < rule.least_confidence
    return Measured(
        record.evaluation.split,
        None if rule.threshold is None else wilson(int(covered.sum()), n),
        None if rule.threshold is None else float(sizes.mean()),
        None if rule.least_confidence is None else wilson(int(rejected.sum()), n),
    )


def _plain(interval: Interval | None) -> dict[str, Any] | None:
    if interval is None:
        return None
    return {
        "value": interval.value, "low": interval.low, "high": interval.high, "n": interval.n,
    }  # fmt: skip


def _percent(interval: Interval) -> str:
    low, high = interval.low or 0.0, interval.high or 1.0
    return f"{100 * interval.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
