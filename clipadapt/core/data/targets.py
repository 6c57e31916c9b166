"""Targets: a dataset and split to evaluate, with the class names and templates of its prompts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from clipadapt.core.api.data import DatasetOptions, Split
from clipadapt.core.api.errors import ConfigError, DataError
from clipadapt.core.api.flags import FLAGS
from clipadapt.core.api.registry import DATASETS, template_sets, tracks
from clipadapt.core.data.classnames import duplicate_names, read_classnames
from clipadapt.core.data.labelled import is_number
from clipadapt.core.data.sampling import base_new_classes
from clipadapt.core.data.templates import read_templates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from clipadapt.core.api.data import Classes, Dataset, SplitName
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.experiments.settings import DataConfig

_OF_SPLITS: Final = frozenset({
    "split_by_hash", "class_missing_in_train", "class_missing_in_test", "duplicates_across_splits",
})  # fmt: skip
"""Flags that say nothing about a dataset that is evaluated whole."""
_PARTS: Final = ("name", "classnames", "splits", "split", "fingerprint")


@dataclass(frozen=True, slots=True)
class Target:
    """A dataset and split on which a fit is evaluated.

    Attributes:
        dataset: The open dataset.
        split: The evaluation split.
        classnames: Class names used in prompts, in the order of the labels.
        templates: Templates used in prompts.
        flags: Flags for every record of this target.
        classes: Which classes are evaluated; if the target is also trained on, which are trained, too.
    """

    dataset: Dataset[Any]
    split: SplitName
    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    flags: tuple[str, ...]
    classes: Classes = "all"

    @property
    def title(self) -> str:
        """Dataset, split and classes, for messages."""
        which = "" if self.classes == "all" else f", {self.classes} classes"
        return f"{self.dataset.name} ({self.split}{which})"

    def split_of(self, name: SplitName) -> Split[Any]:
        """Return a split of the dataset with only the target's classes, labels counted from 0."""
        whole = self.dataset.split(name)
        if self.classes == "all":
            return whole
        chosen = class_indices(self.classes, len(self.dataset.classnames))
        split = whole.take(np.flatnonzero(np.isin(whole.labels, chosen)))
        return Split(split.inputs, split.labels - chosen[0], self.classnames)

    def examples(self, limit: int | None) -> Split[Any]:
        """Return the examples to evaluate: all, or ``limit`` of them chosen by the hash of their ids.

        Raises:
            DataError: If the split is empty.
        """
        split = self.split_of(self.split)
        if limit is not None and limit < len(split):
            order = sorted(range(len(split)), key=lambda i: _sha256(split.inputs.ids[i]))
            split = split.take(np.array(sorted(order[:limit]), dtype=np.int64))
        if not len(split):
            raise DataError(f"the split '{self.split}' of {self.dataset.name} is empty")
        return split


class OpenDatasets:
    """Opens each dataset once and shows each message about it once."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str, str], Dataset[Any]] = {}
        self._shown: set[str] = set()

    def note(self, progress: Progress, message: str) -> None:
        """Show a line, unless it was shown before."""
        if message not in self._shown:
            self._shown.add(message)
            progress.note(message)

    def get(self, name: str, data: DataConfig, track: str, progress: Progress) -> Dataset[Any]:
        """Return a dataset, opening it on the first call.

        Raises:
            DataError: If it cannot be opened.
            UnknownNameError: If there is no such dataset.
        """
        key = (track, name, data.on_bad_image)
        if key not in self._open:
            with progress.track(f"open dataset {name}", None):
                resolved = DATASETS.resolve(name, track)
                dataset = resolved.provider(resolved.argument, DatasetOptions(data.on_bad_image))
            missing = [part for part in _PARTS if not hasattr(dataset, part)]
            if missing:
                raise DataError(
                    f"the provider of '{name}' returned {dataset!r:.80}, which lacks {', '.join(missing)}",
                    hint="return a clipadapt.core.data.labelled.LabelledSet",
                )
            unregistered = [flag for flag in getattr(dataset, "flags", ()) if flag not in FLAGS]
            if unregistered:
                raise DataError(
                    f"the dataset '{name}' has flags that are not registered: {', '.join(unregistered)}",
                    hint="call clipadapt.core.api.flags.register in the plug-in",
                )
            if inventory := getattr(dataset, "inventory", ""):
                self.note(progress, f"{dataset.name}: {inventory}")
            for note in getattr(dataset, "notes", ()):
                self.note(progress, f"warning: {note}")
            self._open[key] = dataset
        return self._open[key]


def open_target(
    name: str,
    split: SplitName,
    data: DataConfig,
    track: str,
    progress: Progress,
    opened: OpenDatasets | None = None,
) -> Target:
    """Open a dataset for evaluation.

    Args:
        name: Dataset, as ``--dataset`` takes it.
        split: Split to evaluate.
        data: The ``data`` section of the config.
        track: Name of the track, ``clip`` or ``text``.
        progress: Where warnings are shown.
        opened: Datasets that are already open.

    Raises:
        DataError: If it cannot be opened, does not have the split, or a file of names or templates is invalid.
        UnknownNameError: If there is no such dataset.
    """
    opened = opened or OpenDatasets()
    dataset = opened.get(name, data, track, progress)
    if split == "all" and getattr(dataset, "whole", None) is None:
        raise DataError(
            f"{dataset.name} has splits of its own, {', '.join(dataset.splits)}: 'all' is for data without splits",
            hint="choose one of them with --set evaluation.split=test (zeroshot: --split test)",
        )
    if split != "all" and split not in dataset.splits:
        other = dataset.splits[-1]
        raise DataError(
            f"{dataset.name} has no split '{split}'; it has {', '.join(dataset.splits)}",
            hint=f"add --set evaluation.split={other} (zeroshot: --split {other})",
        )
    classnames, pairing = read_classnames(data.classnames, dataset)
    if pairing:
        opened.note(progress, f"{dataset.name}: class names by position: {pairing}")
    flags = [flag for flag in dataset.flags if split != "all" or flag not in _OF_SPLITS]
    if tracks()[track].reads_classnames:
        for flag, warning in _name_warnings(classnames):
            opened.note(progress, f"warning: {dataset.name} {warning}")
            flags += [flag] if flag else []
    templates = read_templates(data.templates, dataset, template_sets())
    chosen = class_indices(data.classes, len(classnames))
    names = tuple(classnames[c] for c in chosen)
    return Target(dataset, split, names, templates, tuple(flags), data.classes)


def is_val(home: Target, target: Target) -> bool:
    """Return whether the target is the val split of the training data, under any name."""
    aliases = getattr(home.dataset, "aliases", {})
    same = target.dataset.fingerprint == home.dataset.fingerprint
    return bool(same and aliases.get(target.split, target.split) == aliases.get("val", "val"))


def choose_split(
    asked: SplitName | Literal["auto"],
    dataset: Dataset[Any],
    track: str,
    *,
    uses_train: bool,
    note: Callable[[str], None],
) -> SplitName:
    """Return the split on which a fit is evaluated.

    Args:
        asked: Split, or ``auto`` for every example of a dataset without splits if nothing is learned from them.
        dataset: Dataset that the fit is trained on.
        track: Name of the track.
        uses_train: Whether the method is trained on examples of the dataset.
        note: Shows a message to the user.

    Raises:
        ConfigError: If a method that is trained is to be evaluated on the examples it is trained on.
    """
    if asked == "all" and uses_train:
        raise ConfigError(
            "evaluation.split=all is for methods that are not trained: it contains the training examples",
            hint="leave it out; trained methods are evaluated on test",
        )
    if asked != "auto":
        return asked
    whole = getattr(dataset, "whole", None)
    if uses_train or whole is None:
        return "test"
    note(
        f"{dataset.name} has no train, val and test: all {len(whole):,} {tracks()[track].inputs} are evaluated, "
        "because nothing is learned from them; --split test takes the part on which trained methods are evaluated"
    )
    return "all"


def _name_warnings(classnames: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield each warning about class names used in prompts as flag (or an empty string) and text."""
    pairs = duplicate_names(classnames)
    if pairs:
        shown = "; ".join(f"'{a}' and '{b}'" for a, b in pairs[:3])
        text = f"has class names that are equal: {shown}; no prompt can distinguish these classes"
        yield "duplicate_classnames", text
    if all(map(is_number, classnames)):
        text = (
            f"has numbers as class names, {classnames[0]} to {classnames[-1]}, which mean nothing in a prompt: "
            "name the classes with --classnames FILE (run: --set data.classnames=FILE)"
        )
        yield "", text


def class_indices(classes: Classes, n_classes: int) -> NDArray[np.int64]:
    """Return the labels of ``all`` classes, the ``base`` ones, or the ``new`` ones, ascending.

    Raises:
        DataError: If there are too few classes to split.
    """
    if classes == "all":
        return np.arange(n_classes, dtype=np.int64)
    base, new = base_new_classes(n_classes)
    return base if classes == "base" else new


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
