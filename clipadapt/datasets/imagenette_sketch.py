"""``imagenette-sketch[:DIR]``: the sketches of ImageNette's ten classes from ImageNet-Sketch.

It has the classes of ``imagenette`` in the same order, so a model trained on photos of the one can be tested on
sketches of the other. Source, folder and splits are those of ``imagenet-sketch``: all images are ``test``.
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
        argument: A folder as for ``imagenet-sketch``, or empty for the hub.
        options: With ``on_bad_image="skip"`` every image is decoded once, to find the unreadable ones.

    Raises:
        DataError: As :func:`clipadapt.datasets.imagenet_sketch.open_imagenet_sketch`.
    """
    return open_sketches("imagenette-sketch", WNIDS, argument, options)


DATASET = open_imagenette_sketch
