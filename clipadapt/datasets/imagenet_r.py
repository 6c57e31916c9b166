"""``imagenet-r:DIR``: 30,000 renditions (art, cartoons, toys and others) of 200 ImageNet classes.

``DIR`` is the unpacked archive, 200 WordNet-id folders, or a folder that contains it as ``imagenet-r/`` or ``images/``.
All images are ``test``. Class names are ImageNet's curated ones; classification is among the 200 classes, as in CoOp.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from clipadapt.datasets._shifted import Variant, open_variant

DATASET: Final = partial(
    open_variant,
    Variant(
        name="imagenet-r",
        folder="imagenet-r",
        n_classes=200,
        licence="MIT for the collection; the images belong to their owners",
        citation="D. Hendrycks et al., The Many Faces of Robustness: A Critical Analysis of "
        "Out-of-Distribution Generalization, ICCV 2021, arXiv:2006.16241",
        source="https://github.com/hendrycks/imagenet-r",
    ),
)
