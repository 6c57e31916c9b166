"""The leakage guard: duplicates between what may be learnt from and what is judged.

Exact: equal content by digest. Near: texts by their words (:mod:`clipadapt.core.data.duplicates`), images by a
perceptual hash: thumbnails of 16 x 16 pixels, compared by the cosine of their gradients in all three channels. The
hash keeps real values where dHash keeps signs, for on line drawings, mostly white, the signs are noise. A copy that
was rescaled, compressed again or changed in contrast keeps a cosine above 0.98, one with 1 % cut from each side is
near 0.97; the most alike of different emoji reach 0.91, of different sketches (thin guitars on white) 0.94, of
photographs 0.82. A mirrored copy or a tighter crop is not found; features see more, see
:func:`cosine_neighbours`.

Only the runner calls it, after the fit: the split judged is not touched before. It returns counts and a few ids, never
examples.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.data import Dataset, Inputs

log = logging.getLogger(__name__)

VERSION: Final = 3
"""Raised when the same data come to give other counts; part of the cache's key."""
NEAR_IMAGE: Final = 0.95
"""Cosine of the gradients of two thumbnails from which two images count as near-duplicates."""
MAX_NEAR: Final = 20_000
"""Data sets of more examples are searched for exact duplicates only: to decode them all would take long."""
SHOWN: Final = 3
FLAT: Final = 64.0
"""Norm of gradients, in grey levels, below which a thumbnail is one even area and resembles nothing."""

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
    """What the guard found between the data learnt from and the split judged.

    Attributes:
        overlaps: One for each pair of splits, the judged split's first.
        near_by: How near-duplicates were looked for, None where they were not.
        shared_classes: Class names judged that were learnt, too; None where they are the same list.
    """

    overlaps: tuple[Overlap, ...]
    near_by: Literal["thumbnails", "words"] | None
    shared_classes: NonNegativeInt | None = None

    def flags(self, n: int) -> tuple[str, ...]:
        """Return the flags of a record: ``leakage`` into the evaluation split, ``duplicates_train_val`` before it.

        Where every example of it has a copy in one split, it is that split, whatever its name: ``evaluated_on_train``.

        Args:
            n: Examples in the evaluation split, also those that a limit leaves out.
        """
        into = [o for o in self.overlaps if not o.before]
        whole = tuple(f"evaluated_on_{o.trained}" for o in into if o.exact >= n > 0)
        leaks = any(o.found for o in into)
        before = any(o.found for o in self.overlaps if o.before)
        return whole + ("leakage",) * leaks + ("duplicates_train_val",) * before


def examine(
    home: Dataset[Any], held_out: SplitName, target: Dataset[Any], judged: SplitName
) -> LeakageFacts:
    """Look for duplicates between what may be learnt from and what is judged; cached by both fingerprints.

    Args:
        home: Data set learnt from.
        held_out: Split of ``home`` that is never learnt from.
        target: Data set judged on.
        judged: Its split.
    """
    same = home.fingerprint == target.fingerprint
    learnt = tuple(s for s in learnable(home, held_out) if not (same and s == judged))
    path = _cached(home, learnt, target, judged)
    try:
        return LeakageFacts.model_validate(read_sealed_json(path))
    except FileNotFoundError:
        pass  # not looked at yet
    except (OSError, ValueError, RecursionError) as err:
        log.warning("%s is damaged (%s); duplicates are looked for again", path, err)
    facts = _examine(home, learnt, target, judged)
    try:
        write_sealed_json(path, facts.model_dump(mode="json"))
    except OSError:
        return facts  # a cache that cannot be written only costs the next look
    return facts


def learnable(dataset: Dataset[Any], held_out: SplitName) -> tuple[SplitName, ...]:
    """Return the splits that a run which holds one out may learn from, under whichever name they go."""
    aliases: dict[SplitName, SplitName] = getattr(dataset, "aliases", {})
    held = aliases.get(held_out, held_out)
    names: tuple[SplitName, ...] = ("train", "val")
    return tuple(s for s in names if s in dataset.splits and aliases.get(s, s) != held)


def class_overlap(base: Sequence[str], new: Sequence[str]) -> tuple[str, ...]:
    """Return the names among ``new`` that ``base`` has, too, up to case, punctuation and underscores."""
    known = {normalise(name) for name in base}
    return tuple(name for name in new if normalise(name) in known)


def cosine_neighbours(
    learnt: NDArray[np.floating[Any]], judged: NDArray[np.floating[Any]], threshold: float
) -> NDArray[np.int64]:
    """Return for each judged example the learnt one it is nearest to, -1 where none is near enough.

    Args:
        learnt: Vectors of shape ``(n, D)``: features of any model.
        judged: Vectors of shape ``(m, D)``.
        threshold: Cosine from which two count as near; one of all zeros is near nothing.
    """
    nearest = np.full(len(judged), -1, dtype=np.int64)
    best = np.full(len(judged), threshold - 1e-6)
    right = _unit(judged)
    for start in range(0, len(learnt), _BLOCK):
        cosine = _unit(learnt[start : start + _BLOCK]) @ right.T  # (b, m)
        rows = cosine.argmax(axis=0)
        value = cosine[rows, np.arange(len(right))]
        better = value > best
        nearest[better], best[better] = rows[better] + start, value[better]
    return nearest


def gradients(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the perceptual hash of thumbnails ``(n, S, S, 3)``: their gradients, 0 where all is one area."""
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
    learnt: Sequence[SplitName],
    target: Dataset[Any],
    judged: SplitName,
) -> LeakageFacts:
    total = sum(len(home.split(s)) for s in learnt) + len(target.split(judged))
    look = _search_of(target.split(judged).inputs) if total <= MAX_NEAR else None
    overlaps = tuple(_overlap(home, s, target, judged, look) for s in learnt)
    if set(learnt) == {"train", "val"}:
        inside = _overlap(home, "train", home, "val", look)
        overlaps += (inside.model_copy(update={"before": True}),)
    return LeakageFacts(
        overlaps=overlaps,
        near_by=look[0] if look and overlaps else None,
    )


def _overlap(
    home: Dataset[Any],
    learnt: SplitName,
    other: Dataset[Any],
    judged: SplitName,
    look: _Look | None,
) -> Overlap:
    left, right = home.split(learnt).inputs, other.split(judged).inputs
    where = {content.tobytes(): i for i, content in enumerate(left.digests())}
    exact = np.array([where.get(d.tobytes(), -1) for d in right.digests()], dtype=np.int64)
    near = None if look is None else look[1](_Side(home, learnt, left), _Side(other, judged, right))
    if near is not None:
        near[exact >= 0] = -1
    pairs = [*_pairs(exact), *([] if near is None else _pairs(near))][:SHOWN]
    return Overlap(
        trained=learnt,
        evaluated=judged,
        exact=int((exact >= 0).sum()),
        near=None if near is None else int((near >= 0).sum()),
        examples=tuple((_as_text(left.ids[i]), _as_text(right.ids[j])) for i, j in pairs),
    )


class _Side:
    """One split of the two compared; equal where data and split are, so that thumbnails are made once."""

    def __init__(self, dataset: Dataset[Any], split: SplitName, inputs: Inputs[Any]) -> None:
        self.key = dataset.fingerprint, split
        self.inputs = inputs

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Side) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


_Look = tuple[Literal["thumbnails", "words"], Callable[[_Side, _Side], "NDArray[np.int64] | None"]]


def _search_of(inputs: Inputs[Any]) -> _Look | None:
    """Return how near-duplicates of such examples are found, None where there is no way."""
    if not len(inputs):
        return None
    if isinstance(inputs.examples[0], str):
        return "words", _alike_texts
    try:
        thumbnail(inputs.examples, 0)
    except ClipAdaptError:
        return "thumbnails", _alike_images  # one that cannot be decoded is an image all the same
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


@lru_cache(maxsize=3)  # train, val and what is judged
def _thumbnails(side: _Side) -> NDArray[np.uint8]:
    """Return the thumbnails of a split, shape ``(n, S, S, 3)``; black where an image cannot be decoded."""

    def one(index: int) -> NDArray[np.uint8] | None:
        try:
            return thumbnail(side.inputs.examples, index)
        except ClipAdaptError:
            return None  # a run that needs this image stops at it; one that does not must not

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


def _cached(home: Dataset[Any], learnt: Sequence[str], target: Dataset[Any], judged: str) -> Path:
    key = json.dumps([VERSION, MAX_NEAR, home.fingerprint, learnt, target.fingerprint, judged])
    return cache_dir() / "leakage" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
