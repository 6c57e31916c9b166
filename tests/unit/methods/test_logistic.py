"""Logistic regressions of many penalties at once: the optima are scikit-learn's."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from clipadapt.methods import _logistic
from clipadapt.methods.linear_probe import fit_batched, fit_logistic

PENALTIES = np.logspace(-6, 6, 7)


def case(n: int, D: int, C: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes on correlated features of unequal spread."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, C, n)
    y[:C] = np.arange(C)
    spread = rng.normal(size=(D, D)) @ np.diag(np.linspace(0.1, 3, D)) / np.sqrt(D)
    x = rng.normal(size=(C, D))[y] + 3 * rng.normal(size=(n, D)) @ spread + 1
    return x.astype(np.float32), y


def objective(weight, bias, x, y, penalty) -> float:
    """Scikit-learn's, by hand, in float64: the mean loss and the penalty."""
    z = x.astype(np.float64) @ np.asarray(weight, np.float64).T + bias
    z -= z.max(axis=1, keepdims=True)
    loss = (np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]).mean()
    halves = 2 if len(bias) == 2 else 1
    return float(
        loss + 0.5 * halves * np.square(weight, dtype=np.float64).sum() / (penalty * len(x))
    )


def by_sklearn(x, y, penalty):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = LogisticRegression(C=penalty, max_iter=5000, tol=1e-6).fit(x, y)
    if len(fitted.coef_) > 1:
        return fitted.coef_, fitted.intercept_
    return (
        np.concatenate([-fitted.coef_, fitted.coef_]) / 2,
        np.concatenate([-fitted.intercept_, fitted.intercept_]) / 2,
    )


@pytest.mark.parametrize(("n", "D", "C"), [(300, 20, 5), (300, 20, 2), (30, 60, 4)])
def test_the_optimum_is_that_of_scikit_learn(n, D, C):
    x, y = case(n, D, C)

    found = _logistic.solve([x], y, PENALTIES, C)

    for (weight, bias), penalty in zip(found, PENALTIES, strict=True):
        ours = objective(weight, bias, x, y, penalty)
        theirs = objective(*by_sklearn(x, y, penalty), x, y, penalty)
        assert ours - theirs < 1e-4, penalty
        assert theirs - ours < 2e-3, penalty  # theirs stops early where almost nothing is penalised


def test_a_problem_does_not_depend_on_the_others():
    x, y = case(200, 16, 3)

    together = _logistic.solve([x], y, PENALTIES, 3)
    alone = [_logistic.solve([x], y, [c], 3)[0] for c in PENALTIES]

    for (w, b), (w1, b1), c in zip(together, alone, PENALTIES, strict=True):
        assert objective(w, b, x, y, c) == pytest.approx(objective(w1, b1, x, y, c), abs=2e-5)


def test_parts_and_halves_are_read_as_one(monkeypatch):
    x, y = case(500, 12, 4)
    x = x.astype(np.float16).astype(np.float32)
    whole = _logistic.solve([x], y, [1.0], 4)[0]
    monkeypatch.setattr(_logistic, "BLOCK_BYTES", 1)  # blocks of the least size

    parts = _logistic.solve([x[:123], x[123:].astype(np.float16)], y, [1.0], 4)[0]

    np.testing.assert_allclose(parts[0], whole[0], atol=1e-3)
    np.testing.assert_allclose(parts[1], whole[1], atol=1e-3)


def test_classes_without_examples_are_never_predicted():
    x, y = case(120, 10, 3)
    labels = y * 2  # classes 1, 3 and 5 have none

    (fast,) = fit_batched([x], labels, [1.0], 6)
    plain = fit_logistic(x, labels, 1.0, 1000, 6)

    assert set(fast(x).argmax(1)) <= {0, 2, 4}
    np.testing.assert_allclose(fast.weight, plain.weight, atol=5e-3)
