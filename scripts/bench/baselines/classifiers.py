"""Closed-form classifiers as the official code computes them: each returns its fit and its prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    Sides = tuple[Callable[[], tuple[Any, ...]], Callable[..., torch.Tensor]]

SCALE = 100.0


def gda(
    x: torch.Tensor, y: torch.Tensor, q: torch.Tensor, text: torch.Tensor, *, alpha: float, **_: Any
) -> Sides:
    """Loop over classes for the means, then a pseudo-inverse."""

    def fit() -> tuple[Any, ...]:
        C, D = text.shape
        means = torch.cat([x[y == c].mean(dim=0, keepdim=True) for c in range(C)])
        centred = torch.cat([x[y == c] - means[c] for c in range(C)])
        cov = centred.T.cov()
        shrunk = (len(centred) - 1) * cov + cov.trace() * torch.eye(D)
        precision = D * torch.linalg.pinv(shrunk.double(), hermitian=True).float()
        W = precision @ means.T
        b = (
            torch.full((C,), 1.0 / C).log()
            - torch.einsum("nd,dc,nc->n", means, precision, means) / 2
        )
        return W, b

    return fit, lambda W, b: SCALE * q @ text.T + alpha * (q @ W + b)


def proker(
    x: torch.Tensor,
    y: torch.Tensor,
    q: torch.Tensor,
    text: torch.Tensor,
    *,
    beta: float,
    lmbda: float,
    **_: Any,
) -> Sides:
    """A float32 kernel and a general solver; steps in place, so that it fits in 4 GiB."""

    def fit() -> tuple[Any, ...]:
        kernel = (x @ x.T).sub_(1).mul_(beta).exp_().div_(lmbda)
        kernel.diagonal().add_(1)
        target = F.one_hot(y, len(text)).float() - x @ text.T
        return (torch.linalg.solve(kernel, target),)

    return fit, lambda A: q @ text.T + (q @ x.T).sub_(1).mul_(beta).exp_() @ A


def tip_adapter(
    x: torch.Tensor,
    y: torch.Tensor,
    q: torch.Tensor,
    text: torch.Tensor,
    *,
    alpha: float,
    beta: float,
    **_: Any,
) -> Sides:
    """A product with dense one-hot values."""

    def fit() -> tuple[Any, ...]:
        return x.T.contiguous(), F.one_hot(y, len(text)).float()

    def predict(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return SCALE * q @ text.T + alpha * (-beta * (1 - q @ keys)).exp() @ values

    return fit, predict


def ape(
    x: torch.Tensor,
    y: torch.Tensor,
    q: torch.Tensor,
    text: torch.Tensor,
    *,
    alpha: float,
    beta: float,
    gamma: float,
    channels: float,
    **_: Any,
) -> Sides:
    """A loop over classes for the similarity between classes, and dense one-hot values."""

    def fit() -> tuple[Any, ...]:
        C, D = text.shape
        members = torch.cat([text[:, None], x.reshape(C, -1, D)], dim=1)  # (C, K + 1, D)
        k, sim = members.shape[1], torch.zeros(D, dtype=torch.float64)
        total = members.double().sum(dim=(0, 1))
        for c in range(C):
            own = members[c].double().sum(dim=0)
            sim += own * (total - own)
        sim /= C * (C - 1) * k * k
        value = -0.7 * sim + 0.3 * text.double().var(dim=0)
        chosen = value.topk(round(channels * D)).indices.sort().values
        keys, few = F.normalize(x[:, chosen]), F.normalize(text[:, chosen])
        one_hot = F.one_hot(y, C).float()
        p = (keys @ few.T).softmax(dim=1)
        div = (one_hot * torch.log2((one_hot + 1e-6) / (p + 1e-6))).sum(dim=1, keepdim=True)
        return chosen, keys, one_hot * (gamma * div).exp()

    def predict(chosen: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        few = F.normalize(q[:, chosen])
        return SCALE * q @ text.T + alpha * (-beta * (1 - few @ keys.T)).exp() @ values

    return fit, predict
