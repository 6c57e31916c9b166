"""Prediction sets: for each input the classes that are plausible at a given coverage (split conformal prediction).

A nonconformity score measures how badly a class fits an input. Its quantile over labelled calibration examples is a
threshold, and the set of an input holds the classes whose score does not exceed it. If calibration examples and inputs
are exchangeable, a set contains the label with at least the probability asked for, on average over inputs and
calibration examples, whatever the classifier is. A set may be empty, and equal scores only raise the coverage.

Scores: ``lac`` (one minus the probability) gives the smallest sets on average; ``aps`` (the probability of all classes
down to this one) gives larger sets to harder inputs; ``raps`` is ``aps`` with a penalty on classes of low rank. With
random numbers ``u`` the last two count only a share of the class's own probability; their coverage is then exact.

References:
    M. Sadinle, J. Lei and L. Wasserman, "Least Ambiguous Set-Valued Classifiers with Bounded Error Levels", JASA 2019.
    Y. Romano, M. Sesia and E. Candès, "Classification with Valid and Adaptive Coverage", NeurIPS 2020.
    A. Angelopoulos et al., "Uncertainty Sets for Image Classifiers using Conformal Prediction", ICLR 2021.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np

from clipadapt.core.api.errors import DataError
from clipadapt.core.scoring.scores import blocks, check_scores, probabilities

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal["lac", "aps", "raps"]
KINDS: Final[tuple[Kind, ...]] = ("lac", "aps", "raps")
LEVELS: Final = (0.7, 0.8, 0.9, 0.95, 0.99)
"""Nominal coverages that a record measures."""


@dataclass(frozen=True, slots=True)
class SetScore:
    """A nonconformity score.

    Attributes:
        kind: ``lac``, ``aps`` or ``raps``.
        penalty: ``raps``: added for each rank beyond ``k_reg``. It is fixed: choosing it on the calibration examples
            would need further examples.
        k_reg: ``raps``: ranks without a penalty.
    """

    kind: Kind = "lac"
    penalty: float = 0.05
    k_reg: int = 2


HEADLINE: Final = (SetScore(), 0.9)
"""Score and nominal coverage of the metrics of a record."""
CAVEATS: Final = {
    "temperature": "the calibration examples also fitted the temperature",
    "selection": "the calibration examples also selected an epoch or a setting",
    "dataset": "the calibration examples are of another dataset than the evaluated ones",
    "copies": "some calibration examples are equal, or nearly, to examples that the run is evaluated on",
    "unchecked": "the data of the run are not here, so copies of them were not looked for",
    "balanced": "the calibration examples are a few-shot draw with equally many per class",
    "transductive": "a prediction of this method depends on the inputs given with it",
    "online": "a prediction of this method depends on the inputs before it",
}
"""Why calibration examples and new inputs are not exactly exchangeable: name in a record -> what is said of it."""


class _Ranked(NamedTuple):
    """Probability, probability of the classes ranked above, and rank from 1; arrays of one shape."""

    probability: NDArray[np.float64]
    above: NDArray[np.float64]
    rank: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationExamples:
    """What prediction sets need of ``n`` labelled examples, for every score and coverage.

    Attributes:
        labels: Class indices, shape ``(n,)``.
        probability: Probability of the label, shape ``(n,)``.
        above: Probability of all classes ranked above the label, shape ``(n,)``.
        rank: Rank of the label from 1, shape ``(n,)``.
        confidence: Probability of the predicted class, shape ``(n,)``.
    """

    labels: NDArray[np.int64]
    probability: NDArray[np.float64]
    above: NDArray[np.float64]
    rank: NDArray[np.float64]
    confidence: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, p: NDArray[np.float64], labels: NDArray[np.int64]) -> CalibrationExamples:
        """Return those of probabilities of shape ``(n, C)``.

        Raises:
            RecordError: If a probability is not finite, or the shapes do not match.
        """
        check_scores(p, labels)
        probability, above, rank = (
            np.take_along_axis(x, labels[:, None], axis=1)[:, 0] for x in _ranked(p)
        )
        return cls(labels, probability, above, rank, p.max(axis=1))

    def scores(self, score: SetScore, u: NDArray[Any] | None = None) -> NDArray[np.float64]:
        """Return the nonconformity of the labels, shape ``(n,)``; see :func:`nonconformity` for ``u``."""
        return _nonconformity(_Ranked(self.probability, self.above, self.rank), score, u)

    def threshold(self, score: SetScore, coverage: float, u: NDArray[Any] | None = None) -> float:
        """Return the largest nonconformity of a class in a set; see :func:`quantile`."""
        return quantile(self.scores(score, u), coverage)

    def class_thresholds(
        self, score: SetScore, coverage: float, n_classes: int, u: NDArray[Any] | None = None
    ) -> NDArray[np.float64]:
        """Return one threshold per class, each from the examples of that class, shape ``(C,)``.

        The coverage then holds for each class, not only on average. A class with too few examples is in every set.

        References:
            V. Vovk, "Conditional Validity of Inductive Conformal Predictors", ACML 2012.
        """
        scores = self.scores(score, u)
        return np.array([quantile(scores[self.labels == c], coverage) for c in range(n_classes)])

    def least_confidence(self, rate: float) -> float:
        """Return the confidence below which an input is rejected as none of the classes.

        An exchangeable input of one of the classes is below it with at most the probability ``rate``.

        Raises:
            DataError: If there are too few examples.
        """
        k = math.floor(round((len(self) + 1) * rate, 9))
        if k < 1:
            raise DataError(
                f"a false-rejection rate of {rate:g} needs at least {examples_needed(1 - rate)} calibration "
                f"examples, and there are {len(self)}",
                hint="allow a higher rate, or calibrate on more examples",
            )
        return float(np.sort(self.confidence)[k - 1])


def examples_needed(coverage: float) -> int:
    """Return the smallest number ``n`` of calibration examples for which ``(n + 1) * coverage <= n``.

    Raises:
        ValueError: If the coverage is not between 0 and 1.
    """
    _check_coverage(coverage)
    return math.ceil(round(coverage / (1 - coverage), 9))


def quantile(scores: NDArray[np.float64], coverage: float) -> float:
    """Return the ``ceil((n + 1) * coverage)``-th smallest of ``n`` scores, infinity if there are too few of them.

    Raises:
        ValueError: If the coverage is not between 0 and 1.
    """
    _check_coverage(coverage)
    k = math.ceil(round((len(scores) + 1) * coverage, 9))  # 100 * 0.95 must not become 96
    return math.inf if k > len(scores) else float(np.partition(scores, k - 1)[k - 1])


def require_examples(n: int, coverage: float) -> None:
    """Check that ``n`` calibration examples are enough for sets that are not simply all classes.

    Raises:
        DataError: If they are not; the message says how many are needed.
    """
    needed = examples_needed(coverage)
    if n < needed:
        reachable = f", or ask for a coverage of at most {n / (n + 1):.3g}" if n else ""
        raise DataError(
            f"a coverage of {coverage:g} needs at least {needed} calibration examples, and there are {n}",
            hint=f"calibrate on more labelled examples{reachable}",
        )


def nonconformity(
    p: NDArray[np.float64], score: SetScore, u: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """Return the nonconformity of every class, shape ``(n, C)``.

    Args:
        p: Probabilities, shape ``(n, C)``. Equal ones are ranked by class index, lowest first. One sigmoid per
            class (which need not sum to 1) and probabilities that are not calibrated are allowed: sets are valid for
            any scores.
        score: The score.
        u: ``aps`` and ``raps``: share of the class's own probability that does not count, shape ``(n,)``, uniform in
            [0, 1) and independent of everything else; None counts all of it. ``lac`` ignores it.
    """
    return _nonconformity(_ranked(p), score, u)


def prediction_sets(
    p: NDArray[np.float64],
    threshold: float | NDArray[np.float64],
    score: SetScore,
    u: NDArray[Any] | None = None,
    *,
    at_least_one: bool = False,
) -> NDArray[np.bool_]:
    """Return which classes are in the set of each input, shape ``(n, C)``.

    Args:
        p: Probabilities, shape ``(n, C)``.
        threshold: Of all classes, or one per class, shape ``(C,)``.
        score: The score that the threshold is of.
        u: See :func:`nonconformity`; given or left out as for the threshold.
        at_least_one: Add the predicted class to an empty set, which can only raise the coverage.
    """
    sets: NDArray[np.bool_] = nonconformity(p, score, u) <= threshold
    if at_least_one:
        sets[np.arange(len(p)), p.argmax(axis=1)] |= ~sets.any(axis=1)
    return sets


class SetFigures(NamedTuple):
    """Figures of prediction sets.

    Attributes:
        coverage: Share of sets that contain the label.
        size: Mean number of classes in a set.
        empty: Share of empty sets.
    """

    coverage: float
    size: float
    empty: float


def set_figures(sets: NDArray[np.bool_], labels: NDArray[np.int64]) -> SetFigures:
    """Return the figures of sets of shape ``(n, C)`` with labels of shape ``(n,)``."""
    return _figures(sets[np.arange(len(labels)), labels], sets.sum(axis=1))


def _figures(covered: NDArray[np.bool_], size: NDArray[np.int64]) -> SetFigures:
    return SetFigures(float(covered.mean()), float(size.mean()), float((size == 0).mean()))


class MeasuredSets(NamedTuple):
    """Sets of one score and nominal coverage on labelled examples.

    Attributes:
        score: The score.
        nominal: The coverage asked for.
        threshold: Its threshold.
        covered: Whether the set contains the label, shape ``(n,)``.
        size: Classes in the set, shape ``(n,)``.
    """

    score: SetScore
    nominal: float
    threshold: float
    covered: NDArray[np.bool_]
    size: NDArray[np.int64]

    @property
    def figures(self) -> SetFigures:
        """Coverage, mean size and share of empty sets."""
        return _figures(self.covered, self.size)


def measure_sets(
    examples: CalibrationExamples,
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    temperature: float = 1.0,
    *,
    sigmoid: bool = False,
) -> list[MeasuredSets]:
    """Return the sets of every score and coverage of :data:`LEVELS` for which there are enough calibration examples.

    Scores are processed in blocks of rows, and nothing is random.

    Args:
        examples: Calibration examples, at the same temperature.
        scores: Scores of a classifier, shape ``(n, C)``.
        labels: Their labels, shape ``(n,)``.
        temperature: Divisor of the scores.
        sigmoid: Whether the probabilities are one sigmoid per class.
    """
    levels = [level for level in LEVELS if len(examples) >= examples_needed(level)]
    n = len(labels)
    found = [
        MeasuredSets(
            score, level, examples.threshold(score, level),
            np.empty(n, dtype=np.bool_), np.empty(n, dtype=np.int64),
        )
        for score in map(SetScore, KINDS)
        for level in levels
    ]  # fmt: skip
    for rows in blocks(scores):
        p = probabilities(scores[rows].astype(np.float64), temperature, sigmoid=sigmoid)
        ranked, of_label = _ranked(p), np.arange(len(p))
        of_kind = {kind: _nonconformity(ranked, SetScore(kind), None) for kind in KINDS}
        for one in found:
            inside = of_kind[one.score.kind] <= one.threshold
            one.covered[rows] = inside[of_label, labels[rows]]
            one.size[rows] = inside.sum(axis=1)
    return found


def by_class(values: NDArray[Any], labels: NDArray[np.int64], n_classes: int) -> list[float | None]:
    """Return the mean of one value per example over the examples of each class, None for a class without any."""
    count = np.bincount(labels, minlength=n_classes)
    total = np.bincount(labels, values, n_classes)
    return [float(t / n) if n else None for t, n in zip(total, count, strict=True)]


def _ranked(p: NDArray[np.float64]) -> _Ranked:
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(-p, axis=1, kind="stable")
    ordered = np.take_along_axis(p, order, axis=1)
    above, rank = np.empty_like(p), np.empty_like(p)
    before = np.cumsum(ordered, axis=1)[:, :-1]
    np.put_along_axis(above, order, np.pad(before, ((0, 0), (1, 0))), axis=1)
    np.put_along_axis(rank, order, np.arange(1.0, p.shape[1] + 1)[None], axis=1)
    return _Ranked(p, above, rank)


def _nonconformity(ranked: _Ranked, score: SetScore, u: NDArray[Any] | None) -> NDArray[np.float64]:
    p, above, rank = ranked
    if score.kind == "lac":
        return 1 - p
    found = above + p
    if u is not None:
        found -= np.reshape(u, (-1, *(1,) * (p.ndim - 1))) * p
    if score.kind == "raps":
        found += score.penalty * np.maximum(rank - score.k_reg, 0)
    return found


def _check_coverage(coverage: float) -> None:
    if not 0 < coverage < 1:
        raise ValueError(f"the coverage must be between 0 and 1, got {coverage}")
