"""Dotted keys such as ``data.shots`` and the nested mappings they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.user_input import shown


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the value of each dotted key; lists and empty mappings are values."""
    out: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            out |= flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys as nested mappings.

    Raises:
        ConfigError: If a key has both a value and keys below it.
    """
    out: dict[str, Any] = {}
    for key, value in settings.items():
        *parents, last = key.split(".")
        node = out
        for part in parents:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise ConfigError(
                    f"the setting '{key}': '{part}' already has the value {shown(child)}"
                )
            node = child
        merge(node, {last: value})
    return out


def merge(into: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Merge one mapping into another, key by key; lists and single values replace."""
    for key, value in over.items():
        if isinstance(value, Mapping):
            own = into.get(key)
            into[key] = dict(own) if isinstance(own, Mapping) else {}
            merge(into[key], value)
        else:
            into[key] = value


def get(data: Any, key: str) -> Any:
    """Return the value of a dotted key, or None if there is none."""
    for part in key.split("."):
        data = data.get(part) if isinstance(data, Mapping) else None
    return data
