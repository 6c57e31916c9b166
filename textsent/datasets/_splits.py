"""Which split a text falls into where none is named."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from clipadapt.core.labelled import split_by_hash

if TYPE_CHECKING:
    from clipadapt.core.protocols import SplitName

SHARES: dict[SplitName, float] = {"train": 0.8, "val": 0.1, "test": 0.1}


def hash_split(text: str) -> SplitName:
    """Return the split that the text alone decides, by :data:`SHARES`; it stays when rows are added."""
    return split_by_hash(hashlib.sha256(text.encode()).digest(), SHARES)
