"""The fused layer of LoRA against PEFT's: output, gradients, dropout, merging, and when it is not used."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from clipadapt.methods import _low_rank
from clipadapt.methods._low_rank import FusedLinear

WIDTH, OUT = 24, 16


def network(*, fast: bool, dropout: float, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(WIDTH, OUT, bias=more.pop("bias", True)), nn.Conv2d(3, 3, 1))
    found: Any = get_peft_model(
        base.to(dtype), LoraConfig(r=3, lora_alpha=5, target_modules=["0", "1"], **more)
    )
    _low_rank.prepare(found, "default", dropout, fast=fast)
    for name, parameter in found.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return found


def results(found: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """Return output and gradients of the input and the matrices, after the same draws."""
    layer = found.base_model.model[0]
    given = x.clone().requires_grad_()
    torch.manual_seed(1)
    out = layer(given)
    (out.float().square().cumsum(0).sum() / 100).backward()
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return [out.detach(), given.grad, A.grad, B.grad]


@pytest.mark.parametrize("dropout", [0.0, 0.25, 0.3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, WIDTH), (2, 5, WIDTH)])
def test_output_and_gradients_are_those_of_peft(shape, bias, dropout):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))

    plain, fused = (
        results(network(fast=fast, dropout=dropout, bias=bias).train(), x) for fast in (False, True)
    )

    for ours, pefts in zip(fused, plain, strict=True):
        torch.testing.assert_close(ours, pefts, atol=1e-5, rtol=1e-5)


def test_low_precision_is_near():
    dtype = torch.bfloat16
    x = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(2)).to(dtype)

    plain, fused = (
        results(network(fast=fast, dropout=0.25, dtype=dtype).train(), x) for fast in (False, True)
    )

    for ours, pefts in zip(fused, plain, strict=True):
        assert ours.dtype == pefts.dtype
        scale = float(pefts.float().abs().max())
        torch.testing.assert_close(ours.float() / scale, pefts.float() / scale, atol=0.02, rtol=0)


def test_a_constant_input_gets_no_gradient():
    layer = network(fast=True, dropout=0.25).train().base_model.model[0]

    out = layer(torch.ones(4, WIDTH))
    out.sum().backward()

    assert layer.lora_A["default"].weight.grad.abs().sum() > 0


def test_which_layers_are_fused():
    def kinds(**more: Any) -> list[bool]:
        found = network(dropout=0.25, **more)
        return [isinstance(layer, FusedLinear) for layer in found.base_model.model]

    assert kinds(fast=True) == [True, False]
    assert kinds(fast=True, use_dora=True) == [False, False]
    assert kinds(fast=False) == [False, False]


def test_a_copy_merges_as_pefts_layer_does():
    found = network(fast=True, dropout=0.25).eval()
    x = torch.ones(4, WIDTH)
    expected = found.base_model.model[0](x)

    merged = copy.deepcopy(found).merge_and_unload()

    assert type(merged[0]) is nn.Linear
    torch.testing.assert_close(merged[0](x), expected, atol=1e-5, rtol=1e-5)
    with found.disable_adapter():
        assert not torch.allclose(found.base_model.model[0](x), expected, atol=1e-3)
