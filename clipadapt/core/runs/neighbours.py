"""The training examples of a run that are nearest to an input, by the cosine of the model's features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from clipadapt.core.api.errors import RecordError
from clipadapt.core.api.progress import Silent
from clipadapt.core.api.registry import track_of, tracks
from clipadapt.core.runs.reuse import training_split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from clipadapt.core.api.data import Inputs
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.runs.inference import LoadedRun

MOST: Final = 20_000
"""Training examples that are searched; of more, as many evenly spaced ones are."""


class Neighbour(NamedTuple):
    """A training example that is near to an input.

    Attributes:
        row: Its index among the searched examples.
        label: Name of its class.
        similarity: Cosine of the two features.
    """

    row: int
    label: str
    similarity: float


@dataclass(frozen=True, slots=True, eq=False)
class Neighbourhood:
    """The training examples of a run with their features.

    Attributes:
        examples: ``n`` examples, images or texts, loaded lazily.
        labels: Shape ``(n,)``.
        classnames: Names of the trained classes.
        features: Unit norm, shape ``(n, D)``.
        total: Number of training examples, of which ``n`` are searched.
    """

    examples: Sequence[Any]
    labels: NDArray[np.int64]
    classnames: tuple[str, ...]
    features: NDArray[np.float32]
    total: int

    def nearest(self, features: NDArray[np.float32], k: int) -> list[list[Neighbour]]:
        """Return the ``k`` nearest examples of each input, the nearest first.

        Args:
            features: Features of inputs, shape ``(m, D)``.
            k: Number of examples.
        """
        cosines = _unit(features) @ self.features.T  # (m, n)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        return [
            [Neighbour(int(i), self.classnames[self.labels[i]], float(row[i])) for i in best]
            for row, best in zip(cosines, order, strict=True)
        ]


def neighbourhood(run: LoadedRun, progress: Progress | None = None) -> Neighbourhood:
    """Open the training examples of a run and encode them with its model, through the feature cache.

    The features are those of the model as it was before it was adapted.

    Args:
        run: The run.
        progress: Where bars and warnings are shown.

    Raises:
        RecordError: If the run has no training examples or no model, or the examples have changed since.
        ClipAdaptError: If they are not on this machine.
    """
    record, progress = run.record, progress or Silent()
    name = record.method.name
    if not record.method.uses_train:
        raise RecordError(f"{name} has none")
    if run.backbone is None:
        raise RecordError(f"{name} has no model whose features could be compared")
    train = training_split(record, progress)
    n = len(train)
    if n > MOST:
        train = train.take(np.unique(np.linspace(0, n - 1, MOST).astype(np.int64)))
    features = features_of(run, train.inputs)
    return Neighbourhood(train.inputs.examples, train.labels, train.classnames, _unit(features), n)


def features_of(run: LoadedRun, inputs: Inputs[Any]) -> NDArray[np.float32]:
    """Return the features of inputs that are compared, shape ``(n, D)``."""
    return tracks()[track_of(run.record.method.name)].trial.features(run.backbone, inputs)


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    found: NDArray[np.float32] = (features / np.maximum(norms, 1e-12)).astype(np.float32)
    return found
