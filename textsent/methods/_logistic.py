"""Multinomial logistic regression as one linear layer over all classes, shared by ``logreg`` and ``setfit``."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from textsent.methods._features import Scaler

# The logit of a class without training examples is this far below all others, so it is never predicted.
UNSEEN_MARGIN = 1e4


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

    def exported(self) -> tuple[dict[str, NDArray[np.float32]], tuple[str, ...]]:
        """Return the arrays of an export and the line that computes logits from them."""
        return {"weight": self.weight, "bias": self.bias}, (
            "scores = x @ a['weight'].T + a['bias']",
        )


def solve(
    x: NDArray[np.float64],
    y: NDArray[np.int64],
    scaler: Scaler,
    C: float,
    n_classes: int,
    max_iter: int,
    note: Callable[[str], None],
    sample_weight: NDArray[np.float64] | None = None,
) -> Linear:
    """Fit scikit-learn's logistic regression and return it as one layer over all classes."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        fitted = LogisticRegression(C=C, max_iter=max_iter).fit(scaler(x), y, sample_weight)
    if any(issubclass(w.category, ConvergenceWarning) for w in caught):
        note(
            f"warning: logistic regression did not converge in {max_iter} iterations at C={C:g}; "
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
