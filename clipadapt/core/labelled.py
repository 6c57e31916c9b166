"""The one kind of data set: plain data that every provider fills in."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from clipadapt.core.errors import DataError
from clipadapt.core.hardware import cpu_count
from clipadapt.core.protocols import SPLITS, Inputs, Split, digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from clipadapt.core.protocols import SplitName

X = TypeVar("X")
SPLIT_ALIASES: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
"""What published splits are called, in small letters."""


@dataclass(frozen=True)
class LabelledSet(Generic[X]):
    """Labelled examples with their provenance; see :class:`clipadapt.core.protocols.Dataset`.

    Attributes:
        parts: The splits there are.
        aliases: Split -> the split whose examples it holds under another name.
        notes: What is worth telling the user before the run, one sentence each.
    """

    name: str
    classnames: tuple[str, ...]
    licence: str
    citation: str
    source: str
    parts: Mapping[SplitName, Split[X]]
    templates: tuple[str, ...] = ()
    skipped: int = 0
    flags: tuple[str, ...] = ()
    aliases: Mapping[SplitName, SplitName] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[SplitName, ...]:
        """Names of the splits there are, in the order train, val, test."""
        return tuple(s for s in SPLITS if s in self.parts)

    def split(self, name: SplitName, /) -> Split[X]:
        """Return one split.

        Raises:
            DataError: If the set has no such split.
        """
        if name not in self.parts:
            raise DataError(
                f"{self.name} has no split '{name}'; it has: {', '.join(self.splits)}",
                hint=f"evaluate on another one with --set evaluation.split={self.splits[-1]}",
            )
        return self.parts[name]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over class names, ids, labels and content of every example of every split."""
        total = hashlib.sha256("\0".join(self.classnames).encode())
        with ThreadPoolExecutor(cpu_count()) as pool:  # reading files waits for the disk
            for name in self.splits:
                part = self.parts[name]
                examples = part.inputs.examples
                total.update(f"\n{name}".encode())
                contents = pool.map(lambda i, e=examples: digest(e, i), range(len(part)))
                for key, label, content in zip(part.inputs.ids, part.labels, contents, strict=True):
                    total.update(f"\n{key}\0{label}\0".encode(errors="surrogateescape") + content)
        return total.hexdigest()


def make_split(
    examples: Sequence[X],
    ids: Sequence[str],
    labels: Sequence[int] | NDArray[np.int64],
    classnames: tuple[str, ...],
) -> Split[X]:
    """Return a split of ``n`` examples, ids and labels, in that order."""
    return Split(Inputs(examples, tuple(ids)), np.asarray(labels, dtype=np.int64), classnames)


def split_by_hash(content: bytes, shares: Mapping[SplitName, float]) -> SplitName:
    """Return the split that a content hash alone decides; it stays when data are added.

    Args:
        content: A sha256, of which eight bytes are read.
        shares: Split -> its share of all; the shares add up to 1.
    """
    position, upper = int.from_bytes(content[:8], "big") / 2**64, 0.0
    for name, share in shares.items():
        upper += share
        if position < upper:
            return name
    return name


def match_splits(
    origin: str, labelled: Mapping[str, bool]
) -> tuple[dict[SplitName, str], list[str]]:
    """Tell which split each published one is.

    Args:
        origin: Name of the set, for messages.
        labelled: Name of every published split -> whether it has labels.

    Returns:
        Split -> published name, where the only one of an unknown name is ``train``; and a note on each
        that is left out.

    Raises:
        DataError: If two mean the same split, or none is left.
    """
    found: dict[SplitName, str] = {}
    notes = []
    names = ", ".join(labelled)
    for name, has_labels in labelled.items():
        split = SPLIT_ALIASES.get(name.casefold())
        if split is None and len(labelled) > 1:
            notes.append(f"the split '{name}' is neither train, val nor test and is left out")
        elif not has_labels:
            notes.append(f"the split '{name}' has no labels and is left out")
        elif (split or "train") in found:
            raise DataError(
                f"{origin} has two splits that mean '{split or 'train'}', the second is '{name}'; "
                f"it has: {names}"
            )
        else:
            found[split or "train"] = name
    if not found:
        raise DataError(
            f"{origin} has no labelled split named train, validation or test; it has: {names}"
        )
    return found, notes
