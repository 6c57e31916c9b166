"""Methods: the ``typing.Protocol`` of a method and those of the classifiers that it returns.

A method must have ``fit`` and ``load``, and a classifier ``predict_scores`` and ``save``. The other classes here are
optional capabilities of a classifier, which a run checks with ``isinstance``.
"""

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

from clipadapt.core.api.errors import unknown
from clipadapt.core.api.strict import StrictModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Task


ScoreKind = Literal["logit", "margin", "sigmoid"]
"""How scores become probabilities: logits by a softmax over the classes; ``sigmoid`` scores by one sigmoid per class,
so that they need not sum to 1; margins only at a temperature fitted on val.

The loss that fitted the scores decides. Zero-shot scores of a model with a sigmoid loss (SigLIP) are sigmoids. A
method that trains on the same model with a softmax cross-entropy returns logits: only the differences between its
scores are trained."""
Setting = Literal["inductive", "transductive", "online"]
"""What a prediction depends on beside its own input: nothing, all inputs given with it, or those before it."""


class MethodConfig(StrictModel):
    """Base of every method's hyperparameters; ``Config()`` must be valid.

    A key affects the result unless it declares otherwise, see :mod:`clipadapt.core.api.effects`.
    """

    def check(self, task: Task[Any]) -> None:
        """Check the settings against a task, before a model is loaded; the default accepts every task.

        Raises:
            ConfigError: If they do not fit the task; the message says which would.
        """

    @property
    def learning_rate(self) -> float | None:
        """The key ``lr``, None if the method has none or does not use it with these settings."""
        return getattr(self, "lr", None)

    def in_run_id(self) -> dict[str, Any]:
        """Return the settings that identify a fit, as plain data; a file stands in it by its content, not its path.

        A method overrides it to leave out a new key that is not used, so that existing ids stay valid.
        """
        return self.model_dump(mode="json")


@runtime_checkable
class Classifier(Protocol):
    """A fitted classifier, returned by ``fit`` and ``load``.

    A run fits a temperature of its probabilities on ``task.val``, unless the classifier has its own
    (:class:`SelfCalibrated`).
    """

    @property
    def classnames(self) -> tuple[str, ...]: ...
    @property
    def n_trainable_params(self) -> int: ...
    @property
    def score_kind(self) -> ScoreKind: ...

    def predict_scores(self, inputs: Inputs[Any], /) -> NDArray[np.float32]:
        """Return one score per input and class, shape ``(n, C)``, float32.

        If the method's setting is not ``inductive``, the scores of an input depend on the other inputs of the call
        and, in the setting ``online``, on their order. Nothing is kept from one call to the next.
        """
        ...

    def save(self, directory: Path, /) -> None:
        """Write the trained parameters, without the backbone and without pickle."""
        ...


@runtime_checkable
class SelfCalibrated(Protocol):
    """A classifier with its own softmax temperature, for example because its final fit is on train and val.

    The temperature is None without val, or if val does not determine one, see ``calibration.fit_temperature``.
    """

    @property
    def temperature(self) -> float | None: ...


@runtime_checkable
class Selected(Protocol):
    """A classifier that reports what was selected on ``val``: a setting or an epoch, and by which value."""

    @property
    def selection(self) -> dict[str, Any] | None:
        """Return ``{"epoch": int | None, "by": str, "value": float}``, or None."""
        ...


@runtime_checkable
class OpenVocabulary(Classifier, Protocol):
    """A classifier that works with other class names: base-to-new, cross-dataset, domain shift."""

    def with_classnames(
        self, classnames: tuple[str, ...], templates: tuple[str, ...], /
    ) -> Classifier:
        """Return the classifier for other classes, without training."""
        ...


@runtime_checkable
class ZeroShotStart(Classifier, Protocol):
    """A classifier that was trained from a zero-shot classifier and can also return that one's scores.

    A run evaluates both on the same examples and adds the flag ``below_zero_shot`` if training reduced the accuracy.
    """

    def zero_shot_scores(self, inputs: Inputs[Any], /) -> NDArray[np.float32]:
        """Return the scores of the zero-shot classifier, shape ``(n, C)``."""
        ...


@runtime_checkable
class Inspectable(Classifier, Protocol):
    """A classifier that can describe its trained parameters."""

    def inspect(self) -> dict[str, Any]:
        """Return nested facts as JSON types: text, finite numbers, lists, mappings."""
        ...


@dataclass(frozen=True, slots=True)
class Exported:
    """Description of an export, from which its ``README.md`` is written together with the record of the run.

    Attributes:
        snippet: Python code that loads the export with only the other library, from inside its folder, and prints
            classes with their probabilities.
        notes: Warnings for the user, such as what the format cannot store; also printed.
        facts: Further lines of the README by name.
        stamp: Adds facts of the run, such as its id, to the metadata of the files; None if they have none.
    """

    snippet: str
    notes: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    stamp: Callable[[Mapping[str, str]], None] | None = None


@runtime_checkable
class Exportable(Classifier, Protocol):
    """A classifier that can be written in the formats of other libraries.

    One that cannot may say why in an attribute ``export_reason``, a clause.
    """

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
            path: The folder; the caller moves it to its place atomically.
            temperature: Softmax temperature of the run, which the export must include.
            output: Final path of the folder as the user typed it; None is ``path``.
        """
        ...


def setting_of(method: type[Method]) -> Setting:
    """Return the setting of a method, ``inductive`` if it does not declare one."""
    return getattr(method, "setting", "inductive")


class Method(Protocol):
    """An adaptation method: it fits a classifier from a backbone and a task.

    Attributes:
        Config: Class of the hyperparameters; ``Config()`` must be valid.
        version: Part of the run id; increase it when results change.
        requires: ``typing.Protocol`` that the backbone must implement, or None for a method without a backbone.

    Optional attributes of a class or, where they follow from the settings, of its objects: ``uses_train = False`` for
    a method without training (the default is True); ``reads_classnames = False`` for a method of images whose
    classifiers do not depend on the class names (True); ``uses_sample_weight = True`` for a method that weighs the
    training examples by ``task.sample_weight`` (False); ``open_vocabulary = False`` for a method whose classifiers only
    know the training classes, so that evaluation on other classes is refused before the fit; and
    ``refits_on_val(*, few_shot: bool) -> bool`` for a method whose final fit is on train and val, so that its runs
    have the flag ``refit_on_val`` and are not evaluated on val.

    Optional method: ``check_model(backbone)`` raises a ClipAdaptError if the method cannot use a model with these
    settings, such as a tower without blocks. It is called before the first fit, and once for all datasets.

    Two more tell readers of tables what a row is, where the templates of the data do not: ``prompts``, in a few words,
    such as "prompts in words (cupl)", and ``uses_templates = False`` if the templates have no part in them.

    Optional attribute of a class: ``setting``, see :data:`Setting`; the default is ``inductive``. A ``transductive``
    method predicts all inputs of a call together, an ``online`` one predicts them one after another and adapts to
    those that it has seen. Every evaluation split is one call. The config of an online method has a key
    ``order_seed: OrderSeed`` (:mod:`clipadapt.core.api.limits`), which determines the order of the inputs; the record
    holds the sha256 of that order.
    """

    Config: ClassVar[type[MethodConfig]]
    version: ClassVar[int]
    requires: ClassVar[type | None]

    def __init__(self, config: Any, /) -> None: ...

    def fit(self, backbone: Any, task: Task[Any], ctx: RunContext, /) -> Classifier:
        """Train on ``task.train``, select on ``task.val``, and leave the backbone bit for bit unchanged."""
        ...

    def load(self, directory: Path, backbone: Any, /) -> Classifier:
        """Return the classifier written by ``save``; its scores are equal."""
        ...


def require_format(form: str, formats: Sequence[str]) -> None:
    """Check that a classifier has an export format.

    Raises:
        UnknownNameError: If it does not.
    """
    if form not in formats:
        raise unknown("export format", form, formats)
