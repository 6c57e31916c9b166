"""Reference search of Tip-Adapter: a loop over beta, a loop over alpha, and the cache logits at every step.

R. Zhang et al., ECCV 2022, arXiv:2207.09519.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

LOGIT_SCALE: Final = 100.0
START: Final = 0.1


def keys_of(views: torch.Tensor) -> torch.Tensor:
    """Return unit-norm keys ``(D, N)`` of the features of each augmented pass, ``(passes, N, D)``."""
    return F.normalize(views.mean(dim=0), dim=-1).T


def logits(
    features: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    weights: torch.Tensor,
    alpha: float,
    beta: float,
) -> torch.Tensor:
    """Return ``100 f W + alpha exp(-beta (1 - f K)) V``, shape ``(n, C)``."""
    votes = (-beta * (1 - features @ keys)).exp() @ values
    return LOGIT_SCALE * features @ weights + alpha * votes


def accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Return top-1 accuracy in percent."""
    right = scores.topk(1, dim=1).indices[:, 0] == labels
    return 100 * float(right.float().sum()) / len(labels)


def grid_of(end: float, steps: int) -> list[float]:
    """Return the values searched; the end is excluded."""
    return [START + i * (end - START) / steps for i in range(steps)]


def search(
    features: torch.Tensor,
    labels: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    weights: torch.Tensor,
    *,
    scale: Sequence[float] = (7, 3),
    steps: Sequence[int] = (200, 20),
) -> tuple[float, float, list[list[float]]]:
    """Return the first best beta and alpha on val, and the accuracy of every pair, in percent.

    Args:
        features: Unit-norm val features, shape ``(m, D)``.
        labels: Their labels.
        keys: Shape ``(D, N)``.
        values: One-hot labels, shape ``(N, C)``.
        weights: Text classifier, shape ``(D, C)``.
        scale: Upper ends of the ranges of beta and alpha.
        steps: Number of values of beta and alpha.
    """
    best, best_beta, best_alpha, grid = 0.0, 0.0, 0.0, []
    for beta in grid_of(scale[0], steps[0]):
        row = []
        for alpha in grid_of(scale[1], steps[1]):
            got = accuracy(logits(features, keys, values, weights, alpha, beta), labels)
            row.append(got)
            if got > best:
                best, best_beta, best_alpha = got, beta, alpha
        grid.append(row)
    return best_beta, best_alpha, grid
