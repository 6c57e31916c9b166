"""Readers for records of earlier schema versions.

A record is upgraded when it is read; its file and its run id stay as they are.

Version 1 had no checksums, and a dense confusion matrix in ``per_class``.
Version 2 named the splits of ``leakage.overlaps`` ``learnt`` and ``judged`` and the flags ``judged_on_<split>``; it had
no ``method.uses_train``.
"""

from __future__ import annotations

from typing import Any, Final

SCHEMA_VERSION: Final = 3

_OVERLAP: Final = {"learnt": "trained", "judged": "evaluated"}


def upgrade(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a record of any earlier version as those of :data:`SCHEMA_VERSION`.

    Args:
        raw: The parsed JSON of a record; it is not changed.

    Raises:
        KeyError, TypeError, AttributeError: If it is not a record.
    """
    raw = dict(raw)
    if raw["schema_version"] == 1:
        raw = _from_1(raw)
    if raw["schema_version"] == 2:
        raw = _from_2(raw)
    return raw


def _from_1(raw: dict[str, Any]) -> dict[str, Any]:
    per_class = raw.get("per_class")
    if per_class is not None:
        per_class = {"classnames": per_class["classnames"]}
    return {**raw, "schema_version": 2, "per_class": per_class}


def _from_2(raw: dict[str, Any]) -> dict[str, Any]:
    method = raw["method"]
    flags = [flag.replace("judged_on_", "evaluated_on_", 1) for flag in raw.get("flags", ())]
    leakage = raw.get("leakage")
    if leakage is not None:
        overlaps = [
            {_OVERLAP.get(name, name): value for name, value in overlap.items()}
            for overlap in leakage["overlaps"]
        ]
        leakage = {**leakage, "overlaps": overlaps}
    return {
        **raw,
        "schema_version": 3,
        "method": {**method, "uses_train": not method["name"].endswith("/zero_shot")},
        "flags": flags,
        "leakage": leakage,
    }
