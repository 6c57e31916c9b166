"""Few-shot draws that nest, hold on every platform, and are kept as a manifest.

A draw ranks the examples of a class by the sha256 of seed, role and id and takes the first ones: the 4-shot set of a
seed lies inside its 8-shot set, and neither the order of the files nor a random generator has a say.
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
        role: Part of the hash, so that ``train`` and ``val`` draws are unrelated.
        allow_fewer: Take all of a class that has fewer; :func:`short_classes` says which.
        classnames: ``C`` class names. Without them a class is named by its index, and only the classes up
            to the largest label are known.

    Returns:
        Indices into ``ids``, by class and within a class by rank; a class's first ``k`` are its ``k``-shot draw.

    Raises:
        ConfigError: If ``shots`` is below 1.
        DataError: If a class has fewer than ``shots`` examples and that is not allowed; names every such class.
        ValueError: If ids and labels do not fit together.
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
            hint="lower data.shots, or take what there is with '--set data.allow_fewer=true'",
        )
    if not len(ids):
        return np.empty(0, dtype=np.int64)
    # File names need not be valid UTF-8; Python holds their other bytes as surrogates.
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
    """Return the classes with fewer than ``shots`` examples and how many each has.

    Args:
        labels: Class indices, shape ``(n,)``.
        shots: Examples wanted per class.
        classnames: ``C`` class names; two classes of one name are told apart by their index.
    """
    counts = np.bincount(labels, minlength=len(classnames) if classnames is not None else 0)
    names = list(classnames) if classnames is not None else [str(c) for c in range(len(counts))]
    same = Counter(names)
    return {
        names[c] if same[names[c]] == 1 else f"{names[c]} (class {c})": int(counts[c])
        for c in np.flatnonzero(counts < shots)
    }


def val_shots(shots: int) -> int:
    """Return the validation examples per class: as many as for training, four at the most."""
    return min(shots, MAX_VAL_SHOTS)


def base_new_classes(n_classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split the sorted labels in two for base-to-new: the first ``ceil(C / 2)``, and the rest.

    Raises:
        DataError: If there are fewer than two classes.

    References:
        K. Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, section 4.1.
    """
    if n_classes < 2:
        raise DataError(f"base-to-new needs at least 2 classes, the data set has {n_classes}")
    base, new = np.split(np.arange(n_classes, dtype=np.int64), [(n_classes + 1) // 2])
    return base, new


class Manifest(StrictModel):
    """A draw, written beside the record and accepted as input.

    Attributes:
        version: Version of this format.
        dataset: Name of the data set.
        dataset_sha256: Its fingerprint.
        seed: Seed of the draw.
        shots: Examples per class asked for.
        train: Ids of the training examples.
        val: Ids of the validation examples.
        fewer: Role (``train``, ``val``) -> class -> examples, of the classes that had fewer than asked for.
        sha256: Hash of all other fields, see :meth:`content_sha256`.
    """

    version: Literal[1] = 1
    dataset: str
    dataset_sha256: str
    seed: int
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
        seed: int,
        shots: int,
        train: Sequence[str],
        val: Sequence[str] = (),
        fewer: Mapping[Role, dict[str, int]] | None = None,
    ) -> Self:
        """Build a manifest with its hash."""
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
        """Return the sha256 over all fields but ``sha256``: compact JSON, ASCII, keys sorted."""
        content = self.model_dump(exclude={"sha256"})
        return hashlib.sha256(
            json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        ).hexdigest()

    def write(self, path: Path) -> None:
        """Write the manifest as JSON, atomically."""
        # ASCII escapes, because an id may hold bytes that are no UTF-8.
        write_text(path, json.dumps(self.model_dump(), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a manifest and check it.

        Raises:
            DataError: If the file is missing or no manifest, was changed after it was written, or repeats an id.
        """
        again = "restore the file, or leave the manifest out and draw again"
        try:
            # Not pydantic's own JSON parser: it refuses the lone surrogates of odd file names.
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
                f"the manifest '{path}' was changed after it was written: it says sha256 "
                f"'{manifest.sha256[:16]}', its content has '{content[:16]}'",
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
    """Find a manifest's examples in a split.

    Args:
        manifest: The draw.
        ids: ``n`` unique ids of the split.
        role: Which list of the manifest.

    Returns:
        Indices into ``ids`` in the manifest's order.

    Raises:
        DataError: If the split lacks an id; names the first three.
    """
    wanted = manifest.train if role == "train" else manifest.val
    index = {id_: i for i, id_ in enumerate(ids)}
    missing = [id_ for id_ in wanted if id_ not in index]
    if missing:
        named = ", ".join(f"'{id_}'" for id_ in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"{len(missing)} of {len(wanted)} {role} ids of the manifest are not in the data set: {named}",
            hint=f"the manifest was drawn from '{manifest.dataset}' with sha256 "
            f"'{manifest.dataset_sha256[:16]}'; check data.name",
        )
    return np.fromiter((index[id_] for id_ in wanted), dtype=np.int64, count=len(wanted))
