"""The leakage guard: duplicates between the training and validation splits and the evaluation split.

Exact duplicates have equal content. Near-duplicates are found by words for texts
(:mod:`clipadapt.core.data.duplicates`), and for images by a perceptual hash: the cosine of the gradients of two
thumbnails of 16 x 16 pixels, over three channels. The hash keeps real values instead of the signs of dHash, which are
noise on line drawings with a white background. A copy that was rescaled, recompressed or changed in contrast has a
cosine above 0.98, and one with 1 % cropped from each side about 0.97. Different images reach at most 0.91 for emoji,
0.94 for sketches (thin guitars on white) and 0.82 for photographs. Mirrored copies and tighter crops are not found;
:func:`cosine_neighbours` on features finds more.

It is called after the fit, so that the evaluation split is not read before. It returns counts and a few
ids, never examples.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from pydantic import NonNegativeInt

from clipadapt.core.api.data import SplitName, thumbnail
from clipadapt.core.api.errors import ClipAdaptError
from clipadapt.core.api.strict import StrictModel
from clipadapt.core.data.duplicates import (
    MAX_COMPARISONS,
    comparisons,
    near_duplicates,
    normalise,
)
from clipadapt.core.files.checksums import read_sealed_json, write_sealed_json
from clipadapt.core.files.folders import cache_dir
from clipadapt.core.files.hardware import cpu_count

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.data import Dataset, Inputs

log = logging.getLogger(__name__)

VERSION: Final = 3
"""Part of the cache key; increased when the same data give other counts, or the format changes."""
NEAR_IMAGE: Final = 0.95
"""Minimum cosine of the thumbnail gradients of near-duplicate images."""
MAX_NEAR: Final = 20_000
"""Datasets with more examples are searched only for exact duplicates, because decoding takes too long."""
SHOWN: Final = 3
FLAT: Final = 64.0
"""Norm of gradients, in grey levels, below which a thumbnail is uniform and matches nothing."""

_BLOCK: Final = 2048


class Overlap(StrictModel):
    """Duplicates between two splits.

    Attributes:
        trained: Split used for training, or for selection.
        evaluated: Split whose examples are counted.
        exact: Examples of ``evaluated`` whose content is also in ``trained``.
        near: Other examples of ``evaluated`` that are nearly equal to one in ``trained``; None if not searched.
        examples: Ids of the first pairs, (trained, evaluated).
        before: Whether ``evaluated`` is the val split of the training data and not the record's evaluation split.
    """

    trained: SplitName
    evaluated: SplitName
    exact: NonNegativeInt
    near: NonNegativeInt | None
    examples: tuple[tuple[str, str], ...] = ()
    before: bool = False

    @property
    def found(self) -> int:
        """Exact and near duplicates together."""
        return self.exact + (self.near or 0)


class LeakageFacts(StrictModel):
    """Duplicates between the training data and the evaluation split.

    Attributes:
        overlaps: One for each pair of splits, those with the evaluation split first.
        near_by: How near-duplicates were searched, or None if they were not.
        shared_classes: Number of evaluated class names that were also trained; None if both lists are the same.
    """

    overlaps: tuple[Overlap, ...]
    near_by: Literal["thumbnails", "words"] | None
    shared_classes: NonNegativeInt | None = None

    def flags(self, n: int) -> tuple[str, ...]:
        """Return the flags of a record: ``leakage``, ``duplicates_train_val`` and ``evaluated_on_*``.

        If every evaluated example has a copy in one split, the flag is ``evaluated_on_train`` or ``_val``.

        Args:
            n: Examples in the evaluation split, including those left out by a limit.
        """
        into = [o for o in self.overlaps if not o.before]
        whole = tuple(f"evaluated_on_{o.trained}" for o in into if o.exact >= n > 0)
        leaks = any(o.found for o in into)
        before = any(o.found for o in self.overlaps if o.before)
        return whole + ("leakage",) * leaks + ("duplicates_train_val",) * before


def examine(
    home: Dataset[Any], held_out: SplitName, target: Dataset[Any], evaluated: SplitName
) -> LeakageFacts:
    """Search for duplicates between the training data and an evaluation split; cached by both fingerprints.

    Args:
        home: Dataset that is trained on.
        held_out: Split of ``home`` that is never trained on.
        target: Dataset that is evaluated.
        evaluated: Its evaluation split.
    """
    same = home.fingerprint == target.fingerprint
    trained = tuple(s for s in trainable(home, held_out) if not (same and s == evaluated))
    path = _cached(home, trained, target, evaluated)
    try:
        return LeakageFacts.model_validate(read_sealed_json(path))
    except FileNotFoundError:
        pass  # not searched yet
    except (OSError, ValueError, RecursionError) as err:
        log.warning("%s is damaged (%s); duplicates are searched again", path, err)
    facts = _examine(home, trained, target, evaluated)
    try:
        write_sealed_json(path, facts.model_dump(mode="json"))
    except OSError:
        return facts  # an unwritable cache: the next run searches again
    return facts


def trainable(dataset: Dataset[Any], held_out: SplitName) -> tuple[SplitName, ...]:
    """Return the splits that a run may train or select on if one split is held out, considering aliases."""
    if held_out == "all":
        return ()
    aliases: dict[SplitName, SplitName] = getattr(dataset, "aliases", {})
    held = aliases.get(held_out, held_out)
    names: tuple[SplitName, ...] = ("train", "val")
    return tuple(s for s in names if s in dataset.splits and aliases.get(s, s) != held)


@dataclass(frozen=True, slots=True)
class Copies:
    """Which examples of one set are also in another.

    Attributes:
        exact: Index in the first set of the equal example, for each of the second; -1 without one. Shape ``(m,)``.
        near: The same for examples that are nearly equal and not equal; None if they were not searched.
    """

    exact: NDArray[np.int64]
    near: NDArray[np.int64] | None


def find_copies(first: Inputs[Any], second: Inputs[Any]) -> Copies:
    """Return the examples of ``second`` that are also in ``first``, by content."""
    search = _search_of(second) if len(first) + len(second) <= MAX_NEAR else None
    left, right = (_Side(x.digests().tobytes(), x) for x in (first, second))
    return _copies(left, right, search)


def find_exact_copies(first: Inputs[Any], second: Inputs[Any]) -> NDArray[np.int64]:
    """Return the index in ``first`` of the equal example, for each of ``second``; -1 without one. Shape ``(m,)``."""
    where = {content.tobytes(): i for i, content in enumerate(first.digests())}
    return np.array([where.get(d.tobytes(), -1) for d in second.digests()], dtype=np.int64)


def class_overlap(base: Sequence[str], new: Sequence[str]) -> tuple[str, ...]:
    """Return the names in ``new`` that are also in ``base``, ignoring case, punctuation and underscores."""
    known = {normalise(name) for name in base}
    return tuple(name for name in new if normalise(name) in known)


def cosine_neighbours(
    trained: NDArray[np.floating[Any]], evaluated: NDArray[np.floating[Any]], threshold: float
) -> NDArray[np.int64]:
    """Return the index of the nearest training example of each evaluated one, or -1 if none is near enough.

    Args:
        trained: Vectors of shape ``(n, D)``, such as features.
        evaluated: Vectors of shape ``(m, D)``.
        threshold: Minimum cosine; a zero vector is near nothing.
    """
    nearest = np.full(len(evaluated), -1, dtype=np.int64)
    best = np.full(len(evaluated), threshold - 1e-6)
    right = _unit(evaluated)
    for start in range(0, len(trained), _BLOCK):
        cosine = _unit(trained[start : start + _BLOCK]) @ right.T  # (b, m)
        rows = cosine.argmax(axis=0)
        value = cosine[rows, np.arange(len(right))]
        better = value > best
        nearest[better], best[better] = rows[better] + start, value[better]
    return nearest


def gradients(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the perceptual hash of thumbnails ``(n, S, S, 3)``: their gradients, or 0 for a uniform thumbnail."""
    pixels = thumbnails.astype(np.float32)
    n = len(pixels)
    down = np.diff(pixels, axis=1).reshape(n, -1)
    across = np.diff(pixels, axis=2).reshape(n, -1)
    found = np.concatenate([down, across], axis=1)
    found[np.linalg.norm(found, axis=1) < FLAT] = 0
    return found


# ---------------------------------------------------------------- the search


def _examine(
    home: Dataset[Any],
    trained: Sequence[SplitName],
    target: Dataset[Any],
    evaluated: SplitName,
) -> LeakageFacts:
    total = sum(len(home.split(s)) for s in trained) + len(target.split(evaluated))
    search = _search_of(target.split(evaluated).inputs) if total <= MAX_NEAR else None
    overlaps = tuple(_overlap(home, s, target, evaluated, search) for s in trained)
    if set(trained) == {"train", "val"}:
        inside = _overlap(home, "train", home, "val", search)
        overlaps += (inside.model_copy(update={"before": True}),)
    return LeakageFacts(
        overlaps=overlaps,
        near_by=search[0] if search and overlaps else None,
    )


def _overlap(
    home: Dataset[Any],
    trained: SplitName,
    other: Dataset[Any],
    evaluated: SplitName,
    search: _Search | None,
) -> Overlap:
    left, right = home.split(trained).inputs, other.split(evaluated).inputs
    sides = (
        _Side((home.fingerprint, trained), left),
        _Side((other.fingerprint, evaluated), right),
    )
    found = _copies(*sides, search)
    exact, near = found.exact, found.near
    pairs = [*_pairs(exact), *([] if near is None else _pairs(near))][:SHOWN]
    return Overlap(
        trained=trained,
        evaluated=evaluated,
        exact=int((exact >= 0).sum()),
        near=None if near is None else int((near >= 0).sum()),
        examples=tuple((_as_text(left.ids[i]), _as_text(right.ids[j])) for i, j in pairs),
    )


def _copies(left: _Side, right: _Side, search: _Search | None) -> Copies:
    exact = find_exact_copies(left.inputs, right.inputs)
    near = None if search is None else search[1](left, right)
    if near is not None:
        near[exact >= 0] = -1
    return Copies(exact, near)


class _Side:
    """One of two compared sets; equal if their keys are, so that thumbnails are computed once."""

    def __init__(self, key: Hashable, inputs: Inputs[Any]) -> None:
        self.key, self.inputs = key, inputs

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Side) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


_Search = tuple[
    Literal["thumbnails", "words"], Callable[[_Side, _Side], "NDArray[np.int64] | None"]
]


def _search_of(inputs: Inputs[Any]) -> _Search | None:
    """Return how near-duplicates of such examples are found, or None if they cannot be."""
    if not len(inputs):
        return None
    if isinstance(inputs.examples[0], str):
        return "words", _alike_texts
    try:
        thumbnail(inputs.examples, 0)
    except ClipAdaptError:
        return "thumbnails", _alike_images  # an image, though it cannot be decoded
    except TypeError:
        return None
    return "thumbnails", _alike_images


def _alike_texts(left: _Side, right: _Side) -> NDArray[np.int64] | None:
    texts = [*left.inputs.examples, *right.inputs.examples]
    if comparisons(texts) > MAX_COMPARISONS:
        return None
    n = len(left.inputs)
    nearest = np.full(len(right.inputs), -1, dtype=np.int64)
    for i, j, _ in near_duplicates(texts):
        if i < n <= j:
            nearest[j - n] = i
    return nearest


def _alike_images(left: _Side, right: _Side) -> NDArray[np.int64]:
    return cosine_neighbours(
        gradients(_thumbnails(left)), gradients(_thumbnails(right)), NEAR_IMAGE
    )


@lru_cache(maxsize=3)  # train, val and the evaluation split
def _thumbnails(side: _Side) -> NDArray[np.uint8]:
    """Return the thumbnails of a split, shape ``(n, S, S, 3)``; one that cannot be decoded is black."""

    def one(index: int) -> NDArray[np.uint8] | None:
        try:
            return thumbnail(side.inputs.examples, index)
        except ClipAdaptError:
            return None  # only a run that needs this image fails

    with ThreadPoolExecutor(cpu_count()) as pool:
        found = list(pool.map(one, range(len(side.inputs))))
    shape = next((f.shape for f in found if f is not None), (1, 1, 3))
    return np.stack([np.zeros(shape, dtype=np.uint8) if f is None else f for f in found])


def _unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    values = vectors.astype(np.float32)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return values


def _pairs(nearest: NDArray[np.int64]) -> list[tuple[int, int]]:
    return [(int(nearest[j]), int(j)) for j in np.flatnonzero(nearest >= 0)]


def _as_text(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


def _cached(
    home: Dataset[Any], trained: Sequence[str], target: Dataset[Any], evaluated: str
) -> Path:
    key = json.dumps([VERSION, MAX_NEAR, home.fingerprint, trained, target.fingerprint, evaluated])
    return cache_dir() / "leakage" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
