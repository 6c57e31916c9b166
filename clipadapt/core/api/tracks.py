"""Tracks: what differs between images and texts, as one object that each package registers.

A package with methods registers its track as ``TRACK`` in the package that its entry point names, so
``clipadapt/methods/__init__.py`` holds that of images. Code that both packages share asks the object.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Examples:
    """Names that make a working example in ``--help`` and in hints.

    Attributes:
        dataset: A dataset that needs no download.
        model: A model that needs no download.
        recipe: A recipe that needs no other setting than a dataset.
        baseline: The simplest recipe.
        sweep: A shipped sweep.
        export_format: A format of ``export``.
        needs_model: Whether ``recipe`` needs a model to be named.
    """

    dataset: str
    model: str
    recipe: str
    baseline: str
    sweep: str
    export_format: str
    needs_model: bool


@dataclass(frozen=True, slots=True)
class Track:
    """A kind of input with its methods, models and datasets.

    Attributes:
        name: Prefix of the methods' names, as in ``clip/coop``.
        program: Name of the console script.
        examples: Names for help and hints.
        reads_classnames: Whether the model reads the class names, as part of a prompt.
        compiles: Whether ``compile=on`` has an effect.
        template_sets: Sets of prompt templates by the name that ``--templates`` takes.
    """

    name: str
    program: str
    examples: Examples
    reads_classnames: bool
    compiles: bool
    template_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
