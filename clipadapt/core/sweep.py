"""Sweeps: many experiments from one YAML, run one after another; the same command goes on where it stopped.

A sweep is the product of its axes::

    datasets: [rotten_tomatoes:offline]
    models: [minilm]
    methods: [svm, lora-quick, {recipe: full_finetune, set: {method.epochs: 1}}]
    shots: [null]
    seeds: [42]
    settings: {evaluation.also: [{split: val}]}

``methods`` are recipes or files, as ``run`` takes them; ``settings`` hold for every experiment.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveInt, ValidationError

from clipadapt.core import config, runner
from clipadapt.core._strict import StrictModel
from clipadapt.core.errors import ClipAdaptError, ConfigError
from clipadapt.core.registry import METHODS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from clipadapt.core.config import Experiment
    from clipadapt.core.protocols import Progress
    from clipadapt.core.records import RunRecord


class MethodAxis(StrictModel):
    """One entry of ``methods``.

    Attributes:
        recipe: Recipe name or file.
        set: Settings over the recipe, by dotted key.
    """

    recipe: str
    set: dict[str, Any] = Field(default_factory=dict)


class SweepConfig(StrictModel):
    """The axes of a sweep.

    Attributes:
        datasets: Data sets, as ``--dataset`` takes them.
        models: Models, as ``--model`` takes them; methods without a backbone run once.
        methods: Recipes.
        shots: Training examples per class; null is all.
        seeds: Seeds of every experiment.
        settings: Settings of every experiment, by dotted key.
    """

    datasets: tuple[str, ...] = Field(min_length=1)
    models: tuple[str, ...] = ()
    methods: tuple[str | MethodAxis, ...] = Field(min_length=1)
    shots: tuple[PositiveInt | None, ...] = Field(default=(None,), min_length=1)
    seeds: tuple[int, ...] | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a sweep came to.

    Attributes:
        records: Records of all runs that there are, in the order of the axes.
        failures: ``method on data set`` and message of each experiment that stopped with an error.
    """

    records: list[RunRecord]
    failures: list[tuple[str, str]]


def load_sweep(name: str, settings: Sequence[str] = (), *, track: str = "clip") -> list[Experiment]:
    """Read a sweep and build its experiments.

    Args:
        name: Path or bare name of a file in ``configs/sweeps``.
        settings: ``KEY=VALUE`` texts over every experiment; an axis (``seeds``, ``datasets`` ...) is replaced.
        track: Track of bare method names.

    Raises:
        ConfigError: Naming every fault.
    """
    path = config.find_config(name, sweep=True)
    raw = config.read_fragment(path)
    over = config.parse_settings(settings)
    raw.update({key: over.pop(key) for key in list(over) if key in SweepConfig.model_fields})
    try:
        sweep = SweepConfig.model_validate(raw)
    except ValidationError as err:
        faults = "\n".join(config.fault_lines(err, SweepConfig, ""))
        raise ConfigError(
            f"{path} is not a valid sweep:\n{faults}", hint="see configs/sweeps/ for examples"
        ) from None
    experiments: list[Experiment] = []
    for dataset, model, method, shots in product(
        sweep.datasets, sweep.models or (None,), sweep.methods, sweep.shots
    ):
        axis = MethodAxis(recipe=method) if isinstance(method, str) else method
        recipe = config.find_config(axis.recipe, track)
        own: dict[str, Any] = {"data": {"name": dataset}}
        if shots is not None:
            own["data"]["shots"] = shots
        if model is not None:
            own["model"] = {"name": model}
        if sweep.seeds is not None:
            own["seeds"] = list(sweep.seeds)
        fragments = [
            (recipe.stem, config.read_fragment(recipe)),
            (path.stem, own),
            (path.stem, nested(sweep.settings)),
            (path.stem, nested(axis.set)),
            ("--set", over),
        ]
        built = config.build(fragments, source=f"{path.stem}: {axis.recipe}", track=track)
        if METHODS.get(built.method_name).requires is None:
            if model is not None and model != sweep.models[0]:
                continue  # a method without a backbone does not depend on the model
            for _, fragment in fragments:
                fragment.pop("model", None)
            built = config.build(fragments, source=f"{path.stem}: {axis.recipe}", track=track)
        experiments.append(built)
    return experiments


def run_sweep(
    experiments: Sequence[Experiment], out: Path, progress: Progress | None = None
) -> Outcome:
    """Run every experiment; one that fails does not stop the rest.

    Raises:
        ClipAdaptError: If nothing could be run, for the first fault.
    """
    outcome = Outcome([], [])
    session = runner.Session(out, progress)
    errors: list[Exception] = []
    with session.progress.track("experiments", len(experiments), "experiments") as bar:
        for experiment in experiments:
            try:
                outcome.records.extend(session.run([experiment]))
            except Exception as err:  # noqa: BLE001  every failure is listed; the rest goes on
                title = f"{experiment.recipe or experiment.method_name} on {experiment.config.data.name}"
                message = (
                    err.problem
                    if isinstance(err, ClipAdaptError)
                    else f"{type(err).__name__}: {err}"
                )
                outcome.failures.append((title, message))
                errors.append(err)
                session.progress.note(f"failed: {title}: {message}")
            bar.advance(1)
    if not outcome.records and errors:
        raise errors[0]
    return outcome


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested plain data."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        node = out
        *parents, last = key.split(".")
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return out
