"""The one kind of image data set: plain data that every provider fills in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from clipadapt.core.errors import DataError
from clipadapt.core.protocols import SPLITS, Inputs, Split, digest
from clipadapt.datasets._images import in_threads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from PIL.Image import Image

    from clipadapt.core.protocols import SplitName

HASH_SPLITS: tuple[tuple[SplitName, float], ...] = (("train", 0.6), ("val", 0.2), ("test", 0.2))


@dataclass(frozen=True)
class ImageSet:
    """Labelled images with their provenance; see :class:`clipadapt.core.protocols.Dataset`.

    Attributes:
        parts: The splits there are.
        notes: What is worth telling the user before the run, one sentence each.
    """

    name: str
    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    licence: str
    citation: str
    source: str
    parts: Mapping[SplitName, Split[Image]]
    skipped: int = 0
    flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[SplitName, ...]:
        """Names of the splits there are, in the order train, val, test."""
        return tuple(s for s in SPLITS if s in self.parts)

    def split(self, name: SplitName, /) -> Split[Image]:
        """Return one split.

        Raises:
            DataError: If the set has no such split.
        """
        if name not in self.parts:
            has = ", ".join(self.splits)
            raise DataError(
                f"{self.name} has no split '{name}'; it has: {has}",
                hint=f"evaluate on another one with --split {self.splits[-1]}",
            )
        return self.parts[name]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over class names, ids, labels and content of every example of every split."""
        total = hashlib.sha256("\0".join(self.classnames).encode())
        for name in self.splits:
            part = self.parts[name]
            total.update(f"\n{name}".encode())
            contents = in_threads(
                lambda i, part=part: digest(part.inputs.examples, i),  # type: ignore[misc]
                range(len(part)),
            )
            for key, label, content in zip(part.inputs.ids, part.labels, contents, strict=True):
                total.update(f"\n{key}\0{label}\0".encode() + content)
        return total.hexdigest()


def make_split(
    examples: Sequence[Image],
    ids: Sequence[str],
    labels: Sequence[int] | NDArray[np.int64],
    classnames: tuple[str, ...],
) -> Split[Image]:
    """Return a split of ``n`` examples, ids and labels, in that order."""
    return Split(Inputs(examples, tuple(ids)), np.asarray(labels, dtype=np.int64), classnames)


def hash_split(sha256: str) -> SplitName:
    """Return the split that a hash alone decides, by :data:`HASH_SPLITS`; it stays when data are added."""
    position, upper = int(sha256[:16], 16) / 2**64, 0.0
    for name, part in HASH_SPLITS:
        upper += part
        if position < upper:
            return name
    return HASH_SPLITS[-1][0]
