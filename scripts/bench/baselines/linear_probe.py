"""Reference linear probe: scikit-learn's logistic regression, one fit per penalty, evaluated on val.

A. Radford et al., ICML 2021, appendix A.3, arXiv:2103.00020.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

PENALTIES: Final = np.logspace(-6, 6, 96)
"""Inverse strengths of the paper's sweep."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One fit.

    Attributes:
        C: Inverse strength of the penalty.
        weight: Shape ``(C, D)``.
        bias: Shape ``(C,)``.
        accuracy: On val.
    """

    C: float
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    accuracy: float


def sweep(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    xv: NDArray[np.float32],
    yv: NDArray[np.int64],
    penalties: Iterable[float] = PENALTIES,
    max_iter: int = 1000,
    tol: float = 1e-4,
) -> list[Probe]:
    """Fit with each penalty from zero; the tolerance is scikit-learn's default."""
    probes = []
    for C in penalties:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LogisticRegression(random_state=0, C=float(C), max_iter=max_iter, tol=tol)
            fitted = model.fit(x, y)
        accuracy = float((fitted.predict(xv) == yv).mean())
        probes.append(Probe(float(C), fitted.coef_, fitted.intercept_, accuracy))
    return probes
