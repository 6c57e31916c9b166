"""TODO."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    Protocol,
    runtime_checkable,
)

from clipadapt.core.api.strict import StrictModel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Task


ScoreKind = Literal["logit", "margin"]


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

    The temperature is None without val, or where val determines none: see ``calibration.fit_temperature``.
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
    A method that uses no training data declares ``uses_train = False``; the default is True.
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
