"""Multinomial logistic regression for many L2 penalties at once.

All problems share the features, so one pass over them serves every penalty: their logits are one matrix product.
Each is solved by L-BFGS in coordinates in which the features are uncorrelated and D. Böhning's bound on the Hessian
(``1/2 Cov(x)``, Annals of the Institute of Statistical Mathematics 1992) is the identity; converged problems drop out.
Features are read in blocks of rows and never copied as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

BLOCK_BYTES: Final = 4 << 20
"""Logits of one block of rows, in bytes."""
MEMORY: Final = 10
MAX_ITERATIONS: Final = 500
TOLERANCE: Final = 3e-6
"""On the mean objective: a problem is solved when so many steps in a row gain and promise less than this."""
PATIENCE: Final = 6
NOTHING_LEFT: Final = 1e-5
"""An objective below this is solved as well: none can be below zero."""
ARMIJO: Final = 1e-4
BACKTRACKS: Final = 12


def solve(
    x: Sequence[NDArray[Any]], y: NDArray[np.int64], penalties: Sequence[float], n_classes: int
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Minimise ``C sum_i CE(x_i W + b, y_i) + 1/2 |W|²``, scikit-learn's objective, for every ``C``.

    Args:
        x: Features in one or more parts of shape ``(n_i, D)``, float32 or float16; may be mapped from files.
        y: Labels in ``[0, n_classes)``, each class present, shape ``(n,)``.
        penalties: Values of ``C``, inverse strength of the penalty.
        n_classes: Number of classes, two or more.

    Returns:
        Weight ``(n_classes, D)`` and bias ``(n_classes,)`` per penalty.
    """
    problem = _Problem.of(x, y, n_classes)
    C = torch.tensor(list(penalties), dtype=torch.float64)
    # Two classes: scikit-learn learns one weight vector, whose halves are ours.
    strength = (2 if n_classes == 2 else 1) / (C * len(y))  # on the mean objective
    u = _lbfgs(problem, strength)
    out = []
    for row, lam in zip(u, strength, strict=True):
        weight, bias = problem.natural(row[None], lam[None])
        out.append((weight[0].float().numpy(), bias[0].float().numpy()))
    return out


@dataclass(frozen=True)
class _Problem:
    """Features with what makes them uncorrelated.

    A state of ``K`` problems is ``u`` of shape ``(K, c, r + 1)``: scaled weights along ``r`` directions, and a bias.
    """

    x: Sequence[NDArray[Any]]
    y: torch.Tensor
    n_classes: int
    mean: torch.Tensor  # (D,)
    basis: torch.Tensor  # (D, r), orthonormal
    variance: torch.Tensor  # (r,)

    @classmethod
    def of(cls, x: Sequence[NDArray[Any]], y: NDArray[np.int64], n_classes: int) -> _Problem:
        n, D = len(y), x[0].shape[1]
        mean = torch.zeros(D, dtype=torch.float64)
        gram = torch.zeros(D, D, dtype=torch.float64)
        for _, block in _blocks(x, 8 * D):
            part = block.double()
            mean += part.sum(0)
            gram += part.T @ part
        mean /= n
        values, vectors = torch.linalg.eigh(gram / n - torch.outer(mean, mean))
        keep = values > values.max().clamp(min=1e-30) * 1e-9
        return cls(x, torch.from_numpy(y), n_classes, mean, vectors[:, keep], values[keep])

    def scale(self, strength: torch.Tensor) -> torch.Tensor:
        """Return the factor of each coordinate, shape ``(K, 1, r + 1)``; the bias is not penalised."""
        weights = (0.5 * self.variance + strength[:, None]).rsqrt()  # (K, r)
        bias = torch.full((len(strength), 1), 2**0.5, dtype=torch.float64)
        return torch.cat([weights, bias], dim=1)[:, None]

    def curvature(self, strength: torch.Tensor) -> torch.Tensor:
        """Return the least curvature of each problem near its optimum, shape ``(K,)``.

        Along the weights it is the penalty's; along the biases that of a model which knows the classes' shares only.
        """
        weights = strength / (0.5 * self.variance.max() + strength)
        share = torch.bincount(self.y, minlength=self.n_classes).min() / len(self.y)
        return weights.clamp(max=2 * float(share))

    def at_zero(self, strength: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return :meth:`value_and_gradient` at zero, where all problems are alike but for their scales."""
        one = strength[:1]
        u = torch.zeros(1, self.n_classes, len(self.variance) + 1, dtype=torch.float64)
        value, gradient = self.value_and_gradient(u, one)
        return value.expand(len(strength)).clone(), gradient / self.scale(one) * self.scale(
            strength
        )

    def natural(self, u: torch.Tensor, strength: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weights ``(K, c, D)`` and biases ``(K, c)`` of the features as they are."""
        scaled = u.double() * self.scale(strength)
        weight = scaled[..., :-1] @ self.basis.T
        return weight, scaled[..., -1] - weight @ self.mean

    def value_and_gradient(
        self, u: torch.Tensor, strength: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return objectives ``(K,)`` and gradients by ``u``; one pass over the features."""
        K, c, _width = u.shape
        n, D = len(self.y), self.x[0].shape[1]
        weight, bias = (t.float() for t in self.natural(u, strength))
        flat = weight.reshape(K * c, D)
        loss = torch.zeros(K, dtype=torch.float64)
        by_weight = torch.zeros(K * c, D, dtype=torch.float64)
        by_bias = torch.zeros(K, c, dtype=torch.float64)
        for rows, part in _blocks(self.x, 4 * K * c):
            logits = torch.addmm(bias.reshape(-1), part, flat.T).view(-1, K, c)  # (m, K, c)
            top = logits.amax(-1, keepdim=True)
            logits -= top
            own = self.y[rows, None, None].expand(-1, K, 1)
            right = logits.gather(-1, own)  # (m, K, 1)
            p = logits.exp_()
            total = p.sum(-1, keepdim=True)
            loss += (total.log() - right).sum((0, 2)).double()
            p /= total
            p.scatter_add_(-1, own, torch.full_like(right, -1.0))  # p - one-hot
            by_bias += p.sum(0).double()
            by_weight += (p.view(len(part), K * c).T @ part).double()
        centred = (by_weight - by_bias.reshape(-1, 1) * self.mean).view(K, c, D)
        gradient = torch.cat([centred @ self.basis, by_bias[..., None]], dim=-1) / n
        scale = self.scale(strength)
        gradient *= scale
        scaled = u.double() * scale
        penalty = 0.5 * strength * scaled[..., :-1].square().sum((1, 2))
        gradient[..., :-1] += strength[:, None, None] * scaled[..., :-1] * scale[..., :-1]
        return loss / n + penalty, gradient


def _lbfgs(problem: _Problem, strength: torch.Tensor) -> torch.Tensor:
    """Return the minimisers of all problems, from zero."""
    K, c, width = len(strength), problem.n_classes, len(problem.variance) + 1
    found = torch.zeros(K, c, width, dtype=torch.float64)
    active = torch.arange(K)
    u, lam = found.clone(), strength.clone()
    value, gradient = problem.at_zero(lam)
    curvature = problem.curvature(lam)
    history: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    calm = torch.zeros(K, dtype=torch.int64)
    for _ in range(MAX_ITERATIONS):
        direction = _direction(gradient, history)
        slope = (direction * gradient).sum((1, 2))
        uphill = slope >= 0
        if uphill.any():
            direction[uphill] = -gradient[uphill]
            slope = (direction * gradient).sum((1, 2))
        step, new_value, new_gradient = _search(problem, u, lam, value, direction, slope)
        moved = step[:, None, None] * direction
        promise = torch.maximum(value - new_value, -0.5 * slope)
        calm = torch.where(promise < TOLERANCE, calm + 1, 0)
        history.append(_pair(moved, new_gradient - gradient))
        del history[:-MEMORY]
        u, value, gradient = u + moved, new_value, new_gradient
        found[active] = u
        certain = gradient.square().sum((1, 2)) < 2 * curvature * TOLERANCE
        keep = (calm < PATIENCE) & (step > 0) & (value > NOTHING_LEFT) & ~certain
        if not keep.all():
            if not keep.any():
                break
            active, lam, calm = active[keep], lam[keep], calm[keep]
            curvature = curvature[keep]
            u, value, gradient = u[keep], value[keep], gradient[keep]
            history = [(s[keep], t[keep], rho[keep]) for s, t, rho in history]
    return found


def _pair(s: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a step, the change of the gradient, and one over their product (0 where it is no use)."""
    product = (s * t).sum((1, 2))
    useful = product > 1e-12 * t.square().sum((1, 2))
    rho = torch.where(useful, 1 / product.clamp(min=1e-300), 0.0)
    return s, t, rho


def _direction(
    gradient: torch.Tensor, history: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Return the two-loop direction of L-BFGS of every problem."""
    q = gradient.clone()
    factors = []
    for s, t, rho in reversed(history):
        a = rho * (s * q).sum((1, 2))
        q -= a[:, None, None] * t
        factors.append(a)
    if history:
        _, t, rho = history[-1]
        size = rho * t.square().sum((1, 2))
        q *= torch.where(size > 0, 1 / size.clamp(min=1e-300), 1.0)[:, None, None]
    for (s, t, rho), a in zip(history, reversed(factors), strict=True):
        b = rho * (t * q).sum((1, 2))
        q += (a - b)[:, None, None] * s
    return -q


def _search(
    problem: _Problem,
    u: torch.Tensor,
    lam: torch.Tensor,
    value: torch.Tensor,
    direction: torch.Tensor,
    slope: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Halve the steps until every problem has descended enough; a problem that cannot gets the step 0."""
    step = torch.ones(len(u), dtype=torch.float64)
    new_value, new_gradient = value.clone(), torch.zeros_like(u)
    open_ = torch.arange(len(u))
    for _ in range(BACKTRACKS):
        tried = u[open_] + step[open_][:, None, None] * direction[open_]
        v, g = problem.value_and_gradient(tried, lam[open_])
        # Below the noise of float32 nothing more can be asked of a step.
        noise = 1e-7 * value[open_].abs()
        enough = v <= value[open_] + ARMIJO * step[open_] * slope[open_] + noise
        done = open_[enough]
        new_value[done], new_gradient[done] = v[enough], g[enough]
        open_ = open_[~enough]
        if not len(open_):
            break
        step[open_] *= 0.5
    step[open_] = 0.0
    return step, new_value, new_gradient


def _blocks(parts: Sequence[NDArray[Any]], row_bytes: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield the rows of all parts in blocks, float32, with their places."""
    size = max(256, BLOCK_BYTES // row_bytes)
    offset = 0
    for part in parts:
        for i in range(0, len(part), size):
            block = part[i : i + size]
            if block.dtype != np.float32 or not block.flags.writeable:
                block = block.astype(np.float32)
            yield slice(offset + i, offset + i + len(block)), torch.from_numpy(block)
        offset += len(part)
