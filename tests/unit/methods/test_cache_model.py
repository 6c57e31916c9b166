"""Tip-Adapter's search: blocks of val give the same grid as all of val at once, and as a simple loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.features.cache import FeatureCache
from clipadapt.methods import _cache_model
from clipadapt.methods._cache_model import CacheModel, SearchConfig

M, C, D, N = 23, 4, 8, 12


@pytest.mark.parametrize("block_bytes", [1, 4 * 3 * C * 5, 1 << 30])
def test_search_equals_a_loop_over_alpha_and_beta(block_bytes, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    keys, features, weights = (
        F.normalize(torch.randn(n, D, generator=draw), dim=-1) for n in (N, M, C)
    )
    rng = np.random.default_rng(0)
    cache = CacheModel(keys, rng.integers(0, C, N), C)
    labels = rng.integers(0, C, M)
    config = SearchConfig(alpha_steps=3, beta_steps=5, logit_scale=5.0)
    seen: dict[str, Any] = {}
    ctx = RunContext(0, Path(), Services(FeatureCache(enabled=False)), observe=seen.__setitem__)
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


@pytest.mark.parametrize("counts", [[2] * 30, [1, 7, 0, 3, 2] * 6])
@pytest.mark.parametrize("scale", [100.0, 5.0])
def test_skipping_impossible_classes_does_not_change_the_grid(counts, scale):
    """With many classes only some are computed; the grid of accuracies is the same."""
    C, m = len(counts), 40
    draw = torch.Generator().manual_seed(1)
    labels = np.repeat(np.arange(C), counts)
    rng = np.random.default_rng(1)
    labels = labels[rng.permutation(len(labels))]
    prototypes = F.normalize(torch.randn(C, D, generator=draw), dim=-1)

    def near(classes):
        noise = 0.6 * torch.randn(len(classes), D, generator=draw)
        return F.normalize(prototypes[torch.from_numpy(classes)] + noise, dim=-1)

    val = rng.integers(0, C, m)
    cache, features = CacheModel(near(labels), labels, C), near(val)
    config = SearchConfig(alpha_steps=4, beta_steps=12, logit_scale=scale)
    seen: dict[str, Any] = {}
    ctx = RunContext(0, Path(), Services(FeatureCache(enabled=False)), observe=seen.__setitem__)

    _cache_model.search(cache, features, val, prototypes, config, ctx)

    for i, beta in enumerate(0.1 + np.arange(12) * 6.9 / 12):
        for j, alpha in enumerate(0.1 + np.arange(4) * 2.9 / 4):
            scores = cache.scores(features, prototypes, float(alpha), float(beta), scale)
            assert seen["grid"][i, j] == pytest.approx((scores.argmax(1) == val).mean())


@pytest.mark.parametrize("length", [1.5, 3.0])
def test_trained_keys_longer_than_1_do_not_change_the_grid(length):
    """A key longer than 1 has positive affinities, so that its votes grow with beta."""
    C, m = 30, 60
    draw = torch.Generator().manual_seed(3)
    labels = np.repeat(np.arange(C), 2)
    prototypes = F.normalize(torch.randn(C, D, generator=draw), dim=-1)
    keys = F.normalize(torch.randn(len(labels), D, generator=draw), dim=-1)
    features = F.normalize(torch.randn(m, D, generator=draw), dim=-1)
    val = np.random.default_rng(3).integers(0, C, m)
    cache = CacheModel(length * keys, labels, C)
    assert (cache.keys @ features.T > 1).any()
    config = SearchConfig(alpha_steps=4, beta_steps=12, logit_scale=5.0)
    seen: dict[str, Any] = {}
    ctx = RunContext(0, Path(), Services(FeatureCache(enabled=False)), observe=seen.__setitem__)

    _cache_model.search(cache, features, val, prototypes, config, ctx)

    for i, beta in enumerate(0.1 + np.arange(12) * 6.9 / 12):
        for j, alpha in enumerate(0.1 + np.arange(4) * 2.9 / 4):
            scores = cache.scores(features, prototypes, float(alpha), float(beta), 5.0)
            assert seen["grid"][i, j] == pytest.approx((scores.argmax(1) == val).mean())


@pytest.mark.parametrize("length", [1.0, 3.0])
@pytest.mark.parametrize(("shift", "per_class"), [(2.0, 2), (0.0, 2), (-2.0, 2), (0.0, 20)])
def test_trained_value_weights_do_not_change_the_grid(shift, per_class, length):
    """Weights of either sign, with few and with all classes as candidates."""
    C, m = 30, 60
    draw = torch.Generator().manual_seed(6)
    labels = np.repeat(np.arange(C), per_class)
    prototypes = F.normalize(torch.randn(C, D, generator=draw), dim=-1)
    keys = F.normalize(torch.randn(len(labels), D, generator=draw), dim=-1)
    features = F.normalize(torch.randn(m, D, generator=draw), dim=-1)
    value_weights = torch.randn(len(labels), generator=draw) + shift
    val = np.random.default_rng(6).integers(0, C, m)
    cache = CacheModel(length * keys, labels, C, value_weights)
    config = SearchConfig(alpha_steps=4, beta_steps=12, logit_scale=5.0)
    seen: dict[str, Any] = {}
    ctx = RunContext(0, Path(), Services(FeatureCache(enabled=False)), observe=seen.__setitem__)

    _cache_model.search(cache, features, val, prototypes, config, ctx)

    values = cache.values() * value_weights[:, None]
    for i, beta in enumerate(0.1 + np.arange(12) * 6.9 / 12):
        for j, alpha in enumerate(0.1 + np.arange(4) * 2.9 / 4):
            votes = (float(beta) * (features @ cache.keys.T - 1)).exp() @ values
            scores = 5.0 * features @ prototypes.T + float(alpha) * votes
            assert seen["grid"][i, j] == pytest.approx((scores.argmax(1).numpy() == val).mean())


@pytest.mark.parametrize(
    "labels", [[0, 0, 1, 1, 2, 2], [2, 0, 1, 0, 2, 1], [0, 0, 0, 2], [3], [1, 1, 0, 0]]
)
def test_class_sums_equal_a_product_with_one_hot_values(labels):
    cache = CacheModel(torch.zeros(len(labels), D), np.array(labels), C)
    weights = torch.randn(
        len(labels), 7, generator=torch.Generator().manual_seed(4)
    ).requires_grad_()

    sums = cache.by_class(weights)
    upstream = torch.randn(sums.shape, generator=torch.Generator().manual_seed(5))
    sums.backward(upstream)

    torch.testing.assert_close(sums, cache.values().T @ weights)
    torch.testing.assert_close(weights.grad, cache.values() @ upstream)


def test_search_computes_few_classes_and_announces_a_long_duration(monkeypatch):
    C = 2000
    draw = torch.Generator().manual_seed(2)
    keys = F.normalize(torch.randn(C, 64, generator=draw), dim=-1)
    cache = CacheModel(keys, np.arange(C), C)
    said: list[str] = []
    services = Services(FeatureCache(enabled=False))
    monkeypatch.setattr(type(services.progress), "note", lambda _, message: said.append(message))
    monkeypatch.setattr(_cache_model, "LONG_SEARCH_SECONDS", 0.0)
    monkeypatch.setattr(_cache_model, "BLOCK_BYTES", 4 * C * 50)
    computed: list[int] = []
    padded = _cache_model._padded
    monkeypatch.setattr(
        _cache_model, "_padded", lambda mask: computed.append(int(mask.sum())) or padded(mask)
    )
    labels = np.arange(100)

    _cache_model.search(
        cache, keys[:100], labels, keys, SearchConfig(), RunContext(0, Path(), services)
    )

    assert max(computed) < 0.05 * C * 50
    (message,) = said
    assert "100 val examples with 2,000 keys and 2,000 classes takes about" in message
