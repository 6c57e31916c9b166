"""ProKeR: the limits of its kernel and settings, and its solvers."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

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


def unit(n: int, D: int = 16) -> np.ndarray:
    x = np.random.default_rng(1).normal(size=(n, D)) + 0.5
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("beta", [0.5, 3.0])
@pytest.mark.parametrize("lmbda", [1e-2, 1.0, 1e6])
def test_a_refined_float32_solution_equals_the_one_in_float64(beta, lmbda, monkeypatch):
    vectors = unit(300)
    right = np.random.default_rng(2).normal(size=(300, 5))
    wide = vectors.astype(np.float64)
    kernel = np.exp(beta * (wide @ wide.T - 1))
    expected = np.linalg.solve(kernel / lmbda + np.eye(300), right)
    monkeypatch.setattr(proker, "BLOCK_BYTES", 8 * 300 * 70)  # several blocks, the last one smaller

    got = proker._refined(vectors, right, beta, lmbda)

    assert np.linalg.norm(got - expected) <= 2e-7 * np.linalg.norm(expected)


def test_a_kernel_too_close_to_singular_is_factorized_in_float64(monkeypatch):
    vectors = np.repeat(unit(60, 4), 5, axis=0)
    right = np.random.default_rng(3).normal(size=(300, 5))
    expected = proker._solve(proker._kernel(vectors, 0.5), right, 1e-6)
    monkeypatch.setattr(proker, "EIGEN_VECTORS", 0)

    assert proker._refined(vectors, right, 0.5, 1e-6) is None
    got = proker._coefficients(vectors, right, 0.5, 1e-6)

    np.testing.assert_array_equal(got, expected.astype(np.float32))


def test_a_range_that_ends_before_it_begins_is_refused():
    for name, given in (("beta", {"beta_min": 5}), ("lmbda", {"lmbda_min": 0.5, "lmbda_max": 0.1})):
        least = given[f"{name}_min"]
        with pytest.raises(ValidationError) as error:
            ProKeRConfig(**given)
        (fault,) = error.value.errors()
        assert fault["loc"] == (f"{name}_max",)
        assert f"must be at least method.{name}_min, which is {least}" in fault["msg"]
    assert ProKeRConfig(beta_min=2, beta_max=2).beta_max == 2


@pytest.mark.parametrize("key", ["beta", "beta_min", "beta_max"])
def test_a_beta_whose_kernel_would_overflow_is_refused(key):
    with pytest.raises(ValidationError, match="less than or equal to 1000000"):
        ProKeRConfig(**{"beta_max": 1e6} | {key: 1e300})


def test_the_largest_beta_gives_finite_scores():
    vectors = unit(40)
    right = np.random.default_rng(4).normal(size=(40, 3))

    coefficients = proker._coefficients(vectors, right, 1e6, 0.1)
    scores = proker._add_votes(np.zeros((40, 3), np.float32), vectors, vectors, coefficients, 1e6)

    assert np.isfinite(scores).all()
