"""``pacs:DIR/DOMAIN``: one domain of PACS, with seven classes: photo, art_painting, cartoon or sketch.

The published lists (``photo_train_kfold.txt`` and so on) are beside the folders of the domains, or in ``splits/`` there
or one level above. ``test`` is the published crossval list; ``val`` is a fixed tenth of the published train list (by
the hash of the file name), and ``train`` the rest. Papers on domain generalization evaluate a target domain on all its
images: ``pacs:DIR/sketch?test=all``. Without the lists the folder is split as ``folder:`` does.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from clipadapt.datasets._domains import DomainSet, open_domain

DATASET: Final = partial(
    open_domain,
    DomainSet(
        name="pacs",
        domains=("photo", "art_painting", "cartoon", "sketch"),
        lists={"train": "_train_kfold.txt", "test": "_crossval_kfold.txt"},
        first_label=1,
        licence="unknown (none stated by the authors)",
        citation="D. Li et al., Deeper, Broader and Artier Domain Generalization, ICCV 2017, arXiv:1710.03077",
        source="https://dali-dl.github.io/project_iccv2017.html",
    ),
)
