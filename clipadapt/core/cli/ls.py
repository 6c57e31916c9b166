"""``ls``: list what is registered or shipped."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from clipadapt.core.api import registry
from clipadapt.core.api.errors import ClipAdaptError
from clipadapt.core.api.method import setting_of
from clipadapt.core.cli.options import JsonOption, track_of
from clipadapt.core.cli.output import print_json, say


class Kind(StrEnum):
    """What ``ls`` lists."""

    methods = "methods"
    datasets = "datasets"
    models = "models"
    configs = "configs"
    sweeps = "sweeps"
    protocols = "protocols"


def ls(
    context: typer.Context, kind: Annotated[Kind, typer.Argument()], as_json: JsonOption = False
) -> None:
    """List what is registered or shipped; methods that are transductive or online are marked."""
    faults: list[str] = []
    registries: dict[Kind, registry.Registry[Any]] = {
        Kind.methods: registry.METHODS,
        Kind.datasets: registry.DATASETS,
        Kind.models: registry.MODELS,
    }
    track = track_of(context).name
    if kind in registries:
        entries, faults = registries[kind].survey()
        names = sorted(name for name in entries if name.startswith(f"{track}/"))
        if kind is not Kind.methods:
            names = registries[kind].typed(names, track)
    else:
        names = _shipped(kind, track)
    settings = _settings(names) if kind is Kind.methods else {}
    if as_json:
        print_json({kind.value: names} | ({"settings": settings} if settings else {}))
    else:
        say("\n".join(_marked(name, settings.get(name, "inductive")) for name in names))
    registry.refuse_plugins(faults)


def _settings(names: Sequence[str]) -> dict[str, str]:
    """Return the setting of every method that can be imported."""
    found: dict[str, str] = {}
    for name in names:
        with contextlib.suppress(ClipAdaptError):  # a plug-in's fault is reported when it is used
            found[name] = setting_of(registry.METHODS.get(name))
    return found


def _marked(name: str, setting: str) -> str:
    return name if setting == "inductive" else f"{name} ({setting})"


def _shipped(kind: Kind, track: str) -> list[str]:
    from clipadapt.core.experiments import shipped

    match kind:
        case Kind.configs:
            return sorted(shipped.config_names(track))
        case Kind.sweeps:
            return sorted(shipped.sweep_names(track))
        case _:
            return sorted(shipped.protocol_names())
