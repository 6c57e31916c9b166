"""Experiments as typed, closed configs: fragments merged left to right, every fault in one report."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    ValidationError,
    field_validator,
)

from clipadapt.core.api.data import Classes, OnBadImage, SplitName
from clipadapt.core.api.errors import ConfigError, did_you_mean
from clipadapt.core.api.limits import Examples, Seed, Shots, Threads
from clipadapt.core.api.method import MethodConfig
from clipadapt.core.api.model import Precision
from clipadapt.core.api.registry import METHODS, program, track_of, tracks
from clipadapt.core.api.strict import Identifier, Name, StrictModel
from clipadapt.core.api.user_input import (
    identifier,
    read_text,
    shown,
    text_faults,
    user_path,
    visible,
)
from clipadapt.core.files import safe_yaml as _yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import BaseModel


class DataConfig(StrictModel):
    """Which examples are learnt from.

    Attributes:
        name: Data set, as ``--dataset`` takes it.
        shots: Training examples per class; None takes the whole train and val splits.
        allow_fewer: Take what there is where a class has fewer examples than ``shots``.
        manifest: A draw written by an earlier run; replaces the seed's own draw.
        on_bad_image: Stop at an unreadable image, or leave it out and count it.
        classnames: File of class names, one a line in class order, in place of the set's own.
        templates: ``single`` (the set's own), ``7``, ``80`` (ImageNet ensembles), one template such as
            ``a photo of a {}.``, or a file, one a line.
        limit: Evaluate on at most this many examples, a fixed draw by id.
        classes: Learn and judge ``all`` classes, the ``base`` ones (the first half, rounded up) or the ``new`` ones
            (the rest), labels counted from 0.
    """

    model_config = ConfigDict(
        coerce_numbers_to_str=True
    )  # templates: 7 is a name, as is 7 on the shell

    name: Name
    shots: Shots | None = None
    allow_fewer: bool = False
    manifest: str | None = None
    on_bad_image: OnBadImage = "error"
    classnames: str | None = None
    templates: str = "single"
    limit: Examples | None = None
    classes: Classes = "all"

    @property
    def few_shot(self) -> bool:
        """Whether so many examples a class are drawn, and not all taken."""
        return self.shots is not None or self.manifest is not None


class ModelConfig(StrictModel):
    """Which backbone is adapted.

    Attributes:
        name: Model, as ``--model`` takes it.
        precision: Dtype of frozen weights; ``auto`` is bf16 where the hardware multiplies it.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
    """

    name: Name
    precision: Precision = "auto"
    device: str = "auto"


class TargetConfig(StrictModel):
    """One more place where the same fit is judged.

    Attributes:
        dataset: Data set, as ``--dataset`` takes it; None is the one learnt from.
        split: Split of that data set.
        classes: ``all``, ``base`` or ``new`` classes; None is those learnt, or all of another data set.
    """

    dataset: Name | None = None
    split: SplitName = "test"
    classes: Classes | None = None


class EvaluationConfig(StrictModel):
    """Where the classifier is judged.

    Attributes:
        split: Split of the evaluated data set.
        protocol: Name of the rules, shown in the table.
        also: More places where the same fit is judged: another data set with the same classes, or val.
        leakage: Look for duplicates between what is learnt from and what is judged.
        calibrate: Fit a softmax temperature on val, where the method brings none.
    """

    split: SplitName = "test"
    protocol: Identifier = "standard"
    calibrate: bool = True
    also: tuple[TargetConfig, ...] = ()
    leakage: Literal["on", "off"] = "on"


class RecipeConfig(StrictModel):
    """Where the settings come from.

    Attributes:
        source: Paper and official code.
        deviations: What differs from the source on purpose.
    """

    source: str = ""
    deviations: tuple[str, ...] = ()


class ResourcesConfig(StrictModel):
    """What one run takes of a cluster; no part of its result.

    Attributes:
        cpus: Processors; None is ``threads``.
        gpus: Graphics cards, or a share of one; None is 1 where ``model.device`` is ``cuda``, else 0.
        memory_bytes: Memory to set aside, None for none.
        custom: Resources that the cluster's operator named.
    """

    cpus: PositiveFloat | None = None
    gpus: NonNegativeFloat | None = None
    memory_bytes: int | None = Field(default=None, gt=0, le=2**60)
    custom: dict[str, PositiveFloat] = Field(default_factory=dict)


class ExperimentConfig(StrictModel):
    """Everything but the method's own hyperparameters.

    Attributes:
        data: What is learnt from.
        model: The backbone.
        evaluation: Where the classifier is judged.
        seeds: Seeds, one run each.
        store: Whether features are kept and read again.
        fast: ``off`` computes the plain way what else is computed in a cheaper form, equal but for rounding: whole
            contexts of text, last blocks in full, whole image towers at every step, one solve per penalty.
        compile: ``on`` compiles the image tower that encodes with torch.compile; it takes a C++ compiler and some
            seconds, changes the last bits, and pays for convolutional towers on thousands of images.
        threads: Threads of one run, recorded; None takes ``OMP_NUM_THREADS`` or the processors there are, and one
            under ``--executor ray``.
        workers: Threads that decode ahead; no part of the result.
        resources: What one run takes of a cluster.
        recipe: Where the settings come from.
    """

    data: DataConfig
    model: ModelConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    seeds: tuple[Seed, ...] = Field(default=(1,), min_length=1)
    store: Literal["on", "off"] = "on"
    fast: Literal["on", "off"] = "on"
    compile: Literal["on", "off"] = "off"
    threads: Threads | None = None
    workers: Threads | None = None
    resources: ResourcesConfig = ResourcesConfig()
    recipe: RecipeConfig = RecipeConfig()

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("each seed may stand there once")
        return seeds


# How pydantic names one kind of several, among the keys that lead to a fault.
_KIND: Final = re.compile(r"(tuple|list|dict|union|function-\w+|constrained-str)\b")


@dataclass(frozen=True, slots=True)
class Experiment:
    """One valid experiment, before data or weights are touched.

    Attributes:
        config: Everything but the method's own hyperparameters.
        method_name: Full registered name, as in ``clip/coop``.
        method: The method's hyperparameters.
        recipe: Name of the recipe the method's settings come from, or None.
        origins: Dotted key -> where its value came from, for ``validate``.
        stated: Dotted keys that the recipe's file gives.
    """

    config: ExperimentConfig
    method_name: str
    method: MethodConfig
    recipe: str | None = None
    origins: Mapping[str, str] = field(default_factory=dict)
    stated: frozenset[str] = frozenset()

    @property
    def track(self) -> str:
        """Return ``clip`` or ``text``."""
        return track_of(self.method_name)

    @property
    def deviations(self) -> tuple[str, ...]:
        """Return the recipe's deviations and each setting of the method that was changed over it.

        To the method belong the precision and the templates, where its recipe states them.
        """
        part_of_it = {k for k in ("model.precision", "data.templates") if k in self.stated}
        own = [
            f"{key}={_get(self.resolved(), key)} ({Path(origin).stem})"
            for key, origin in self.origins.items()
            if self.recipe
            and (key.startswith("method.") or key in part_of_it)
            and key != "method.name"
            and origin != "default"
            and Path(origin).stem != self.recipe
        ]
        return (*self.config.recipe.deviations, *own)

    def resolved(self) -> dict[str, Any]:
        """Return the whole config as plain data, in the layout of a config file."""
        out = self.config.model_dump(mode="json")
        out["method"] = {"name": self.method_name, **self.method.model_dump(mode="json")}
        return out


def config_folders(track: str | None = None) -> list[Path]:
    """Return the folders where a bare config name is looked up, the checkout's first."""
    package = Path(__file__).resolve().parents[2]
    installed = package / "_configs"  # only a built wheel has it
    root = installed if installed.is_dir() else package.parent / "configs"
    own = [track] if track else tracks()
    return [root / "methods" / t for t in own] + [root / "sweeps", root / "protocols"]


def config_names(track: str | None = None) -> dict[str, Path]:
    """Return the shipped recipes by name."""
    folders = [f for f in config_folders(track) if f.parent.name == "methods"]
    return {p.stem: p for folder in reversed(folders) for p in sorted(folder.glob("*.yaml"))}


def sweep_names(track: str) -> dict[str, Path]:
    """Return the shipped sweeps whose methods the program of a track knows, by name."""

    def known(path: Path) -> bool:
        for entry in _methods_in(read_fragment(path)):
            own, slash, name = entry.rpartition("/")
            if name not in config_names(own if slash else track):
                return False
        return True

    return {name: path for name, path in _shipped("sweeps").items() if known(path)}


def _methods_in(block: Mapping[str, Any]) -> Iterator[str]:
    for entry in block.get("methods") or ():
        yield entry["recipe"] if isinstance(entry, dict) else entry
    for key in ("parts", "include"):
        for inner in block.get(key) or ():
            yield from _methods_in(inner)


def protocol_names() -> dict[str, Path]:
    """Return the shipped protocols by name."""
    return _shipped("protocols")


def _shipped(kind: str) -> dict[str, Path]:
    folders = [f for f in config_folders() if f.name == kind]
    return {p.stem: p for folder in folders for p in sorted(folder.glob("*.yaml"))}


def find_config(
    name: str,
    track: str | None = None,
    *,
    kind: Literal["recipe", "sweep", "protocol"] = "recipe",
) -> Path:
    """Return the file of a config given by path or bare name.

    Args:
        name: Path or bare name; a recipe's may have its track before it, as in ``text/svm``.
        track: Track whose recipes are looked up; None looks in all.
        kind: What is meant.

    Raises:
        ConfigError: If there is none; the message offers the nearest names.
    """
    path = user_path(name)
    if path.is_file():
        return path
    if path.exists():
        what = "is a folder" if path.is_dir() else "is no regular file"
        raise ConfigError(f"'{name}' {what}, not a config file", hint="name a .yaml file")
    bare = name.strip().removesuffix(".yaml")
    own = track
    if kind == "recipe":
        first, slash, rest = bare.partition("/")
        if slash and first in {"clip", "text"}:
            own, bare = first, rest
        known = config_names(own)
    else:
        known = _shipped(f"{kind}s")
    if bare in known:
        return known[bare]
    if kind == "sweep" and track:
        known = sweep_names(track)
    if kind == "recipe" and bare in config_names():
        other = "clip" if own == "text" else "text"
        raise ConfigError(
            f"'{bare}' is no recipe of the track {own}, but of {other}",
            hint=f"take '{program(other)}', or write {other}/{bare}",
        )
    what = f"{kind}s" if kind != "recipe" else "configs"
    raise ConfigError(
        f"no config '{visible(name)}': neither a file nor a shipped {kind}"
        f"{did_you_mean(bare, sorted(known)) or ';'} Known: {', '.join(sorted(known))}",
        hint=f"list them with '{program(track)} ls {what}'",
    )


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Turn ``["data.shots=4"]`` into nested plain data; values are read as YAML.

    Raises:
        ConfigError: If one is not ``KEY=VALUE``.
    """
    out: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", key.strip()):
            raise ConfigError(
                f"--set takes KEY=VALUE, got {shown(setting)}",
                hint="for example --set data.shots=4",
            )
        try:
            value = _yaml.parse(text)
        except _yaml.YamlError:
            value = text
        # A name is taken as it was typed: "folder:C: x" is no mapping, "folder:my #1" no comment.
        if isinstance(value, (dict, str)) and not text.startswith(("'", '"', "{")):
            value = text
        node = out
        *parents, last = key.strip().split(".")
        for part in parents:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise ConfigError(
                    f"--set {visible(setting)}: '{part}' already has the value {shown(child)}"
                )
            node = child
        node[last] = value
    return out


def read_fragment(path: Path) -> dict[str, Any]:
    """Read one YAML file as plain data.

    Raises:
        ConfigError: If it cannot be read, is not YAML, or is not a mapping.
    """
    try:
        data = _yaml.parse(read_text(path, "config", _yaml.MAX_BYTES))
    except _yaml.YamlError as err:
        raise ConfigError(f"{path} is not YAML: {err}") from None
    if not isinstance(data, dict):
        holds = "nothing" if data is None else shown(data)
        raise ConfigError(f"{path} holds {holds}, expected a mapping of keys to values")
    return data


def load(
    configs: Sequence[str], settings: Sequence[str] = (), *, track: str = "clip"
) -> Experiment:
    """Merge config files and ``--set`` settings and check the result.

    Args:
        configs: Paths or bare recipe names, merged left to right.
        settings: ``KEY=VALUE`` texts, merged last.
        track: Track of bare names without a prefix.

    Raises:
        ConfigError: Naming every fault at once.
        UnknownNameError: If the method is not registered.
    """
    fragments: list[tuple[str, dict[str, Any]]] = []
    for name in configs:
        path = find_config(name, track)
        label = path.stem if path.parent in config_folders() else str(path)
        fragments.append((label, read_fragment(path)))
    if settings:
        fragments.append(("--set", parse_settings(settings)))
    source = " + ".join(label for label, _ in fragments) or "the config"
    return build(fragments, source=source, track=track)


def build(
    fragments: Sequence[tuple[str, Mapping[str, Any]]], *, source: str, track: str = "clip"
) -> Experiment:
    """Merge labelled fragments of plain data into one valid experiment; see :func:`load`."""
    raw: dict[str, Any] = {}
    for _, data in fragments:
        merge(raw, data)
    origins = {key: label for label, data in fragments for key in _flatten(data)}

    model_raw = raw.get("model")
    if isinstance(model_raw, dict) and model_raw and set(model_raw) <= _MODEL_BUT_NAME:
        del raw["model"]  # a recipe's precision, and no model it belongs to
    method_raw = raw.pop("method", None)
    faults = [
        f"  {visible(key)}: a setting holds no control characters and no halves of characters"
        for key in text_faults({**raw, "method": method_raw})
    ]
    method_name, method = "", MethodConfig()
    name = method_raw.get("name") if isinstance(method_raw, dict) else method_raw
    if not isinstance(method_raw, dict) or not isinstance(name, str):
        key = "method.name" if isinstance(method_raw, dict) or name is None else "method"
        got = "nothing" if name is None else shown(name)
        faults.append(
            f"  {key}: Field required (got {got}); for example method.name=clip/zero_shot"
        )
    else:
        method_raw = dict(method_raw)
        method_name = METHODS.complete(method_raw.pop("name"), track)
        config_class = METHODS.get(method_name).Config
        try:
            method = config_class.model_validate(method_raw)
        except ValidationError as err:
            faults += fault_lines(err, config_class, "method.")
    try:
        config = ExperimentConfig.model_validate(raw)
    except ValidationError as err:
        faults += fault_lines(err, ExperimentConfig, "")
    if faults:
        raise ConfigError(
            f"{source} is not a valid experiment:\n" + "\n".join(faults),
            hint=f"show the keys and defaults with '{_example(method_name, track)}'",
        )
    recipe, stated = next(
        (
            (Path(label).stem, frozenset(_flatten(data)))
            for label, data in fragments
            if label != "--set" and isinstance(own := data.get("method"), Mapping) and "name" in own
        ),
        (None, frozenset[str]()),
    )
    if recipe is not None:
        check_identifier(recipe, "recipe")
    experiment = Experiment(config, method_name, method, recipe, stated=stated)
    everything = {k: origins.get(k, "default") for k in _flatten(experiment.resolved())}
    return Experiment(config, method_name, method, recipe, everything, stated)


_MODEL_BUT_NAME: Final = frozenset(ModelConfig.model_fields) - {"name"}


def _example(method_name: str, track: str) -> str:
    """Return a command that shows the keys of a method, or of any."""
    own, _, recipe = method_name.partition("/")
    if recipe not in config_names(own):
        own, recipe = track, "tfidf_svm" if track == "text" else "zero_shot"
    data = "rotten_tomatoes:offline" if own == "text" else "synthetic"
    return f"{program(own)} validate {recipe} --set data.name={data}"


def check_identifier(name: str, what: str) -> str:
    """Return the name of a recipe or sweep, which is that of its file, where it may be one.

    Raises:
        ConfigError: If it may not stand in records and tables.
    """
    try:
        return identifier(name)
    except ValueError as err:
        raise ConfigError(
            f"{shown(name)} is no name of a {what}: {err}", hint="rename the file"
        ) from None


def merge(into: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Set what one mapping says over another, key by key; lists and single values replace."""
    for key, value in over.items():
        if isinstance(value, Mapping):
            own = into.get(key)
            into[key] = dict(own) if isinstance(own, Mapping) else {}
            merge(into[key], value)
        else:
            into[key] = value


def fault_lines(err: ValidationError, model: type[BaseModel], prefix: str) -> list[str]:
    """Return one line per fault: path, message, the value got, the nearest key."""
    lines = []
    for fault in err.errors(include_url=False):
        if fault["type"] == "too_short" and fault["input"]:
            continue  # its items are wrong, each in a line of its own
        parts = [p for part in fault["loc"] if not _KIND.match(p := str(part))]
        key = visible(prefix + ".".join(parts))
        got = "nothing" if fault["type"] == "missing" else shown(fault["input"])
        near = ""
        if fault["type"] == "extra_forbidden":
            near = _nearest_key(model, fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        lines.append(f"  {key}: {message} (got {got}){near}")
    return lines


def _nearest_key(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """Return the nearest accepted key beside a misspelt one, or the whole list."""
    current: Any = model
    for part in loc[:-1]:
        if part not in current.model_fields:  # a place in a list or one kind of several
            continue
        current = _model_within(current.model_fields[part].annotation)
        if current is None:
            return ""
    keys = list(current.model_fields)
    fields = current.model_fields.items() if len(loc) == 1 else ()
    within = [f"{name}.{loc[-1]}" for name, field in fields if _has(field, str(loc[-1]))]
    if within:
        return f"; did you mean '{within[0]}'?"
    near = difflib.get_close_matches(str(loc[-1]), keys, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; accepted: {', '.join(keys)}"


def _has(field: Any, key: str) -> bool:
    """Tell whether the section that a field holds has a key."""
    section = _model_within(field.annotation)
    return section is not None and key in section.model_fields


def _model_within(annotation: Any) -> Any:
    """Return the first model class inside an annotation such as ``tuple[str | Model, ...] | None``."""
    if hasattr(annotation, "model_fields"):
        return annotation
    inside = (_model_within(a) for a in getattr(annotation, "__args__", ()))
    return next((model for model in inside if model is not None), None)


def _flatten(data: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            keys += _flatten(value, f"{prefix}{key}.")
        else:
            keys.append(f"{prefix}{key}")
    return keys


def _get(data: Mapping[str, Any], key: str) -> Any:
    value: Any = data
    for part in key.split("."):
        value = value[part]
    return value
