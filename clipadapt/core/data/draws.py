"""Draws: the training and validation examples of one seed, drawn, or listed in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clipadapt.core.api.data import Inputs, Split, Task, digest, thumbnail
from clipadapt.core.api.errors import DataError
from clipadapt.core.data import sampling
from clipadapt.core.data.published_draws import too_few

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from clipadapt.core.api.data import SplitName
    from clipadapt.core.data.targets import Target
    from clipadapt.core.experiments.config import Experiment
    from clipadapt.core.experiments.settings import DataConfig


@dataclass(frozen=True, slots=True)
class Draw:
    """The task of one seed.

    Attributes:
        task: Training and validation examples.
        manifest: The few-shot draw, or None.
        flags: Flags for the record.
        untrained_classes: Classes without a training example.
        calibration: The part of val that is kept to calibrate prediction sets, or None.
    """

    task: Task[Any]
    manifest: sampling.Manifest | None
    flags: tuple[str, ...]
    untrained_classes: tuple[str, ...] = ()
    calibration: Split[Any] | None = None


class Draws:
    """Draws by data, settings and seed: fits that differ only in method or model share one.

    Args:
        most: Draws that are kept, those used last; None keeps all.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self._made: dict[
            tuple[Any, ...], tuple[Target, Draw]
        ] = {}  # a target keeps its dataset, and so the id

    def get(
        self, target: Target, experiment: Experiment, manifest: sampling.Manifest | None, seed: int
    ) -> Draw:
        """Return the draw of :func:`draw_task`, made once."""
        key = (
            id(target.dataset), target.split, target.classes, target.classnames, target.templates,
            experiment.config.data.model_dump_json(), manifest and manifest.sha256, seed,
        )  # fmt: skip
        known = self._made.pop(key, None)
        self._made[key] = known or (target, draw_task(target, experiment, manifest, seed))
        if self.most is not None and len(self._made) > self.most:
            del self._made[next(iter(self._made))]
        return self._made[key][1]


def draw_task(
    target: Target, experiment: Experiment, manifest: sampling.Manifest | None, seed: int
) -> Draw:
    """Draw the training and validation examples of a seed; the evaluation split is never read.

    Args:
        target: Dataset to train on, and its evaluation split.
        experiment: The experiment.
        manifest: Few-shot draw to use instead of a new one.
        seed: Seed of the draw.

    Raises:
        DataError: If there are too few examples, or the manifest does not match the data.
    """
    dataset, data = target.dataset, experiment.config.data
    # The evaluation split is not trained on under an alias, either.
    aliases: Mapping[str, str] = getattr(dataset, "aliases", {})
    evaluated = aliases.get(target.split, target.split)

    def part(name: SplitName) -> Split[Any] | None:
        if evaluated == "all":
            return None  # nothing is left to train or select on
        if name not in dataset.splits or aliases.get(name, name) == evaluated:
            return None
        return target.split_of(name)

    train, val = part("train"), part("val")
    fewer = False
    if manifest is not None:
        both = train, val
        train = _from_manifest(*both, manifest, "train", target)
        val = _from_manifest(*both[::-1], manifest, "val", target)
        fewer = _has_fewer(train, manifest, target, data)
    elif data.shots is not None:
        train, val, manifest = _few_shot(target, train, val, data, seed)
    flags: tuple[str, ...] = ()
    if manifest is not None and (manifest.fewer or fewer):
        flags = ("allow_fewer",)
    val, calibration = _held_out(val, data.calibration_share, target)
    names = target.classnames
    trained = range(len(names)) if train is None else np.unique(train.labels).tolist()
    untrained = tuple(names[c] for c in sorted(set(range(len(names))) - set(trained)))
    if untrained:
        flags += ("class_missing_in_train",)
    task = Task(
        names,
        target.templates,
        _renamed(train, names),
        _renamed(val, names),
        few_shot=manifest is not None,
    )
    return Draw(task, manifest, flags, untrained, _renamed(calibration, names))


def _held_out(
    val: Split[Any] | None, share: float, target: Target
) -> tuple[Split[Any] | None, Split[Any] | None]:
    """Return val without a share of it, and that share, chosen by a hash of the ids.

    Raises:
        DataError: If there is no val split, or a part would be empty.
    """
    if not share:
        return val, None
    n = 0 if val is None else len(val)
    held = round(share * n)
    if val is None or not 0 < held < n:
        raise DataError(
            f"data.calibration_share={share:g} keeps {held} of the {n} val examples of {target.dataset.name}, "
            "and at least one must be kept and one left",
            hint="change the share, or use a dataset with a larger val split",
        )
    hashes = [
        hashlib.sha256(f"calibration {id_}".encode(errors="surrogateescape")).digest()
        for id_ in val.inputs.ids
    ]
    order = np.array(sorted(range(n), key=lambda i: hashes[i]))
    return val.take(np.sort(order[held:])), val.take(np.sort(order[:held]))


def _few_shot(
    target: Target,
    train: Split[Any] | None,
    val: Split[Any] | None,
    data: DataConfig,
    seed: int,
) -> tuple[Split[Any], Split[Any] | None, sampling.Manifest]:
    """Draw ``data.shots`` training examples per class, and up to four validation examples."""
    dataset, shots = target.dataset, data.shots
    assert shots is not None
    if train is None:
        raise DataError(
            f"{dataset.name} has no train split to draw {shots} shots from{_is_evaluated(target, 'train')}",
            hint="remove data.shots, or use a dataset with a train split",
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


def _from_manifest(
    split: Split[Any] | None,
    other: Split[Any] | None,
    manifest: sampling.Manifest,
    role: sampling.Role,
    target: Target,
) -> Split[Any] | None:
    """Return the examples that a manifest lists, or None if it lists none.

    A published draw may take its val from what is train here, and the reverse: ``other`` is searched too.
    """
    wanted = getattr(manifest, role)
    if not wanted:
        return None
    if split is None and other is not None and set(wanted) <= set(other.inputs.ids):
        split = other
    if split is None:
        raise DataError(
            f"the manifest draws from the split '{role}', but {target.dataset.name} has none"
            f"{_is_evaluated(target, role)}",
            hint="evaluate another split with --set evaluation.split=test",
        )
    if other is not None and not set(wanted) <= set(split.inputs.ids):
        split = joined(split, other)
    return split.take(sampling.apply(manifest, split.inputs.ids, role=role))


def _has_fewer(
    train: Split[Any] | None, manifest: sampling.Manifest, target: Target, data: DataConfig
) -> bool:
    """Return whether classes have fewer training examples than the manifest's shots, beyond those it states itself.

    Raises:
        DataError: If so, and ``data.allow_fewer`` is not set.
    """
    labels = np.empty(0, dtype=np.int64) if train is None else train.labels
    short = sampling.short_classes(labels, manifest.shots, target.classnames)
    if len(short) <= len(manifest.fewer.get("train", {})):
        return False
    if not data.allow_fewer:
        raise too_few("the manifest", manifest.shots, short, target)
    return True


class _Joined(Sequence[Any]):
    """The examples of two sequences, one after the other."""

    def __init__(self, first: Sequence[Any], second: Sequence[Any]) -> None:
        self.both = (first, second)

    def __len__(self) -> int:
        return len(self.both[0]) + len(self.both[1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        examples, at = self._at(index)
        return examples[at]

    def digest(self, index: int) -> bytes:
        return digest(*self._at(index))

    def thumbnail(self, index: int) -> NDArray[np.uint8]:
        return thumbnail(*self._at(index))

    def _at(self, index: int) -> tuple[Sequence[Any], int]:
        first, second = self.both
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        at = index % len(self)
        return (first, at) if at < len(first) else (second, at - len(first))


def joined(first: Split[Any], second: Split[Any]) -> Split[Any]:
    """Return the examples of two splits with the same classes, one after the other."""
    return Split(
        Inputs(
            _Joined(first.inputs.examples, second.inputs.examples),
            (*first.inputs.ids, *second.inputs.ids),
        ),
        np.concatenate([first.labels, second.labels]),
        first.classnames,
    )


def _is_evaluated(target: Target, role: str) -> str:
    """Return the explanation for a split that is missing because it is the evaluation split."""
    return " to train on: it is the evaluation split" if target.split == role else ""


def _renamed(split: Split[Any] | None, classnames: tuple[str, ...]) -> Split[Any] | None:
    return None if split is None else Split(split.inputs, split.labels, classnames)
