"""Tip-Adapter's search: val in blocks gives the grid of val as a whole, and of a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipadapt.core.context import RunContext, Services
from clipadapt.core.store import FeatureStore
from clipadapt.methods import _cache_model
from clipadapt.methods._cache_model import CacheModel, SearchConfig

M, C, D, N = 23, 4, 8, 12


@pytest.mark.parametrize("block_bytes", [1, 4 * 3 * C * 5, 1 << 30])
def test_the_search_is_a_loop_over_alpha_and_beta(block_bytes, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    keys, features, weights = (
        F.normalize(torch.randn(n, D, generator=draw), dim=-1) for n in (N, M, C)
    )
    rng = np.random.default_rng(0)
    cache = CacheModel(keys, rng.integers(0, C, N), C)
    labels = rng.integers(0, C, M)
    config = SearchConfig(alpha_steps=3, beta_steps=5, logit_scale=5.0)
    seen: dict[str, Any] = {}
    ctx = RunContext(0, Path(), Services(FeatureStore(enabled=False)), observe=seen.__setitem__)
    monkeypatch.setattr(_cache_model, "BLOCK_BYTES", block_bytes)

    best = _cache_model.search(cache, features, labels, weights, config, ctx)

    grid = [
        [
            float(
                (
                    _cache_model.logits(cache, features, weights, a, b, 5.0).argmax(1).numpy()
                    == labels
                ).mean()
            )
            for a in 0.1 + np.arange(3) * 2.9 / 3
        ]
        for b in 0.1 + np.arange(5) * 6.9 / 5
    ]
    np.testing.assert_allclose(seen["grid"], grid, atol=1e-12)
    assert best["value"] == pytest.approx(np.max(grid))
    i, j = divmod(int(np.argmax(grid)), 3)
    assert (best["beta"], best["alpha"]) == pytest.approx((0.1 + i * 6.9 / 5, 0.1 + j * 2.9 / 3))
