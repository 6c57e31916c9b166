"""Few-shot draws: nested, equal on every platform, and saved as a manifest.

A draw ranks the examples of a class by the sha256 of seed, role and id, and takes the first ones. So the 4-shot set of
a seed is part of its 8-shot set, and the result does not depend on the order of files or on a random generator.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import TYPE_CHECKING, Final, Literal, Self

import numpy as np
from pydantic import Field, PositiveInt, ValidationError

from clipadapt.core.api.errors import ConfigError, DataError
from clipadapt.core.api.strict import StrictModel
from clipadapt.core.files.atomic import write_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MAX_VAL_SHOTS: Final = 4
Role = Literal["train", "val"]


def draw(
    ids: Sequence[str],
    labels: NDArray[np.int64],
    shots: int,
    seed: int,
    *,
    role: str = "train",
    allow_fewer: bool = False,
    classnames: Sequence[str] | None = None,
) -> NDArray[np.int64]:
    """Draw ``shots`` examples of every class.

    Args:
        ids: ``n`` unique, stable ids.
        labels: Class indices, shape ``(n,)``.
        shots: Examples per class.
        seed: Seed of the draw.
        role: Part of the hash, so that ``train`` and ``val`` draws are independent.
        allow_fewer: Take all examples of a class that has fewer; see :func:`short_classes`.
        classnames: ``C`` class names. Without them, classes are named by index, and only those up to the largest
            label are checked.

    Returns:
        Indices into ``ids``, ordered by class, then by rank; the first ``k`` of a class are its ``k``-shot draw.

    Raises:
        ConfigError: If ``shots`` is below 1.
        DataError: If a class has fewer than ``shots`` examples and ``allow_fewer`` is not set.
        ValueError: If ids and labels differ in length.
    """
    if shots < 1:
        raise ConfigError(f"data.shots must be at least 1 (got {shots})")
    if labels.shape != (len(ids),):
        raise ValueError(f"{len(ids)} ids but labels of shape {labels.shape}")
    short = short_classes(labels, shots, classnames)
    if short and not allow_fewer:
        counts = ", ".join(f"'{name}' has {count}" for name, count in short.items())
        raise DataError(
            f"the {role} split has too few examples for {shots} shots: {counts}",
            hint="lower data.shots, or use fewer examples with '--set data.allow_fewer=true'",
        )
    if not len(ids):
        return np.empty(0, dtype=np.int64)
    # File names may not be valid UTF-8; Python represents other bytes as surrogates.
    keys = [
        hashlib.sha256(f"{seed}:{role}:{id_}".encode(errors="surrogateescape")).hexdigest()
        for id_ in ids
    ]
    order = np.lexsort((np.array(keys, dtype="S64"), labels))
    by_class = labels[order]
    rank = np.arange(len(ids)) - np.searchsorted(by_class, by_class)  # 0, 1, ... within each class
    return order[rank < shots].astype(np.int64, copy=False)


def short_classes(
    labels: NDArray[np.int64], shots: int, classnames: Sequence[str] | None = None
) -> dict[str, int]:
    """Return the classes with fewer than ``shots`` examples, and their number of examples.

    Args:
        labels: Class indices, shape ``(n,)``.
        shots: Examples wanted per class.
        classnames: ``C`` class names; classes with the same name are distinguished by index.
    """
    counts = np.bincount(labels, minlength=len(classnames) if classnames is not None else 0)
    names = list(classnames) if classnames is not None else [str(c) for c in range(len(counts))]
    same = Counter(names)
    return {
        names[c] if same[names[c]] == 1 else f"{names[c]} (class {c})": int(counts[c])
        for c in np.flatnonzero(counts < shots)
    }


def val_shots(shots: int) -> int:
    """Return the number of validation examples per class: as many as for training, but at most four."""
    return min(shots, MAX_VAL_SHOTS)


def base_new_classes(n_classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split the sorted labels for base-to-new: the first ``ceil(C / 2)``, and the rest.

    Raises:
        DataError: If there are fewer than two classes.

    References:
        K. Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, section 4.1.
    """
    if n_classes < 2:
        raise DataError(f"base-to-new needs at least 2 classes, the dataset has {n_classes}")
    base, new = np.split(np.arange(n_classes, dtype=np.int64), [(n_classes + 1) // 2])
    return base, new


class Manifest(StrictModel):
    """A draw, saved with the record and accepted as input.

    Attributes:
        version: Version of this format.
        dataset: Name of the dataset.
        dataset_sha256: Its fingerprint.
        seed: Seed of the draw; None if it was made elsewhere.
        shots: Requested examples per class.
        train: Ids of the training examples.
        val: Ids of the validation examples.
        fewer: Role (``train``, ``val``) -> class -> number of examples, for classes that had fewer.
        sha256: Hash of all other fields, see :meth:`content_sha256`.
    """

    version: Literal[1] = 1
    dataset: str
    dataset_sha256: str
    seed: int | None
    shots: PositiveInt
    train: tuple[str, ...]
    val: tuple[str, ...] = ()
    fewer: dict[Role, dict[str, int]] = Field(default_factory=dict)
    sha256: str = ""

    @classmethod
    def create(
        cls,
        *,
        dataset: str,
        dataset_sha256: str,
        seed: int | None,
        shots: int,
        train: Sequence[str],
        val: Sequence[str] = (),
        fewer: Mapping[Role, dict[str, int]] | None = None,
    ) -> Self:
        """Return a manifest with its hash."""
        manifest = cls(
            dataset=dataset,
            dataset_sha256=dataset_sha256,
            seed=seed,
            shots=shots,
            train=tuple(train),
            val=tuple(val),
            fewer={role: counts for role, counts in (fewer or {}).items() if counts},
        )
        return manifest.model_copy(update={"sha256": manifest.content_sha256()})

    def content_sha256(self) -> str:
        """Return the sha256 of all fields but ``sha256``, as compact ASCII JSON with sorted keys."""
        content = self.model_dump(exclude={"sha256"})
        return hashlib.sha256(
            json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        ).hexdigest()

    def write(self, path: Path) -> None:
        """Write the manifest as JSON, atomically."""
        # Escaped to ASCII, because an id may not be valid UTF-8.
        write_text(path, json.dumps(self.model_dump(), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a manifest and check it.

        Raises:
            DataError: If the file is missing or not a manifest, was changed after it was written, or repeats an id.
        """
        again = "restore the file, or remove the manifest from the config to draw again"
        try:
            # pydantic's own JSON parser rejects lone surrogates, which file names may contain.
            manifest = cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except OSError as err:
            raise DataError(
                f"cannot read the manifest '{path}': {err.strerror}", hint=again
            ) from err
        except ValidationError as err:
            faults = "".join(
                f"\n  {'.'.join(map(str, fault['loc'])) or 'content'}: {fault['msg']}"
                for fault in err.errors()
            )
            raise DataError(f"'{path}' is not a valid manifest:{faults}", hint=again) from err
        except (ValueError, RecursionError) as err:
            raise DataError(f"'{path}' is not a valid manifest: {err}", hint=again) from err
        if manifest.sha256 != (content := manifest.content_sha256()):
            raise DataError(
                f"the manifest '{path}' was changed after it was written: it states sha256 "
                f"'{manifest.sha256[:16]}', but its content has '{content[:16]}'",
                hint=again,
            )
        for role, ids in (("train", manifest.train), ("val", manifest.val)):
            if len(set(ids)) != len(ids):
                repeated = next(id_ for i, id_ in enumerate(ids) if id_ in ids[:i])
                raise DataError(
                    f"the manifest '{path}' lists {role} id '{repeated}' twice", hint=again
                )
        return manifest


def apply(manifest: Manifest, ids: Sequence[str], *, role: Role = "train") -> NDArray[np.int64]:
    """Return the positions of a manifest's examples in a split.

    Args:
        manifest: The draw.
        ids: ``n`` unique ids of the split.
        role: The list of the manifest to use.

    Returns:
        Indices into ``ids`` in the manifest's order.

    Raises:
        DataError: If an id is missing in the split; the message has the first three.
    """
    wanted = manifest.train if role == "train" else manifest.val
    index = {id_: i for i, id_ in enumerate(ids)}
    missing = [id_ for id_ in wanted if id_ not in index]
    if missing:
        named = ", ".join(f"'{id_}'" for id_ in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"{len(missing)} of {len(wanted)} {role} ids of the manifest are not in the dataset: {named}",
            hint=f"the manifest was drawn from '{manifest.dataset}' with sha256 "
            f"'{manifest.dataset_sha256[:16]}'; check data.name",
        )
    return np.fromiter((index[id_] for id_ in wanted), dtype=np.int64, count=len(wanted))
