"""Models of the Hugging Face hub: their files on this machine, and where they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipadapt.core.api.errors import ModelError
from clipadapt.core.files import hub

if TYPE_CHECKING:
    from clipadapt.core.files.hub_client import Wanted


def model_files(repo: str, revision: str | None, wanted: Wanted, *, hint: str) -> hub.Snapshot:
    """Return the files of a model repository: from the hub cache if it holds them, else downloaded.

    Args:
        repo: ``ORG/NAME``.
        revision: Commit, tag or branch; None is ``main``.
        wanted: Selects files, see :func:`clipadapt.core.files.hub.snapshot`.
        hint: What works without a network.

    Raises:
        ModelError: If the repository does not hold the files, or is not available.
    """
    return hub.snapshot("model", repo, revision, wanted=wanted, error=ModelError, way_out=hint)


def provenance(found: hub.Snapshot) -> dict[str, Any]:
    """Return ``revision``, ``licence``, ``citation`` and ``notes`` of a model from the hub."""
    return {
        "revision": found.revision,
        "licence": found.licence or found.see,
        "citation": found.see,
        "notes": (found.note,) if found.note else (),
    }
