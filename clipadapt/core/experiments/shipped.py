"""Shipped recipes, sweeps and evaluation protocols, and config files: found by path or name, read as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clipadapt.core.api.errors import ConfigError, did_you_mean
from clipadapt.core.api.registry import program, tracks
from clipadapt.core.api.user_input import identifier, read_text, shown, user_path, visible
from clipadapt.core.files import safe_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def config_folders(track: str | None = None) -> list[Path]:
    """Return the folders in which a bare config name is looked up."""
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
    """Return the shipped sweeps by name, without those whose recipes the track does not have."""

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
    """Return the shipped evaluation protocols by name."""
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
    """Return the file of a config.

    Args:
        name: Path or bare name; a recipe may have its track as a prefix, as in ``text/svm``.
        track: Track whose recipes are looked up; None means all tracks.
        kind: Kind of config.

    Raises:
        ConfigError: If there is none; the message lists the nearest names.
    """
    path = user_path(name)
    if path.is_file():
        return path
    if path.exists():
        what = "is a folder" if path.is_dir() else "is not a regular file"
        raise ConfigError(f"'{name}' {what}, not a config file", hint="name a .yaml file")
    bare = name.strip().removesuffix(".yaml")
    if kind == "recipe":
        first, slash, rest = bare.partition("/")
        if slash and first in tracks():
            track, bare = first, rest
    known = config_names(track) if kind == "recipe" else _shipped(f"{kind}s")
    if bare in known:
        return known[bare]
    others = [t for t in tracks() if t != track and bare in config_names(t)]
    if kind == "recipe" and others:
        raise ConfigError(
            f"'{bare}' is a recipe of the track {others[0]}, not of {track}",
            hint=f"use '{program(others[0])}', or write {others[0]}/{bare}",
        )
    if kind == "sweep" and track:
        known = sweep_names(track)
    listed = "configs" if kind == "recipe" else f"{kind}s"
    raise ConfigError(
        f"no config '{visible(name)}': neither a file nor a shipped {kind}"
        f"{did_you_mean(bare, sorted(known)) or '.'} Known: {', '.join(sorted(known))}",
        hint=f"list them with '{program(track)} ls {listed}'",
    )


def read_fragment(path: Path) -> dict[str, Any]:
    """Read one YAML file as plain data.

    Raises:
        ConfigError: If it cannot be read, is not YAML, or is not a mapping.
    """
    try:
        data = safe_yaml.parse(read_text(path, "config", safe_yaml.MAX_BYTES))
    except safe_yaml.YamlError as err:
        raise ConfigError(f"{path} is not YAML: {err}") from None
    if not isinstance(data, dict):
        got = "nothing" if data is None else shown(data)
        raise ConfigError(f"{path} contains {got}, expected a mapping of keys to values")
    return data


def check_identifier(name: str, what: str) -> str:
    """Return the name of a recipe, sweep or evaluation protocol, the name of its file, if it is valid.

    Raises:
        ConfigError: If it is not.
    """
    try:
        return identifier(name)
    except ValueError as err:
        raise ConfigError(
            f"{shown(name)} is not a valid name of a {what}: {err}", hint="rename the file"
        ) from None
