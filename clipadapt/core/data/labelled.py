"""Labelled datasets as plain data, and the rules that all readers share: split names, class keys, hash splits."""

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
"""Split names in lower case, for all readers; see :func:`split_named`."""
LEFT_OUT_SHARE: Final = 0.05
"""Share of unreadable examples above which every table shows a flag."""
_NUMBER: Final = re.compile(
    r"(?:class|cls|c|category|label|id)?[\s_-]*[+-]?\d+(?:\.\d+)?", re.IGNORECASE
)
_NEEDED: Final[tuple[SplitName, ...]] = ("train", "test", "val")
# Words without meaning for the split: Training_Set, test-images.
_FILLERS: Final = frozenset({"set", "data", "dataset", "split", "images", "imgs"})


@dataclass(frozen=True)
class LabelledSet(Generic[X]):
    """Labelled examples with their provenance; see :class:`clipadapt.core.api.data.Dataset`.

    Attributes:
        parts: The splits.
        aliases: Split -> the split that has the same examples under another name.
        notes: Sentences to show the user before the run.
        keys: Name of each class in the folder or table, if it differs from its class name; else empty.
        found: Number of files or rows found, or None if not counted.
        left_out: Reason -> number of them not read.
        revision: Commit of the hub repository, or None.
        whole: Every example, if the data have no splits and :attr:`parts` were made of them here; else None.
        template_sets: Further prompt templates for this dataset, by the name that ``--templates`` takes.
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
    template_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    whole: Split[X] | None = None

    @property
    def own_splits(self) -> bool:
        """Whether the source has splits; otherwise a hash of each example assigns it to one."""
        return self.whole is None

    @property
    def n_read(self) -> int:
        """Number of examples in all splits, each counted once."""
        return sum(len(part) for split, part in self.parts.items() if split not in self.aliases)

    @property
    def inventory(self) -> str:
        """Summary of what was found and read, for messages."""
        sizes = ", ".join(f"{split} {len(self.parts[split])}" for split in self.splits)
        of = "" if self.found in {None, self.n_read} else f" of {self.found} found"
        text = f"{self.n_read} read{of} in {len(self.classnames)} classes ({sizes})"
        lost = ", ".join(f"{n} {reason}" for reason, n in self.left_out.items() if n)
        return text + (f"; left out: {lost}" if lost else "")

    @property
    def splits(self) -> tuple[SplitName, ...]:
        """Names of the splits, in the order train, val, test."""
        return tuple(s for s in SPLITS if s in self.parts)

    def split(self, name: SplitName, /) -> Split[X]:
        """Return one split; ``all`` is every example of a dataset that has no splits of its own.

        Raises:
            DataError: If the dataset has no such split.
        """
        if name == "all" and self.whole is not None:
            return self.whole
        if name not in self.parts:
            raise DataError(
                f"{self.name} has no split '{name}'; it has: {', '.join(self.splits)}",
                hint=f"evaluate on another one with --set evaluation.split={self.splits[-1]}",
            )
        return self.parts[name]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the class names and the ids, labels and content of all examples of all splits."""
        total = hashlib.sha256("\0".join(self.classnames).encode())
        with ThreadPoolExecutor(
            cpu_count()
        ) as pool:  # threads, because reading files waits for the disk
            for name in self.splits:
                part = self.parts[name]
                examples = part.inputs.examples
                total.update(f"\n{name}".encode())
                contents = pool.map(lambda i, e=examples: digest(e, i), range(len(part)))
                for key, label, content in zip(part.inputs.ids, part.labels, contents, strict=True):
                    total.update(f"\n{key}\0{label}\0".encode(errors="surrogateescape") + content)
        return total.hexdigest()


def many_left_out(read: int, lost: int) -> tuple[str, ...]:
    """Return the flag ``many_left_out`` if more than :data:`LEFT_OUT_SHARE` of all examples were left out."""
    return ("many_left_out",) if lost > LEFT_OUT_SHARE * (read + lost) else ()


def make_split(
    examples: Sequence[X],
    ids: Sequence[str],
    labels: Sequence[int] | NDArray[np.int64],
    classnames: tuple[str, ...],
) -> Split[X]:
    """Return a split of ``n`` examples, ids and labels."""
    return Split(Inputs(examples, tuple(ids)), np.asarray(labels, dtype=np.int64), classnames)


def split_named(name: str) -> SplitName | None:
    """Return the split meant by the name of a folder, file, column value or published split, or None.

    Case, spaces, digits and words such as ``set`` and ``images`` are ignored: ``Training``, ``TEST``,
    ``training_set``, ``val2017``.
    """
    words = [w for w in re.findall(r"[^\W\d_]+", name.casefold()) if w not in _FILLERS]
    if len(words) != 1:
        return None
    return SPLIT_ALIASES.get(words[0]) or SPLIT_ALIASES.get(words[0].removesuffix("set"))


def split_within(name: str) -> SplitName | None:
    """Return the split named by one word of a name (``seg_train``, ``reviews-test``); None if none or two are.

    Use it only if the name is known to be that of a split.
    """
    found = {split for word in re.findall(r"[^\W\d_]+", name) if (split := split_named(word))}
    return found.pop() if len(found) == 1 else None


def natural_key(name: str) -> tuple[tuple[int, str], ...]:
    """Return a sort key that orders numbers within names by value: 1, 2, 10."""
    parts = re.split(r"(\d+)", name)
    # The number of digits comes first, so numbers sort by value; the name itself distinguishes 1 from 01.
    numbers = [
        (len(p.lstrip("0")), p.lstrip("0")) if i % 2 else (0, p) for i, p in enumerate(parts)
    ]
    return (*numbers, (0, name))


def class_key(name: str) -> str:
    """Return a normalised label: labels of the same class have equal keys.

    Case, spaces, ``_``, invisible characters, the width of digits, and ``+`` and ``.0`` around a number are ignored.
    """
    plain = unicodedata.normalize("NFKC", name).replace("\N{MINUS SIGN}", "-")
    seen = "".join(c for c in plain if unicodedata.category(c) != "Cf")
    key = " ".join(seen.replace("_", " ").casefold().split())
    return re.sub(r"^\+?(-?\d+)(?:\.0*)?$", r"\1", key)


def is_number(name: str) -> bool:
    """Return whether a class name is a number (``7``, ``0.0``, ``class_7``), which is useless in a prompt."""
    return bool(_NUMBER.fullmatch(name))


def split_by_hash(content: bytes, shares: Mapping[SplitName, float]) -> SplitName:
    """Return the split assigned by a content hash; it does not change when examples are added.

    Args:
        content: A sha256, of which eight bytes are used.
        shares: Split -> its share of all examples; the shares add up to 1.
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
    """Assign each example to a split by its hash, without leaving a class out of a split unnecessarily.

    If a class has no example in train, test or val, in this order, one is moved there from its largest split. So a
    class with a single example has it in train, and adding files to a larger class moves none of the others. Equal
    examples stay together.

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
            # A split with a higher priority is never emptied.
            donors = [s for s, n in held.items() if n > 1 or s in order[rank + 1 :]]
            if held[split] == 0 and donors:
                donor = max(donors, key=lambda s: (held[s], s))
                where[next(m for m in members if where[m] == donor)] = split
    return [where[c] for c in contents]


def match_splits(
    origin: str, labelled: Mapping[str, bool]
) -> tuple[dict[SplitName, str], list[str]]:
    """Map published split names to splits.

    Args:
        origin: Name of the dataset, for messages.
        labelled: Name of every published split -> whether it has labels.

    Returns:
        Split -> published name (an only split with an unknown name is ``train``), and a note on each split that is
        left out.

    Raises:
        DataError: If two names mean the same split, or no split is left.
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
