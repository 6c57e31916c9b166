"""Data: inputs, splits, tasks, and the ``typing.Protocol`` of a dataset.

A method gets a :class:`Task` (train and val, never test), and its classifier gets :class:`Inputs` (no labels). A file
below ``datasets/`` exports a :class:`DatasetProvider`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    Protocol,
    TypeVar,
)

import numpy as np

from clipadapt.core.api.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


X = TypeVar("X")


X_co = TypeVar("X_co", covariant=True)


SplitName = Literal["train", "val", "test", "all"]
"""``all`` is every example of a dataset that has no splits of its own; only evaluations without training use it."""


SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


OnBadImage = Literal["error", "skip"]


Classes = Literal["all", "base", "new"]


THUMBNAIL: Final = 16


class Subset(Sequence[X_co], Generic[X_co]):
    """Selected rows of another sequence, loaded lazily; uses the sequence's own ``digest`` and ``thumbnail``."""

    __slots__ = ("base", "indices")

    base: Sequence[X_co]
    indices: NDArray[np.int64]

    def __init__(self, base: Sequence[X_co], indices: NDArray[np.int64]) -> None:
        inner: Any = base
        self.base = inner.base if isinstance(base, Subset) else base
        self.indices = inner.indices[indices] if isinstance(base, Subset) else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Subset(self.base, self.indices[index])
        return self.base[int(self.indices[index])]

    def digest(self, index: int) -> bytes:
        """Return the digest of one example, see :func:`digest`."""
        return digest(self.base, int(self.indices[index]))

    def thumbnail(self, index: int) -> NDArray[np.uint8]:
        """Return the thumbnail of one example, see :func:`thumbnail`."""
        return thumbnail(self.base, int(self.indices[index]))


def digest(examples: Sequence[Any], index: int) -> bytes:
    """Return the sha256 of one example's content, 32 bytes.

    A sequence that has a cheaper hash than that of the loaded example, such as that of the file's bytes, provides it as
    a method ``digest(index)``.

    Raises:
        TypeError: If the example is neither a str nor an image with ``mode``, ``size`` and ``tobytes``.
    """
    own: Callable[[int], bytes] | None = getattr(examples, "digest", None)
    if own is not None:
        return own(index)
    example = examples[index]
    if isinstance(example, str):
        return hashlib.sha256(b"text\0" + example.encode()).digest()
    if hasattr(example, "tobytes") and hasattr(example, "mode"):
        head = f"image\0{example.mode}\0{example.size}\0".encode()
        return hashlib.sha256(head + example.tobytes()).digest()
    raise TypeError(f"no content hash for an example of type {type(example).__name__}")


def thumbnail(examples: Sequence[Any], index: int) -> NDArray[np.uint8]:
    """Return one image at the size for duplicate search, shape ``(16, 16, 3)``.

    A sequence that need not load the whole example for this provides a method ``thumbnail(index)``.

    Raises:
        TypeError: If the example is not a PIL image.
    """
    own: Callable[[int], NDArray[np.uint8]] | None = getattr(examples, "thumbnail", None)
    if own is not None:
        return own(index)
    example = examples[index]
    if not (hasattr(example, "convert") and hasattr(example, "resize")):
        raise TypeError(f"no thumbnail of an example of type {type(example).__name__}")
    # 3 is bicubic; reducing_gap lets Pillow first shrink a large image by an integer factor.
    small = example.convert("RGB").resize((THUMBNAIL, THUMBNAIL), 3, reducing_gap=3.0)
    return np.asarray(small, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Inputs(Generic[X_co]):
    """Unlabelled examples, the only thing a classifier sees at test time.

    Attributes:
        examples: ``n`` examples, PIL RGB images or str; may load lazily.
        ids: ``n`` unique, stable ids (relative paths, row keys), by which predictions are joined.
    """

    examples: Sequence[X_co]
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.examples) != len(self.ids):
            raise ValueError(f"{len(self.examples)} examples but {len(self.ids)} ids")
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("ids are not unique")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: NDArray[np.int64]) -> Inputs[X_co]:
        """Return the selected rows, still loaded lazily."""
        return Inputs(Subset(self.examples, indices), tuple(self.ids[i] for i in indices))

    def digests(self) -> NDArray[np.uint8]:
        """Return the content hash of every example, shape ``(n, 32)``."""
        joined = b"".join(digest(self.examples, i) for i in range(len(self)))
        return np.frombuffer(joined, dtype=np.uint8).reshape(len(self), 32)


@dataclass(frozen=True, slots=True)
class Split(Generic[X]):
    """Labelled examples.

    Attributes:
        inputs: ``n`` examples with their ids.
        labels: Class indices in ``[0, C)``, shape ``(n,)``, int64.
        classnames: ``C`` class names.
    """

    inputs: Inputs[X]
    labels: NDArray[np.int64]
    classnames: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.labels.shape != (len(self.inputs),) or self.labels.dtype != np.int64:
            raise ValueError(
                f"labels must be int64 of shape ({len(self.inputs)},), "
                f"got {self.labels.dtype} {self.labels.shape}"
            )
        if len(self.labels) and not (
            0 <= int(self.labels.min()) and int(self.labels.max()) < len(self.classnames)
        ):
            raise ValueError(f"labels outside [0, {len(self.classnames)})")

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, indices: NDArray[np.int64]) -> Split[X]:
        """Return the selected rows, still loaded lazily."""
        return Split(self.inputs.take(indices), self.labels[indices], self.classnames)


@dataclass(frozen=True, slots=True)
class Task(Generic[X]):
    """Everything a method is trained on; it has no test split that could leak.

    Attributes:
        classnames: ``C`` class names, as they appear in prompts.
        templates: Prompt templates, each with one ``{}``; empty for text tasks.
        train: Labelled training examples, or None for zero-shot.
        val: Labelled validation examples for selection, or None.
        few_shot: Whether train and val are a few-shot draw.
        sample_weight: Weight of each training example, shape ``(n,)``, for methods with ``uses_sample_weight``; None
            weighs all equally.
    """

    classnames: tuple[str, ...]
    templates: tuple[str, ...] = ()
    train: Split[X] | None = None
    val: Split[X] | None = None
    few_shot: bool = False
    sample_weight: NDArray[np.float64] | None = None

    def require_train(self, method: str) -> Split[X]:
        """Return ``train``.

        Raises:
            DataError: If the task has no training examples.
        """
        if self.train is None or len(self.train) == 0:
            raise DataError(
                f"{method} needs training examples and the dataset has no train split",
                hint="use a dataset with a train split",
            )
        return self.train


class Dataset(Protocol[X]):
    """A named dataset with its provenance.

    Attributes:
        name: Name without an absolute path, as in tables and run folders.
        classnames: ``C`` class names.
        templates: The dataset's own prompt templates (one, by CoOp's convention), each with one ``{}``.
        licence: Licence of the data.
        citation: How to cite the data.
        source: Origin of the data.
        fingerprint: sha256 over ids, labels and bytes of every example of every split.
        splits: Names of the available splits.
        skipped: Number of examples that could not be read.
        flags: Flags for every record, see :mod:`clipadapt.core.api.flags`.
    """

    @property
    def name(self) -> str: ...
    @property
    def classnames(self) -> tuple[str, ...]: ...
    @property
    def templates(self) -> tuple[str, ...]: ...
    @property
    def licence(self) -> str: ...
    @property
    def citation(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def splits(self) -> tuple[SplitName, ...]: ...
    @property
    def skipped(self) -> int: ...
    @property
    def flags(self) -> tuple[str, ...]: ...

    def split(self, name: SplitName, /) -> Split[X]:
        """Return one split.

        Raises:
            DataError: If the dataset has no such split; the message lists the available ones.
        """
        ...


@dataclass(frozen=True, slots=True)
class DatasetOptions:
    """Options of every dataset.

    Attributes:
        on_bad_image: ``error`` stops at the first unreadable example; ``skip`` leaves it out and counts it.
    """

    on_bad_image: OnBadImage = "error"


class DatasetProvider(Protocol):
    """The object that a file below ``datasets/`` exports as ``DATASET``, usually a class or function."""

    def __call__(self, argument: str, options: DatasetOptions, /) -> Dataset[Any]:
        """Open the dataset; ``argument`` is the part of its name after ``:``, or empty."""
        ...
