"""TODO."""

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
    """Return what a record's scores are: only logits have a likelihood without a temperature."""
    known = [m for name in record.metrics if (m := find_metric(name)) and name == m.name]
    return "logit" if any(m.probabilities for m in known) else "margin"


def confidences(
    predictions: Predictions, *, kind: ScoreKind, temperature: float | None = None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the probability of each example's class predicted, and whether it is right, shape ``(n,)`` each.

    Args:
        predictions: Stored predictions.
        kind: What the scores are.
        temperature: Softmax temperature fitted on val, None for the scores as they are.

    Raises:
        RecordError: If there are no probabilities: margins without a temperature, or a temperature other than
            1 where only the best scores of each example were kept.
    """
    if kind == "margin" and temperature is None:
        raise RecordError(
            "the scores are margins, not logits, and no temperature was fitted: there are no probabilities",
            hint="give the method a val split; the temperature is fitted on it",
        )
    scored = predictions.scored(temperature or 1.0)
    if scored.confidence is None:
        raise RecordError(
            "only the best scores of each example were kept: probabilities at another temperature are not known"
        )
    return scored.confidence, scored.correct
