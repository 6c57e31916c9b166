"""The sections of a config file, each key with its type, its default and what it affects."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, field_validator

from clipadapt.core.api.data import Classes, OnBadImage
from clipadapt.core.api.effects import RESULT, Affects, declared, find_field, model_within
from clipadapt.core.api.limits import Examples, Seed, Shots, Threads
from clipadapt.core.api.method import MethodConfig
from clipadapt.core.api.model import ModelOptions, Precision
from clipadapt.core.api.strict import Identifier, Name, StrictModel
from clipadapt.core.experiments.dotted import flatten

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel

    from clipadapt.core.api.effects import Effect

_Model = Affects("result", facts=("fit.model",))


class DataConfig(StrictModel):
    """The examples of a run.

    Attributes:
        name: Dataset, as ``--dataset`` takes it.
        shots: Training examples per class; None takes the whole train and val splits.
        allow_fewer: Accept classes that have fewer examples than ``shots``.
        manifest: File with the draw of an earlier run, or a few-shot index file (JSON or JSON lines with paths of
            images); it replaces the seed's own draw. ``{seed}`` in its path stands for the seed. With an index file,
            ``shots`` must be set.
        on_bad_image: Stop at an unreadable image, or leave it out and count it.
        classnames: File of class names, one per line in class order, that replace the dataset's own.
        templates: ``single`` (the dataset's own), ``clip`` (the CLIP paper's for the dataset), ``7``, ``80`` (ImageNet
            ensembles), one template such as ``a photo of a {}.``, or a file, one per line.
        limit: Evaluate on at most this many examples, a fixed draw by id.
        calibration_share: Share of val that is kept to calibrate prediction sets and used for nothing else; 0
            calibrates them on the val that also selects settings and fits the temperature.
        classes: Train and evaluate on ``all`` classes, on the ``base`` classes (the first half, rounded up) or on
            the ``new`` ones (the rest), with labels counted from 0.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)  # templates: 7 is a name in YAML too

    name: Annotated[
        Name,
        Affects("result", facts=("fit.data.sha256", "evaluation.sha256", "evaluation.dataset")),
    ]
    shots: Annotated[Shots | None, Affects("result", facts=("fit.data.shots",))] = None
    allow_fewer: Annotated[bool, RESULT] = False
    manifest: Annotated[str | None, Affects("result", facts=("fit.data.manifest",))] = None
    on_bad_image: Annotated[OnBadImage, Affects("nothing")] = "error"
    classnames: Annotated[
        str | None, Affects("result", facts=("fit.data.classnames", "evaluation.classnames"))
    ] = None
    templates: Annotated[
        str, Affects("result", facts=("fit.data.templates", "evaluation.templates"))
    ] = "single"
    limit: Annotated[Examples | None, Affects("result", place="evaluation.limit")] = None
    calibration_share: Annotated[float, Affects("result", omit=0.0), Field(ge=0, le=0.9)] = 0.0
    classes: Annotated[
        Classes, Affects("result", facts=("fit.data.classes", "evaluation.classes"), omit="all")
    ] = "all"

    @property
    def few_shot(self) -> bool:
        """Whether ``shots`` examples per class are drawn."""
        return self.shots is not None or self.manifest is not None


class ModelConfig(StrictModel):
    """The backbone.

    Attributes:
        name: Model, as ``--model`` takes it.
        precision: Dtype of frozen weights; ``auto`` is bf16 on hardware with native bf16 support, else fp16 on a CUDA
            GPU and fp32 elsewhere.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        tf32: On a CUDA GPU, multiply float32 matrices in TF32, which keeps 10 of the 23 bits of the mantissa.
        deterministic: On a CUDA GPU, use algorithms whose result is the same in every run: an interrupted fit then
            continues bit for bit. Some are slower, and an operation without such an algorithm stops the run.
    """

    name: Annotated[Name, _Model]
    precision: Annotated[Precision, _Model] = "auto"
    device: Annotated[str, _Model] = "auto"
    tf32: Annotated[bool, _Model] = False
    deterministic: Annotated[bool, _Model] = False

    @property
    def options(self) -> ModelOptions:
        """The options that the model is loaded with."""
        return ModelOptions(self.precision, self.device, self.tf32, self.deterministic)


class TargetConfig(StrictModel):
    """A further target that the same fit is evaluated on.

    Attributes:
        dataset: Dataset, as ``--dataset`` takes it; None is the training dataset.
        split: Split of that dataset.
        classes: ``all``, ``base`` or ``new`` classes; None is the training classes, or all of another dataset.
    """

    dataset: Annotated[
        Name | None, Affects("result", facts=("evaluation.sha256", "evaluation.dataset"))
    ] = None
    split: Annotated[
        Literal["train", "val", "test"], Affects("result", facts=("evaluation.split",))
    ] = "test"
    classes: Annotated[
        Classes | None, Affects("result", facts=("evaluation.classes",), omit="all")
    ] = None


class EvaluationConfig(StrictModel):
    """How a classifier is evaluated.

    Attributes:
        split: Evaluation split. ``all`` is every example of a dataset without splits of its own, for methods that are
            not trained; ``auto`` is ``all`` where that is possible, else ``test``.
        protocol: Name of the evaluation protocol, shown in tables.
        calibrate: Fit a softmax temperature on val, unless the method has its own.
        also: Further targets of the same fit: another dataset with the same classes, or val. Each has its own record.
        leakage: Search for duplicates between the training and the evaluation examples.
    """

    split: Annotated[
        Literal["train", "val", "test", "all", "auto"],
        Affects("result", facts=("fit.data.held_out", "evaluation.split")),
    ] = "test"
    protocol: Annotated[Identifier, Affects("result", facts=("evaluation.protocol",))] = "standard"
    calibrate: Annotated[bool, Affects("result", place="evaluation.calibrate")] = True
    also: Annotated[tuple[TargetConfig, ...], Affects("cost")] = ()
    leakage: Annotated[
        Literal["on", "off"], Affects("result", place="evaluation.leakage", omit="on")
    ] = "on"


class RecipeConfig(StrictModel):
    """Where the settings come from.

    Attributes:
        source: Paper and official code.
        deviations: Intended differences from the source.
    """

    source: Annotated[str, Affects("nothing")] = ""
    deviations: Annotated[tuple[str, ...], Affects("nothing")] = ()


class ResourcesConfig(StrictModel):
    """Resources of one run on a cluster.

    Attributes:
        cpus: Processors; None is ``threads``.
        gpus: GPUs, or a fraction of one; None is 1 if ``model.device`` is ``cuda``, else 0.
        memory_bytes: Memory to reserve; None reserves none.
        custom: Custom resources of the cluster.
    """

    cpus: Annotated[PositiveFloat | None, Affects("cost")] = None
    gpus: Annotated[NonNegativeFloat | None, Affects("cost")] = None
    memory_bytes: Annotated[int | None, Affects("cost"), Field(gt=0, le=2**60)] = None
    custom: Annotated[dict[str, PositiveFloat], Affects("cost")] = Field(default_factory=dict)


class ExperimentConfig(StrictModel):
    """Everything but the method's own hyperparameters.

    Attributes:
        data: The examples.
        model: The backbone; None for methods without one.
        evaluation: How the classifier is evaluated.
        seeds: One run per seed.
        store: Whether the feature cache is used.
        fast: ``off`` uses the reference implementation instead of a faster one that is equal up to rounding: full
            text contexts, padded batches of texts, full last blocks, whole image towers at every step, one solve per
            penalty. Where dropout trains texts, other random numbers are drawn.
        compile: ``on`` compiles the encoding image tower with torch.compile. It needs a C++ compiler and some
            seconds, changes the last bits, and is worth it for convolutional towers on thousands of images.
        threads: Threads of one run; None is ``OMP_NUM_THREADS`` or the number of processors, and 1 with
            ``--executor ray``.
        workers: Threads that decode images ahead.
        resources: Resources of one run on a cluster.
        recipe: Where the settings come from.
    """

    data: DataConfig
    model: ModelConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    seeds: Annotated[
        tuple[Seed, ...], Affects("result", facts=("fit.seed",)), Field(min_length=1)
    ] = (1,)
    store: Annotated[Literal["on", "off"], Affects("cost")] = "on"
    fast: Annotated[Literal["on", "off"], RESULT] = "on"
    compile: Annotated[Literal["on", "off"], Affects("result", omit="off")] = "off"
    threads: Annotated[Threads | None, Affects("result", facts=("fit.threads",))] = None
    workers: Annotated[Threads | None, Affects("cost")] = None
    resources: ResourcesConfig = ResourcesConfig()
    recipe: RecipeConfig = RecipeConfig()

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("list each seed once")
        return seeds


@cache
def declarations(
    model: type[BaseModel] = ExperimentConfig, prefix: str = ""
) -> Mapping[str, Affects]:
    """Return what each dotted key of a config affects.

    Raises:
        TypeError: If a key does not declare it. Keys of a method affect the result unless they declare otherwise.
    """
    default = RESULT if issubclass(model, MethodConfig) else None
    found: dict[str, Affects] = {}
    for name, field in model.model_fields.items():
        key, section = f"{prefix}{name}", model_within(field.annotation)
        own = declared(field) or default
        if own is None and section is None:
            raise TypeError(f"the config key '{key}' does not declare what it affects")
        found |= {key: own} if own else declarations(section, f"{key}.")
    return found


def effect_of(key: str, method: type[MethodConfig] = MethodConfig) -> Effect:
    """Return what a dotted key of a resolved config affects, for ``validate``."""
    section, _, rest = key.partition(".")
    field = find_field(method, rest) if section == "method" else find_field(ExperimentConfig, key)
    return ((declared(field) if field else None) or RESULT).effect


def settings_that_affect_results(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a recorded config that affect the result and are not recorded as facts.

    Facts, such as the dtype or the sha256 of the data, stand for the other settings. A key that is missing in
    an old record has the value that ids omit, or None. Every key of the method counts, because the method is not
    imported; one that is None is left out, as it is in records from before the key existed.
    """
    given = flatten(config)
    found = {
        k: v
        for k, v in given.items()
        if k.startswith("method.") and k != "method.name" and v is not None
    }
    for key, affects in declarations().items():
        if affects.effect == "result" and not affects.facts:
            found[key] = given.get(key, affects.omitted)
    return found
