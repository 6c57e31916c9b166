"""``domainnet:DIR/DOMAIN``: one domain of DomainNet, with 345 classes.

Domains are clipart, infograph, painting, quickdraw, real and sketch. With the published lists (``real_train.txt`` and
``real_test.txt`` and so on, beside the folders of the domains or in ``splits/``): ``test`` is the published one, and
``val`` a fixed tenth of the published train (by the hash of the file name). In ``painting``, the class t-shirt has no
training image. Without the lists the folder is split as ``folder:`` does; ``domainnet:DIR/sketch?test=all`` has all
images in ``test``.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from clipadapt.datasets._domains import DomainSet, open_domain

DATASET: Final = partial(
    open_domain,
    DomainSet(
        name="domainnet",
        domains=("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
        lists={"train": "_train.txt", "test": "_test.txt"},
        first_label=0,
        licence="non-commercial research and educational purposes (fair use, stated by the authors)",
        citation="X. Peng et al., Moment Matching for Multi-Source Domain Adaptation, ICCV 2019, arXiv:1812.01754",
        source="https://ai.bu.edu/M3SDA",
    ),
)
