from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.features.cache import FeatureCache


def context(seed=1, **more):
    return RunContext(seed, Path(), Services(FeatureCache(enabled=False)), **more)


def test_named_streams_are_fixed_and_independent():
    first = context().rng("init").integers(1 << 30, size=4)

    np.testing.assert_array_equal(first, context().rng("init").integers(1 << 30, size=4))
    assert not np.array_equal(first, context().rng("order").integers(1 << 30, size=4))
    assert not np.array_equal(first, context(2).rng("init").integers(1 << 30, size=4))


def test_batches_cover_every_row_once_in_another_order_each_epoch():
    ctx = context()
    first, second = ctx.batches("train", 10, 4, 0), ctx.batches("train", 10, 4, 1)

    assert [len(b) for b in first] == [4, 4, 2]
    assert sorted(np.concatenate(first)) == list(range(10))
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    np.testing.assert_array_equal(
        np.concatenate(first), np.concatenate(context().batches("train", 10, 4, 0))
    )
    assert [len(b) for b in ctx.batches("train", 10, 4, 0, drop_last=True)] == [4, 4]
    assert [len(b) for b in ctx.batches("train", 3, 4, 0, drop_last=True)] == [3]


def test_reference_tests_replace_order_and_initial_values():
    given = np.ones((2, 2), np.float32)
    ctx = context(order=lambda *a: [np.arange(a[1])], start={"w": given})

    assert len(ctx.batches("train", 5, 2, 0)) == 1
    assert ctx.initial("w", np.zeros((2, 2), np.float32)) is given
    assert ctx.initial("b", given) is given
    with pytest.raises(ValueError, match="shape"):
        ctx.initial("w", np.zeros(3))
