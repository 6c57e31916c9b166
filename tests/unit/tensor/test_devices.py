"""Device and dtype that the options of a model select, with the accelerators of other machines."""

from __future__ import annotations

import contextlib
import os

import pytest
import torch

from clipadapt.core.api.context import Services
from clipadapt.core.api.errors import ModelError
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.features.cache import FeatureCache
from clipadapt.tensor import devices
from clipadapt.tensor.devices import Accelerator, device_and_dtype

CUDA = {"cuda": Accelerator(2, bf16=True)}
OLD = {"cuda": Accelerator(1, bf16=False)}
MPS = {"mps": Accelerator(1, bf16=False)}


@pytest.mark.parametrize(
    ("tf32", "deterministic", "device", "expected"),
    [
        (False, False, "cuda", (False, False)),
        (True, False, "cuda:1", (True, False)),
        (False, True, "cuda", (False, True)),
        (True, True, "cpu", (False, False)),  # the CPU is exact and repeats itself
    ],
)
def test_arithmetic_is_set_for_gpus_only(tf32, deterministic, device, expected, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    options = ModelOptions("fp32", device, tf32=tf32, deterministic=deterministic)
    try:
        torch.backends.cudnn.allow_tf32 = True
        devices.set_arithmetic(options, device)

        assert torch.backends.cudnn.allow_tf32 is expected[0]
        assert torch.backends.cuda.matmul.allow_tf32 is expected[0]
        assert torch.are_deterministic_algorithms_enabled() is expected[1]
        # cuBLAS reads it once, maybe before the first deterministic model of the process.
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) is device.startswith("cuda")
        words = " ".join(devices.arithmetic(device, "fp32"))
        assert ("tf32" in words) is expected[0]
    finally:
        devices.set_arithmetic(ModelOptions(), "cpu")
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_the_arithmetic_of_a_block_ends_with_it(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # set by the first such model
    options = ModelOptions("fp32", "cuda", tf32=True, deterministic=True)
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn

    def state() -> tuple[bool, bool, bool]:
        return matmul.allow_tf32, cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()

    before = state()
    with contextlib.suppress(KeyError), devices.calculating(options, "cuda"):
        assert state() == (True, True, True)
        with devices.calculating(ModelOptions(), "cuda"):
            assert state() == (False, False, False)
        assert state() == (True, True, True)
        raise KeyError

    assert state() == before


@pytest.mark.parametrize(("deterministic", "flagged"), [(True, False), (False, True)])
def test_a_fit_resumed_on_a_gpu_says_whether_it_is_exact(deterministic, flagged, monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    services = Services(FeatureCache(enabled=False))

    devices.report_resumed(services, "cpu", "a fit")
    assert not services.flags
    devices.report_resumed(services, "cuda:0", "a fit")

    assert ("resumed_inexactly" in services.flags) is flagged


@pytest.mark.parametrize("flags", [(), ("avx512_bf16",)])
@pytest.mark.parametrize(
    ("found", "asked", "expected"),
    [
        ({}, ("auto", "auto"), ("cpu", None)),
        ({}, ("fp16", "cpu"), ("cpu", "fp16")),
        (CUDA, ("auto", "auto"), ("cuda", "bf16")),
        (CUDA, ("auto", "cuda:1"), ("cuda:1", "bf16")),
        (CUDA, ("auto", "cpu"), ("cpu", None)),
        (CUDA, ("fp32", "auto"), ("cuda", "fp32")),
        (OLD, ("auto", "auto"), ("cuda", "fp16")),
        (MPS, ("auto", "auto"), ("mps", "fp32")),
    ],
)
def test_options_select_device_and_dtype(found, asked, expected, flags, monkeypatch):
    monkeypatch.setattr(devices, "accelerators", lambda: found)
    monkeypatch.setattr(devices.hardware, "accelerator_possible", lambda: True)
    monkeypatch.setattr(devices.hardware, "cpu_flags", lambda: flags)
    device, dtype = expected

    got = device_and_dtype(ModelOptions(*asked))

    assert got == (device, dtype or ("bf16" if flags else "fp32"))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("bf15", "cpu"), "unknown precision 'bf15'; did you mean 'bf16'"),
        (("auto", "gpu"), "unknown device 'gpu'"),
        (("auto", "cuda:x"), "unknown device 'cuda:x'"),
        (("auto", "cuda:2"), "no device 'cuda:2' on this machine"),
        (("auto", "mps"), "no device 'mps' on this machine"),
    ],
)
def test_a_device_that_is_not_there_and_unknown_names(asked, message, monkeypatch):
    monkeypatch.setattr(devices, "accelerators", lambda: CUDA)
    monkeypatch.setattr(devices.hardware, "accelerator_possible", lambda: True)
    with pytest.raises(ModelError, match=message):
        device_and_dtype(ModelOptions(*asked))
