"""Sweeps: many experiments from one YAML file.

A sweep is the product of its axes::

    protocol: few_shot                   # from configs/protocols: shots, seeds, evaluation targets
    datasets: ["openmoji:color", "openmoji:line"]
    models: [stitched]
    methods: [linear_probe-quick, {recipe: zero_shot, shots: [null], seeds: [1]},
              {recipe: linear_probe, set: {method.max_iter: 100}}]
    shots: [1, 2, 4]                     # null is the whole split
    seeds: [1, 2, 3]
    eval_on: {"openmoji:color": ["openmoji:line"]}      # or a list, for every dataset
    exclude: [{datasets: "openmoji:*", methods: "linear*", shots: 1}]
    include: [{methods: [linear_probe], shots: [16]}]   # added after the excludes; other axes as above
    settings: {evaluation.also: [{split: val}]}         # for every experiment

``parts`` is a list of such blocks; axes that a block omits are those of the top level. The track
of a method is the prefix of its name (``text/svm``), or the program's own track.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import Field, ValidationError

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.limits import Seed, Shots
from clipadapt.core.api.registry import DEFAULT_TRACK, METHODS, track_of
from clipadapt.core.api.strict import Name, StrictModel
from clipadapt.core.experiments import config, shipped
from clipadapt.core.experiments.dotted import nested
from clipadapt.core.experiments.settings import TargetConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import BaseModel

    from clipadapt.core.experiments.config import Experiment


Targets = tuple[Name | TargetConfig, ...]


MAX_COMBINATIONS: Final = 10_000


class MethodAxis(StrictModel):
    """One entry of ``methods``.

    Attributes:
        recipe: Recipe name or file.
        set: Settings over the recipe, by dotted key.
        shots: Shots of this method instead of the axis; ``[null]`` for a method without training.
        seeds: Seeds of this method instead of the axis.
    """

    recipe: str
    set: dict[str, Any] = Field(default_factory=dict)
    shots: tuple[Shots | None, ...] | None = Field(default=None, min_length=1)
    seeds: tuple[Seed, ...] | None = Field(default=None, min_length=1)


class Exclude(StrictModel):
    """Combinations to leave out: those that match every axis given here.

    Attributes:
        datasets: One or several patterns of names, with ``*`` for any text.
        models: One or several patterns of names.
        methods: One or several patterns of the recipes as the sweep names them, or of methods.
        shots: One or several; null is the whole split.
        seeds: One or several.
    """

    datasets: str | tuple[str, ...] | None = None
    models: str | tuple[str, ...] | None = None
    methods: str | tuple[str, ...] | None = None
    shots: Shots | tuple[Shots | None, ...] | None = None
    seeds: Seed | tuple[Seed, ...] | None = None


class Axes(StrictModel):
    """The axes of one block.

    Attributes:
        protocol: Name or file of an evaluation protocol.
        datasets: Datasets, as ``--dataset`` takes them.
        models: Models, as ``--model`` takes them; methods without a backbone run once.
        methods: Recipes.
        shots: Training examples per class; null is the whole split.
        seeds: Seeds of every experiment.
        eval_on: Further targets of each fit: one list, or a list by dataset (``*`` matches any text and stands for the
            same text in the names of the targets).
        settings: Settings of every experiment, by dotted key.
    """

    protocol: str | None = None
    datasets: tuple[Name, ...] | None = Field(default=None, min_length=1)
    models: tuple[Name, ...] | None = None
    methods: tuple[str | MethodAxis, ...] | None = Field(default=None, min_length=1)
    shots: tuple[Shots | None, ...] | None = Field(default=None, min_length=1)
    seeds: tuple[Seed, ...] | None = Field(default=None, min_length=1)
    eval_on: Targets | dict[str, Targets] | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


class Part(Axes):
    """A block of a sweep: the product of axes, without some combinations and with further blocks.

    Attributes:
        exclude: Combinations to leave out.
        include: Blocks to add after the excludes; axes that they omit are those of this block.
    """

    exclude: tuple[Exclude, ...] = ()
    include: tuple[Axes, ...] = ()


class SweepConfig(Part):
    """A sweep: one block, or several.

    Attributes:
        parts: Blocks; axes that they omit are those of the top level.
    """

    parts: tuple[Part, ...] = ()


class ProtocolConfig(StrictModel):
    """An evaluation protocol: rules that make the numbers of several papers or runs comparable.

    Attributes:
        about: Training and evaluation examples, in one sentence.
        source: Paper and official code.
        shots: Training examples per class; null is the whole split.
        seeds: Seeds.
        eval_on: As in a sweep.
        settings: As in a sweep.
        recipes: Recipe -> the recipe that stands for it under this protocol, where its paper ran another one.
    """

    about: str
    source: str
    shots: tuple[Shots | None, ...] = Field(min_length=1)
    seeds: tuple[Seed, ...] = Field(min_length=1)
    eval_on: Targets | dict[str, Targets] | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    recipes: dict[str, str] = Field(default_factory=dict)


def load_sweep(
    sweep: str | Mapping[str, Any],
    settings: Sequence[str] | Mapping[str, Any] = (),
    *,
    track: str = DEFAULT_TRACK,
) -> list[Experiment]:
    """Return the experiments of a sweep.

    Args:
        sweep: Path or bare name of a file in ``configs/sweeps``, or what such a file holds.
        settings: ``KEY=VALUE`` texts, or values by dotted key, for every experiment; an axis (``seeds``, ``datasets``,
            ...) is replaced in every block.
        track: Track of method names without a prefix.

    Raises:
        ConfigError: Naming every fault.
    """
    if isinstance(sweep, str):
        path = shipped.find_config(sweep, track, kind="sweep")
        label, source, raw = path.stem, str(path), shipped.read_fragment(path)
    else:
        label, source, raw = "sweep", "sweep(...)", dict(sweep)
    over = nested(settings) if isinstance(settings, Mapping) else config.parse_settings(settings)
    axes = {key: over.pop(key) for key in list(over) if key in SweepConfig.model_fields}
    for block in _blocks(raw):
        for key in axes:
            block.pop(key, None)
    whole = cast("SweepConfig", _validated(SweepConfig, {**raw, **axes}, source, "sweep"))
    experiments: list[Experiment] = []
    for part in whole.parts or (whole,):
        builder = _Builder(shipped.check_identifier(label, "sweep"), over, track)
        top = _axes(whole) if whole.parts else {}
        own = {**top, **_axes(part), "settings": {**whole.settings, **part.settings}}
        excludes = (*whole.exclude, *part.exclude) if whole.parts else part.exclude
        experiments += builder.expand(own, excludes)
        includes = (*whole.include, *part.include) if whole.parts else part.include
        for more in includes:
            both = {**own["settings"], **more.settings}
            experiments += builder.expand({**own, **_axes(more), "settings": both}, ())
    found = {str(e.resolved()): e for e in experiments}  # an include may repeat a combination
    if not found:
        raise ConfigError(
            f"the sweep {source} has no runs: its excludes match every combination",
            hint="remove an exclude and list the runs with --dry-run",
        )
    return list(found.values())


def load_protocol(name: str) -> tuple[str, ProtocolConfig]:
    """Return the name and the rules of an evaluation protocol, given by path or bare name.

    Raises:
        ConfigError: If the file does not exist or is not valid.
    """
    path = shipped.find_config(name, kind="protocol")
    raw = shipped.read_fragment(path)
    shipped.check_identifier(path.stem, "protocol")
    return path.stem, cast("ProtocolConfig", _validated(ProtocolConfig, raw, str(path), "protocol"))


def _blocks(raw: Any) -> Iterator[dict[str, Any]]:
    """Yield the blocks below the top level of a raw sweep, which may be invalid."""
    for key in ("parts", "include"):
        for block in raw.get(key) or () if isinstance(raw.get(key), list) else ():
            if isinstance(block, dict):
                yield block
                yield from _blocks(block)


def _validated(model: type[BaseModel], raw: Any, source: str, what: str) -> BaseModel:
    try:
        return model.model_validate(raw)
    except ValidationError as err:
        faults = "\n".join(config.fault_lines(err, model, ""))
        raise ConfigError(
            f"{source} is not a valid {what}:\n{faults}", hint=_examples(f"{what}s")
        ) from None


def _examples(kind: str) -> str:
    folder = next(f for f in shipped.config_folders() if f.name == kind)
    return f"see the files in {folder} for examples"


def _axes(block: Axes) -> dict[str, Any]:
    """Return the axes that a block sets itself."""
    return {
        key: value
        for key in Axes.model_fields
        if key != "settings" and (value := getattr(block, key)) is not None
    }


@dataclass(frozen=True, slots=True)
class _Builder:
    """Builds the experiments of blocks.

    Attributes:
        label: Name of the sweep, the origin of its settings.
        over: Settings of the command line.
        track: Track of method names without a prefix.
    """

    label: str
    over: dict[str, Any]
    track: str

    def expand(self, axes: dict[str, Any], excludes: Sequence[Exclude]) -> list[Experiment]:
        """Return the experiments of one block.

        Raises:
            ConfigError: If an axis is missing, or an experiment is not valid.
        """
        axes = self._with_protocol(axes)
        absent = [key for key in ("datasets", "methods") if not axes.get(key)]
        if absent:
            raise ConfigError(
                f"the sweep {self.label} has no {' and no '.join(absent)}",
                hint=_examples("sweeps"),
            )
        n = len(axes["datasets"]) * len(axes.get("models") or (None,)) * len(axes["methods"])
        if n > MAX_COMBINATIONS:
            raise ConfigError(
                f"the sweep {self.label} has {n:,} combinations of dataset, model and method; "
                f"at most {MAX_COMBINATIONS:,}",
                hint="split it into several sweeps",
            )
        found = []
        for dataset, model, entry in product(
            axes["datasets"], axes.get("models") or (None,), axes["methods"]
        ):
            method = entry if isinstance(entry, MethodAxis) else MethodAxis(recipe=entry)
            named = method.recipe  # as excludes name it
            if self._key(named) in axes[_RECIPES]:
                method = method.model_copy(update={"recipe": axes[_RECIPES][self._key(named)]})
            full = self._method_name(method)
            if METHODS.get(full).requires is None:
                if model is not None and model != axes["models"][0]:
                    continue  # a method without a backbone does not depend on the model
                model = None
            for shots in method.shots or axes.get("shots") or (_AS_THE_RECIPE,):
                seeds = method.seeds or axes.get("seeds")
                built = self._build(axes, dataset, model, method, shots, seeds, full)
                names = (named, full)
                cut = [x for x in excludes if _matches(x, built, names)]
                if any("seeds" not in x.model_fields_set for x in cut):
                    continue
                gone = {seed for x in cut for seed in _several(x.seeds)}
                left = tuple(s for s in built.config.seeds if s not in gone)
                if left:
                    found.append(_with_seeds(built, left))
        return found

    def _with_protocol(self, axes: dict[str, Any]) -> dict[str, Any]:
        if axes.get("protocol") is None:
            return {**axes, _RECIPES: {}}
        name, rules = load_protocol(axes["protocol"])
        given = {"shots": rules.shots, "seeds": rules.seeds, "eval_on": rules.eval_on}
        settings = {"evaluation.protocol": name, **rules.settings, **axes["settings"]}
        both = [*_also(nested(rules.settings)), *_also(nested(axes["settings"]))]
        if both:
            settings[_ALSO] = both
        recipes = {self._key(name): other for name, other in rules.recipes.items()}
        axes = {**axes, "settings": settings, _RECIPES: recipes}
        return {**{k: v for k, v in given.items() if v is not None}, **axes}

    def _key(self, recipe: str) -> str:
        return recipe if "/" in recipe else f"{self.track}/{recipe}"

    def _method_name(self, method: MethodAxis) -> str:
        path = shipped.find_config(method.recipe, self.track)
        raw = shipped.read_fragment(path).get("method")
        name = raw.get("name") if isinstance(raw, dict) else None
        if not isinstance(name, str):
            raise ConfigError(f"{path} does not name a method", hint="add 'method: {name: ...}'")
        track = path.parent.name if path.parent in shipped.config_folders() else self.track
        return METHODS.complete(name, track)

    def _build(
        self,
        axes: dict[str, Any],
        dataset: str,
        model: str | None,
        method: MethodAxis,
        shots: Any,
        seeds: tuple[int, ...] | None,
        full: str,
    ) -> Experiment:
        track = track_of(full)
        recipe = shipped.find_config(method.recipe, self.track)
        own: dict[str, Any] = {"data": {"name": dataset}}
        if shots is not _AS_THE_RECIPE:
            own["data"]["shots"] = shots
        if model is not None:
            own["model"] = {"name": model}
        if seeds is not None:
            own["seeds"] = list(seeds)
        fragments = [
            (recipe.stem, shipped.read_fragment(recipe)),
            (self.label, own),
            (self.label, nested(axes["settings"])),
            (self.label, nested(method.set)),
            ("--set", self.over),
        ]
        also = _targets(axes, dataset, self.label)
        if also:
            own_also = _also(nested(axes["settings"]))
            fragments.insert(-1, (self.label, {"evaluation": {"also": [*own_also, *also]}}))
        if METHODS.get(full).requires is None:
            fragments = [(f, {k: v for k, v in d.items() if k != "model"}) for f, d in fragments]
        return config.build(fragments, source=f"{self.label}: {method.recipe}", track=track)


_AS_THE_RECIPE: Any = object()
_RECIPES: Final = "recipes"


_ALSO: Final = "evaluation.also"


def _also(settings: Mapping[str, Any]) -> list[Any]:
    """Return ``evaluation.also`` of nested settings as a list; its items are validated with the experiment."""
    evaluation = settings.get("evaluation")
    also = evaluation.get("also") if isinstance(evaluation, dict) else None
    return list(also) if isinstance(also, list | tuple) else [] if also is None else [also]


def _targets(axes: Mapping[str, Any], dataset: str, label: str) -> list[dict[str, Any]]:
    """Return the further targets of the fits on a dataset.

    Raises:
        ConfigError: If ``eval_on`` is by dataset and has no entry for this one.
    """
    given = axes.get("eval_on")
    if given is None:
        return []
    star = ""
    if isinstance(given, dict):
        for pattern, targets in given.items():
            first, has_star, last = pattern.partition("*")
            found = re.fullmatch(f"{re.escape(first)}(.*){re.escape(last)}", dataset)
            if dataset == pattern or (has_star and found):
                star = found[1] if found else ""
                given = targets
                break
        else:
            rules = f" (protocol {axes['protocol']})" if axes.get("protocol") else ""
            raise ConfigError(
                f"the sweep {label}{rules} has no evaluation targets for a fit on '{dataset}'; "
                f"eval_on has {', '.join(given)}",
                hint=f"add eval_on: {{'{dataset}': [DATASET, ...]}} to the sweep",
            )
    return [
        {"dataset": target.replace("*", star)}
        if isinstance(target, str)
        else target.model_dump(mode="json")
        for target in given
    ]


def _matches(exclude: Exclude, experiment: Experiment, methods: tuple[str, str]) -> bool:
    """Return whether an exclude matches an experiment, apart from its seeds."""
    asked, data, model = exclude.model_fields_set, experiment.config.data, experiment.config.model

    def any_of(patterns: Any, texts: tuple[str, ...]) -> bool:
        return any(fnmatchcase(t, p) for p in _several(patterns) for t in texts)

    return bool(asked) and (
        ("datasets" not in asked or any_of(exclude.datasets, (data.name,)))
        and ("models" not in asked or any_of(exclude.models, (model.name if model else "",)))
        and ("methods" not in asked or any_of(exclude.methods, methods))
        and ("shots" not in asked or data.shots in _several(exclude.shots))
    )


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _with_seeds(experiment: Experiment, seeds: tuple[int, ...]) -> Experiment:
    if seeds == experiment.config.seeds:
        return experiment
    return replace(experiment, config=experiment.config.model_copy(update={"seeds": seeds}))
