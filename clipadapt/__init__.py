"""Adapt CLIP to new image tasks: methods, models, datasets and one run record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipadapt.sklearn import CLIPClassifier

__version__: str

__all__ = ["CLIPClassifier", "__version__"]


def __getattr__(name: str) -> Any:
    """Import scikit-learn and the classes that need it, and look up the version, only on first use."""
    if name == "CLIPClassifier":
        from clipadapt.sklearn import CLIPClassifier

        return CLIPClassifier
    if name == "__version__":
        from importlib.metadata import version

        return version("clipadapt")
    raise AttributeError(f"module 'clipadapt' has no attribute '{name}'")
