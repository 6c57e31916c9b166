"""Frozen features of texts, their scaling, and the search for ``C``: what ``svm`` and ``logreg`` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import Field

from clipadapt.core.api.limits import Penalty
from clipadapt.core.api.method import MethodConfig
from textsent.methods import _task
from textsent.models import Pooling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs
    from textsent.models import TextEncoder

F = TypeVar("F")
MAX_GRID = 1000  # values of C


class FeatureConfig(MethodConfig):
    """Which features are read, and how ``C`` is found.

    Attributes:
        layer: Layer of the encoder: 0 for the embeddings, or negative from the end.
        pooling: ``cls``, the first piece's state, or ``mean`` over the pieces.
        max_length: Pieces read of a text; None reads what the model can, 512 at the most.
        standardize: Bring every feature to mean 0 and variance 1 over train.
        C: Inverse strength of the penalty where nothing is searched.
        C_grid: Values tried on val; empty, or without val, takes ``C``.
    """

    layer: int = Field(default=-1, ge=-1000, le=1000)  # those there are: the model's to say
    pooling: Pooling = "cls"
    max_length: int | None = Field(default=None, gt=0, le=1_000_000)
    standardize: bool = False
    C: Penalty = 1.0
    C_grid: tuple[Penalty, ...] = Field(default=(), max_length=MAX_GRID)


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads one layer of an encoder in one way.

    Attributes:
        encoder: The frozen encoder.
        layer: See :class:`FeatureConfig`.
        pooling: See :class:`FeatureConfig`.
        max_length: Pieces read of a text.
    """

    encoder: TextEncoder
    layer: int
    pooling: Pooling
    max_length: int

    @classmethod
    def of(cls, encoder: TextEncoder, config: FeatureConfig) -> Reader:
        """Return the reader that a config describes."""
        length = _task.pieces(encoder, config.max_length)
        return cls(encoder, config.layer, config.pooling, length)

    @classmethod
    def restored(cls, encoder: TextEncoder, facts: Mapping[str, Any]) -> Reader:
        """Return the reader that :meth:`facts` described."""
        return cls(encoder, facts["layer"], facts["pooling"], facts["max_length"])

    def facts(self) -> dict[str, Any]:
        """Return what a saved classifier must remember."""
        return {"layer": self.layer, "pooling": self.pooling, "max_length": self.max_length}

    def __call__(self, inputs: Inputs[str]) -> NDArray[np.float64]:
        """Return features of shape ``(n, D)``; float32 values, widened for exact arithmetic."""
        return self.encoder.encode(inputs, self.layer, self.pooling, self.max_length).astype(
            np.float64
        )


READER_FACTS = ("layer", "pooling", "max_length")


@dataclass(frozen=True, slots=True)
class Scaler:
    """An affine map of every feature: ``(x - mean) / scale``, both of shape ``(D,)``, float64."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def fitted(cls, x: NDArray[np.float64], *, standardize: bool) -> Scaler:
        """Return scikit-learn's StandardScaler of ``x``, or the map that changes nothing."""
        from sklearn.preprocessing import StandardScaler

        if not standardize:
            return cls(np.zeros(x.shape[1]), np.ones(x.shape[1]))
        scaler = StandardScaler().fit(x)
        return cls(scaler.mean_, scaler.scale_)

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the scaled features, shape ``(n, D)``."""
        return (x - self.mean) / self.scale


def search(
    grid: Sequence[float],
    fit: Callable[[float], F],
    judge: Callable[[F], dict[str, float]],
    ctx: RunContext,
) -> tuple[F, dict[str, Any]]:
    """Return the fit of the ``C`` with the best val accuracy, and what was selected.

    Ties are broken by the lower val loss where the judge gives one, then by the smaller ``C``.

    Args:
        grid: Values of ``C``.
        fit: Fits on train.
        judge: Returns ``val_accuracy`` and, if the scores are logits, ``val_loss``.
        ctx: Where every trial is logged.
    """
    trials: list[tuple[tuple[float, float, float], F]] = []
    with ctx.progress.track("search for C", len(grid), "fits") as bar:
        for C in sorted(grid):
            fitted = fit(C)
            values = judge(fitted)
            ctx.log(C=C, **values)
            bar.advance(1, C=C, **values)
            trials.append(((values["val_accuracy"], -values.get("val_loss", 0.0), -C), fitted))
    (accuracy, _, minus_C), fitted = max(trials, key=lambda t: t[0])
    by = f"val accuracy over C (C={-minus_C:.4g})"
    return fitted, {"epoch": None, "by": by, "value": accuracy}
