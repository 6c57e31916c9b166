"""Split the texts of a dataset that has no splits."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from clipadapt.core.api.data import SPLITS
from clipadapt.core.data.labelled import class_key, split_evenly

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipadapt.core.api.data import SplitName
    from clipadapt.core.data.table_rows import Row

SHARES: dict[SplitName, float] = {"train": 0.8, "val": 0.1, "test": 0.1}


def split_rows(rows: Sequence[Row]) -> dict[SplitName, list[Row]]:
    """Assign rows to splits in the proportions of :data:`SHARES`, by a hash of their text.

    A text stays in its split when rows are added, except in classes with few texts, see
    :func:`clipadapt.core.data.labelled.split_evenly`.
    """
    numbers = {key: i for i, key in enumerate(sorted({class_key(row.label) for row in rows}))}
    chosen = split_evenly(
        [hashlib.sha256(row.value.encode()).hexdigest() for row in rows],
        [numbers[class_key(row.label)] for row in rows],
        SHARES,
    )
    parts: dict[SplitName, list[Row]] = {split: [] for split in SPLITS}
    for row, split in zip(rows, chosen, strict=True):
        parts[split].append(row)
    return parts
