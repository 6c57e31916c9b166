"""Logistic regressions with many penalties: the optima equal scikit-learn's."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.features.cache import FeatureCache
from clipadapt.methods import _logistic
from clipadapt.methods.linear_probe import Batched, fit_logistic

PENALTIES = np.logspace(-6, 6, 7)


def case(n: int, D: int, C: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return overlapping classes with correlated features of different variance."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, C, n)
    y[:C] = np.arange(C)
    spread = rng.normal(size=(D, D)) @ np.diag(np.linspace(0.1, 3, D)) / np.sqrt(D)
    x = rng.normal(size=(C, D))[y] + 3 * rng.normal(size=(n, D)) @ spread + 1
    return x.astype(np.float32), y


def objective(weight, bias, x, y, penalty) -> float:
    """Compute scikit-learn's objective in float64: the mean loss plus the penalty."""
    z = x.astype(np.float64) @ np.asarray(weight, np.float64).T + bias
    z -= z[np.arange(len(y)), y][:, None]
    z[np.arange(len(y)), y] = -np.inf  # log(1 + sum of the others), accurate if the sum is tiny
    loss = np.logaddexp(0, np.logaddexp.reduce(z, axis=1)).mean()
    halves = 2 if len(bias) == 2 else 1
    return float(
        loss + 0.5 * halves * np.square(weight, dtype=np.float64).sum() / (penalty * len(x))
    )


def by_sklearn(x, y, penalty, solver="lbfgs"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = LogisticRegression(C=penalty, max_iter=10_000, tol=1e-13, solver=solver).fit(x, y)
    if len(fitted.coef_) > 1:
        return fitted.coef_, fitted.intercept_
    return (
        np.concatenate([-fitted.coef_, fitted.coef_]) / 2,
        np.concatenate([-fitted.intercept_, fitted.intercept_]) / 2,
    )


def solve(x, y, penalties, n_classes):
    return [(s.weight, s.bias) for s in _logistic.Path(x, y, n_classes).solve(list(penalties))]


def separable(n: int, D: int, C: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a few examples of each class, with more dimensions than examples."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % C
    x = rng.normal(size=(C, D))[y] * 0.5 + rng.normal(size=(n, D))
    return x.astype(np.float32), y


@pytest.mark.parametrize(("n", "D", "C"), [(300, 20, 5), (300, 20, 2), (30, 60, 4)])
def test_optimum_equals_scikit_learns(n, D, C):
    x, y = case(n, D, C)

    found = solve([x], y, PENALTIES, C)

    for (weight, bias), penalty in zip(found, PENALTIES, strict=True):
        ours = objective(weight, bias, x, y, penalty)
        theirs = objective(*by_sklearn(x, y, penalty), x, y, penalty)
        assert ours <= theirs * (1 + 1e-7), penalty
        if penalty <= 1:  # scikit-learn stops early for weaker penalties
            assert ours >= theirs * (1 - 1e-4), penalty


@pytest.mark.slow
@pytest.mark.parametrize(("n", "D", "C"), [(80, 512, 20), (8, 64, 2), (48, 40, 12)])
def test_separable_data_is_solved_for_every_penalty(n, D, C):
    x, y = separable(n, D, C)

    found = solve([x], y, PENALTIES, C)

    basis = np.linalg.qr(x.T.astype(np.float64))[0]
    for (weight, bias), penalty in zip(found, PENALTIES, strict=True):
        # scikit-learn's solver with the exact Hessian; the solution is in the span of the examples.
        coef, intercept = by_sklearn(x @ basis, y, penalty, "newton-cholesky")
        ours = objective(weight, bias, x, y, penalty)
        theirs = objective(coef @ basis.T, intercept, x, y, penalty)
        assert ours <= theirs * (1 + 1e-6), penalty
        if penalty <= 1e4:  # scikit-learn's tolerance of the gradient is not relative
            np.testing.assert_allclose(
                x @ weight.T + bias, x @ (coef @ basis.T).T + intercept, rtol=1e-3, atol=2e-3
            )


def test_objective_is_smaller_than_with_scikit_learns_default_tolerance():
    x, y = separable(80, 512, 20)

    ((weight, bias),) = solve([x], y, [1e6], 20)

    whole = 1e6 * len(x) * objective(weight, bias, x, y, 1e6)
    assert whole == pytest.approx(18.2345, rel=1e-3)


@pytest.mark.parametrize(("n", "D", "C"), [(200, 16, 3), (80, 512, 20), (240, 64, 60)])
def test_solutions_do_not_depend_on_the_other_penalties(n, D, C):
    x, y = separable(n, D, C)

    together = solve([x], y, PENALTIES, C)
    alone = [solve([x], y, [c], C)[0] for c in PENALTIES]
    downwards = solve([x], y, PENALTIES[::-1], C)[::-1]

    for (w, b), *others in zip(together, alone, downwards, strict=True):
        for w1, b1 in others:
            np.testing.assert_allclose(x @ w.T + b, x @ w1.T + b1, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("n", "D", "C"), [(200, 16, 3), (80, 512, 20)])
def test_recomputing_probabilities_changes_nothing(n, D, C, monkeypatch):
    x, y = separable(n, D, C)
    kept = solve([x], y, PENALTIES, C)
    monkeypatch.setattr(_logistic, "KEPT_BYTES", 1)

    found = _logistic.Path([x], y, C).solve(list(PENALTIES))

    for one, (weight, bias) in zip(found, kept, strict=True):
        assert one.gap <= _logistic.TOLERANCE
        np.testing.assert_allclose(
            x @ one.weight.T + one.bias, x @ weight.T + bias, atol=1e-3, rtol=1e-4
        )


def test_missing_convergence_is_reported(monkeypatch):
    x, y = separable(80, 512, 20)
    monkeypatch.setattr(_logistic, "MAX_STEPS", 1)

    (found,) = _logistic.Path([x], y, 20).solve([1.0])

    assert found.gap > _logistic.TOLERANCE


def test_features_in_parts_and_half_precision(monkeypatch):
    x, y = case(500, 12, 4)
    x = x.astype(np.float16).astype(np.float32)
    whole = solve([x], y, [1.0], 4)[0]
    monkeypatch.setattr(_logistic, "BLOCK_BYTES", 1)  # the smallest blocks
    monkeypatch.setattr(_logistic, "ROTATED_BYTES", 1)  # and no rotated features
    monkeypatch.setattr(_logistic, "KEPT_BYTES", 1)

    parts = solve([x[:123], x[123:].astype(np.float16)], y, [1.0], 4)[0]

    np.testing.assert_allclose(parts[0], whole[0], atol=1e-5)
    np.testing.assert_allclose(parts[1], whole[1], atol=1e-5)


def test_classes_without_examples_are_never_predicted(tmp_path):
    x, y = case(120, 10, 3)
    labels = y * 2  # classes 1, 3 and 5 have no examples

    ctx = RunContext(0, tmp_path, Services(FeatureCache(enabled=False)))
    (fast,) = Batched([x], labels, 6, ctx)([1.0])
    plain = fit_logistic(x, labels, 1.0, 1000, 6)

    assert set(fast(x).argmax(1)) <= {0, 2, 4}
    np.testing.assert_allclose(fast.weight, plain.weight, atol=5e-3)


def test_lbfgs_takes_steps_where_many_classes_make_the_first_gradient_small():
    from clipadapt.methods.linear_probe import fit_logistic

    rng = np.random.default_rng(1)
    n_classes, width = 400, 64
    centres = rng.normal(size=(n_classes, width))
    x = np.repeat(centres, 3, axis=0) + 0.3 * rng.normal(size=(3 * n_classes, width))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    y = np.repeat(np.arange(n_classes), 3)

    found = fit_logistic(x, y, 1.0, 100, n_classes)

    assert (
        np.abs(found.weight).max() > 0
    )  # scikit-learn's own tolerance stops before the first step
    assert (found(x).argmax(axis=1) == y).mean() > 0.95
