"""Few-shot index files: find their examples in a dataset by path, and make a draw of them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from clipadapt.core.api.errors import ConfigError, DataError
from clipadapt.core.api.user_input import visible
from clipadapt.core.data import sampling
from clipadapt.core.data.index_files import plain_path
from clipadapt.core.data.targets import class_indices

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from clipadapt.core.data.index_files import Entry, IndexFile
    from clipadapt.core.data.targets import Target
    from clipadapt.core.experiments.settings import DataConfig


class PathIndex:
    """Finds ids by paths whose first folders may differ, such as ``./data/caltech-101/images/cat/1.jpg``.

    A path and an id match if their last components are equal: as many as make the ids unique, at least.

    Args:
        ids: Unique ids.
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self.ids = {plain_path(id_): id_ for id_ in ids}
        self._by_depth: dict[int, dict[str, str | None]] = {}
        self.longest = 1 + max((path.count("/") for path in self.ids), default=0)
        self.depth = next(
            (d for d in range(1, self.longest) if None not in self._at(d).values()), self.longest
        )

    def find(self, path: str) -> str | None:
        """Return the id of a path, or None."""
        parts = path.split("/")
        most = min(len(parts), self.longest)
        for depth in range(most, min(self.depth, most) - 1, -1):
            end = "/".join(parts[-depth:])
            if end in self._at(depth):
                return self._at(depth)[end]
        return None

    def _at(self, depth: int) -> dict[str, str | None]:
        """Return ids by their last components; None where several have the same."""
        if depth not in self._by_depth:
            found: dict[str, str | None] = {}
            for path, id_ in self.ids.items():
                end = "/".join(path.rsplit("/", depth)[-depth:])
                found[end] = None if end in found else id_
            self._by_depth[depth] = found
        return self._by_depth[depth]


def before_common_end(path: str, id_: str) -> tuple[str, str]:
    """Return what precedes the common last components of a path and an id."""
    ours, theirs = path.split("/"), plain_path(id_).split("/")
    n = 0
    while n < min(len(ours), len(theirs)) and ours[-1 - n] == theirs[-1 - n]:
        n += 1
    return "/".join(ours[: len(ours) - n]), "/".join(theirs[: len(theirs) - n])


def find_all(
    paths: Sequence[str], index: PathIndex, split_of: Mapping[str, str]
) -> list[str | None]:
    """Return the id of each path, or None.

    Where both a path and its id have further folders, these must be the same pair for all ids of a split:
    ``cats/1.jpg`` is not found as ``dogs/1.jpg``.

    Args:
        paths: Paths of an index file.
        index: The ids of a dataset.
        split_of: Split of each id.
    """
    found = [(path, index.find(path)) for path in paths]
    pairs: dict[str, Counter[tuple[str, str]]] = {}
    for path, id_ in found:
        if id_ is not None and all(pair := before_common_end(path, id_)):
            pairs.setdefault(split_of[id_], Counter())[pair] += 1
    usual = {split: counts.most_common(1)[0][0] for split, counts in pairs.items()}
    return [
        id_
        if id_ is not None
        and (not all(pair := before_common_end(path, id_)) or pair == usual[split_of[id_]])
        else None
        for path, id_ in found
    ]


def first_few(names: Sequence[str]) -> str:
    """Return the first three names, quoted."""
    few = ", ".join(f"'{visible(name)}'" for name in names[:3])
    return few + (", ..." if len(names) > 3 else "")


def too_few(what: str, shots: int, short: Mapping[str, int], target: Target) -> DataError:
    """Return the error for a draw that has fewer examples than shots; ``short`` is the number of each such class."""
    few = ", ".join(f"'{name}' has {n}" for name, n in list(short.items())[:5])
    return DataError(
        f"{what} has fewer than {shots} train examples of {len(short)} of the {len(target.classnames)} classes of "
        f"{target.dataset.name}: {few}{', ...' if len(short) > 5 else ''}",
        hint="use the draw that belongs to these classes and shots, or use fewer examples with "
        "'--set data.allow_fewer=true'",
    )


def manifest_of(index: IndexFile, target: Target, data: DataConfig) -> sampling.Manifest:
    """Return the draw that a few-shot index file lists, with the ids of a dataset.

    Paths are compared by their last components, see :class:`PathIndex`. Labels in the file are only compared with the
    dataset's: they must correspond one to one. Examples of classes that are not trained on (``data.classes``) are left
    out.

    Args:
        index: The file.
        target: Dataset to train on, and its evaluation split.
        data: The ``data`` section. It must have ``shots``, on which settings of a recipe may depend.

    Raises:
        ConfigError: If ``data.shots`` is not set.
        DataError: If paths are not in the dataset or are in its evaluation split, an example is listed twice, labels
            contradict the dataset, or the file has fewer or more examples of a class than ``shots``.
    """
    split_of, labels = _facts(target)
    paths = PathIndex(split_of)
    train, val = (
        _ids(entries, role, index.path, paths, split_of, target)
        for role, entries in (("train", index.train), ("val", index.val))
    )
    if twice := set(train) & set(val):
        raise DataError(
            f"'{index.path}' lists {len(twice)} examples in both train and val: {first_few(sorted(twice))}"
        )
    pairs = [*zip(index.train, train, strict=True), *zip(index.val, val, strict=True)]
    _check_labels(pairs, labels, index.path, target)
    chosen = class_indices(target.classes, len(target.dataset.classnames)).tolist()
    train, val = ([i for i in ids if chosen[0] <= labels[i] <= chosen[-1]] for ids in (train, val))
    rows = np.array([labels[i] - chosen[0] for i in train], dtype=np.int64)
    most = int(np.bincount(rows).max(initial=0))
    shots = data.shots
    if shots is None:
        raise ConfigError(
            f"data.shots is not set, and '{index.path}' does not state it",
            hint=f"add --set data.shots={max(most, 1)}, the most examples that it lists of one class",
        )
    if most > shots:
        raise DataError(
            f"data.shots is {shots}, but '{index.path}' lists {most} train examples of one class",
            hint=f"use the file of {shots} shots, or --set data.shots={most}",
        )
    short = sampling.short_classes(rows, shots, target.classnames)
    if short and not data.allow_fewer:
        raise too_few(f"'{index.path}'", shots, short, target)
    return sampling.Manifest.create(
        dataset=target.dataset.name,
        dataset_sha256=target.dataset.fingerprint,
        seed=None,
        shots=shots,
        train=train,
        val=val,
        fewer={"train": short},
    )


def _facts(target: Target) -> tuple[dict[str, str], dict[str, int]]:
    """Return the split and the label of each id of a dataset; the same split under another name counts once."""
    aliases: Mapping[str, str] = getattr(target.dataset, "aliases", {})
    split_of: dict[str, str] = {}
    labels: dict[str, int] = {}
    for name in target.dataset.splits:
        split = target.dataset.split(name)
        split_of |= dict.fromkeys(split.inputs.ids, aliases.get(name, name))
        labels |= dict(zip(split.inputs.ids, split.labels.tolist(), strict=True))
    return split_of, labels


def _ids(
    entries: tuple[Entry, ...],
    role: str,
    path: Path,
    index: PathIndex,
    split_of: Mapping[str, str],
    target: Target,
) -> list[str]:
    """Return the id of each entry of one role.

    Raises:
        DataError: If an entry is not in the dataset, is in the evaluation split, or occurs twice.
    """
    of = f"of the {len(entries)} {role} paths in '{path}'"
    found = find_all([entry.path for entry in entries], index, split_of)
    missing = [e.path for e, id_ in zip(entries, found, strict=True) if id_ is None]
    if missing:
        raise DataError(
            f"{len(missing)} {of} are not in {target.dataset.name}: {first_few(missing)}",
            hint=f"check data.name and the file: the paths of this dataset end like '{next(iter(split_of))}'",
        )
    ids = [id_ for id_ in found if id_ is not None]
    aliases: Mapping[str, str] = getattr(target.dataset, "aliases", {})
    held_out = {"test", aliases.get(target.split, target.split)}
    evaluated = [id_ for id_ in ids if split_of[id_] in held_out]
    if evaluated:
        raise DataError(
            f"{len(evaluated)} {of} are in the split '{split_of[evaluated[0]]}' of {target.dataset.name}, which is "
            f"never trained on: {first_few(evaluated)}",
            hint="the file was drawn from another split of these images: open the dataset with that split",
        )
    if twice := [id_ for id_, n in Counter(ids).items() if n > 1]:
        raise DataError(f"'{path}' lists {len(twice)} {role} examples twice: {first_few(twice)}")
    return ids


def _check_labels(
    pairs: Sequence[tuple[Entry, str]], labels: Mapping[str, int], path: Path, target: Target
) -> None:
    """Check that labels in the file and classes of the dataset correspond one to one.

    Raises:
        DataError: If they do not.
    """
    names = target.dataset.classnames
    class_of: dict[int | str, int] = {}
    label_of: dict[int, int | str] = {}
    for entry, id_ in pairs:
        if entry.label is None:
            continue
        own = labels[id_]
        there = class_of.setdefault(entry.label, own)
        before = label_of.setdefault(own, entry.label)
        if there != own or before != entry.label:
            what = (
                f"the label {entry.label!r} to images of '{names[there]}' and of '{names[own]}'"
                if there != own
                else f"the labels {before!r} and {entry.label!r} to images of '{names[own]}'"
            )
            raise DataError(
                f"'{path}' gives {what}, for example '{entry.path}'; "
                "its labels do not belong to this dataset",
                hint="a draw with labels of its own (noisy or merged ones) is a dataset of its own",
            )
