"""The one kind of text data set: plain data that every provider fills in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from clipadapt.core.errors import DataError
from clipadapt.core.protocols import SPLITS, Inputs, Split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clipadapt.core.protocols import SplitName

HASH_SPLITS: tuple[tuple[SplitName, float], ...] = (("train", 0.8), ("val", 0.1), ("test", 0.1))
SPLIT_ALIASES: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}


@dataclass(frozen=True)
class TextSet:
    """Labelled texts with their provenance; see :class:`clipadapt.core.protocols.Dataset`.

    Attributes:
        parts: The splits there are.
        notes: What is worth telling the user before the run, one sentence each.
    """

    name: str
    classnames: tuple[str, ...]
    licence: str
    citation: str
    source: str
    parts: Mapping[SplitName, Split[str]]
    templates: tuple[str, ...] = ()
    skipped: int = 0
    flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[SplitName, ...]:
        """Names of the splits there are, in the order train, val, test."""
        return tuple(s for s in SPLITS if s in self.parts)

    def split(self, name: SplitName, /) -> Split[str]:
        """Return one split.

        Raises:
            DataError: If the set has no such split.
        """
        if name not in self.parts:
            has = ", ".join(self.splits)
            raise DataError(
                f"{self.name} has no split '{name}'; it has: {has}",
                hint=f"evaluate on another one with --set evaluation.split={self.splits[-1]}",
            )
        return self.parts[name]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over ids, labels and texts of every split."""
        return fingerprint(self.parts)


def fingerprint(parts: Mapping[SplitName, Split[str]]) -> str:
    """Return the sha256 over ids, labels and texts of every split, lengths included."""
    total = hashlib.sha256()
    for name in SPLITS:
        if name not in parts:
            continue
        part = parts[name]
        total.update(f"split {name} {len(part)}\n".encode())
        for key, label, text in zip(
            part.inputs.ids, part.labels, part.inputs.examples, strict=True
        ):
            raw = text.encode()
            total.update(f"{key}\0{label}\0{len(raw)}\0".encode() + raw)
    return total.hexdigest()


def make_split(
    texts: Sequence[str], ids: Sequence[str], labels: Sequence[int], classnames: tuple[str, ...]
) -> Split[str]:
    """Return a split of ``n`` texts, ids and labels, in that order."""
    return Split(Inputs(tuple(texts), tuple(ids)), np.asarray(labels, dtype=np.int64), classnames)


def hash_split(text: str) -> SplitName:
    """Return the split that the text alone decides, by :data:`HASH_SPLITS`; it stays when rows are added."""
    digest = hashlib.sha256(text.encode()).digest()
    position, upper = int.from_bytes(digest[:8], "big") / 2**64, 0.0
    for name, share in HASH_SPLITS:
        upper += share
        if position < upper:
            return name
    return HASH_SPLITS[-1][0]
