"""Whether a confidence means what it says: reliability bins, and accuracy against coverage.

Both read stored predictions, of pictures and texts alike. Margins (those of an SVM) are no logits, and no softmax of
theirs is a probability: they have no confidence here until a temperature was fitted on val.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.scoring.metrics import (
    ECE_BINS,
    bin_index,
    bin_sums,
    hits_by_confidence,
)
from clipadapt.core.scoring.statistics import wilson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from clipadapt.core.scoring.metrics import Binning
    from clipadapt.core.scoring.statistics import Interval


COVERAGES: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True, slots=True)
class Bin:
    """One bar of a reliability diagram.

    Attributes:
        low: Lower edge of the confidence.
        high: Upper edge.
        count: Examples in it.
        confidence: Their mean confidence, None without any.
        accuracy: Share of right ones with its 95 % Wilson interval, None without any.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: Interval | None


@dataclass(frozen=True, slots=True)
class Coverage:
    """Accuracy on the most confident examples.

    Attributes:
        coverage: Share of the examples that is answered.
        count: How many these are.
        accuracy: Share of right ones among them.
        threshold: Confidence from which an example is answered.
    """

    coverage: float
    count: int
    accuracy: float
    threshold: float


def reliability(
    confidence: NDArray[Any],
    right: NDArray[np.bool_],
    *,
    bins: int = ECE_BINS,
    binning: Binning = "width",
) -> tuple[Bin, ...]:
    """Return the bins of a reliability diagram, those of :func:`~.metrics.expected_calibration_error`.

    Args:
        confidence: Probability of the class predicted, shape ``(n,)``.
        right: Whether it is the label, shape ``(n,)``.
        bins: Number of bins.
        binning: ``width``: bins of one width; ``mass``: edges are quantiles of the confidence.

    References:
        M. DeGroot and S. Fienberg, "The Comparison and Evaluation of Forecasters", The Statistician 1983.
    """
    edges, index = bin_index(confidence, bins, binning)
    count, hits, total = bin_sums(index, right, confidence, bins)
    return tuple(
        Bin(
            float(edges[k]),
            float(edges[k + 1]),
            int(count[k]),
            float(total[k] / count[k]) if count[k] else None,
            wilson(int(hits[k]), int(count[k])) if count[k] else None,
        )
        for k in range(bins)
    )


def selective(
    confidence: NDArray[Any],
    right: NDArray[np.bool_],
    coverages: Sequence[float] = COVERAGES,
) -> tuple[Coverage, ...]:
    """Return the accuracy where only the most confident examples are answered.

    Examples of equal confidence cannot be told apart: their hits are spread evenly over them, so that the order of
    the examples has no say.

    Args:
        confidence: Shape ``(n,)``.
        right: Shape ``(n,)``.
        coverages: Shares in (0, 1]; each is rounded up to a whole number of examples.

    References:
        Y. Geifman and R. El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017.
        arXiv:1705.08500
    """
    n = len(confidence)
    hits, ordered = hits_by_confidence(confidence, right)
    found = []
    for coverage in coverages:
        k = min(n, max(1, int(np.ceil(coverage * n - 1e-9))))
        found.append(Coverage(coverage, k, float(hits[k - 1] / k), float(ordered[k - 1])))
    return tuple(found)
