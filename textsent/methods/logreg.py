"""Logistic regression on frozen features."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from clipadapt.core.api.limits import Iterations, Penalty
from clipadapt.core.files import saved
from clipadapt.core.scoring.scores import nll, topk_accuracy
from textsent.methods import _features, _task
from textsent.methods._features import MAX_GRID, FeatureConfig, Reader, Scaler
from textsent.models import TextEncoder

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Task
    from clipadapt.core.api.method import MethodConfig, ScoreKind

# The logit of a class without training examples is this far below all others, so it is never predicted.
UNSEEN_MARGIN = 1e4


class LogRegConfig(FeatureConfig):
    """Hyperparameters of ``text/logreg``; those of the features are shared with the other feature methods.

    Attributes:
        standardize: Scale every feature to mean 0 and variance 1, so that one grid of ``C`` fits every encoder.
        C_grid: Values tried on val; ``C`` is used if it is empty or there is no val.
        max_iter: Maximum number of iterations of L-BFGS.
    """

    standardize: bool = True
    C_grid: tuple[Penalty, ...] = Field(
        default=(1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0), max_length=MAX_GRID
    )
    max_iter: Iterations = 1000


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer on unscaled features; the scaling is folded into it.

    Attributes:
        weight: Shape ``(C, D)``, float32.
        bias: Shape ``(C,)``, float32.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``."""
        return (x @ self.weight.T.astype(np.float64) + self.bias).astype(np.float32)


class LogReg:
    """L2-penalised logistic regression (softmax for more than two classes); ``C`` is selected on val.

    References:
        G. Alain and Y. Bengio, "Understanding intermediate layers using linear classifier probes",
        2016. arXiv:1610.01644
    """

    Config: ClassVar[type[MethodConfig]] = LogRegConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = TextEncoder
    open_vocabulary: ClassVar[bool] = False

    def __init__(self, config: LogRegConfig) -> None:
        self.config = config

    def fit(self, backbone: TextEncoder, task: Task[str], ctx: RunContext) -> LogRegClassifier:
        """Fit on ``task.train``, select ``C`` on ``task.val``. The seed has no effect.

        Raises:
            DataError: If train has only one class.
            ModelError: If the model has no such layer, or cannot read ``max_length`` tokens.
        """
        config = self.config
        train, val = _task.labelled(task, "logreg")
        reader = Reader.of(backbone, config)
        x = reader(train.inputs)  # (n, D)
        scaler = Scaler.fitted(x, standardize=config.standardize)

        def fit(C: float) -> Linear:
            return self._solve(x, train.labels, scaler, C, len(task.classnames), ctx)

        def evaluate(layer: Linear) -> dict[str, float]:
            logits = layer(xv)
            accuracy = topk_accuracy(logits, yv, 1)
            return {"val_accuracy": accuracy, "val_loss": nll(logits, yv)}

        if val is None or not config.C_grid:
            return LogRegClassifier(reader, task.classnames, fit(config.C))
        xv, yv = reader(val.inputs), val.labels
        layer, selection = _features.search(config.C_grid, fit, evaluate, ctx)
        return LogRegClassifier(reader, task.classnames, layer, selection)

    def load(self, directory: Path, backbone: TextEncoder) -> LogRegClassifier:
        """Return the classifier saved in ``directory``.

        Raises:
            RecordError: If a file is missing or damaged, or the width of the encoder differs.
        """
        facts = saved.load_facts(directory, ("classnames", "selection", *_features.READER_FACTS))
        classnames = tuple(facts["classnames"])
        shapes = {"weight": (len(classnames), backbone.width), "bias": (len(classnames),)}
        arrays = saved.load_arrays(directory, shapes)
        layer = Linear(arrays["weight"], arrays["bias"])
        return LogRegClassifier(
            Reader.restored(backbone, facts), classnames, layer, facts["selection"]
        )

    def _solve(
        self,
        x: NDArray[np.float64],
        y: NDArray[np.int64],
        scaler: Scaler,
        C: float,
        n_classes: int,
        ctx: RunContext,
    ) -> Linear:
        """Fit scikit-learn's logistic regression and return it as one layer over all classes."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            fitted = LogisticRegression(C=C, max_iter=self.config.max_iter).fit(scaler(x), y)
        if any(issubclass(w.category, ConvergenceWarning) for w in caught):
            ctx.progress.note(
                f"warning: logreg did not converge in {self.config.max_iter} iterations at C={C:g}; "
                "raise method.max_iter"
            )
        coef, intercept = fitted.coef_, fitted.intercept_
        if len(coef) == 1:  # one row for two classes: the logit of the second over the first
            coef, intercept = (
                np.concatenate([-coef, coef]) / 2,
                np.concatenate([-intercept, intercept]) / 2,
            )
        coef = coef / scaler.scale
        intercept = intercept - coef @ scaler.mean
        weight = np.zeros((n_classes, x.shape[1]), dtype=np.float32)
        bias = np.full(n_classes, intercept.min() - UNSEEN_MARGIN, dtype=np.float32)
        weight[fitted.classes_], bias[fitted.classes_] = coef, intercept
        return Linear(weight, bias)


@dataclass(frozen=True, slots=True)
class LogRegClassifier:
    """A linear layer on frozen features.

    Attributes:
        reader: Source of the features.
        classnames: ``C`` class names.
        layer: The fitted layer.
        selection: The selection on val, or None.
        score_kind: The scores are logits.
    """

    reader: Reader
    classnames: tuple[str, ...]
    layer: Linear
    selection: dict[str, Any] | None = None
    score_kind: ClassVar[ScoreKind] = "logit"

    @property
    def n_trainable_params(self) -> int:
        """Weights and biases."""
        return self.layer.weight.size + self.layer.bias.size

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``."""
        return self.layer(self.reader(inputs))

    def save(self, directory: Path) -> None:
        """Write the layer as safetensors, the settings as JSON."""
        arrays = {"weight": self.layer.weight, "bias": self.layer.bias}
        facts = {"classnames": self.classnames, "selection": self.selection}
        saved.save(directory, arrays, {**facts, **self.reader.facts()})


METHOD = LogReg
