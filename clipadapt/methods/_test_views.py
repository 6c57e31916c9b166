"""Random crops of each test image, and those of them on which the classifier is most confident."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.api.errors import ConfigError
from clipadapt.methods._views import view_features

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from clipadapt.core.api.data import Inputs
    from clipadapt.models import ImageTextModel

NUMBERS_AT_ONCE: Final = 1 << 24
"""Largest number of features or logits of all views that are held at a time."""


def n_confident(views: int, share: float, key: str) -> int:
    """Return ``int(views * share)``, the number of confident views.

    Args:
        views: Number of views.
        share: Share of them.
        key: Config key of the share, for the message.

    Raises:
        ConfigError: If it is 0.
    """
    kept = int(views * share)
    if not kept:
        raise ConfigError(
            f"no confident view is left: method.{key}={share:g} of method.views={views} views is less than one",
            hint=f"increase method.views or method.{key} until their product is at least 1",
        )
    return kept


def blocks(
    model: ImageTextModel, inputs: Inputs[Any], views: int, smallest_crop: float, n_classes: int
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield the features of all views of some images, shape ``(b, V, D)``; view 0 is the image without a crop.

    Args:
        model: The model.
        inputs: ``n`` images.
        views: ``V``, at least 1.
        smallest_crop: Minimum fraction of the image area in a crop.
        n_classes: ``C``; the logits of a block are bounded too.
    """
    size = max(1, NUMBERS_AT_ONCE // (views * max(model.embed_dim, n_classes)))
    for begin in range(0, len(inputs), size):
        rows = np.arange(begin, min(begin + size, len(inputs)))
        part = inputs.take(rows)
        every = [model.encode(part, "image")[None]]  # (1, b, D)
        if views > 1:
            every.append(view_features(model, part, views - 1, smallest_crop))  # (V - 1, b, D)
        stacked = np.concatenate(every).transpose(1, 0, 2)  # (b, V, D)
        yield slice(begin, begin + len(rows)), np.ascontiguousarray(stacked)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logarithm of the softmax over the last axis."""
    shifted: NDArray[np.float32] = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def entropy(log_p: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the entropy in nats of log-probabilities over the last axis."""
    return np.asarray(-(np.exp(log_p) * log_p).sum(axis=-1), dtype=np.float32)
