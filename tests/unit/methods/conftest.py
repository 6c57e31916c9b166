"""Fixtures for the tests of the methods: models loaded once, a small task, contexts and observers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.api.data import DatasetOptions, Inputs, Task
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import DATASETS, METHODS, MODELS
from clipadapt.core.features.cache import FeatureCache

FAMILIES = ("clip", "custom", "hf", "siglip")


def load(name: str, **services: Any) -> Any:
    """Load a model in float32, without a feature cache unless one is given."""
    found = MODELS.resolve(name, "clip")
    given = {"cache": FeatureCache(enabled=False), "workers": 1, **services}
    return found.provider.load(found.argument, ModelOptions("fp32", "cpu"), Services(**given))


@pytest.fixture(scope="session")
def models(
    tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Any]:
    """Load the tiny model of a family once, which is safe because methods do not change it; all share a cache."""
    loaded: dict[str, Any] = {}
    cache = FeatureCache(tmp_path_factory.mktemp("cache"))

    def get(family: str) -> Any:
        if family not in loaded:
            loaded[family] = load(tiny_models[family], cache=cache)
        return loaded[family]

    return get


@pytest.fixture(scope="session")
def small() -> tuple[Task[Any], Inputs[Any]]:
    """A task with three classes of four generated images each in train and val, and the test inputs."""
    found = DATASETS.resolve("synthetic:3x4", "clip")
    data = found.provider(found.argument, DatasetOptions())
    task = Task(data.classnames, data.templates, data.split("train"), data.split("val"))
    return task, data.split("test").inputs


class Seen:
    """Observer that collects the values of a fit, and can interrupt it."""

    def __init__(self, name: str = "", after: int = 0) -> None:
        self.values: dict[str, list[Any]] = {}
        self.name, self.after = name, after

    def __call__(self, name: str, value: Any) -> None:
        found = self.values.setdefault(name, [])
        if name == self.name and len(found) == self.after:
            raise KeyboardInterrupt
        found.append(value)


def context(folder: Path, seed: int = 1, **given: Any) -> RunContext:
    """Return a context without a feature cache."""
    return RunContext(seed, folder, Services(FeatureCache(enabled=False), workers=1), **given)


def method(name: str, **settings: Any) -> Any:
    """Return a method with some settings; the defaults are those of the paper."""
    kind = METHODS.get(f"clip/{name}")
    return kind(kind.Config(**settings))


def recorded(name: str) -> str:
    """Return the number of trainable parameters in the comment of a recipe."""
    path = Path(__file__).parents[3] / "configs" / "methods" / "clip" / f"{name}.yaml"
    (line,) = [
        line for line in path.read_text().splitlines() if line.startswith("# trainable parameters:")
    ]
    return line.removeprefix("# trainable parameters:").strip()


def arrays_of(fitted: Any, folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays that a classifier saves."""
    from safetensors.numpy import load_file

    fitted.save(folder)
    return load_file(folder / "classifier.safetensors")
