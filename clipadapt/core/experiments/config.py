"""Experiments: config fragments merged left to right into one validated config; one message names every fault."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from clipadapt.core.api.effects import declared, find_field, model_within
from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.method import MethodConfig
from clipadapt.core.api.registry import DEFAULT_TRACK, METHODS, program, track_of, tracks
from clipadapt.core.api.user_input import shown, text_faults, visible
from clipadapt.core.experiments import dotted, lines, shipped
from clipadapt.core.experiments.settings import ExperimentConfig, ModelConfig, effect_of
from clipadapt.core.files import safe_yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

    from clipadapt.core.api.effects import Effect

_MODEL_BUT_NAME: Final = frozenset(ModelConfig.model_fields) - {"name"}
# What pydantic adds to the path of a fault for a member of a union or of a container.
_KIND: Final = re.compile(r"(tuple|list|dict|union|function-\w+|constrained-str)\b")


@dataclass(frozen=True, slots=True)
class Experiment:
    """One valid experiment, before data or weights are touched.

    Attributes:
        config: Everything but the method's own hyperparameters.
        method_name: Full registered name, as in ``clip/coop``.
        method: The method's hyperparameters.
        recipe: Name of the recipe of the method's settings, or None.
        origins: Dotted key -> where its value comes from, for ``validate``.
        stated: Dotted keys that the recipe's file sets for these shots and this dataset.
    """

    config: ExperimentConfig
    method_name: str
    method: MethodConfig
    recipe: str | None = None
    origins: Mapping[str, str] = field(default_factory=dict)
    stated: frozenset[str] = frozenset()

    @property
    def track(self) -> str:
        """Name of the method's track."""
        return track_of(self.method_name)

    @property
    def deviations(self) -> tuple[str, ...]:
        """The recipe's deviations, and each setting of the method that differs from the recipe.

        The precision and the templates count as settings of the method if its recipe sets them. A file of the user's
        does not, if the recipe has a place for it.
        """
        part_of_it = {k for k in ("model.precision", "data.templates") if k in self.stated}
        own = [
            f"{key}={dotted.get(self.resolved(), key)} ({lines.file_of(origin)})"
            for key, origin in self.origins.items()
            if self.recipe
            and (key.startswith("method.") or key in part_of_it)
            and key != "method.name"
            and origin != "default"
            and lines.file_of(origin) != self.recipe
            and not (key in self.stated and self._is_input(key))
        ]
        return (*self.config.recipe.deviations, *own)

    def _is_input(self, key: str) -> bool:
        """Return whether a key of the method names data of the user, which the run id knows by their content."""
        found = find_field(type(self.method), key.removeprefix("method."))
        affects = declared(found) if found is not None and key.startswith("method.") else None
        return affects is not None and bool(affects.facts)

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines ``by_shots`` and ``by_dataset`` of config files that set a value."""
        found = map(lines.line_of, self.origins.values())
        return tuple(dict.fromkeys(filter(None, found)))

    def resolved(self) -> dict[str, Any]:
        """Return the complete config as plain data, in the layout of a config file."""
        out = self.config.model_dump(mode="json")
        out["method"] = {"name": self.method_name, **self.method.model_dump(mode="json")}
        return out

    def effects(self) -> dict[str, Effect]:
        """Return what each dotted key of the resolved config affects."""
        return {key: effect_of(key, type(self.method)) for key in dotted.flatten(self.resolved())}


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Return ``["data.shots=4"]`` as nested plain data; values are parsed as YAML.

    Raises:
        ConfigError: If one is not ``KEY=VALUE``.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", key.strip()):
            raise ConfigError(
                f"--set takes KEY=VALUE, got {shown(setting)}",
                hint="for example --set data.shots=4",
            )
        try:
            value = safe_yaml.parse(text)
        except safe_yaml.YamlError:
            value = text
        # A name is taken as typed: "folder:C: x" is no mapping, and "folder:my #1" has no comment.
        if isinstance(value, (dict, str)) and not text.startswith(("'", '"', "{")):
            value = text
        name = key.strip()
        # The last one counts, in the place of the last one; a mapping replaces the settings within it.
        values = {k: v for k, v in values.items() if k != name and not k.startswith(f"{name}.")}
        values[name] = value
    return dotted.nested(values)


def load(
    configs: Sequence[str],
    settings: Sequence[str] | Mapping[str, Any] = (),
    *,
    track: str = DEFAULT_TRACK,
    options: Mapping[str, tuple[str, Any]] | None = None,
) -> Experiment:
    """Merge config files, options and ``--set`` settings, and validate the result.

    Args:
        configs: Paths or bare recipe names, merged left to right.
        settings: ``KEY=VALUE`` texts, or values by dotted key, merged last.
        track: Track of names without a prefix.
        options: Options of the command line that set one key each: option -> key and value.

    Raises:
        ConfigError: Naming every fault.
        UnknownNameError: If the method is not registered.
    """
    fragments: list[tuple[str, dict[str, Any]]] = []
    for name in configs:
        path = shipped.find_config(name, track)
        label = path.stem if path.parent in shipped.config_folders() else str(path)
        fragments.append((label, shipped.read_fragment(path)))
    fragments += [(o, dotted.nested({key: value})) for o, (key, value) in (options or {}).items()]
    if isinstance(settings, Mapping):
        fragments.append(("--set", dotted.nested(settings)))
    elif settings:
        fragments.append(("--set", parse_settings(settings)))
    source = " + ".join(label for label, _ in fragments) or "the config"
    return build(fragments, source=source, track=track)


def build(
    fragments: Sequence[tuple[str, Mapping[str, Any]]], *, source: str, track: str = DEFAULT_TRACK
) -> Experiment:
    """Merge labelled fragments of plain data into one validated experiment; see :func:`load`."""
    bodies = [(label, lines.body_of(data)) for label, data in fragments]
    fragments, line_faults = _with_lines(fragments, _merged(bodies), track)
    config, method_name, method, faults = _validated(_merged(fragments), track)
    faults = [*line_faults, *faults]
    if config is None or faults:
        raise ConfigError(
            f"{source} is not a valid experiment:\n" + "\n".join(faults),
            hint=f"show the keys and defaults with '{_example(method_name, track, fragments)}'",
        )
    recipe, stated = _recipe(fragments)
    experiment = Experiment(config, method_name, method, recipe, stated=stated)
    origins = {key: label for label, data in fragments for key in dotted.flatten(data)}
    keys = dotted.flatten(experiment.resolved())
    return replace(experiment, origins={key: origins.get(key, "default") for key in keys})


def _merged(fragments: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    raw: dict[str, Any] = {}
    for _, data in fragments:
        dotted.merge(raw, data)
    return raw


def _validated(
    raw: dict[str, Any], track: str
) -> tuple[ExperimentConfig | None, str, MethodConfig, list[str]]:
    """Return the validated config, None if it is not valid, the method's name and config, and every fault."""
    raw = dict(raw)
    model_raw = raw.get("model")
    if isinstance(model_raw, dict) and model_raw and set(model_raw) <= _MODEL_BUT_NAME:
        del raw["model"]  # the recipe sets the precision of a model, and no model is named
    method_raw = raw.pop("method", None)
    faults = [
        f"  {visible(key)}: a setting must not contain control characters or lone surrogates"
        for key in text_faults({**raw, "method": method_raw})
    ]
    method_name, method = _method(method_raw, track, faults)
    config = None
    try:
        config = ExperimentConfig.model_validate(raw)
    except ValidationError as err:
        faults += fault_lines(err, ExperimentConfig, "", {"method": type(method)})
        if not raw.get("data"):
            faults = [_with_example(line, track) for line in faults]
    return config, method_name, method, faults


def _with_lines(
    fragments: Sequence[tuple[str, Mapping[str, Any]]], raw: Mapping[str, Any], track: str
) -> tuple[list[tuple[str, Mapping[str, Any]]], list[str]]:
    """Return fragments with the lines that apply in place of ``by_shots`` and ``by_dataset``.

    Args:
        fragments: Labelled fragments.
        raw: Their merged bodies.
        track: Track of names without a prefix.

    Returns:
        Each body, followed by its lines with the line in the label; and every fault of every line.
    """
    found: list[tuple[str, Mapping[str, Any]]] = []
    faults: list[str] = []
    for label, data in fragments:
        body = lines.body_of(data)
        wrong: list[str] = []
        known = lines.lines_of(data, track, wrong)
        if known:
            method = raw.get("method")
            name = method.get("name") if isinstance(method, Mapping) else method
            wrong += _line_faults(_Key(body, known), name if isinstance(name, str) else None, track)
        found.append((label, body))
        if not wrong:
            using = lines.applied(known, raw, track)
            found += [(f"{label}, {line.words}", line.settings) for line in using]
        faults += wrong
    return found, faults


@dataclass(frozen=True, eq=False, slots=True)
class _Key:
    """The body and the lines of one file, equal to another one with the same content."""

    body: Mapping[str, Any]
    each: list[lines.Line]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


@lru_cache(maxsize=1000)  # every experiment of a sweep has the same ones
def _line_faults(file: _Key, method_name: Any, track: str) -> tuple[str, ...]:
    """Return what is wrong with the settings of lines, whether they apply or not."""
    whole = {"data": {"name": "any"}, "method": {"name": method_name}}  # may be in other files
    base = _merged([("", whole), ("", file.body)])
    known = set(_validated(base, track)[3])
    return tuple(
        f"  {line.path}.{fault.strip()}"
        for line in file.each
        for fault in _validated(_merged([("", base), ("", line.settings)]), track)[3]
        if fault not in known
    )


def _method(raw: Any, track: str, faults: list[str]) -> tuple[str, MethodConfig]:
    """Return the name and the validated config of a method; what is wrong is added to ``faults``."""
    name = raw.get("name") if isinstance(raw, dict) else raw
    if not isinstance(raw, dict) or not isinstance(name, str):
        key = "method.name" if isinstance(raw, dict) or name is None else "method"
        got = "nothing" if name is None else shown(name)
        faults.append(
            f"  {key}: Field required (got {got}); for example method.name={_baseline(track)}"
        )
        return "", MethodConfig()
    full = METHODS.complete(name, track)
    config_class = METHODS.get(full).Config
    try:
        return full, config_class.model_validate({k: v for k, v in raw.items() if k != "name"})
    except ValidationError as err:
        faults += fault_lines(err, config_class, "method.")
        return full, MethodConfig()


def _recipe(
    fragments: Sequence[tuple[str, Mapping[str, Any]]],
) -> tuple[str | None, frozenset[str]]:
    """Return the name of the first file that names a method, and the dotted keys that it and its lines set."""
    for label, data in fragments:
        method = data.get("method")
        if label != "--set" and isinstance(method, Mapping) and "name" in method:
            name = shipped.check_identifier(Path(label).stem, "recipe")
            own = [d for other, d in fragments if lines.file_of(other) == name]
            return name, frozenset(key for d in own for key in dotted.flatten(d))
    return None, frozenset()


def _baseline(track: str) -> str:
    return f"{track}/{tracks()[track].examples.baseline}"


def _example(
    method_name: str, track: str, fragments: Sequence[tuple[str, Mapping[str, Any]]] = ()
) -> str:
    """Return a command that shows the keys of a recipe that was given, of a method, or of the baseline of a track."""
    own, _, recipe = (method_name or f"{track}/").partition("/")
    known = shipped.config_names(own)
    recipe = next((f for label, _ in fragments if (f := lines.file_of(label)) in known), recipe)
    if recipe not in known:
        own, _, recipe = _baseline(track).partition("/")
    data = tracks()[own].examples.dataset
    return f"{program(own)} validate {recipe} --set data.name={data}"


def _with_example(line: str, track: str) -> str:
    """Return the line of a fault; one that says that no data is named also says how to name it."""
    if not line.startswith("  data: Field required"):
        return line
    example = tracks()[track].examples.dataset
    return (
        f"{line}; name a dataset with --dataset, for example --dataset {example}, or set data.name"
    )


def fault_lines(
    err: ValidationError,
    model: type[BaseModel],
    prefix: str,
    sections: Mapping[str, type[BaseModel]] = MappingProxyType({}),
) -> list[str]:
    """Return one line per fault: key, message, the value given, the nearest valid key.

    Args:
        err: The faults.
        model: The model that was to be valid.
        prefix: What stands before its keys, such as ``method.``.
        sections: Models beside its fields, by section; their keys may be suggested too.
    """
    lines = []
    for fault in err.errors(include_url=False):
        if fault["type"] == "too_short" and fault["input"]:
            continue  # its items are wrong, and each has its own line
        parts = [p for part in fault["loc"] if not _KIND.match(p := str(part))]
        key = visible(prefix + ".".join(parts))
        got = "nothing" if fault["type"] == "missing" else shown(fault["input"])
        near = ""
        if fault["type"] == "extra_forbidden":
            near = _nearest_key(model, fault["loc"], sections)
        message = fault["msg"].removeprefix("Value error, ")
        lines.append(f"  {key}: {message} (got {got}){near}")
    return lines


def _nearest_key(
    model: type[BaseModel], loc: tuple[int | str, ...], sections: Mapping[str, type[BaseModel]]
) -> str:
    """Return the valid key that is nearest to a misspelt one, or all valid keys."""
    current: Any = model
    for part in loc[:-1]:
        if part not in current.model_fields:  # the index of an item, or a member of a union
            continue
        current = model_within(current.model_fields[part].annotation)
        if current is None:
            return ""
    keys = list(current.model_fields)
    key, top = str(loc[-1]), len(loc) == 1
    fields = current.model_fields.items() if top else ()
    within = [f"{name}.{key}" for name, field in fields if _has(field, key)]
    within += [f"{name}.{key}" for name, m in sections.items() if top and key in m.model_fields]
    if within:
        return f"; did you mean '{within[0]}'?"
    near = difflib.get_close_matches(str(loc[-1]), keys, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else f"; accepted: {', '.join(keys)}"


def _has(field: Any, key: str) -> bool:
    """Return whether the section in a field has a key."""
    section = model_within(field.annotation)
    return section is not None and key in section.model_fields
