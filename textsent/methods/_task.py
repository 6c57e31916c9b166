"""What every method asks of its task and its encoder before it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from clipadapt.core.api.errors import DataError

if TYPE_CHECKING:
    from clipadapt.core.api.data import Split, Task
    from textsent.models import TextEncoder

LONGEST = 512  # pieces read where nothing is asked for; attention's cost grows with the square


def labelled(task: Task[str], method: str) -> tuple[Split[str], Split[str] | None]:
    """Return the training split, and the validation split or None where it is absent or empty.

    Raises:
        DataError: If there is no training example, or examples of one class only.
    """
    train = task.require_train(method)
    seen = len(np.unique(train.labels))
    if seen < 2:
        raise DataError(
            f"{method} needs examples of at least two classes, got {seen}",
            hint="add training examples of the other classes",
        )
    return train, task.val if task.val is not None and len(task.val) else None


def pieces(encoder: TextEncoder, max_length: int | None) -> int:
    """Return how many pieces of a text are read: what is asked for, else what the model can, 512 at the most."""
    return min(encoder.max_length, LONGEST) if max_length is None else max_length
