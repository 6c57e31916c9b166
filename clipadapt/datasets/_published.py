"""From published splits to train, val and test, where not all three are published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from clipadapt.core.protocols import Split, SplitName

X = TypeVar("X")
VAL_SHARE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Arranged(Generic[X]):
    """Splits as they are served, see :class:`clipadapt.core.labelled.LabelledSet`."""

    parts: Mapping[SplitName, Split[X]]
    aliases: Mapping[SplitName, SplitName]
    flags: tuple[str, ...]


def held_out(sha256: str) -> bool:
    """Tell whether an image of train belongs to the fixed tenth that serves as val."""
    return int(sha256[:16], 16) / 2**64 < VAL_SHARE


def with_val(train: Split[X], sha256s: Iterable[str]) -> dict[SplitName, Split[X]]:
    """Part a fixed tenth from ``train`` as ``val``; either is left out where it is empty.

    Args:
        train: The published train split.
        sha256s: One hash per image, which alone decides where it goes.
    """
    out = np.asarray([held_out(sha256) for sha256 in sha256s], dtype=bool)
    rows: dict[SplitName, NDArray[np.int64]] = {
        "train": np.flatnonzero(~out),
        "val": np.flatnonzero(out),
    }
    return {name: train.take(chosen) for name, chosen in rows.items() if len(chosen)}


def val_as_test(
    train: Split[X] | None, val: Split[X] | None, sha256s: Iterable[str] = ()
) -> Arranged[X]:
    """Serve a published val as ``test``, for sets whose results are reported on it.

    ``val``, from which methods select, is then a fixed tenth of train; where there is no train, ``val`` too
    is the published val.

    Args:
        train: The published train split, or None.
        val: The published val split, or None.
        sha256s: One hash per image of train.
    """
    parts = {} if train is None else with_val(train, sha256s)
    aliases: dict[SplitName, SplitName] = {}
    if val is not None:
        parts["test"] = val
        if train is None:
            parts["val"] = val
            aliases["val"] = "test"
    return Arranged(parts, aliases, ("test_is_published_val",) if val is not None else ())
