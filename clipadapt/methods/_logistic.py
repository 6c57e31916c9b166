"""Multinomial logistic regression for many L2 penalties, each solved to :data:`TOLERANCE`.

The solver is a truncated Newton method: each step is found by conjugate gradients with a diagonal preconditioner, built
from the penalty and the mean curvature of the loss at the current state. It converges for weak and strong penalties,
also on separable data. Each problem starts from the solutions of neighbouring penalties: on separable data the weights
grow with the logarithm of ``C``, so the line through two solutions predicts the next. Objectives and gradients are
float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

TOLERANCE: Final = 1e-8
"""Relative tolerance: the objective is within this fraction of the optimum, by Newton's quadratic model."""
BLOCK_BYTES: Final = 8 << 20
"""Maximum size of the logits of one block of rows."""
ROTATED_BYTES: Final = 256 << 20
"""Maximum size of features that are rotated and kept in memory; larger ones are read in blocks as they are."""
KEPT_BYTES: Final = 1 << 30
"""Maximum size of probabilities kept in memory; larger ones are recomputed in each pass."""
STRIDE: Final = 100.0
LONGEST_STRIDE: Final = math.log(1.001 * STRIDE)
SAFE_C: Final = 1e-4
"""Above this C, a problem without a solved neighbour is solved through a sequence of intermediate penalties: too long a
first step leaves misclassified examples where the loss has no curvature."""
MAX_STEPS: Final = 100
MAX_INNER: Final = 300
FORCING: Final = 0.1
"""Relative residual at which the conjugate gradients stop."""
ARMIJO: Final = 1e-4
BACKTRACKS: Final = 30
RANK: Final = 1e-12
"""Directions with less than this fraction of the largest variance are treated as rounding errors."""
LEAST_LEVEL: Final = 1e-3
"""Minimum curvature of a class in the preconditioner, relative to the largest."""


@dataclass(frozen=True, slots=True)
class Solution:
    """The minimiser of one problem.

    Attributes:
        weight: Shape ``(n_classes, D)``.
        bias: Shape ``(n_classes,)``; sums to 0.
        gap: Relative distance of the objective from the optimum; above :data:`TOLERANCE` the solver did not converge.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    gap: float


class Path:
    """Minimisers of ``C sum_i CE(x_i W + b, y_i) + 1/2 |W|²``, scikit-learn's objective, over ``C``."""

    def __init__(self, x: Sequence[NDArray[Any]], y: NDArray[np.int64], n_classes: int) -> None:
        """Rotate the features to the directions in which they vary.

        Args:
            x: Features in one or more parts of shape ``(n_i, D)``, float32 or float16; may be memory-mapped.
            y: Labels in ``[0, n_classes)``, each class present, shape ``(n,)``.
            n_classes: Number of classes, two or more.
        """
        self.problem = _Problem.of(x, y, n_classes)
        self.solved: dict[float, torch.Tensor] = {}  # log C -> state

    def solve(self, penalties: Sequence[float]) -> list[Solution]:
        """Return one solution per ``C``, solved to :data:`TOLERANCE`."""
        found = {C: self._solve(C) for C in sorted(penalties)}
        return [found[C] for C in penalties]

    def _solve(self, C: float) -> Solution:
        problem, place = self.problem, math.log(C)
        nearest = min((abs(other - place) for other in self.solved), default=math.inf)
        if nearest > LONGEST_STRIDE and C > SAFE_C:
            self._solve(C / STRIDE)
        # With two classes, scikit-learn fits one weight vector; half of it, with both signs, is the solution here.
        lam = (2 if problem.n_classes == 2 else 1) / (C * len(problem.y))  # on the mean objective
        starts = self._starts(place)
        evaluations = [problem.evaluate(u, lam) for u in starts]
        best = min(range(len(starts)), key=lambda i: float(evaluations[i].value))
        u, gap = _newton(problem, lam, starts[best], evaluations[best])
        self.solved[place] = u
        weight, bias = problem.natural(u)
        return Solution(weight.float().numpy(), bias.float().numpy(), gap)

    def _starts(self, place: float) -> list[torch.Tensor]:
        """Return initial states: the nearest solution, and the extrapolation of the two nearest."""
        near = sorted(self.solved, key=lambda other: abs(other - place))[:2]
        if not near:
            return [self.problem.zero()]
        a = self.solved[near[0]]
        if len(near) < 2 or near[0] == place:
            return [a]
        slope = (a - self.solved[near[1]]) / (near[0] - near[1])
        return [a, a + (place - near[0]) * slope]


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """The result of one pass over the features at a state.

    Attributes:
        u: The state.
        value: The objective.
        gradient: Its gradient, shape ``(c, r + 1)``.
        level: Mean of ``p (1 - p)`` over the examples, shape ``(c,)``.
        p: Probabilities, shape ``(n, c)``, or None if they are larger than :data:`KEPT_BYTES`.
    """

    u: torch.Tensor
    value: torch.Tensor
    gradient: torch.Tensor
    level: torch.Tensor
    p: torch.Tensor | None


@dataclass(frozen=True)
class _Problem:
    """Centred features along the ``r`` directions in which they vary.

    A state ``u`` of shape ``(c, r + 1)`` consists of weights along these directions, and a bias.
    """

    x: Sequence[NDArray[Any]]
    y: torch.Tensor
    n_classes: int
    mean: torch.Tensor  # (D,)
    basis: torch.Tensor  # (D, r), orthonormal
    variance: torch.Tensor  # (r,)
    rotated: torch.Tensor | None  # (n, r); None if larger than ROTATED_BYTES
    single: torch.Tensor | None  # the same in float32

    @classmethod
    def of(cls, x: Sequence[NDArray[Any]], y: NDArray[np.int64], n_classes: int) -> _Problem:
        n, D = len(y), x[0].shape[1]
        labels = torch.from_numpy(y)
        if 8 * n * D <= ROTATED_BYTES:
            whole = torch.from_numpy(np.concatenate([np.asarray(p, np.float64) for p in x]))
            mean = whole.mean(0)
            whole -= mean
            basis, variance = _directions(whole)
            rotated = whole @ basis
            return cls(x, labels, n_classes, mean, basis, variance, rotated, rotated.float())
        mean = torch.zeros(D, dtype=torch.float64)
        gram = torch.zeros(D, D, dtype=torch.float64)
        for _, block in _blocks(x, 8 * D):
            mean += block.sum(0)
            gram += block.T @ block
        mean /= n
        basis, variance = _eigen(gram / n - torch.outer(mean, mean))
        return cls(x, labels, n_classes, mean, basis, variance, None, None)

    def zero(self) -> torch.Tensor:
        """Return the state that gives equal scores to all classes."""
        return torch.zeros(self.n_classes, len(self.variance) + 1, dtype=torch.float64)

    def natural(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights ``(c, D)`` and biases ``(c,)`` for the original features."""
        weight = u[:, :-1] @ self.basis.T
        bias = u[:, -1] - weight @ self.mean
        return weight, bias - bias.mean()

    def rows(self, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield blocks of features: the rotated features if they are kept in memory, else the original ones."""
        kept = self.rotated if dtype == torch.float64 else self.single
        if kept is None:
            yield from _blocks(self.x, 8 * self.n_classes, dtype)
            return
        size = max(256, BLOCK_BYTES // (8 * self.n_classes))
        for i in range(0, len(kept), size):
            yield slice(i, i + size), kept[i : i + size]

    def for_rows(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights and biases for the features that :meth:`rows` yields."""
        if self.rotated is not None:
            return u[:, :-1], u[:, -1]
        weight = u[:, :-1] @ self.basis.T
        return weight, u[:, -1] - weight @ self.mean

    def of_rows(self, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return the gradient by ``u``, given that by the weights and biases of :meth:`for_rows`."""
        if self.rotated is None:
            weight = (weight - bias[:, None] * self.mean) @ self.basis
        return torch.cat([weight, bias[:, None]], dim=-1)

    def evaluate(self, u: torch.Tensor, lam: float) -> _Evaluation:
        """Return objective, gradient and probabilities at ``u``.

        No value close to 1 is subtracted from 1, so a loss of 1e-12 and its gradient keep their relative precision.
        """
        loss = torch.zeros((), dtype=torch.float64)
        weight, bias = self.for_rows(u)
        by_weight, by_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        level = torch.zeros(self.n_classes, dtype=torch.float64)
        p = None
        if 4 * len(self.y) * self.n_classes <= KEPT_BYTES:
            p = torch.empty(len(self.y), self.n_classes, dtype=torch.float32)
        for rows, part in self.rows(torch.float64):
            logits = torch.addmm(bias, part, weight.T)  # (m, c)
            own = self.y[rows, None]
            logits -= logits.gather(-1, own)
            others = logits.scatter(-1, own, -torch.inf).logsumexp(-1)  # (m,)
            each = F.softplus(others, threshold=40.0)
            loss += each.sum()
            slope = (logits - each[:, None]).exp_()
            level += (slope - slope.square()).sum(0)
            if p is not None:
                p[rows] = slope.float()
            slope.scatter_(-1, own, -others.sigmoid()[:, None])  # p - one-hot
            by_weight += slope.T @ part
            by_bias += slope.sum(0)
        gradient = self.of_rows(by_weight, by_bias) / len(self.y)
        gradient[:, :-1] += lam * u[:, :-1]
        value = loss / len(self.y) + 0.5 * lam * u[:, :-1].square().sum()
        return _Evaluation(u, value, gradient, level / len(self.y), p)

    def curve(self, current: _Evaluation, lam: float, v: torch.Tensor) -> torch.Tensor:
        """Return the Hessian times ``v``, computed in float32, which is precise enough for a direction."""
        scale = v.abs().max().clamp(min=1e-300)  # avoids underflow in float32
        weight, bias = (t.float() for t in self.for_rows(v / scale))
        by_weight, by_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        own_weight, own_bias = (t.float() for t in self.for_rows(current.u))

        def probabilities(part: torch.Tensor) -> torch.Tensor:
            return torch.addmm(own_bias, part, own_weight.T).softmax(-1)

        for rows, part in self.rows(torch.float32):
            change = torch.addmm(bias, part, weight.T)  # (m, c)
            change -= change.gather(-1, self.y[rows, None])
            q = probabilities(part) if current.p is None else current.p[rows]
            change -= (q * change).sum(-1, keepdim=True)
            change *= q
            by_weight += change.T @ part
            by_bias += change.sum(0)
        curved = self.of_rows(by_weight.double(), by_bias.double()) * (scale / len(self.y))
        curved[:, :-1] += lam * v[:, :-1]
        return curved

    def preconditioner(self, current: _Evaluation, lam: float) -> torch.Tensor:
        """Return the inverse of a diagonal approximation of the Hessian, shape ``(c, r + 1)``."""
        level = current.level[:, None]  # (c, 1)
        level = level.clamp(min=float(level.max()) * LEAST_LEVEL + 1e-300)
        return torch.cat([level * self.variance + lam, level], dim=-1).reciprocal()


def _directions(centred: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the directions in which centred features vary, ``(D, r)``, and their variances ``(r,)``."""
    n, D = centred.shape
    if n > D:
        return _eigen(centred.T @ centred / n)
    _, values, vectors = torch.linalg.svd(centred, full_matrices=False)
    variance = values.square() / n
    keep = variance > variance.max().clamp(min=1e-30) * RANK
    return vectors[keep].T.contiguous(), variance[keep]


def _eigen(covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values, vectors = torch.linalg.eigh(covariance)
    keep = values > values.max().clamp(min=1e-30) * RANK
    return vectors[:, keep].contiguous(), values[keep]


def _newton(
    problem: _Problem, lam: float, u: torch.Tensor, current: _Evaluation
) -> tuple[torch.Tensor, float]:
    """Minimise from ``u``; return the minimiser and its relative gap."""
    gap = 1.0
    for _ in range(MAX_STEPS):
        direction = _direction(problem, current, lam)
        decrease = -float((direction * current.gradient).sum())
        gap = 0.5 * max(decrease, 0.0) / float(current.value)
        step = 1.0
        for _ in range(BACKTRACKS):
            tried = u + step * direction
            found = problem.evaluate(tried, lam)
            if found.value <= current.value - ARMIJO * step * decrease:
                u, current = tried, found
                break
            step *= 0.5
        else:
            break  # only rounding errors remain
        # Checked after the step was taken, so the true gap is smaller still.
        if gap <= TOLERANCE:
            break
    return u, gap


def _direction(problem: _Problem, current: _Evaluation, lam: float) -> torch.Tensor:
    """Return a Newton direction, found by preconditioned conjugate gradients."""
    inverse = problem.preconditioner(current, lam)
    residual = -current.gradient
    out, z = torch.zeros_like(residual), inverse * residual
    conjugate, energy = z, (residual * z).sum()
    enough = energy * FORCING**2
    for _ in range(MAX_INNER):
        curved = problem.curve(current, lam, conjugate)
        bend = (conjugate * curved).sum()
        if bend <= 0 or energy <= 0:
            break
        step = energy / bend
        out = out + step * conjugate
        residual = residual - step * curved
        z = inverse * residual
        before, energy = energy, (residual * z).sum()
        if energy <= enough:
            break
        conjugate = z + (energy / before) * conjugate
    return out


def _blocks(
    parts: Sequence[NDArray[Any]], row_bytes: int, dtype: torch.dtype = torch.float64
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield the rows of all parts in blocks, each with its slice of all rows."""
    size = max(256, BLOCK_BYTES // row_bytes)
    numpy_dtype = np.float64 if dtype == torch.float64 else np.float32
    offset = 0
    for part in parts:
        for i in range(0, len(part), size):
            block = torch.from_numpy(part[i : i + size].astype(numpy_dtype))
            yield slice(offset + i, offset + i + len(block)), block
        offset += len(part)
