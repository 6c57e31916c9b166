"""Device and dtype that the options of a model select, with the accelerators of other machines."""

from __future__ import annotations

import pytest
import torch

from clipadapt.core.api.errors import ModelError
from clipadapt.core.api.model import ModelOptions
from clipadapt.tensor import devices
from clipadapt.tensor.devices import Accelerator, device_and_dtype

CUDA = {"cuda": Accelerator(2, bf16=True)}
MPS = {"mps": Accelerator(1, bf16=False)}


def test_float32_is_not_tf32():
    torch.backends.cudnn.allow_tf32 = True
    devices.exact_float32()
    assert torch.backends.cudnn.allow_tf32 is False
    assert torch.backends.cuda.matmul.allow_tf32 is False


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
