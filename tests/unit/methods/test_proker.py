"""ProKeR: the limit of its kernel."""

from __future__ import annotations

import numpy as np
import pytest

from clipadapt.core.api.data import Inputs, Split, Task
from clipadapt.core.api.errors import ConfigError
from clipadapt.methods import proker
from clipadapt.methods.proker import ProKeRConfig


def task(n: int) -> Task[str]:
    ids = tuple(map(str, range(n)))
    return Task(("a",), (), Split(Inputs(ids, ids), np.zeros(n, dtype=np.int64), ("a",)))


def test_a_kernel_that_is_too_large_is_refused_before_the_fit(monkeypatch):
    monkeypatch.setattr(proker, "MAX_VECTORS", 40)

    ProKeRConfig(views=10).check(task(4))
    ProKeRConfig(views=0).check(task(40))
    with pytest.raises(ConfigError, match="10 views of 8 images are 80 vectors") as error:
        ProKeRConfig(views=10).check(task(8))
    assert error.value.hint == "set method.views=5"
    with pytest.raises(ConfigError, match="at most 40 vectors") as error:
        ProKeRConfig(views=0).check(task(41))
    assert "data.shots" in error.value.hint


def test_the_kernel_is_computed_in_blocks(monkeypatch):
    x = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    monkeypatch.setattr(proker, "BLOCK_BYTES", 8 * 7 * 2)

    got = proker._kernel(x, 2.0)

    wide = x.astype(np.float64)
    np.testing.assert_allclose(np.tril(got), np.tril(np.exp(2 * (wide @ wide.T - 1))))


@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_the_blocked_solver_gives_the_solution(monkeypatch, block):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(proker, "BLOCK", block)
    root = rng.normal(size=(7, 9))
    kernel, right = root @ root.T, np.asfortranarray(rng.normal(size=(7, 2)))
    expected = np.linalg.solve(kernel / 0.1 + np.eye(7), right)

    got = proker._solve(np.asfortranarray(np.tril(kernel)), right, 0.1)

    np.testing.assert_allclose(got, expected, rtol=1e-9)
