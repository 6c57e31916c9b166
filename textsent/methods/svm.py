"""Support vector classifier on frozen features."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from clipadapt.core.api.method import require_format
from clipadapt.core.files import saved
from textsent.methods import _features, _task
from textsent.methods._features import FeatureConfig, Reader, Scaler
from textsent.models import TextEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Task
    from clipadapt.core.api.method import Exported, MethodConfig, ScoreKind

Kernel = Literal["rbf", "linear"]
BLOCK = 1024  # texts per kernel matrix
# Score of a class without training examples; the highest score of the other classes is never below 0.
UNSEEN = -1.0
# Scores of an export, from features x and the arrays a. A pair is positive for its first class.
_KERNELS = {
    "linear": ("pairs = x @ a['weight'].T + a['intercept']",),
    "rbf": (
        "z = (x - a['mean']) / a['scale']",
        "squares = (z**2).sum(1)[:, None] + (a['support']**2).sum(1) - 2 * z @ a['support'].T",
        "pairs = np.exp(-a['gamma'] * squares.clip(0)) @ a['dual'].T + a['intercept']",
    ),
}
_TWO = ("scores = pairs @ a['sign'] + a['unseen']",)
_MORE = (
    "won = (pairs >= 0) * 1.0",
    "votes = won @ a['first'] + (1 - won) @ a['second']",
    "sums = pairs @ (a['first'] - a['second'])",
    "scores = votes + sums / (3 * (abs(sums) + 1)) + a['unseen']",
)


class SVMConfig(FeatureConfig):
    """Hyperparameters of ``text/svm``; those of the features are shared with the other feature methods.

    Attributes:
        kernel: ``rbf`` with scikit-learn's ``gamma="scale"``, or ``linear``.
    """

    kernel: Kernel = "rbf"


@dataclass(frozen=True, slots=True)
class Machine:
    """A fitted SVC: one hyperplane in kernel space for each pair of the ``k`` classes seen in train.

    Attributes:
        kernel: Kernel function.
        gamma: Width of the rbf kernel.
        scaler: Scaling of the features before the kernel.
        support: The ``s`` unscaled support vectors, ordered by class, shape ``(s, D)``, float32.
        n_support: Support vectors of each class, shape ``(k,)``.
        dual: Dual coefficients in the layout of scikit-learn, shape ``(k - 1, s)``, float64.
        intercept: Offsets of the pairs, shape ``(k * (k - 1) / 2,)``, float64.
        seen: Labels of the classes, shape ``(k,)``.
    """

    kernel: Kernel
    gamma: float
    scaler: Scaler
    support: NDArray[np.float32]
    n_support: NDArray[np.int64]
    dual: NDArray[np.float64]
    intercept: NDArray[np.float64]
    seen: NDArray[np.int64]

    def decide(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return scikit-learn's ``decision_function``: ``(n,)`` for two classes, else ``(n, k)``.

        For more than two classes this is ``decision_function_shape="ovr"``: votes of the pairs, with ties
        broken by their confidences.
        """
        support = self.scaler(self.support.astype(np.float64))
        pairs = [
            self._pairs(self.scaler(x[i : i + BLOCK]), support) for i in range(0, len(x), BLOCK)
        ]
        decisions = np.concatenate(pairs) if pairs else np.zeros((0, len(self.intercept)))
        return decisions[:, 0] if len(self.seen) == 2 else _one_against_rest(decisions, self.seen)

    def exported(self, n_classes: int) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
        """Return the arrays of an export and the lines that compute scores of all classes from them.

        A linear kernel becomes one weight vector per pair. The features of an rbf kernel are shifted by the mean of
        the support vectors, so that their squares are small and float32 is exact enough.
        """
        support = self.scaler(self.support.astype(np.float64))  # (s, D)
        dual = self._by_pair()  # (P, s)
        if self.kernel == "linear":
            weight = dual @ support / self.scaler.scale  # (P, D)
            arrays = {"weight": weight, "intercept": self.intercept - weight @ self.scaler.mean}
        else:
            centre = support.mean(0)
            arrays = {
                "mean": self.scaler.mean + centre * self.scaler.scale,
                "scale": self.scaler.scale,
                "support": support - centre,
                "gamma": np.array(self.gamma),
                "dual": dual,
                "intercept": self.intercept,
            }
        pairs = np.array(list(combinations(self.seen, 2)))  # (P, 2)
        first, second = (np.eye(n_classes)[pairs[:, i]] for i in (0, 1))  # (P, C)
        arrays["unseen"] = np.full(n_classes, UNSEEN)
        arrays["unseen"][self.seen] = 0.0
        if len(self.seen) == 2:  # the only pair is positive for its second class
            return {**arrays, "sign": second - first}, (*_KERNELS[self.kernel], *_TWO)
        return {**arrays, "first": first, "second": second}, (*_KERNELS[self.kernel], *_MORE)

    def _by_pair(self) -> NDArray[np.float64]:
        """Return the dual coefficients of every pair, shape ``(P, s)``, zero for other classes' support vectors."""
        found = np.zeros((len(self.intercept), self.dual.shape[1]))
        for row, parts in zip(found, self._parts(), strict=True):
            for place, dual in parts:
                row[place] = dual
        return found

    def _parts(self) -> Iterator[tuple[tuple[slice, NDArray[np.float64]], ...]]:
        """Yield for every pair of classes the places of the two classes' support vectors and their coefficients."""
        ends = np.concatenate([[0], np.cumsum(self.n_support)])
        for i, j in combinations(range(len(self.n_support)), 2):
            of_i, of_j = slice(ends[i], ends[i + 1]), slice(ends[j], ends[j + 1])
            # Row j - 1 holds the coefficients of class i against j, row i those of class j against i.
            yield (of_i, self.dual[j - 1, of_i]), (of_j, self.dual[i, of_j])

    def _pairs(self, x: NDArray[np.float64], support: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the decision of every pair ``i < j``, positive for ``i`` (for ``j`` if there is one pair)."""
        gram = x @ support.T  # (n, s)
        if self.kernel == "rbf":
            distance = (x**2).sum(1)[:, None] + (support**2).sum(1) - 2 * gram
            gram = np.exp(-self.gamma * np.maximum(distance, 0.0))
        columns = [
            gram[:, of_i] @ dual_i + gram[:, of_j] @ dual_j + intercept
            for ((of_i, dual_i), (of_j, dual_j)), intercept in zip(
                self._parts(), self.intercept, strict=True
            )
        ]
        return np.stack(columns, axis=1)


class SVM:
    """SVC on the features of one layer. The seed has no effect, as libsvm's solver is deterministic.

    References:
        C. Cortes and V. Vapnik, "Support-Vector Networks", Machine Learning 20, 1995.
    """

    Config: ClassVar[type[MethodConfig]] = SVMConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = TextEncoder
    open_vocabulary: ClassVar[bool] = False
    uses_sample_weight: ClassVar[bool] = True

    def __init__(self, config: SVMConfig) -> None:
        self.config = config

    def fit(self, backbone: TextEncoder, task: Task[str], ctx: RunContext) -> SVMClassifier:
        """Fit on ``task.train``; ``task.val`` is only used to select from ``C_grid``.

        Raises:
            DataError: If train has only one class.
            ModelError: If the model has no such layer, or cannot read ``max_length`` tokens.
        """
        config = self.config
        train, val = _task.labelled(task, "svm")
        reader = Reader.of(backbone, config)
        x = reader(train.inputs)  # (n, D)
        scaler = Scaler.fitted(x, standardize=config.standardize)

        def fit(C: float) -> Machine:
            return fit_machine(x, train.labels, scaler, config.kernel, C, task.sample_weight)

        def evaluate(machine: Machine) -> dict[str, float]:
            scores = SVMClassifier(reader, task.classnames, machine).scores(xv)
            return {"val_accuracy": float((scores.argmax(1) == yv).mean())}

        if val is None or not config.C_grid:
            return SVMClassifier(reader, task.classnames, fit(config.C))
        xv, yv = reader(val.inputs), val.labels
        machine, selection = _features.search(config.C_grid, fit, evaluate, ctx)
        return SVMClassifier(reader, task.classnames, machine, selection)

    def load(self, directory: Path, backbone: TextEncoder) -> SVMClassifier:
        """Return the classifier saved in ``directory``.

        Raises:
            RecordError: If a file is missing or damaged, or the width of the encoder differs.
        """
        required = ("classnames", "kernel", "gamma", "selection", *_features.READER_FACTS)
        facts = saved.load_facts(directory, required)
        width = backbone.width
        arrays = saved.load_arrays(
            directory,
            {
                "support": (None, width),
                "mean": (width,),
                "scale": (width,),
                "dual": (None, None),
                "intercept": (None,),
                "n_support": (None,),
                "seen": (None,),
            },
        )
        machine = Machine(
            facts["kernel"],
            facts["gamma"],
            Scaler(arrays["mean"], arrays["scale"]),
            *(arrays[k] for k in ("support", "n_support", "dual", "intercept", "seen")),
        )
        reader = Reader.restored(backbone, facts)
        return SVMClassifier(reader, tuple(facts["classnames"]), machine, facts["selection"])


@dataclass(frozen=True, slots=True)
class SVMClassifier:
    """A support vector machine on frozen features.

    Attributes:
        reader: Source of the features.
        classnames: ``C`` class names.
        machine: The fitted machine.
        selection: The selection on val, or None.
        score_kind: The scores are signed margins.
        export_formats: The machine alone, with its encoder, or both as ONNX.
    """

    reader: Reader
    classnames: tuple[str, ...]
    machine: Machine
    selection: dict[str, Any] | None = None
    score_kind: ClassVar[ScoreKind] = "margin"
    export_formats: ClassVar[tuple[str, ...]] = _features.EXPORT_FORMATS

    @property
    def n_trainable_params(self) -> int:
        """Dual coefficients and offsets; support vectors are training examples, not parameters."""
        return self.machine.dual.size + self.machine.intercept.size

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return margins of shape ``(n, C)``; for two classes ``[-m, m]``, ``m`` being scikit-learn's."""
        return self.scores(self.reader(inputs))

    def scores(self, x: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the margins of features of shape ``(n, D)``."""
        margins = self.machine.decide(x)
        if margins.ndim == 1:
            margins = np.stack([-margins, margins], axis=1)
        scores = np.full((len(x), len(self.classnames)), UNSEEN, dtype=np.float32)
        scores[:, self.machine.seen] = margins
        return scores

    def save(self, directory: Path) -> None:
        """Write the machine as safetensors, the settings as JSON."""
        machine = self.machine
        arrays: dict[str, NDArray[Any]] = {
            "support": machine.support,
            "mean": machine.scaler.mean,
            "scale": machine.scaler.scale,
            "dual": machine.dual,
            "intercept": machine.intercept,
            "n_support": machine.n_support,
            "seen": machine.seen,
        }
        facts = {
            "classnames": self.classnames,
            "kernel": machine.kernel,
            "gamma": machine.gamma,
            "selection": self.selection,
        }
        saved.save(directory, arrays, {**facts, **self.reader.facts()})

    def export(
        self,
        form: str,
        path: Path,
        /,
        *,
        temperature: float | None = None,
        output: Path | None = None,  # noqa: ARG002
    ) -> Exported:
        """Write the machine as safetensors and JSON, with its encoder, or both as ONNX.

        Raises:
            UnknownNameError: If there is no such format.
            ModelError: If the encoder cannot be written as ONNX.
        """
        require_format(form, self.export_formats)
        from textsent.methods import _feature_export

        arrays, formula = self.machine.exported(len(self.classnames))
        return _feature_export.export(
            form, path, self.reader, self.classnames, arrays, formula, self.scores, temperature
        )


def fit_machine(
    x: NDArray[np.float64],
    y: NDArray[np.int64],
    scaler: Scaler,
    kernel: Kernel,
    C: float,
    sample_weight: NDArray[np.float64] | None = None,
) -> Machine:
    """Fit scikit-learn's SVC and return what its decision function needs.

    Args:
        x: Unscaled features, shape ``(n, D)``.
        y: Labels, shape ``(n,)``, of at least two classes.
        scaler: Scaling of the features.
        kernel: Kernel function.
        C: Inverse strength of the penalty.
        sample_weight: Factor of ``C`` of each example, shape ``(n,)``; None is 1.
    """
    from sklearn.svm import SVC

    scaled = scaler(x)
    variance = scaled.var()
    gamma = 1.0 / (x.shape[1] * variance) if variance > 0 else 1.0  # gamma="scale"
    svc = SVC(kernel=kernel, C=C, gamma=gamma, cache_size=500).fit(scaled, y, sample_weight)
    return Machine(
        kernel,
        float(gamma),
        scaler,
        x[svc.support_].astype(np.float32),
        svc.n_support_.astype(np.int64),
        svc.dual_coef_,
        svc.intercept_,
        svc.classes_.astype(np.int64),
    )


def _one_against_rest(pairs: NDArray[np.float64], seen: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each class's votes plus its confidence, scaled to (-1/3, 1/3), shape ``(n, k)``."""
    votes = np.zeros((len(pairs), len(seen)))
    confidence = np.zeros_like(votes)
    for pair, (i, j) in enumerate(combinations(range(len(seen)), 2)):
        decision = pairs[:, pair]
        votes[:, i] += decision >= 0
        votes[:, j] += decision < 0
        confidence[:, i] += decision
        confidence[:, j] -= decision
    scaled: NDArray[np.float64] = confidence / (3 * (np.abs(confidence) + 1))
    return votes + scaled


METHOD = SVM
