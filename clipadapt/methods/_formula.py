"""The head of an export: arrays, and the code that computes scores from image features with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clipadapt.core.scoring.scores import probabilities

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from clipadapt.core.api.method import ScoreKind
    from clipadapt.models import Layer


@dataclass(frozen=True, slots=True)
class Head:
    """From image features to probabilities.

    Attributes:
        classnames: ``C`` class names.
        arrays: Arrays by name.
        formula: Code of numpy that computes ``scores`` ``(n, C)`` from features ``x`` ``(n, D)`` and the arrays ``a``.
        layer: Layer of the image features.
        score_kind: How the scores become probabilities.
        temperature: Temperature of the run, or None.
    """

    classnames: tuple[str, ...]
    arrays: Mapping[str, NDArray[Any]]
    formula: str
    layer: Layer
    score_kind: ScoreKind
    temperature: float | None

    @property
    def sigmoid(self) -> bool:
        """Whether each class has a probability of its own."""
        return self.score_kind == "sigmoid"

    def run(self, x: Any, arrays: Mapping[str, Any], library: Any) -> Any:
        """Return scores ``(n, C)``.

        Args:
            x: Features, shape ``(n, D)``.
            arrays: The arrays in the library's own type.
            library: numpy, or an object with the same functions.
        """
        space = {"np": library, "a": arrays, "x": x}
        exec(self.formula, space)  # noqa: S102 (a constant of the method)
        return space["scores"]

    def probabilities(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return probabilities ``(n, C)`` of features ``(n, D)``, computed with numpy."""
        scores = self.run(x, self.arrays, np).astype(np.float64)
        return probabilities(scores, self.temperature or 1.0, sigmoid=self.sigmoid)
