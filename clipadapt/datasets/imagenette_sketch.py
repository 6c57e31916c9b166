"""``imagenette-sketch[:DIR]``: the sketches of ImageNette's ten classes, out of ImageNet-Sketch.

The sketch counterpart of ``imagenette``: equal class names in equal order, so that one trains on the photos of the
one and tests on the sketches of the other. Source, folder and splits are those of ``imagenet-sketch``: everything is
``test``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipadapt.datasets.imagenet_sketch import open_sketches
from clipadapt.datasets.imagenette import WNIDS

if TYPE_CHECKING:
    from PIL.Image import Image

    from clipadapt.core.api.data import DatasetOptions
    from clipadapt.core.data.labelled import LabelledSet


def open_imagenette_sketch(argument: str, options: DatasetOptions, /) -> LabelledSet[Image]:
    """Open the sketches of ImageNette's ten classes.

    Args:
        argument: A folder as ``imagenet-sketch`` takes it, or nothing for the hub.
        options: With ``on_bad_image="skip"`` every image is decoded once, to find the bad ones.

    Raises:
        DataError: As :func:`clipadapt.datasets.imagenet_sketch.open_imagenet_sketch`.
    """
    return open_sketches("imagenette-sketch", WNIDS, argument, options)


DATASET = open_imagenette_sketch
