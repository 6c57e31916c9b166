"""What passes between the layers: plain data, and the protocols that methods, models and data sets meet.

One direction: Task (train, val; never test) -> Method.fit -> Classifier -> scores on unlabelled inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Generic,
    Literal,
    Protocol,
    TypeVar,
    runtime_checkable,
)

import numpy as np

from clipadapt.core._strict import StrictModel
from clipadapt.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.context import RunContext, Services

X = TypeVar("X")
X_co = TypeVar("X_co", covariant=True)
ScoreKind = Literal["logit", "margin"]
SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
Precision = Literal["auto", "fp32", "bf16", "fp16"]
OnBadImage = Literal["error", "skip"]
Classes = Literal["all", "base", "new"]
THUMBNAIL: Final = 16


# ---------------------------------------------------------------- data


class Subset(Sequence[X_co], Generic[X_co]):
    """A lazy choice of rows of another sequence; keeps the base's cheap ``digest``."""

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
    """Return the 32-byte sha256 that stands for one example's content.

    A sequence that knows a cheaper content hash than that of the loaded example (a file's bytes)
    offers it as a method ``digest(index)``.

    Raises:
        TypeError: If the example is neither text nor an image with ``mode``, ``size`` and ``tobytes``.
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
    """Return what one image looks like from afar, shape ``(16, 16, 3)``.

    A sequence that knows a cheaper way than to load the example offers it as a method ``thumbnail(index)``.

    Raises:
        TypeError: If the example is no PIL image.
    """
    own: Callable[[int], NDArray[np.uint8]] | None = getattr(examples, "thumbnail", None)
    if own is not None:
        return own(index)
    example = examples[index]
    if not (hasattr(example, "convert") and hasattr(example, "resize")):
        raise TypeError(f"no thumbnail of an example of type {type(example).__name__}")
    # 3 is bicubic; the gap lets Pillow shrink a large image by whole pixels first.
    small = example.convert("RGB").resize((THUMBNAIL, THUMBNAIL), 3, reducing_gap=3.0)
    return np.asarray(small, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Inputs(Generic[X_co]):
    """Unlabelled examples: all that a classifier may see at test time.

    Attributes:
        examples: ``n`` raw examples, PIL RGB images or str; may load lazily.
        ids: ``n`` unique, stable ids (relative paths, row keys); predictions are joined on them.
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
        """Return the chosen rows, still lazy."""
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
        """Return the chosen rows, still lazy."""
        return Split(self.inputs.take(indices), self.labels[indices], self.classnames)


@dataclass(frozen=True, slots=True)
class Task(Generic[X]):
    """All a method may learn from; there is no test split to leak.

    Attributes:
        classnames: ``C`` class names, as they are put into a prompt.
        templates: Prompt templates, each with one ``{}``; empty for text tasks.
        train: Labelled training examples, or None for zero-shot.
        val: Labelled validation examples for selection, or None.
        few_shot: Whether train and val are a draw of so many examples a class, and not all there is.
    """

    classnames: tuple[str, ...]
    templates: tuple[str, ...] = ()
    train: Split[X] | None = None
    val: Split[X] | None = None
    few_shot: bool = False

    def require_train(self, method: str) -> Split[X]:
        """Return ``train``.

        Raises:
            DataError: If the task has no training examples.
        """
        if self.train is None or len(self.train) == 0:
            raise DataError(
                f"{method} needs training examples and the data set has no train split",
                hint="take a data set with a train split",
            )
        return self.train


class Dataset(Protocol[X]):
    """A named set of labelled examples with its provenance.

    Attributes:
        name: Name without any absolute path, as it stands in tables and run folders.
        classnames: ``C`` class names.
        templates: The set's own prompt templates (one, by CoOp's convention), each with one ``{}``.
        licence: Licence of the data.
        citation: How to cite the data.
        source: Where the data come from.
        fingerprint: sha256 over ids, labels and bytes of every example of every split.
        splits: Names of the splits there are.
        skipped: Examples left out because they cannot be read.
        flags: Facts that every table must show, such as ``not_the_official_split``.
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
            DataError: If the set has no such split; the message names those there are.
        """
        ...


@dataclass(frozen=True, slots=True)
class DatasetOptions:
    """What a user may ask of any data set.

    Attributes:
        on_bad_image: ``error`` names the unreadable file and stops; ``skip`` leaves it out and counts it.
    """

    on_bad_image: OnBadImage = "error"


class DatasetProvider(Protocol):
    """What a file under ``datasets/`` exports as ``DATASET``: usually the class of the data set."""

    def __call__(self, argument: str, options: DatasetOptions, /) -> Dataset[Any]:
        """Open the data set; ``argument`` is the text after ``:`` of its name, or empty."""
        ...


# ---------------------------------------------------------------- models


@runtime_checkable
class Backbone(Protocol):
    """A pretrained model a method may use and must leave bit for bit as it was."""

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str:
        """Effective dtype of the frozen weights: ``fp32``, ``bf16`` or ``fp16``."""
        ...

    @property
    def weights_sha256(self) -> str:
        """sha256 over the names, shapes and bytes of the weights as they are now."""
        ...


@runtime_checkable
class ReadsNames(Protocol):
    """A backbone that says what its tokenizer makes of class names."""

    @property
    def name(self) -> str: ...
    def name_tokens(self, names: Sequence[str], /) -> list[tuple[tuple[int, ...], int]]:
        """Return the token ids of each name, without special tokens, and how many of them stand for the unknown."""
        ...


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What a user may ask of any model."""

    precision: Precision = "auto"
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What tells two models apart, found without building the model.

    Attributes:
        name: Name without any absolute path, as it stands in tables and records.
        weights_sha256: sha256 of the weights as they are stored.
        dtype: Effective dtype: ``fp32``, ``bf16`` or ``fp16``.
        device: Device it runs on; its type (``cpu``, ``cuda``, ``mps``) decides the last bits.
        revision: Commit of the hub's repository that the weights are of, or None.
        licence: Licence of the weights, or where it stands.
        citation: How to cite the model, or where it stands.
        notes: What is worth telling the user before the run, one sentence each.
    """

    name: str
    weights_sha256: str
    dtype: str
    device: str = "cpu"
    revision: str | None = None
    licence: str = ""
    citation: str = ""
    notes: tuple[str, ...] = ()


class ModelProvider(Protocol):
    """What a file under ``models/`` exports as ``MODEL``."""

    def identify(self, name: str, options: ModelOptions, /) -> ModelIdentity:
        """Check the name and hash the weights; cheap the second time.

        Raises:
            ModelError: If the model cannot be had; the message says what would work.
        """
        ...

    def load(self, name: str, options: ModelOptions, services: Services, /) -> Backbone:
        """Build the model on its device, ready to encode.

        Raises:
            ModelError: If the model cannot be built.
        """
        ...


# ---------------------------------------------------------------- methods


class MethodConfig(StrictModel):
    """Base of every method's hyperparameters; ``Config()`` is valid for every method."""

    def check(self, task: Task[Any]) -> None:
        """Refuse settings that cannot serve a task; asked before a model is loaded. By default all can.

        Raises:
            ConfigError: If they cannot, saying what would.
        """


@runtime_checkable
class Classifier(Protocol):
    """What ``fit`` and ``load`` return; it has no unfitted state.

    A classifier that used ``task.val`` for training may carry a ``temperature`` of its own
    (:class:`SelfCalibrated`); else the runner fits one on ``task.val``.
    """

    @property
    def classnames(self) -> tuple[str, ...]: ...
    @property
    def n_trainable_params(self) -> int: ...
    @property
    def score_kind(self) -> ScoreKind: ...

    def predict_scores(self, inputs: Inputs[Any], /) -> NDArray[np.float32]:
        """Return one score per input and class, shape ``(n, C)``, float32."""
        ...

    def save(self, directory: Path, /) -> None:
        """Write what was learnt, not the backbone; no pickle."""
        ...


@runtime_checkable
class SelfCalibrated(Protocol):
    """A classifier that knows its own softmax temperature (it trained on ``val`` in the end).

    The temperature is None without val, or where val determines none: see ``metrics.fit_temperature``.
    """

    @property
    def temperature(self) -> float | None: ...


@runtime_checkable
class Selected(Protocol):
    """A classifier that says what was selected on ``val``: a setting or an epoch, by which value."""

    @property
    def selection(self) -> dict[str, Any] | None:
        """Return ``{"epoch": int | None, "by": str, "value": float}``, or None."""
        ...


@runtime_checkable
class OpenVocabulary(Classifier, Protocol):
    """A classifier that carries over to other class names: base-to-new, cross-dataset, domain shift."""

    def with_classnames(
        self, classnames: tuple[str, ...], templates: tuple[str, ...], /
    ) -> Classifier:
        """Return the classifier for other classes; nothing is learnt anew."""
        ...


@runtime_checkable
class ZeroShotStart(Classifier, Protocol):
    """A classifier that was learnt from a zero-shot one and can still score as that one did.

    The runner judges both on the same examples, after the fit: what ends below its own start is flagged
    ``below_zero_shot``.
    """

    def zero_shot_scores(self, inputs: Inputs[Any], /) -> NDArray[np.float32]:
        """Return the scores of the start, shape ``(n, C)``."""
        ...


@runtime_checkable
class Inspectable(Classifier, Protocol):
    """A classifier that can say in words and numbers what it learnt."""

    def inspect(self) -> dict[str, Any]:
        """Return nested facts that JSON can hold: text, finite numbers, lists, mappings."""
        ...


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export says of itself; its ``README.md`` is made of it and of the run's record.

    Attributes:
        snippet: Python that loads the export with the other library alone, from inside its folder, and prints
            classes with their probabilities.
        notes: What a user has to know, such as what the format cannot hold; shown on the screen too.
        facts: Further lines of the README by their names.
    """

    snippet: str
    notes: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class Exportable(Classifier, Protocol):
    """A classifier that other libraries can load in a format of theirs."""

    @property
    def export_formats(self) -> tuple[str, ...]:
        """Return the names of the formats, as ``--format`` takes them."""
        ...

    def export(
        self,
        form: str,
        path: Path,
        /,
        *,
        temperature: float | None = None,
        output: Path | None = None,
    ) -> Exported:
        """Write the classifier to ``path``, an empty folder or a new one.

        Args:
            form: One of :attr:`export_formats`.
            path: The folder; the caller moves it into place whole.
            temperature: Softmax temperature of the run, which the export must not lose.
            output: Where the folder will be, as the user named it; ``path`` if left out.
        """
        ...


class Method(Protocol):
    """One way to make a classifier from a backbone and a task.

    Attributes:
        Config: The hyperparameters' class; ``Config()`` is valid.
        version: Raised when results change; part of the run id.
        requires: Protocol that the backbone must meet, or None where no backbone is used.

    A method may add ``open_vocabulary = False``: its classifiers know the classes they learnt and no others, so a
    run on others is refused before it begins and not after the fit. A method that ends by learning from val says so
    with ``refits_on_val(*, few_shot: bool) -> bool``: such a fit is flagged, and is not evaluated on val.
    """

    Config: ClassVar[type[MethodConfig]]
    version: ClassVar[int]
    requires: ClassVar[type | None]

    def __init__(self, config: Any, /) -> None: ...

    def fit(self, backbone: Any, task: Task[Any], ctx: RunContext, /) -> Classifier:
        """Learn from ``task.train`` and ``task.val``; leave the backbone bit for bit as it was."""
        ...

    def load(self, directory: Path, backbone: Any, /) -> Classifier:
        """Return the classifier that ``save`` wrote; it gives equal scores."""
        ...


class Progress(Protocol):
    """Where long work shows itself."""

    def track(self, description: str, total: int | None, unit: str = "", /) -> Tracker:
        """Begin one bar; use it as a context manager."""
        ...

    def note(self, message: str, /) -> None:
        """Show one line (a warning, a decision) without breaking the bars."""
        ...


class Tracker(Protocol):
    """One running bar."""

    def advance(self, n: int = 1, /, **info: float) -> None:
        """Count ``n`` more done; ``info`` (loss, val accuracy) is shown beside the bar."""
        ...

    def __enter__(self) -> Tracker: ...
    def __exit__(self, *exc: object) -> None: ...
