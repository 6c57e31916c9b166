"""GPU memory, measured through the loaded framework, and the GPUs reserved for a run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from clipadapt.core.files import hardware
from clipadapt.core.records import environment as env
from clipadapt.core.runs import distributed


@pytest.fixture
def card(monkeypatch):
    """A framework that counts the memory of a GPU."""
    calls = []
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        reset_peak_memory_stats=lambda device: calls.append(("reset", device)),
        max_memory_allocated=lambda device: calls.append(("peak", device)) or 123,
        empty_cache=lambda: calls.append(("empty",)),
    )
    monkeypatch.setitem(__import__("sys").modules, "torch", SimpleNamespace(cuda=cuda))
    return calls


def test_peak_memory_of_a_model_on_a_gpu_is_that_of_the_gpu(card):
    env.reset_peak_memory("cuda:1")
    assert env.peak_memory("cuda:1") == 123
    assert card == [("reset", "cuda:1"), ("peak", "cuda:1")]
    assert env.peak_memory("mps") is None
    assert env.peak_memory("cpu") != 123


def test_gpu_memory_is_released_between_runs(card):
    hardware.free_device_memory()
    assert card == [("empty",)]


@pytest.mark.parametrize(
    ("device", "asked", "gpus"),
    [("cuda", None, 1), ("cpu", None, 0), ("mps", None, 0), ("cuda:1", 0.5, 0.5)],
)
def test_a_run_on_a_gpu_reserves_one(device, asked, gpus):
    resources = SimpleNamespace(cpus=None, gpus=asked, memory_bytes=None, custom={})
    spec = SimpleNamespace(
        title="a run",
        opened=SimpleNamespace(device=device, threads=1),
        experiment=SimpleNamespace(config=SimpleNamespace(resources=resources)),
    )
    assert distributed._resources(spec)["num_gpus"] == gpus
