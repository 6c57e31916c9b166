"""Confidence of stored predictions: the probability of each predicted class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipadapt.core.api.errors import RecordError
from clipadapt.core.scoring.metrics import find_metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clipadapt.core.api.method import ScoreKind
    from clipadapt.core.records.predictions import Predictions
    from clipadapt.core.records.schema import RunRecord


def score_kind(record: RunRecord) -> ScoreKind:
    """Return what the scores of a record are: ``logit``, ``sigmoid``, or ``margin``, which has no probabilities."""
    if record.probabilities == "sigmoid":
        return "sigmoid"
    known = [m for name in record.metrics if (m := find_metric(name)) and name == m.name]
    return "logit" if any(m.probabilities for m in known) else "margin"


def confidences(
    predictions: Predictions, *, kind: ScoreKind, temperature: float | None = None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the probability of each predicted class and whether it is correct, shape ``(n,)`` each.

    Args:
        predictions: Stored predictions.
        kind: ``logit``, ``sigmoid`` or ``margin``.
        temperature: Temperature fitted on val; None uses the scores unscaled.

    Raises:
        RecordError: If there are no probabilities: for margins without a temperature, or in the short form (only
            the highest scores are stored) with a temperature other than 1.
    """
    if kind == "margin" and temperature is None:
        raise RecordError(
            "the scores are margins, not logits, and no temperature was fitted, so there are no probabilities",
            hint="provide a val split; the temperature is fitted on it",
        )
    scored = predictions.scored(temperature or 1.0, sigmoid=kind == "sigmoid")
    if scored.confidence is None:
        raise RecordError(
            "only the highest scores of each example are stored, so probabilities at another temperature are unknown"
        )
    return scored.confidence, scored.correct
