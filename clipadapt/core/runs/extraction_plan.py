"""Plan an extraction: the settings, the examples and the model, before anything is encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.data import Inputs
from clipadapt.core.api.errors import ConfigError, did_you_mean
from clipadapt.core.api.registry import tracks
from clipadapt.core.api.user_input import shown, visible
from clipadapt.core.data.targets import OpenDatasets, open_target
from clipadapt.core.data.templates import prompts_of
from clipadapt.core.experiments import config, dotted, shipped
from clipadapt.core.files.hardware import default_threads
from clipadapt.core.runs.extraction import Extraction
from clipadapt.core.runs.plan import identify_model
from clipadapt.core.runs.shards import Part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clipadapt.core.api.data import Dataset, SplitName
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.experiments.settings import ExperimentConfig

_USED: Final = (
    *("data.on_bad_image", "data.classnames", "data.templates", "data.limit"),
    *("model.precision", "model.device", "model.tf32", "model.deterministic"),
    *("threads", "workers", "fast", "compile", "resources"),
)
"""The settings that an extraction has a use for."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asked for.

    Attributes:
        data: Keys of the section ``data`` of a config.
        model: Model, as ``--model`` takes it.
        splits: Splits; empty for all examples.
        features: Changed keywords of the model's ``encode``, ``KEY=VALUE``.
        settings: Further settings, ``KEY=VALUE``.
    """

    data: Mapping[str, Any]
    model: str
    splits: Sequence[SplitName] = ()
    features: Sequence[str] = ()
    settings: Sequence[str] = ()


def plan_extraction(
    asked: Asked, track: str, progress: Progress, threads: int | None = None
) -> Extraction:
    """Open the dataset and identify the model; the model is not loaded.

    Args:
        asked: What the user asked for.
        track: Name of the track.
        progress: Where warnings are shown.
        threads: Threads of a worker if the settings do not name them; None is the default of this process.

    Raises:
        ClipAdaptError: For any mistake of the user.
    """
    chosen = _settings(asked, track)
    options = _features(asked.features, track)
    assert chosen.model is not None
    _, identity = identify_model(chosen.model, track, progress)
    opened = OpenDatasets()
    dataset = opened.get(chosen.data.name, chosen.data, track, progress)
    parts: list[Part] = []
    prompts: dict[str, None] = {}
    of_prompts = tracks()[track].prompt_options
    for split in asked.splits or _all_splits(dataset):
        target = open_target(chosen.data.name, split, chosen.data, track, progress, opened)
        parts.append(Part(split, target.examples(chosen.data.limit).inputs, options))
        if of_prompts is not None:
            prompts |= dict.fromkeys(prompts_of(target.classnames, target.templates))
    if of_prompts is not None:
        ids = tuple(map(str, range(len(prompts))))
        parts.append(Part("prompts", Inputs(tuple(prompts), ids), of_prompts))
    threads = chosen.threads or threads or default_threads()
    return Extraction(chosen, track, dataset.name, identity, tuple(parts), threads)


def _settings(asked: Asked, track: str) -> ExperimentConfig:
    """Return the validated settings, with those of the track's baseline, which decide the precision.

    Raises:
        ConfigError: If one is not valid, or of no use here.
    """
    given = config.parse_settings(asked.settings)
    unused = [
        k for k in dotted.flatten(given) if not any(k == u or k.startswith(f"{u}.") for u in _USED)
    ]
    if unused:
        raise ConfigError(
            f"encode does not use {', '.join(map(visible, unused))}: it fills the feature cache and trains nothing",
            hint=f"leave it out; accepted are {', '.join(_USED)}",
        )
    baseline = tracks()[track].examples.baseline
    recipe = shipped.read_fragment(shipped.find_config(baseline, track))
    own = {"data": dict(asked.data), "model": {"name": asked.model}}
    found = config.build(
        [(baseline, recipe), ("encode", own), ("--set", given)], source="encode", track=track
    ).config
    if found.compile == "on" and not tracks()[track].compiles:
        raise ConfigError("compile=on applies to image towers only", hint="remove compile=on")
    return found


def _features(given: Sequence[str], track: str) -> dict[str, Any]:
    """Return the keywords of the model's ``encode``.

    Raises:
        ConfigError: If one is unknown.
    """
    own = tracks()[track]
    asked = config.parse_settings(given)
    for key in dotted.flatten(asked):
        if key not in own.feature_options:
            known = ", ".join(f"{k}={v}" for k, v in own.feature_options.items())
            raise ConfigError(
                f"--features has no key {shown(key)}{did_you_mean(key, tuple(own.feature_options))}",
                hint=f"keys and their defaults: {known}",
            )
        default = own.feature_options[key]
        if default is not None and not isinstance(asked[key], type(default)):
            raise ConfigError(
                f"--features {key} takes a value like {default} (got {shown(asked[key])})",
                hint=f"leave it out for {default}",
            )
    return {**own.encode_options, **own.feature_options, **asked}


def _all_splits(dataset: Dataset[Any]) -> tuple[SplitName, ...]:
    """Return the splits that hold every example once."""
    if getattr(dataset, "whole", None) is not None:
        return ("all",)
    aliases: Mapping[SplitName, SplitName] = getattr(dataset, "aliases", {})
    return tuple(s for s in dataset.splits if aliases.get(s, s) == s)
