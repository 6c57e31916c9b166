"""``imagenet-a:DIR``: 7,500 photos of 200 ImageNet classes that a ResNet-50 misclassifies.

``DIR`` is the unpacked archive, 200 WordNet-id folders, or a folder that contains it as ``imagenet-a/`` or ``images/``.
All images are ``test``. Class names are ImageNet's curated ones; classification is among the 200 classes, as in CoOp.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from clipadapt.datasets._shifted import Variant, open_variant

DATASET: Final = partial(
    open_variant,
    Variant(
        name="imagenet-a",
        folder="imagenet-a",
        n_classes=200,
        licence="MIT for the collection; the images belong to their owners",
        citation="D. Hendrycks et al., Natural Adversarial Examples, CVPR 2021, arXiv:1907.07174",
        source="https://github.com/hendrycks/natural-adv-examples",
    ),
)
