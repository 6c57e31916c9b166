"""One case per registered method and model family: a tiny backbone, a small task, unlabelled inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.api.data import DatasetOptions, Inputs, Split, Task
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import DATASETS, METHODS, MODELS
from clipadapt.core.features.cache import FeatureCache

CLIP_FAMILIES = ("clip", "custom", "hf", "siglip", "coca", "mobile")
TEXT_FAMILIES = ("distilbert", "bert", "roberta")
# Settings for methods whose defaults take minutes; all others run with their defaults.
SMALL: dict[str, dict[str, Any]] = {
    name: {"epochs": 2, "batch_size": 8, "warmup_steps": 0.1, "lr": 1e-2}
    for name in ("text/head", "text/full_finetune", "text/lora", "text/bitfit")
}
SMALL |= {
    "text/setfit": {"num_iterations": 1, "batch_size": 8, "lr": 1e-3},
    "clip/coop": {"n_ctx": 4, "epochs": 2, "augment": "none", "batch_size": 8},
    "clip/lora": {"steps_per_shot": None, "epochs": 2, "augment": "none", "lr": 1e-2},
    "clip/clip_adapter": {"epochs": 2, "augment": "none", "batch_size": 8},
    "clip/clap": {"views": 2, "epochs": 2, "batch_size": 8},
    "clip/cocoop": {"epochs": 2, "augment": "none", "batch_size": 8},
    "clip/kgcoop": {"epochs": 2, "augment": "none", "batch_size": 8},
    "clip/lp_plus_plus": {"epochs": 3},
    "clip/prolip": {"views": 2, "epochs": 3},
    "clip/cross_modal": {
        "steps": 6,
        "every": 2,
        "warmup_steps": 1,
        "lr_grid": [1e-3],
        "weight_decay_grid": [0],
        "batch_size_grid": [4, 8],
    },
    "clip/ivlp": {"depth_text": 2, "depth_vision": 2, "epochs": 2, "augment": "none"},
    "clip/maple": {"depth": 2, "epochs": 2, "augment": "none"},
    "clip/promptsrc": {"depth_text": 2, "depth_vision": 2, "epochs": 2, "augment": "none"},
    "clip/prograd": {"n_ctx": 6, "epochs": 2, "augment": "none", "batch_size": 8},
    "clip/taskres": {"epochs": 2, "augment": "none"},
    "clip/tip_adapter": {"views": 2, "beta_steps": 5},
    "clip/gda": {"views": 2},
    "clip/ape_t": {"views": 2, "beta_steps": 3, "epochs": 2, "augment": "none"},
    "clip/ape": {"views": 2, "beta_steps": 3, "alpha_steps": 3, "gamma_steps": 3},
    "clip/proker": {"views": 2, "beta_steps": 3, "lmbda_steps": 3},
    "clip/tip_adapter_f": {"views": 2, "beta_steps": 5, "epochs": 2},
    "clip/tpt": {"views": 3, "selection_p": 0.7},
    "clip/zero": {"views": 4, "gamma": 0.5},
    **{
        name: {"epochs": 2, "augment": "none", "warmup_steps": 1, "lr": 1e-3, "blocks": 2}
        for name in ("clip/full_finetune", "clip/wise_ft")
    },
}
# More settings by family: a convolutional tower has no attention to adapt.
FAMILY: dict[tuple[str, str], dict[str, Any]] = {
    ("clip/lora", "hf"): {"encoder": "image", "roles": ["pointwise"]},
    **{("clip/ivlp", f): {"n_ctx_vision": 0, "depth_vision": 0} for f in ("hf", "mobile")},
    ("clip/lora", "mobile"): {"encoder": "image", "roles": ["pointwise"]},
}
# Families that a method cannot serve, with what the message says; they are refused before training.
REFUSED: dict[tuple[str, str], str] = {
    **{
        (f"clip/{name}", family): r"the image tower of '.*' \(EfficientNet\) cannot take prompts"
        for name in ("maple", "promptsrc")
        for family in ("hf", "mobile")
    },
    ("clip/prolip", "siglip"): "do not come from a linear projection",
}
CASES = [
    (name, family)
    for name in METHODS.names()
    for family in (CLIP_FAMILIES if name.startswith("clip/") else TEXT_FAMILIES)
    if METHODS.get(name).requires is not None or family == TEXT_FAMILIES[0]
    if (name, family) not in REFUSED
]


def settings(name: str, family: str) -> dict[str, Any]:
    """Settings of a method for a family."""
    return SMALL.get(name, {}) | FAMILY.get((name, family), {})


@dataclass(frozen=True)
class Case:
    """Backbone, task and inputs of a method."""

    name: str
    method: Any
    backbone: Any
    task: Task[Any]
    inputs: Inputs[Any]

    def context(self, folder: Path, seed: int = 1) -> RunContext:
        """A fresh context, equal for equal seeds."""
        services = (
            Services(FeatureCache(enabled=False))
            if self.backbone is None
            else self.backbone.services
        )
        return RunContext(seed, folder, services)

    def state(self) -> dict[str, np.ndarray]:
        """A copy of the current weights of the backbone, as bytes."""
        if self.backbone is None:
            return {}
        tensors = self.backbone.module.state_dict().items()
        return {n: t.detach().reshape(-1).numpy().view(np.uint8).copy() for n, t in tensors}

    def is_as(self, before: dict[str, np.ndarray]) -> bool:
        """Return whether the weights of the backbone are equal to those before, bit for bit."""
        now = self.state()
        return now.keys() == before.keys() and all(np.array_equal(now[n], before[n]) for n in now)


def reviews() -> tuple[Task[str], Inputs[str]]:
    """Twelve invented sentences for training and six for evaluation."""
    good, bad = ("fine", "warm", "clever"), ("dull", "cold", "clumsy")
    nouns = ("plot", "cast", "score", "pace")
    rows = [
        (f"a {a} {n} {i}", y)
        for y, words in ((0, bad), (1, good))
        for a in words
        for i, n in enumerate(nouns)
    ]
    names = ("negative", "positive")

    def split(part: list[tuple[str, int]]) -> Split[str]:
        ids = tuple(f"r{rows.index(r)}" for r in part)
        labels = np.array([y for _, y in part], dtype=np.int64)
        return Split(Inputs([t for t, _ in part], ids), labels, names)

    return Task(names, (), split(rows[::2]), split(rows[1::4])), split(rows[3::4]).inputs


def pictures() -> tuple[Task[Any], Inputs[Any]]:
    """A few generated images of three classes."""
    found = DATASETS.resolve("synthetic:3x12", "clip")
    data = found.provider(found.argument, DatasetOptions())
    task = Task(data.classnames, data.templates, data.split("train"), data.split("val"))
    return task, data.split("test").inputs


@dataclass(frozen=True)
class Fitted:
    """A case with a classifier fitted once for all tests that only read it.

    Attributes:
        case: The case.
        before: The backbone's weights before the fit.
        classifier: The fitted classifier.
        scores: Its scores of the inputs.
    """

    case: Case
    before: dict[str, np.ndarray]
    classifier: Any
    scores: np.ndarray


@pytest.fixture(scope="session")
def backbones(tiny_models: dict[str, str], tiny_texts: dict[str, str]) -> Callable[[str], Any]:
    """Load the model of a family, once for all methods: none of them changes it, as a test checks."""

    @functools.cache
    def load(family: str) -> Any:
        named = tiny_models[family] if family in CLIP_FAMILIES else tiny_texts[family]
        found = MODELS.resolve(named, "clip" if family in CLIP_FAMILIES else "text")
        services = Services(FeatureCache(enabled=False), workers=1)
        return found.provider.load(found.argument, ModelOptions("fp32", "cpu"), services)

    return load


def build_case(name: str, family: str, backbones: Callable[[str], Any]) -> Case:
    """Build the case of a method and a family; skip if the method does not serve it."""
    method_class = METHODS.get(name)
    backbone = None
    if method_class.requires is not None:
        backbone = backbones(family)
        if not isinstance(backbone, method_class.requires):
            pytest.skip(f"{name} does not serve the family {family}")
    task, inputs = pictures() if name.startswith("clip/") else reviews()
    config = method_class.Config(**settings(name, family))
    return Case(name, method_class(config), backbone, task, inputs)


@pytest.fixture
def tiny_case(backbones: Callable[[str], Any]) -> Callable[[str, str], Case]:
    """Build the case of a method and a family."""
    return lambda name, family: build_case(name, family, backbones)


# `make test-fast` fits every method on the first family of its track only.
PARAMS = [
    pytest.param(
        (name, family),
        id=f"{name}-{family}",
        marks=[] if family in {CLIP_FAMILIES[0], TEXT_FAMILIES[0]} else pytest.mark.slow,
    )
    for name, family in CASES
]


@pytest.fixture(scope="module", params=PARAMS)
def fitted(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    backbones: Callable[[str], Any],
) -> Fitted:
    """Fit the method of a case; pytest runs all tests of one case after each other."""
    case = build_case(*request.param, backbones)
    before = case.state()
    folder = tmp_path_factory.mktemp("fitted")
    classifier = case.method.fit(case.backbone, case.task, case.context(folder))
    return Fitted(case, before, classifier, classifier.predict_scores(case.inputs))
