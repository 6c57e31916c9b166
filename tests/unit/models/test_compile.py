"""The compiled image tower: the same features, cached separately; one message without a compiler."""

from __future__ import annotations

import shutil
import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipadapt.core.api.context import Services
from clipadapt.core.api.errors import ModelError
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import MODELS
from clipadapt.core.features.cache import FeatureCache
from tests.unit.models.test_openclip import pictures

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch, tmp_path):
    """Compile here: each process of the compiler would import torch first."""
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    with inductor.patch(compile_threads=1):
        yield


def load(name: str, store: FeatureCache):
    found = MODELS.resolve(name, "clip")
    services = Services(store, workers=1)
    return found.provider.load(found.argument, ModelOptions("fp32", "cpu"), services)


@pytest.mark.skipif(
    shutil.which("g++") is None or not Path(sysconfig.get_path("include"), "Python.h").is_file(),
    reason="no C++ compiler, or no headers of Python",
)
def test_compiled_features_equal_the_others_and_are_cached_separately(tiny_models, tmp_path):
    store = FeatureCache(tmp_path / "store")
    model = load(tiny_models["hf"], store)
    inputs = pictures(5)
    plain = model.encode(inputs, "image")
    assert len(store.ls()) == 1

    compiling = model.with_services(replace(model.services, compile=True))
    compiled = compiling.encode(inputs, "image")

    np.testing.assert_allclose(compiled, plain, atol=1e-5)
    assert {s.space.dtype for s in store.ls()} == {"fp32", "fp32 compiled"}
    # A batch of another size is filled up: nothing is recompiled, and no row depends on the others.
    from torch._dynamo.utils import counters

    graphs = counters["stats"]["unique_graphs"]
    empty = replace(compiling.services, cache=FeatureCache(tmp_path / "empty"))
    few = compiling.with_services(empty).encode(inputs.take(np.arange(2)), "image")
    np.testing.assert_array_equal(few, compiled[:2])
    assert counters["stats"]["unique_graphs"] == graphs > 0


def test_a_missing_compiler_is_one_message(tiny_models, monkeypatch):
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    model = load(tiny_models["clip"], FeatureCache(enabled=False))
    model = model.with_services(replace(model.services, compile=True))

    with pytest.raises(
        ModelError, match=r"^torch cannot compile 'local-dir:.*\n  hint: install a C"
    ):
        model.encode(pictures(2), "image")
