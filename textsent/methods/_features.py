"""Frozen features of texts, their scaling, and the search for ``C``, shared by ``svm`` and ``logreg``."""

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
EXPORT_FORMATS = ("classifier", "hf", "onnx")
"""Formats of a classifier on frozen features: alone, with the encoder as a Hugging Face folder, or both as ONNX."""


class FeatureConfig(MethodConfig):
    """Hyperparameters of features, and of the search for ``C``.

    Attributes:
        layer: Layer of the encoder: 0 for the embeddings, or negative from the end.
        pooling: ``cls``, the state of the first token, or ``mean`` over the tokens.
        max_length: Tokens read of a text; None reads as many as the model can, at most 512.
        standardize: Scale every feature to mean 0 and variance 1 over train.
        C: Inverse strength of the penalty, used without a search.
        C_grid: Values tried on val; ``C`` is used if it is empty or there is no val.
    """

    layer: int = Field(default=-1, ge=-1000, le=1000)  # the model checks whether it has the layer
    pooling: Pooling = "cls"
    max_length: int | None = Field(default=None, gt=0, le=1_000_000)
    standardize: bool = False
    C: Penalty = 1.0
    C_grid: tuple[Penalty, ...] = Field(default=(), max_length=MAX_GRID)


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads features from one layer of an encoder.

    Attributes:
        encoder: The frozen encoder.
        layer: See :class:`FeatureConfig`.
        pooling: See :class:`FeatureConfig`.
        max_length: Tokens read of a text.
    """

    encoder: TextEncoder
    layer: int
    pooling: Pooling
    max_length: int

    @classmethod
    def of(cls, encoder: TextEncoder, config: FeatureConfig) -> Reader:
        """Return the reader for a config."""
        length = _task.token_limit(encoder, config.max_length)
        return cls(encoder, config.layer, config.pooling, length)

    @classmethod
    def restored(cls, encoder: TextEncoder, facts: Mapping[str, Any]) -> Reader:
        """Return the reader with the saved :meth:`facts`."""
        return cls(encoder, facts["layer"], facts["pooling"], facts["max_length"])

    def facts(self) -> dict[str, Any]:
        """Return the settings that a saved classifier needs."""
        return {"layer": self.layer, "pooling": self.pooling, "max_length": self.max_length}

    def __call__(self, inputs: Inputs[str]) -> NDArray[np.float64]:
        """Return features of shape ``(n, D)``; float32 values, as float64 for exact arithmetic."""
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
        """Return scikit-learn's StandardScaler of ``x``, or the identity."""
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
    evaluate: Callable[[F], dict[str, float]],
    ctx: RunContext,
) -> tuple[F, dict[str, Any]]:
    """Return the fit of the ``C`` with the best val accuracy, and the selection for the record.

    Ties are broken by the lower val loss, if ``evaluate`` returns one, then by the smaller ``C``.

    Args:
        grid: Values of ``C``.
        fit: Fits on train.
        evaluate: Returns ``val_accuracy`` and, if the scores are logits, ``val_loss``.
        ctx: Receives the log of every trial.
    """
    trials: list[tuple[tuple[float, float, float], F]] = []
    with ctx.progress.track("search for C", len(grid), "fits") as bar:
        for C in sorted(grid):
            fitted = fit(C)
            values = evaluate(fitted)
            ctx.log(C=C, **values)
            bar.advance(1, C=C, **values)
            trials.append(((values["val_accuracy"], -values.get("val_loss", 0.0), -C), fitted))
    (accuracy, _, minus_C), fitted = max(trials, key=lambda t: t[0])
    by = f"val accuracy over C (C={-minus_C:.4g})"
    return fitted, {"epoch": None, "by": by, "value": accuracy}
