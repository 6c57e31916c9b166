"""The key of a fit: training resumes only from a checkpoint with an equal key."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from clipadapt.core.api.data import Split


def resume_key(facts: Mapping[str, Any], splits: Iterable[Split[Any] | None]) -> str:
    """Return a hash of everything that a fit depends on.

    Args:
        facts: Plain data: settings, seed, hash of the weights, class names, versions of libraries.
        splits: Splits the fit reads; None is skipped.
    """
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for split in splits:
        if split is not None:
            key.update(split.inputs.digests().tobytes() + split.labels.tobytes() + b"\0")
    return key.hexdigest()
