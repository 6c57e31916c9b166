"""Classifiers without training as the official code computes them: each returns its fit and its prediction.

Half precision is replaced by float32. Sums that select something (channels) are float64, so that both sides select
the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    Sides = tuple[Callable[[], tuple[Any, ...]], Callable[..., torch.Tensor]]

SCALE: Final = 100.0
ROWS: Final = 100
"""Rows of one block of TransCLIP; the official 2,500 need 5 GiB per temporary array with 1,000 classes."""


@dataclass(frozen=True, slots=True)
class Data:
    """What both sides get.

    Attributes:
        x: Unit-norm training features, sorted by class, ``(N, D)``; before the projection if there is one.
        y: Labels, ``(N,)``.
        q: Features of the queries.
        text: Unit-norm text features, ``(C, D)``.
        norm: Norm of the features before they are normalized.
        order: Batches of an epoch: ``(stream, n, size, epoch)``.
        start: Initial values of parameters by name.
        projection: The pretrained projection, ``(W, D)``, or None.
    """

    x: torch.Tensor
    y: torch.Tensor
    q: torch.Tensor
    text: torch.Tensor
    norm: float
    order: Callable[[str, int, int, int], list[np.ndarray[Any, Any]]]
    start: dict[str, torch.Tensor]
    projection: torch.Tensor | None = None


def gda(d: Data, c: Any) -> Sides:
    """Loop over classes for the means, then a pseudo-inverse."""

    def fit() -> tuple[Any, ...]:
        C, D = d.text.shape
        means = torch.cat([d.x[d.y == i].mean(dim=0, keepdim=True) for i in range(C)])
        centred = torch.cat([d.x[d.y == i] - means[i] for i in range(C)])
        cov = centred.T.cov()
        shrunk = (len(centred) - 1) * cov + cov.trace() * torch.eye(D)
        precision = D * torch.linalg.pinv(shrunk.double(), hermitian=True).float()
        W = precision @ means.T
        b = (
            torch.full((C,), 1.0 / C).log()
            - torch.einsum("nd,dc,nc->n", means, precision, means) / 2
        )
        return W, b

    return fit, lambda W, b: SCALE * d.q @ d.text.T + c.alpha * (d.q @ W + b)


def proker(d: Data, c: Any) -> Sides:
    """A float32 kernel and a general solver; steps in place, so that it fits in memory."""

    def fit() -> tuple[Any, ...]:
        kernel = (d.x @ d.x.T).sub_(1).mul_(c.beta).exp_().div_(c.lmbda)
        kernel.diagonal().add_(1)
        target = F.one_hot(d.y, len(d.text)).float() - d.x @ d.text.T
        return (torch.linalg.solve(kernel, target),)

    return fit, lambda A: d.q @ d.text.T + (d.q @ d.x.T).sub_(1).mul_(c.beta).exp_() @ A


def tip_adapter(d: Data, c: Any) -> Sides:
    """A product with dense one-hot values."""

    def fit() -> tuple[Any, ...]:
        return d.x.T.contiguous(), F.one_hot(d.y, len(d.text)).float()

    def predict(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        votes = (-c.beta * (1 - d.q @ keys)).exp() @ values
        return SCALE * d.q @ d.text.T + c.alpha * votes

    return fit, predict


def similarity(members: torch.Tensor) -> torch.Tensor:
    """Return the mean product of each channel over the members ``(C, k, D)`` of different classes, shape ``(D,)``.

    The official code has two more loops, over the members of both classes: with 17 of them, hours. They are products
    of sums here.
    """
    C, k, D = members.shape
    sums, total = members.double().sum(dim=1), torch.zeros(D, dtype=torch.float64)
    for i in range(C):
        for j in range(C):
            if i != j:
                total += sums[i] * sums[j]
    return total / (C * (C - 1) * k * k)


def ape(d: Data, c: Any) -> Sides:
    """A loop over pairs of classes for the similarity between them, and dense one-hot values."""

    def fit() -> tuple[Any, ...]:
        C, D = d.text.shape
        members = torch.cat([d.text[:, None], d.x.reshape(C, -1, D)], dim=1)  # (C, K + 1, D)
        spread = d.text.double().var(dim=0)
        value = -c.similarity_weight * similarity(members) + c.variance_weight * spread
        chosen = value.topk(round(c.channels * D)).indices
        keys, few = F.normalize(d.x[:, chosen]), F.normalize(d.text[:, chosen])
        one_hot = F.one_hot(d.y, C).float()
        p = (keys @ few.T).softmax(dim=1)
        div = (one_hot * torch.log2((one_hot + 1e-6) / (p + 1e-6))).sum(dim=1, keepdim=True)
        return chosen, keys, one_hot * (c.gamma * div).exp()

    def predict(chosen: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        few = F.normalize(d.q[:, chosen])
        return SCALE * d.q @ d.text.T + c.alpha * (-c.beta * (1 - few @ keys.T)).exp() @ values

    return fit, predict


def transclip(d: Data, c: Any) -> Sides:
    """All similarities at once, and squared differences of every query, class and channel."""

    def predict() -> torch.Tensor:
        prior = (SCALE * d.q @ d.text.T).softmax(dim=1)
        mu = _confident(d.q, prior, c.n_confident)
        return _solved(d, c, prior, mu, _neighbours(d.q, d.q, c.n_neighbors))

    return tuple, predict


def transclip_few_shot(d: Data, c: Any) -> Sides:
    """The same with the training examples, whose neighbours are stacked below those of the queries."""

    def predict() -> torch.Tensor:
        prior = (SCALE * d.q @ d.text.T).softmax(dim=1)
        one_hot = F.one_hot(d.y, len(d.text)).float()
        mu = F.normalize(one_hot.T @ d.x)
        W = _neighbours(torch.cat([d.q, d.x]), d.q, c.n_neighbors)
        return _solved(d, c, prior, mu, W, one_hot, c.gamma * c.temperature)

    return tuple, predict


def _neighbours(rows: torch.Tensor, q: torch.Tensor, n: int) -> torch.Tensor:
    """Return the similarities of each row to the queries ranked 2 to ``n + 1``, sparse."""
    similar = rows @ q.T
    columns = similar.topk(n + 1, dim=1).indices[:, 1:].flatten()
    places = torch.arange(len(rows)).repeat_interleave(n)
    return torch.sparse_coo_tensor(
        torch.stack([places, columns]),
        similar[places, columns],
        tuple(similar.shape),
        check_invariants=False,
    )


def _solved(
    d: Data,
    c: Any,
    z: torch.Tensor,
    mu: torch.Tensor,
    W: torch.Tensor,
    one_hot: torch.Tensor | None = None,
    g: float = 0.0,
) -> torch.Tensor:
    """Return the assignments of the queries, from the softmax of the text; training examples have the weight ``g``."""
    Q, D = d.q.shape
    prior, var = z ** (1.0 if one_hot is None else 0.5), torch.full((D,), 1 / D)
    for k in range(c.iterations + 1):
        if k:
            parts = [(d.q, z / Q)]
            if one_hot is not None:
                parts.append((d.x, g / len(d.x) * one_hot))
            mu, var = _moved(parts)
        likelihood = torch.cat([
            -0.5 * ((block[:, None] - mu) ** 2 / var).sum(dim=2) for block in d.q.split(ROWS)
        ])
        for _ in range(c.inner_iterations):
            stacked = z if one_hot is None else torch.cat([z, one_hot])
            m = likelihood + c.temperature / (2 * c.n_neighbors) * (W.T @ stacked + (W @ z)[:Q])
            z = prior * ((m - m.max(dim=1, keepdim=True).values) / c.temperature).exp()
            z = z / z.sum(dim=1, keepdim=True)
    return z


def _moved(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the means ``(C, D)`` and the variance ``(D,)`` of features ``(n, D)`` with weights ``(n, C)``."""
    sums = sum(torch.einsum("nc,nd->cd", weights, x) for x, weights in parts)
    mu = F.normalize(sums / sum(weights.sum(dim=0) for _, weights in parts)[:, None])
    total = torch.zeros(mu.shape[1])
    for x, weights in parts:
        for block, w in zip(x.split(ROWS), weights.split(ROWS), strict=True):
            total += torch.einsum("nc,ncd->d", w, (block[:, None] - mu) ** 2)
    return mu, total / sum(weights.sum() for _, weights in parts)


def _confident(q: torch.Tensor, z: torch.Tensor, n: int) -> torch.Tensor:
    """Return the weighted mean of the ``n`` queries most confidently assigned to each class, in a loop over classes."""
    best = z.topk(min(n, len(z)), dim=0).indices  # (n, C)
    means = [(q[best[:, i]] * z[best[:, i], i, None]).mean(dim=0) for i in range(z.shape[1])]
    return F.normalize(torch.stack(means))


Entries = dict[int, list[tuple[torch.Tensor, float, torch.Tensor]]]


def tda(d: Data, c: Any) -> Sides:
    """One query at a time; at each, the caches are put together again from their entries."""

    def predict() -> torch.Tensor:
        positive: Entries = {}
        negative: Entries = {}
        out = []
        for x in d.q.split(1):
            logits = SCALE * x @ d.text.T  # (1, C)
            p = logits.softmax(dim=1)
            entropy = float(-(p * logits.log_softmax(dim=1)).sum())
            share, predicted = entropy / math.log2(len(d.text)), int(logits.argmax())
            _enter(positive, predicted, (x, entropy, p), c.capacity)
            if c.entropy_low < share < c.entropy_high:
                _enter(negative, predicted, (x, entropy, p), c.negative_capacity)
            every = _all(positive)
            keys, labels = torch.cat([e[1] for e in every]), torch.tensor([e[0] for e in every])
            values = F.one_hot(labels, len(d.text)).float()
            final = logits + c.alpha * (-c.beta * (1 - x @ keys.T)).exp() @ values
            if negative:
                every = _all(negative)
                keys, p = torch.cat([e[1] for e in every]), torch.cat([e[3] for e in every])
                values = ((p > c.mask_low) & (p < c.mask_high)).float()
                affinity = (-c.negative_beta * (1 - x @ keys.T)).exp()
                final -= c.negative_alpha * affinity @ values
            out.append(final)
        return torch.cat(out)

    return tuple, predict


def _enter(
    cache: Entries, label: int, entry: tuple[torch.Tensor, float, torch.Tensor], capacity: int
) -> None:
    held = cache.setdefault(label, [])
    if len(held) < capacity:
        held.append(entry)
    elif entry[1] < held[-1][1]:
        held[-1] = entry
    held.sort(key=lambda one: one[1])


def _all(cache: Entries) -> list[tuple[int, torch.Tensor, float, torch.Tensor]]:
    """Return the class, the features, the entropy and the probabilities of all entries."""
    return [(label, *entry) for label in sorted(cache) for entry in cache[label]]
