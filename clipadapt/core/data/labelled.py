"""The one kind of data set: plain data that every provider fills in."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import numpy as np

from clipadapt.core.api.data import SPLITS, Inputs, Split, digest
from clipadapt.core.api.errors import DataError
from clipadapt.core.files.hardware import cpu_count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from clipadapt.core.api.data import SplitName

X = TypeVar("X")
SPLIT_ALIASES: Final[dict[str, SplitName]] = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "trainval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "devel": "val",
    "development": "val",
    "test": "test",
    "testing": "test",
    "tst": "test",
    "eval": "test",
    "evaluation": "test",
}
"""The one vocabulary of split names, in small letters; :func:`split_named` looks a name up."""
LEFT_OUT_SHARE: Final = 0.05
"""Share of examples that may be left out before every table says so."""
_NUMBER: Final = re.compile(
    r"(?:class|cls|c|category|label|id)?[\s_-]*[+-]?\d+(?:\.\d+)?", re.IGNORECASE
)
_NEEDED: Final[tuple[SplitName, ...]] = ("train", "test", "val")
# Words that say nothing of which split it is: Training_Set, test-images, train2017.
_FILLERS: Final = frozenset({"set", "data", "dataset", "split", "images", "imgs"})


@dataclass(frozen=True)
class LabelledSet(Generic[X]):
    """Labelled examples with their provenance; see :class:`clipadapt.core.api.data.Dataset`.

    Attributes:
        parts: The splits there are.
        aliases: Split -> the split whose examples it holds under another name.
        notes: What is worth telling the user before the run, one sentence each.
        keys: What each class is called in the folder or table, where its name is another; empty where none is.
        found: Files or rows that were found, or None where that is not counted.
        left_out: Reason -> how many of them were not read.
        revision: Commit of the hub's repository that the examples are of, or None.
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
    keys: tuple[str, ...] = ()
    found: int | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    revision: str | None = None

    @property
    def n_read(self) -> int:
        """Examples of all splits, each counted once."""
        return sum(len(part) for split, part in self.parts.items() if split not in self.aliases)

    @property
    def inventory(self) -> str:
        """What was found and what was read of it, for people."""
        sizes = ", ".join(f"{split} {len(self.parts[split])}" for split in self.splits)
        of = "" if self.found in {None, self.n_read} else f" of {self.found} found"
        text = f"{self.n_read} read{of} in {len(self.classnames)} classes ({sizes})"
        lost = ", ".join(f"{n} {reason}" for reason, n in self.left_out.items() if n)
        return text + (f"; left out: {lost}" if lost else "")

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


def many_left_out(read: int, lost: int) -> tuple[str, ...]:
    """Return the flag ``many_left_out`` where what was lost is more than :data:`LEFT_OUT_SHARE` of all."""
    return ("many_left_out",) if lost > LEFT_OUT_SHARE * (read + lost) else ()


def make_split(
    examples: Sequence[X],
    ids: Sequence[str],
    labels: Sequence[int] | NDArray[np.int64],
    classnames: tuple[str, ...],
) -> Split[X]:
    """Return a split of ``n`` examples, ids and labels, in that order."""
    return Split(Inputs(examples, tuple(ids)), np.asarray(labels, dtype=np.int64), classnames)


def split_named(name: str) -> SplitName | None:
    """Return the split that a folder, file, column value or published split of this name is, or None.

    Case, spaces, digits and words such as ``set`` and ``images`` make no difference: ``Training``, ``TEST``,
    ``training_set``, ``val2017``. It is the same for every reader of images and texts.
    """
    words = [w for w in re.findall(r"[^\W\d_]+", name.casefold()) if w not in _FILLERS]
    if len(words) != 1:
        return None
    return SPLIT_ALIASES.get(words[0]) or SPLIT_ALIASES.get(words[0].removesuffix("set"))


def split_within(name: str) -> SplitName | None:
    """Return the one split that a word of the name is: ``seg_train``, ``reviews-test``; None where none or two are.

    Of use where it is known otherwise that the name is one of a split.
    """
    found = {split for word in re.findall(r"[^\W\d_]+", name) if (split := split_named(word))}
    return found.pop() if len(found) == 1 else None


def natural_key(name: str) -> tuple[tuple[int, str], ...]:
    """Return the key that sorts numbers within names by value: 1, 2, 10; names without numbers as text."""
    parts = re.split(r"(\d+)", name)
    # Digits by their count first, which is by value; the whole name at last tells 1 from 01.
    numbers = [
        (len(p.lstrip("0")), p.lstrip("0")) if i % 2 else (0, p) for i, p in enumerate(parts)
    ]
    return (*numbers, (0, name))


def class_key(name: str) -> str:
    """Return what two labels have in common that mean one class.

    Case, spaces, ``_``, invisible characters, the width of digits, a ``+`` before and a ``.0`` behind a number do not
    matter.
    """
    plain = unicodedata.normalize("NFKC", name).replace("\N{MINUS SIGN}", "-")
    seen = "".join(c for c in plain if unicodedata.category(c) != "Cf")
    key = " ".join(seen.replace("_", " ").casefold().split())
    return re.sub(r"^\+?(-?\d+)(?:\.0*)?$", r"\1", key)


def is_number(name: str) -> bool:
    """Tell whether a class has a number for a name (``7``, ``0.0``, ``class_7``), which no prompt can use."""
    return bool(_NUMBER.fullmatch(name))


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


def split_evenly(
    contents: Sequence[str],
    labels: Sequence[int] | NDArray[np.int64],
    shares: Mapping[SplitName, float],
) -> list[SplitName]:
    """Return the split of each example: its hash decides, and no class lacks a split that it could have.

    A class that the hashes leave without an example in train, test or val, in this order, takes one from its
    largest split. So a class of one example has it in train, and files added to a larger class move none of the
    others. Equal examples stay together.

    Args:
        contents: Hexadecimal sha256 of each example.
        labels: Class of each example.
        shares: As for :func:`split_by_hash`.
    """
    where = {c: split_by_hash(bytes.fromhex(c[:16]), shares) for c in contents}
    classes: dict[int, set[str]] = {}
    for content, label in zip(contents, labels, strict=True):
        classes.setdefault(int(label), set()).add(content)
    order = [split for split in _NEEDED if split in shares]
    for label in sorted(classes):
        members = sorted(classes[label])
        for rank, split in enumerate(order):
            held = Counter(where[m] for m in members)
            # One that is needed more is never emptied.
            donors = [s for s, n in held.items() if n > 1 or s in order[rank + 1 :]]
            if held[split] == 0 and donors:
                donor = max(donors, key=lambda s: (held[s], s))
                where[next(m for m in members if where[m] == donor)] = split
    return [where[c] for c in contents]


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
        split = split_named(name)
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
