"""Tracks: one object per kind of input (images, texts) with everything that shared code must know about it.

A package registers its track as ``TRACK`` in its methods package: ``clipadapt/methods/__init__.py`` has the track
``clip``, ``textsent/methods/__init__.py`` the track ``text``. Shared code reads
:func:`clipadapt.core.api.registry.tracks` and never compares a track's name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from clipadapt.core.api.data import Inputs
    from clipadapt.core.api.processes import Team


@dataclass(frozen=True, slots=True)
class Examples:
    """Names for the examples in ``--help`` and in hints.

    Attributes:
        dataset: A dataset that needs no download.
        model: A model that needs no download.
        recipe: A recipe that needs only a dataset, and a model if ``needs_model``.
        baseline: The simplest recipe.
        sweep: A shipped sweep.
        export_format: A format of ``export``.
        needs_model: Whether ``recipe`` needs a model.
    """

    dataset: str
    model: str
    recipe: str
    baseline: str
    sweep: str
    export_format: str
    needs_model: bool


@dataclass(frozen=True, slots=True)
class HubTask:
    """The task as the Hugging Face hub knows it, for the card of a pushed run.

    Attributes:
        pipeline_tag: Name of the task on the hub.
        title: The task in words.
        argument: What ``predict`` reads, on a command line.
        examples: What ``run.predict`` reads, as a Python expression.
    """

    pipeline_tag: str
    title: str
    argument: str
    examples: str


@dataclass(frozen=True, slots=True)
class Trial:
    """What the page of ``app`` needs to know about a kind of input.

    Attributes:
        files: Whether a user gives files; otherwise texts are typed.
        inputs: Turns what a user gives, paths or texts, into inputs.
        features: Features of inputs for the search of near examples, shape ``(n, D)``, from a run's model.
    """

    files: bool
    inputs: Callable[[Sequence[str]], Inputs[Any]]
    features: Callable[[Any, Inputs[Any]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Track:
    """A kind of input with its methods, models and datasets.

    Attributes:
        name: Prefix of the methods' names, as in ``clip/coop``.
        program: Name of the console script.
        inputs: What a classifier reads, in the plural, for messages.
        examples: Names for help and hints.
        reads_classnames: Whether models read the class names, in a prompt.
        compiles: Whether ``compile=on`` has an effect.
        hub: The task on the Hugging Face hub.
        trial: What the page of ``app`` needs.
        own_folder: File below ``datasets/`` that reads a user's own labelled folder.
        own_file: File below ``datasets/`` that reads a user's own labelled file.
        capabilities: What a method needs of a model, in words, by the protocol that it requires.
        template_sets: Sets of prompt templates, by the names that ``--templates`` takes.
        encode_options: Keywords of the model's ``encode`` for an example.
        feature_options: Further ones that choose between features, with their defaults.
        prompt_options: Keywords for a prompt; None if the models read no class names.
        join: Joins the processes of a launcher; None if no method can be fitted by several.
    """

    name: str
    program: str
    inputs: str
    examples: Examples
    reads_classnames: bool
    compiles: bool
    hub: HubTask
    trial: Trial
    own_folder: str = "csv"
    own_file: str = "csv"
    capabilities: Mapping[str, str] = field(default_factory=dict)
    template_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    encode_options: Mapping[str, Any] = field(default_factory=dict)
    feature_options: Mapping[str, Any] = field(default_factory=dict)
    prompt_options: Mapping[str, Any] | None = None
    join: Callable[[], Team] | None = None
