"""Adapt text encoders to sentiment."""

from __future__ import annotations

from typing import Any

__version__: str

__all__ = ["__version__"]


def __getattr__(name: str) -> Any:
    """Look up the version on first use; both packages are one distribution."""
    if name == "__version__":
        from importlib.metadata import version

        return version("clipadapt")
    raise AttributeError(f"module 'textsent' has no attribute '{name}'")
