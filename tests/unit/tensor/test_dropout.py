"""Dropout from random bytes: rate, scale, gradient, generator."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest

from clipadapt.tensor.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(999, 101), (3, 5, 7001)])
def test_elements_are_dropped_at_the_rate_and_the_others_scaled(p, shape):
    torch.manual_seed(0)
    out = Dropout(p)(torch.full(shape, 2.0))

    kept = out != 0
    assert out[kept].unique().tolist() == pytest.approx([2 / (1 - p)], rel=1e-4)
    assert binomtest(int((~kept).sum()), kept.numel(), p).pvalue > 1e-3
    # Neighbouring elements are independent, along every dimension.
    for dim in range(len(shape)):
        first, second = kept.narrow(dim, 0, shape[dim] - 1), kept.narrow(dim, 1, shape[dim] - 1)
        both = int((first & second).sum())
        assert binomtest(both, first.numel(), (1 - p) ** 2).pvalue > 1e-3


def test_gradient_has_the_mask_of_the_output():
    x = torch.randn(50, 40, generator=torch.Generator().manual_seed(1)).requires_grad_()
    out = Dropout(0.3)(x)

    (by_x,) = torch.autograd.grad(out.sum(), x)

    torch.testing.assert_close(by_x, (out / x).detach())


def test_mask_depends_on_the_state_of_torchs_generator():
    drop, x = Dropout(0.5), torch.ones(1000)
    torch.manual_seed(3)
    first, second = drop(x), drop(x)
    torch.manual_seed(3)

    assert torch.equal(drop(x), first)
    assert not torch.equal(first, second)


def test_nothing_is_dropped_in_evaluation_mode_or_at_rate_zero():
    x = torch.ones(100)

    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert dropout(x, 0.0) is x


def test_everything_is_dropped_at_rate_one():
    x = torch.ones(3, 5, requires_grad=True)
    out = Dropout(1.0)(x)
    out.sum().backward()

    assert not out.any()
    assert not x.grad.any()


def test_the_dtype_is_kept():
    assert Dropout(0.25)(torch.ones(64, dtype=torch.bfloat16)).dtype is torch.bfloat16
