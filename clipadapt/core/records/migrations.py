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

    Missing fields stay missing: validation reports them.

    Args:
        raw: The parsed JSON of a record; it is not changed.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: If it is not a record.
    """
    new = dict(raw)
    if new["schema_version"] == 1:
        new["schema_version"] = 2
        if new.get("per_class"):
            new["per_class"] = {"classnames": new["per_class"]["classnames"]}
    if new["schema_version"] == 2:
        new["schema_version"] = 3
        if "method" in new:
            zero_shot = new["method"]["name"].endswith("/zero_shot")
            new["method"] = {**new["method"], "uses_train": not zero_shot}
        new["flags"] = [
            flag.replace("judged_on_", "evaluated_on_", 1) for flag in new.get("flags", ())
        ]
        if new.get("leakage"):
            overlaps = [
                {_OVERLAP.get(key, key): value for key, value in overlap.items()}
                for overlap in new["leakage"]["overlaps"]
            ]
            new["leakage"] = {**new["leakage"], "overlaps": overlaps}
    return new
