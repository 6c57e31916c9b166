"""``imagenet-a:DIR``: 7,500 photos of 200 ImageNet classes that a ResNet-50 misclassifies.

``DIR`` is the unpacked archive, 200 WordNet-id folders, or a folder that contains it as ``imagenet-a/`` or ``images/``.
All images are ``test``. Class names are ImageNet's curated ones; classification is among the 200 classes, as in CoOp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from clipadapt.datasets._shifted import Variant, open_variant

if TYPE_CHECKING:
    from PIL.Image import Image

    from clipadapt.core.api.data import DatasetOptions
    from clipadapt.core.data.labelled import LabelledSet

SET: Final = Variant(
    name="imagenet-a",
    folder="imagenet-a",
    n_classes=200,
    licence="MIT for the collection; the images belong to their owners",
    citation="D. Hendrycks et al., Natural Adversarial Examples, CVPR 2021, arXiv:1907.07174",
    source="https://github.com/hendrycks/natural-adv-examples",
)


def open_imagenet_a(argument: str, options: DatasetOptions, /) -> LabelledSet[Image]:
    """Open ImageNet-A.

    Args:
        argument: The folder.
        options: With ``on_bad_image="skip"`` every image is decoded once, to find the unreadable ones.

    Raises:
        DataError: As :func:`clipadapt.datasets._shifted.open_variant`.
    """
    return open_variant(SET, argument, options)


DATASET = open_imagenet_a
