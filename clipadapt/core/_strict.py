"""The base of every config and record: frozen and closed."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """Frozen, closed model: a misspelt key never passes in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
