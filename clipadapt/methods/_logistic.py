"""Multinomial logistic regression along a path of L2 penalties, each solved to a stated tolerance.

Newton's method; a step is found by conjugate gradients, preconditioned by the penalty and the curvature that the loss
has on average where the problem stands now. That holds from the start, where the loss decides, to separable data,
where the loss is next to nothing. A penalty begins from the solutions of its neighbours: on separable data the weights
grow with the logarithm of ``C``, so that two of them foretell the third. Objectives and gradients are float64.
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
"""Relative: a problem is solved when its objective is within this share of the least one, as Newton's model has it."""
BLOCK_BYTES: Final = 8 << 20
"""Logits of one block of rows, in bytes."""
ROTATED_BYTES: Final = 256 << 20
"""Features are kept along the directions they vary in up to this size; beyond it they are read as they are."""
KEPT_BYTES: Final = 1 << 30
"""Probabilities are kept up to this size; beyond it (a million examples of a thousand classes) each pass recomputes."""
STRIDE: Final = 100.0
LONGEST_STRIDE: Final = math.log(1.001 * STRIDE)
SAFE_C: Final = 1e-4
"""From zero a problem is solved in strides: a step too long leaves examples on the wrong side, where nothing curves."""
MAX_STEPS: Final = 100
MAX_INNER: Final = 300
FORCING: Final = 0.1
"""A step of Newton's is solved to this share of the gradient."""
ARMIJO: Final = 1e-4
BACKTRACKS: Final = 30
RANK: Final = 1e-12
"""Directions whose variance is less than this share of the largest are rounding."""
LEAST_LEVEL: Final = 1e-3
"""Curvature of a class in the preconditioner, as a share of the largest class's, at the least."""


@dataclass(frozen=True, slots=True)
class Solution:
    """The minimiser of one problem.

    Attributes:
        weight: Shape ``(n_classes, D)``.
        bias: Shape ``(n_classes,)``; sums to 0.
        gap: How far the objective is from the least one, as a share of it; above :data:`TOLERANCE` the solver gave up.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    gap: float


class Path:
    """Minimisers of ``C sum_i CE(x_i W + b, y_i) + 1/2 |W|²``, scikit-learn's objective, over ``C``."""

    def __init__(self, x: Sequence[NDArray[Any]], y: NDArray[np.int64], n_classes: int) -> None:
        """Find the directions in which the features vary.

        Args:
            x: Features in one or more parts of shape ``(n_i, D)``, float32 or float16; may be mapped from files.
            y: Labels in ``[0, n_classes)``, each class present, shape ``(n,)``.
            n_classes: Number of classes, two or more.
        """
        self.problem = _Problem.of(x, y, n_classes)
        self.solved: dict[float, torch.Tensor] = {}  # log C -> state

    def solve(self, penalties: Sequence[float]) -> list[Solution]:
        """Return one solution per ``C``, to :data:`TOLERANCE` of the objective."""
        found = {C: self._solve(C) for C in sorted(penalties)}
        return [found[C] for C in penalties]

    def _solve(self, C: float) -> Solution:
        problem, place = self.problem, math.log(C)
        nearest = min((abs(other - place) for other in self.solved), default=math.inf)
        if nearest > LONGEST_STRIDE and C > SAFE_C:
            self._solve(C / STRIDE)
        # Two classes: scikit-learn learns one weight vector, whose halves are ours.
        lam = (2 if problem.n_classes == 2 else 1) / (C * len(problem.y))  # on the mean objective
        starts = self._starts(place)
        looks = [problem.look(u, lam) for u in starts]
        best = min(range(len(starts)), key=lambda i: float(looks[i].value))
        u, gap = _newton(problem, lam, starts[best], looks[best])
        self.solved[place] = u
        weight, bias = problem.natural(u)
        return Solution(weight.float().numpy(), bias.float().numpy(), gap)

    def _starts(self, place: float) -> list[torch.Tensor]:
        """Return states to begin from: the nearest solution, and the line through the two nearest."""
        near = sorted(self.solved, key=lambda other: abs(other - place))[:2]
        if not near:
            return [self.problem.zero()]
        a = self.solved[near[0]]
        if len(near) < 2 or near[0] == place:
            return [a]
        slope = (a - self.solved[near[1]]) / (near[0] - near[1])
        return [a, a + (place - near[0]) * slope]


@dataclass(frozen=True, slots=True)
class _Look:
    """What one pass over the features finds at a state.

    Attributes:
        u: The state.
        value: The objective.
        gradient: Shape ``(c, r + 1)``.
        level: Mean of ``p (1 - p)`` over the examples, shape ``(c,)``.
        p: Probabilities, shape ``(n, c)``, where they are small enough to be kept.
    """

    u: torch.Tensor
    value: torch.Tensor
    gradient: torch.Tensor
    level: torch.Tensor
    p: torch.Tensor | None


@dataclass(frozen=True)
class _Problem:
    """Centred features along the ``r`` directions in which they vary.

    A state is ``u`` of shape ``(c, r + 1)``: weights along the directions, and a bias.
    """

    x: Sequence[NDArray[Any]]
    y: torch.Tensor
    n_classes: int
    mean: torch.Tensor  # (D,)
    basis: torch.Tensor  # (D, r), orthonormal
    variance: torch.Tensor  # (r,)
    rotated: torch.Tensor | None  # (n, r), where it is small enough to be kept
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
        """Return the state in which all classes are alike."""
        return torch.zeros(self.n_classes, len(self.variance) + 1, dtype=torch.float64)

    def natural(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weights ``(c, D)`` and biases ``(c,)`` of the features as they are."""
        weight = u[:, :-1] @ self.basis.T
        bias = u[:, -1] - weight @ self.mean
        return weight, bias - bias.mean()

    def rows(self, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield blocks of features: along the directions where these are kept, else as they are."""
        kept = self.rotated if dtype == torch.float64 else self.single
        if kept is None:
            yield from _blocks(self.x, 8 * self.n_classes, dtype)
            return
        size = max(256, BLOCK_BYTES // (8 * self.n_classes))
        for i in range(0, len(kept), size):
            yield slice(i, i + size), kept[i : i + size]

    def for_rows(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weights and biases of what :meth:`rows` yields."""
        if self.rotated is not None:
            return u[:, :-1], u[:, -1]
        weight = u[:, :-1] @ self.basis.T
        return weight, u[:, -1] - weight @ self.mean

    def of_rows(self, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return a gradient by ``u`` from one by the weights and biases of :meth:`for_rows`."""
        if self.rotated is None:
            weight = (weight - bias[:, None] * self.mean) @ self.basis
        return torch.cat([weight, bias[:, None]], dim=-1)

    def look(self, u: torch.Tensor, lam: float) -> _Look:
        """Return objective, gradient and probabilities at ``u``.

        Nothing is taken from 1, so a loss of 1e-12 and its gradient are as exact as large ones.
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
        return _Look(u, value, gradient, level / len(self.y), p)

    def curve(self, look: _Look, lam: float, v: torch.Tensor) -> torch.Tensor:
        """Return the Hessian times ``v``; float32 inside, as a direction need be."""
        scale = v.abs().max().clamp(min=1e-300)  # small ones would sink below float32
        weight, bias = (t.float() for t in self.for_rows(v / scale))
        by_weight, by_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        own_weight, own_bias = (t.float() for t in self.for_rows(look.u))

        def again(part: torch.Tensor) -> torch.Tensor:
            return torch.addmm(own_bias, part, own_weight.T).softmax(-1)

        for rows, part in self.rows(torch.float32):
            change = torch.addmm(bias, part, weight.T)  # (m, c)
            change -= change.gather(-1, self.y[rows, None])
            q = again(part) if look.p is None else look.p[rows]
            change -= (q * change).sum(-1, keepdim=True)
            change *= q
            by_weight += change.T @ part
            by_bias += change.sum(0)
        curved = self.of_rows(by_weight.double(), by_bias.double()) * (scale / len(self.y))
        curved[:, :-1] += lam * v[:, :-1]
        return curved

    def preconditioner(self, look: _Look, lam: float) -> torch.Tensor:
        """Return the inverse of a diagonal like the Hessian's, shape ``(c, r + 1)``."""
        level = look.level[:, None]  # (c, 1)
        level = level.clamp(min=float(level.max()) * LEAST_LEVEL + 1e-300)
        return torch.cat([level * self.variance + lam, level], dim=-1).reciprocal()


def _directions(centred: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the directions in which centred features vary, ``(D, r)``, and their variances."""
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
    problem: _Problem, lam: float, u: torch.Tensor, look: _Look
) -> tuple[torch.Tensor, float]:
    """Return the minimiser, from ``u``, and its relative gap."""
    gap = 1.0
    for _ in range(MAX_STEPS):
        direction = _direction(problem, look, lam)
        promise = -float((direction * look.gradient).sum())
        gap = 0.5 * max(promise, 0.0) / float(look.value)
        step = 1.0
        for _ in range(BACKTRACKS):
            tried = u + step * direction
            found = problem.look(tried, lam)
            if found.value <= look.value - ARMIJO * step * promise:
                u, look = tried, found
                break
            step *= 0.5
        else:
            break  # rounding is all that is left
        # The step that promised next to nothing has been taken: what is left is less still.
        if gap <= TOLERANCE:
            break
    return u, gap


def _direction(problem: _Problem, look: _Look, lam: float) -> torch.Tensor:
    """Return a step of Newton's, by preconditioned conjugate gradients."""
    inverse = problem.preconditioner(look, lam)
    residual = -look.gradient
    out, z = torch.zeros_like(residual), inverse * residual
    conjugate, energy = z, (residual * z).sum()
    enough = energy * FORCING**2
    for _ in range(MAX_INNER):
        curved = problem.curve(look, lam, conjugate)
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
    """Yield the rows of all parts in blocks, with their places."""
    size = max(256, BLOCK_BYTES // row_bytes)
    kind = np.float64 if dtype == torch.float64 else np.float32
    offset = 0
    for part in parts:
        for i in range(0, len(part), size):
            block = torch.from_numpy(part[i : i + size].astype(kind))
            yield slice(offset + i, offset + i + len(block)), block
        offset += len(part)
