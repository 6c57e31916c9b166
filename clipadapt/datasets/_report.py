"""Flags and notes on an image dataset before it is used: empty classes, duplicates, files left out."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from clipadapt.core.data.labelled import many_left_out
from clipadapt.datasets._folders import OTHER_FILES
from clipadapt.datasets._images import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from clipadapt.core.api.data import Split, SplitName
    from clipadapt.core.data.labelled import LabelledSet

X = TypeVar("X")


@dataclass(slots=True)
class Report:
    """Flags of a dataset, shown in every table, and notes for the user, one sentence each."""

    flags: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, flag: str, note: str) -> None:
        """Add a flag with its sentence."""
        self.flags.append(flag)
        self.notes.append(note)

    def classes(self, names: Sequence[str], parts: Mapping[SplitName, Split[Any]]) -> None:
        """Report classes that have no image, or none in only one of train and test.

        Args:
            names: Name of each class in the report.
            parts: The splits of the dataset.
        """
        counts = {s: np.bincount(p.labels, minlength=len(names)) for s, p in parts.items()}
        total = np.sum(list(counts.values()), axis=0)
        empty = [f for f, n in zip(names, total, strict=True) if n == 0]
        if empty:
            self.add("empty_class", f"classes without a readable image: {shown(empty)}")
        pairs: tuple[tuple[SplitName, SplitName], ...] = (("train", "test"), ("test", "train"))
        for lacking, having in pairs:
            if lacking in counts and having in counts:
                gone = (counts[lacking] == 0) & (counts[having] > 0)
                if gone.any():
                    found = [f for f, g in zip(names, gone, strict=True) if g]
                    self.add(
                        f"class_missing_in_{lacking}",
                        f"classes with images in {having} but none in {lacking}: {shown(found)}",
                    )

    def duplicates(self, rows: Iterable[tuple[str, SplitName, str, int]]) -> None:
        """Report identical files in two splits or two classes.

        Args:
            rows: Hash of the bytes, split, id and label of every image.
        """
        groups: dict[str, list[tuple[SplitName, str, int]]] = defaultdict(list)
        for content, split, key, label in rows:
            groups[content].append((split, key, label))
        across = [g for g in groups.values() if len({split for split, _, _ in g}) > 1]
        if across:
            example = " = ".join(key for _, key, _ in across[0][:2])
            self.add(
                "duplicates_across_splits",
                f"identical images are in two splits (cases: {len(across)}): {example}",
            )
        conflicts = [g for g in groups.values() if len({label for _, _, label in g}) > 1]
        if conflicts:
            example = " = ".join(key for _, key, _ in conflicts[0][:2])
            self.add(
                "duplicates_across_classes",
                f"identical images are in two classes (cases: {len(conflicts)}): {example}",
            )

    def attached(self, data: LabelledSet[X], left_out: Mapping[str, int]) -> LabelledSet[X]:
        """Return a dataset with these flags and notes, and with the counts of the files that were left out.

        Only images count towards the flag ``many_left_out``, not other files.

        Args:
            data: The dataset, with the flags that come before those of the report.
            left_out: Number of files that were not read, by reason.
        """
        images = {r: n for r, n in left_out.items() if n and not r.startswith(OTHER_FILES)}
        if images:
            self.notes.append("left out: " + ", ".join(f"{n} {r}" for r, n in images.items()))
        self.flags += many_left_out(data.n_read, sum(images.values()))
        return replace(
            data,
            skipped=left_out.get(UNREADABLE, data.skipped),
            found=data.n_read + sum(left_out.values()),
            left_out=dict(left_out),
            flags=(*data.flags, *self.flags),
            notes=tuple(f"{data.name}: {note}" for note in self.notes),
        )

    def empty_splits(self, parts: Mapping[SplitName, Split[Any]]) -> None:
        """Report splits that are empty because the dataset is small."""
        consequences = {
            "val": "settings are not selected and probabilities are not calibrated",
            "test": "evaluate on another split",
        }
        for split, consequence in consequences.items():
            if split not in parts:
                self.notes.append(f"there are too few images for a '{split}' split: {consequence}")


def shown(names: Sequence[str]) -> str:
    """Return the first five names, and the number of further ones."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")
