"""Map published splits to train, val and test if not all three are published."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import numpy as np

from clipadapt.core.api.data import SPLITS
from clipadapt.core.data.labelled import split_evenly
from clipadapt.datasets._images import UNREADABLE, readable

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Mapping, Sequence

    from PIL.Image import Image

    from clipadapt.core.api.data import DatasetOptions, Split, SplitName

X = TypeVar("X")
SHARES: Final[dict[SplitName, float]] = {"train": 0.6, "val": 0.2, "test": 0.2}
"""Shares of the splits if a dataset has none: the hash of each file's bytes decides."""
VAL_SHARES: Final[dict[SplitName, float]] = {"val": 0.1, "train": 0.9}
"""Shares of a published train from which a val is split off."""


@dataclass(frozen=True, slots=True)
class Arranged(Generic[X]):
    """The splits of a dataset, see :class:`clipadapt.core.data.labelled.LabelledSet`."""

    parts: Mapping[SplitName, Split[X]]
    aliases: Mapping[SplitName, SplitName]
    flags: tuple[str, ...]


def with_val(train: Split[X], sha256s: Iterable[str]) -> dict[SplitName, Split[X]]:
    """Split a fixed tenth off ``train`` as ``val``; empty splits are omitted.

    Args:
        train: The published train split.
        sha256s: One hash per image, which decides its split; see :func:`split_evenly` for small classes.
    """
    where = split_evenly(list(sha256s), train.labels, VAL_SHARES)
    return by_split(train, where)


def without_unreadable(
    part: Split[Image], options: DatasetOptions, left_out: Counter[str]
) -> Split[Image]:
    """Return a split, with ``on_bad_image="skip"`` without the images that do not decode.

    Args:
        part: The split.
        options: Options of the user; with ``skip`` every image is decoded once.
        left_out: Counter to which the number of unreadable images is added.
    """
    if options.on_bad_image == "error":
        return part
    good = np.flatnonzero(readable(part.inputs.examples))
    left_out[UNREADABLE] += len(part) - len(good)
    return part.take(good)


def by_split(part: Split[X], where: Sequence[SplitName]) -> dict[SplitName, Split[X]]:
    """Split a part by the split name of each example; empty splits are omitted."""
    at = np.asarray(where)
    rows = {split: np.flatnonzero(at == split) for split in SPLITS}
    return {split: part.take(chosen) for split, chosen in rows.items() if len(chosen)}


def val_as_test(
    train: Split[X] | None, val: Split[X] | None, sha256s: Iterable[str] | None = None
) -> Arranged[X]:
    """Use a published val as ``test``, for datasets whose results are reported on val.

    ``val``, on which methods select, is then a fixed tenth of train; without train, the published val is ``val`` too.

    Args:
        train: The published train split, or None.
        val: The published val split, or None.
        sha256s: One hash per image of train; None hashes the ids.
    """
    parts: dict[SplitName, Split[X]] = {}
    if train is not None:
        if sha256s is None:
            sha256s = (hashlib.sha256(key.encode()).hexdigest() for key in train.inputs.ids)
        parts = with_val(train, sha256s)
    aliases: dict[SplitName, SplitName] = {}
    if val is not None:
        parts["test"] = val
        if train is None:
            parts["val"] = val
            aliases["val"] = "test"
    return Arranged(parts, aliases, ("test_is_published_val",) if val is not None else ())


def arranged(parts: Mapping[SplitName, Split[X]], contents: Mapping[str, str]) -> Arranged[X]:
    """Map the published splits of a dataset of unknown origin to train, val and test.

    A missing val is a fixed tenth of train, a published val without a test is ``test``, and a lone train is split
    60/20/20.

    Args:
        parts: The published splits.
        contents: Id of an example -> a sha256, which decides its split.
    """
    train, val = parts.get("train"), parts.get("val")
    hashes = [] if train is None else [contents[key] for key in train.inputs.ids]
    if "test" in parts:
        if train is None or val is not None:
            return Arranged(parts, {}, ())
        return Arranged({**with_val(train, hashes), "test": parts["test"]}, {}, ())
    if val is not None:
        return val_as_test(train, val, hashes)
    assert train is not None
    where = split_evenly(hashes, train.labels, SHARES)
    return Arranged(by_split(train, where), {}, ("split_by_hash",))
