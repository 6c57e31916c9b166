"""Features of several random crops of each image, read through the feature cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from clipadapt.core.api.data import Inputs
    from clipadapt.models import ImageTextModel, Layer

FIRST_VIEW: Final = 1
"""Number of the first random crop; view 0 is the image itself."""


def view_features(
    model: ImageTextModel,
    inputs: Inputs[Any],
    views: int,
    smallest_crop: float,
    layer: Layer = "output",
) -> NDArray[np.float32]:
    """Return the features of every view of every image.

    Args:
        model: The model.
        inputs: ``N`` images.
        views: ``V`` random crops with flips; 0 uses the image itself, then ``V`` is 1.
        smallest_crop: Minimum fraction of the image area in a crop.
        layer: Layer of the features.

    Returns:
        Shape ``(V, N, D)``, or ``(V, N, width)`` at another layer.
    """
    return np.stack(list(each_view(model, inputs, views, smallest_crop, layer)))


def each_view(
    model: ImageTextModel,
    inputs: Inputs[Any],
    views: int,
    smallest_crop: float,
    layer: Layer = "output",
) -> Iterator[NDArray[np.float32]]:
    """Yield the features of one view after the other, shape ``(N, D)``; see :func:`view_features`."""
    for view in range(FIRST_VIEW, FIRST_VIEW + views) if views else (0,):
        yield model.encode(inputs, "image", layer, view, smallest_crop)
