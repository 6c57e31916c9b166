"""From a config to the examples that are learnt from and judged on: class names, templates, draws, targets."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from clipadapt.core.api.data import DatasetOptions, Split, Task
from clipadapt.core.api.errors import DataError, did_you_mean
from clipadapt.core.api.model import ReadsNames
from clipadapt.core.api.registry import DATASETS, tracks
from clipadapt.core.api.user_input import read_text, user_path
from clipadapt.core.data import sampling
from clipadapt.core.data.labelled import class_key, is_number
from clipadapt.core.files import safe_yaml as _yaml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from clipadapt.core.api.data import Classes, Dataset, SplitName
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.experiments.config import DataConfig, Experiment

MAX_LIST_BYTES: Final = 100 << 20  # of class names or templates
UNKNOWN_SHARE: Final = 0.02  # of the tokens of class names; above it every table says so


@dataclass(frozen=True, slots=True)
class Target:
    """Where a fit is judged.

    Attributes:
        dataset: The open data set.
        split: Its split.
        classnames: Class names that go into prompts, in the order of its labels.
        templates: Templates that go into prompts.
        flags: Facts that every record of this target carries.
        classes: Which classes are judged; of a target that is learnt from, learnt too.
    """

    dataset: Dataset[Any]
    split: SplitName
    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    flags: tuple[str, ...]
    classes: Classes = "all"

    @property
    def title(self) -> str:
        """Data set, split and classes, for people."""
        which = "" if self.classes == "all" else f", {self.classes} classes"
        return f"{self.dataset.name} ({self.split}{which})"

    def split_of(self, name: SplitName) -> Split[Any]:
        """Return a split of the data set with the target's classes alone, labels counted from 0."""
        whole = self.dataset.split(name)
        if self.classes == "all":
            return whole
        chosen = class_indices(self.classes, len(self.dataset.classnames))
        split = whole.take(np.flatnonzero(np.isin(whole.labels, chosen)))
        return Split(split.inputs, split.labels - chosen[0], self.classnames)

    def examples(self, limit: int | None) -> Split[Any]:
        """Return what is judged, at most ``limit`` examples: a fixed draw by id.

        Raises:
            DataError: If there is nothing to judge.
        """
        split = self.split_of(self.split)
        if limit is not None and limit < len(split):
            order = sorted(range(len(split)), key=lambda i: _digest(split.inputs.ids[i]))
            split = split.take(np.array(sorted(order[:limit]), dtype=np.int64))
        if not len(split):
            raise DataError(f"the split '{self.split}' of {self.dataset.name} is empty")
        return split


@dataclass(frozen=True, slots=True)
class Draw:
    """The task of one seed.

    Attributes:
        task: What may be learned from.
        manifest: The few-shot draw, or None.
        flags: Flags for the record.
        untaught: Classes without a training example.
    """

    task: Task[Any]
    manifest: sampling.Manifest | None
    flags: tuple[str, ...]
    untaught: tuple[str, ...] = ()


_PARTS: Final = ("name", "classnames", "splits", "split", "fingerprint")


class OpenSets:
    """Data sets by name, each opened once, and what is told of them told once."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str, str], Dataset[Any]] = {}
        self._told: set[str] = set()

    def tell(self, progress: Progress, message: str) -> None:
        """Show a line, unless it was shown before."""
        if message not in self._told:
            self._told.add(message)
            progress.note(message)

    def get(self, name: str, data: DataConfig, track: str, progress: Progress) -> Dataset[Any]:
        """Open a data set, or return the one that is open.

        Raises:
            DataError: If it cannot be opened.
            UnknownNameError: If there is no such data set.
        """
        key = (track, name, data.on_bad_image)
        if key not in self._open:
            resolved = DATASETS.resolve(name, track)
            dataset = resolved.provider(resolved.argument, DatasetOptions(data.on_bad_image))
            lacking = [part for part in _PARTS if not hasattr(dataset, part)]
            if lacking:
                raise DataError(
                    f"the provider of '{name}' returned {dataset!r:.80}, which lacks {', '.join(lacking)}",
                    hint="return a clipadapt.core.data.labelled.LabelledSet",
                )
            if inventory := getattr(dataset, "inventory", ""):
                self.tell(progress, f"{dataset.name}: {inventory}")
            for note in getattr(dataset, "notes", ()):
                self.tell(progress, f"warning: {note}")
            self._open[key] = dataset
        return self._open[key]


def open_target(
    name: str,
    split: SplitName,
    data: DataConfig,
    track: str,
    progress: Progress,
    opened: OpenSets | None = None,
) -> Target:
    """Open a data set and check that it can be judged on.

    Args:
        name: Data set, as ``--dataset`` takes it.
        split: Split that is judged.
        data: Settings of the data.
        track: ``clip`` or ``text``.
        progress: Where warnings are shown.
        opened: Data sets that are open already.

    Raises:
        DataError: If it cannot be opened, lacks the split, or its files of names or templates are wrong.
        UnknownNameError: If there is no such data set.
    """
    opened = opened or OpenSets()
    dataset = opened.get(name, data, track, progress)
    if split not in dataset.splits:
        other = dataset.splits[-1]
        raise DataError(
            f"{dataset.name} has no split '{split}'; it has {', '.join(dataset.splits)}",
            hint=f"add --set evaluation.split={other} (zeroshot: --split {other})",
        )
    flags = list(dataset.flags)
    classnames, pairing = read_classnames(data.classnames, dataset)
    if pairing:
        opened.tell(progress, f"{dataset.name}: class names by position: {pairing}")
    pairs = duplicate_names(classnames)
    if pairs and tracks()[track].reads_classnames:
        shown = "; ".join(f"'{a}' and '{b}'" for a, b in pairs[:3])
        opened.tell(
            progress,
            f"warning: {dataset.name} has class names that are the same text: {shown}; "
            "no prompt can tell these classes apart",
        )
        flags.append("duplicate_classnames")
    if tracks()[track].reads_classnames and all(map(is_number, classnames)):
        opened.tell(
            progress,
            f"warning: {dataset.name}: the classes have numbers for names, {classnames[0]} to {classnames[-1]}, which "
            "mean nothing in a prompt: name them with --classnames FILE (run: --set data.classnames=FILE)",
        )
    templates = read_templates(data.templates, dataset, tracks()[track].template_sets)
    chosen = class_indices(data.classes, len(classnames))
    names = tuple(classnames[c] for c in chosen)
    return Target(dataset, split, names, templates, tuple(flags), data.classes)


def class_indices(classes: Classes, n_classes: int) -> NDArray[np.int64]:
    """Return the labels of ``all`` classes, of the ``base`` ones, or of the ``new`` ones, ascending.

    Raises:
        DataError: If there are too few classes to be split in two.
    """
    if classes == "all":
        return np.arange(n_classes, dtype=np.int64)
    base, new = sampling.base_new_classes(n_classes)
    return base if classes == "base" else new


def draw_task(
    target: Target, experiment: Experiment, manifest: sampling.Manifest | None, seed: int
) -> Draw:
    """Draw the training and validation examples of a seed; what is judged is not touched.

    Raises:
        DataError: If there are too few examples, or the manifest does not fit the data.
    """
    dataset, data = target.dataset, experiment.config.data
    # What is judged is never learnt from, under whichever name it goes.
    aliases: Mapping[str, str] = getattr(dataset, "aliases", {})
    judged = aliases.get(target.split, target.split)

    def part(name: SplitName) -> Split[Any] | None:
        if name not in dataset.splits or aliases.get(name, name) == judged:
            return None
        return target.split_of(name)

    train, val = part("train"), part("val")
    if manifest is not None:
        train = _chosen(train, manifest, "train", target)
        val = _chosen(val, manifest, "val", target)
    elif data.shots is not None:
        train, val, manifest = _few_shot(target, train, val, data, seed)
    flags: tuple[str, ...] = ("allow_fewer",) if manifest is not None and manifest.fewer else ()
    names = target.classnames
    taught = range(len(names)) if train is None else np.unique(train.labels).tolist()
    untaught = tuple(names[c] for c in sorted(set(range(len(names))) - set(taught)))
    if untaught:
        flags += ("class_missing_in_train",)
    task = Task(
        names,
        target.templates,
        _renamed(train, names),
        _renamed(val, names),
        few_shot=manifest is not None,
    )
    return Draw(task, manifest, flags, untaught)


def _few_shot(
    target: Target,
    train: Split[Any] | None,
    val: Split[Any] | None,
    data: DataConfig,
    seed: int,
) -> tuple[Split[Any], Split[Any] | None, sampling.Manifest]:
    dataset, shots = target.dataset, data.shots
    assert shots is not None
    if train is None:
        raise DataError(
            f"{dataset.name} has no train split to draw {shots} shots from{_judged(target, 'train')}",
            hint="leave data.shots away, or take a data set with a train split",
        )
    fewer: dict[sampling.Role, dict[str, int]] = {}

    def draw(split: Split[Any], k: int, role: sampling.Role) -> Split[Any]:
        fewer[role] = sampling.short_classes(split.labels, k, target.classnames)
        rows = sampling.draw(
            split.inputs.ids,
            split.labels,
            k,
            seed,
            role=role,
            allow_fewer=data.allow_fewer,
            classnames=target.classnames,
        )
        return split.take(rows)

    drawn = draw(train, shots, "train")
    drawn_val = None if val is None else draw(val, sampling.val_shots(shots), "val")
    manifest = sampling.Manifest.create(
        dataset=dataset.name,
        dataset_sha256=dataset.fingerprint,
        seed=seed,
        shots=shots,
        train=drawn.inputs.ids,
        val=drawn_val.inputs.ids if drawn_val else (),
        fewer=fewer,
    )
    return drawn, drawn_val, manifest


def read_classnames(path: str | None, dataset: Dataset[Any]) -> tuple[tuple[str, ...], str]:
    """Return the class names of a file, or the set's own, and the pairing of both where it must be shown.

    The file holds one name a line in the order of the classes, or says which class each name is for: lines
    ``folder<TAB>name``, ``folder: name`` or ``folder,name`` for every class, or a mapping or list in YAML or JSON.
    Names that are the classes' own in another order are put in order.

    Raises:
        DataError: If the file cannot be read or does not hold one name per class.
    """
    own = tuple(dataset.classnames)
    if path is None:
        return own, ""
    keys = tuple(getattr(dataset, "keys", ())) or own
    names = _read_names(path, keys)
    if isinstance(names, dict):
        return tuple(
            _name_of(key, name, names, path) for key, name in zip(keys, own, strict=True)
        ), ""
    if len(names) != len(own):
        shown = ", ".join(keys[:20]) + (" ..." if len(keys) > 20 else "")
        raise DataError(
            f"the class-names file {path} has {len(names)} names; {dataset.name} has {len(own)} classes: {shown}",
            hint="write one name a line, in this order, or 'CLASS<TAB>NAME' lines",
        )
    for theirs in (own, keys):
        wanted, given = list(map(class_key, theirs)), {class_key(name): name for name in names}
        if wanted == list(given):
            return tuple(names), ""
        if len(given) == len(wanted) and set(given) == set(wanted):
            return tuple(given[key] for key in wanted), ""
    pairs = [f"{key} -> {name}" for key, name in zip(keys, names, strict=True)]
    more = f" and {len(pairs) - 20} more" if pairs[20:] else ""
    return tuple(names), ", ".join(pairs[:20]) + more


def _read_names(path: str, keys: Sequence[str]) -> list[str] | dict[str, str]:
    """Return what a class-names file holds: names in order, or class -> name."""
    if PurePath(path).suffix.lower() in {".yaml", ".yml", ".json"}:
        return _structured_names(path)
    lines = _lines(path, "class names")
    for mark in ("\t", ":", "=", ",", ";"):
        cells = [[cell.strip() for cell in line.split(mark, 1)] for line in lines]
        if not lines or any(len(pair) != 2 for pair in cells):
            continue
        before = {cell[0] for cell in cells}
        # A name may hold such a mark: only where what stands before it are the classes is it a mapping.
        if mark == "\t" or before >= set(keys):
            return _once(path, [(key, name) for key, name in cells])
        if all(key.isdecimal() for key in before):
            raise DataError(
                f"the lines of the class-names file {path} begin with numbers that are not the classes: '{lines[0]}'; "
                f"the classes are {', '.join(keys[:8])}{' ...' if len(keys) > 8 else ''}",
                hint=f"write the class before the '{mark}', or names alone, one a line, in this order",
            )
    return lines


def _once(path: str, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a mapping.

    Raises:
        DataError: If a class is named twice.
    """
    twice = [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]
    if twice:
        raise DataError(
            f"the class-names file {path} names the class '{twice[0]}' more than once",
            hint="keep one name of every class",
        )
    return dict(pairs)


def _structured_names(path: str) -> list[str] | dict[str, str]:
    text = _text(path, "class names")
    accepted = "a mapping of class to name, or a list of names"
    try:
        as_json = path.lower().endswith(".json")
        value = (
            json.loads(text, object_pairs_hook=lambda pairs: _once(path, pairs))
            if as_json
            else _yaml.parse(text, words=True)
        )
    except (ValueError, RecursionError) as err:
        raise DataError(
            f"the class-names file '{path}' cannot be read: {err}", hint=f"write {accepted}"
        ) from None
    values = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(values, list) or not all(
        isinstance(v, str | int) and not isinstance(v, bool) and str(v).strip() for v in values
    ):
        raise DataError(f"the class-names file '{path}' is not {accepted}, each name a text")
    if isinstance(value, dict):
        return {str(key).strip(): str(name).strip() for key, name in value.items()}
    return [str(name).strip() for name in values]


def _name_of(key: str, name: str, names: Mapping[str, str], path: str) -> str:
    found = names.get(key, names.get(name, ""))
    if not found:
        near = did_you_mean(key, tuple(names)) or ""
        raise DataError(
            f"the class-names file {path} has no name for the class '{key}'{near or ';'} "
            f"it names {len(names)} classes: {', '.join([*names][:8])}{' ...' if len(names) > 8 else ''}",
            hint="write one line 'CLASS<TAB>NAME' for every class",
        )
    return found


def read_templates(
    choice: str, dataset: Dataset[Any], sets: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """Return the templates of ``single`` (the set's own), ``7``, ``80``, a template, or a file, one a line.

    Raises:
        DataError: If the file cannot be read, is empty, or a template lacks its ``{}``.
    """
    if choice == "single":
        return tuple(dataset.templates)
    if choice in sets:
        return sets[choice]
    if choice.count("{}") == 1:
        return (choice,)
    if not user_path(choice).exists():
        raise DataError(
            f"no templates '{choice}'; accepted: {', '.join(('single', *sets))}, a template with '{{}}', or a file",
            hint="write a file with one template a line, such as 'a photo of a {}.'",
        )
    lines = _lines(choice, "templates")
    bad = [line for line in lines if line.count("{}") != 1]
    if bad:
        raise DataError(
            f"the template '{bad[0]}' in {choice} needs exactly one '{{}}' for the class name",
            hint="for example 'a photo of a {}.'",
        )
    if not lines:
        raise DataError(f"the templates file {choice} is empty", hint="write one template a line")
    return tuple(lines)


def duplicate_names(classnames: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of class names that are one text after normalisation."""
    seen: dict[str, str] = {}
    pairs = []
    for name in classnames:
        key = class_key(name)
        if key in seen:
            pairs.append((seen[key], name))
        seen.setdefault(key, name)
    return pairs


def token_warnings(backbone: Any, classnames: Sequence[str]) -> dict[str, str]:
    """Return the flags of class names that the model cannot tell apart or does not know, each with its reason.

    Args:
        backbone: The model; what does not read names gives no warning.
        classnames: The class names that go into prompts.
    """
    if not isinstance(backbone, ReadsNames):
        return {}
    tokens = backbone.name_tokens(classnames)
    same: dict[tuple[int, ...], list[str]] = {}
    for name, (ids, _) in zip(classnames, tokens, strict=True):
        same.setdefault(ids, []).append(name)
    found = {}
    # What is equal as text was told when the data set was opened.
    alike = [names for names in same.values() if len(set(map(class_key, names))) > 1]
    if alike:
        shown = "; ".join(" = ".join(f"'{name}'" for name in names[:5]) for names in alike[:3])
        found["duplicate_classnames"] = (
            f"the tokenizer of {backbone.name} gives these class names the same tokens: {shown}; "
            "no prompt can tell these classes apart"
        )
    unknown = [name for name, (_, n) in zip(classnames, tokens, strict=True) if n]
    share = sum(n for _, n in tokens) / max(sum(len(ids) for ids, _ in tokens), 1)
    if share > UNKNOWN_SHARE:
        found["unknown_tokens"] = (
            f"the tokenizer of {backbone.name} does not know {share:.0%} of the tokens of the class names "
            f"({len(unknown)} of {len(classnames)} names, such as '{unknown[0]}'); name the classes in its language"
        )
    return found


def classnames_sha256(classnames: Sequence[str]) -> str:
    """Return the hash that stands for the class names in their order."""
    return hashlib.sha256("\0".join(classnames).encode()).hexdigest()


def _lines(path: str, what: str) -> list[str]:
    return [line.strip() for line in _text(path, what).split("\n") if line.strip()]


def _text(path: str, what: str) -> str:
    return read_text(user_path(path), f"{what} file", MAX_LIST_BYTES)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _judged(target: Target, role: str) -> str:
    """Say that a split is missing because it is the one that is judged."""
    return " to learn from: it is the split that is judged" if target.split == role else ""


def _renamed(split: Split[Any] | None, classnames: tuple[str, ...]) -> Split[Any] | None:
    return None if split is None else Split(split.inputs, split.labels, classnames)


def _chosen(
    split: Split[Any] | None, manifest: sampling.Manifest, role: sampling.Role, target: Target
) -> Split[Any] | None:
    if not getattr(manifest, role):
        return None
    if split is None:
        raise DataError(
            f"the manifest draws from the split '{role}', which {target.dataset.name} has not"
            f"{_judged(target, role)}",
            hint="judge another split with --set evaluation.split=test",
        )
    return split.take(sampling.apply(manifest, split.inputs.ids, role=role))
