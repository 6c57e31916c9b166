"""Trained classifiers on features as the official code trains them: autograd on each batch, dense one-hot values.

Half precision is replaced by float32. The image and text features are given: a frozen tower that the official code
runs in every step is not measured.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from baselines.classifiers import SCALE, similarity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from baselines.classifiers import Data, Sides


def linear_probe(d: Data, c: Any) -> Sides:
    """Scikit-learn's logistic regression, as in the README of CLIP; the weights are returned with the scores."""

    def fit() -> tuple[Any, ...]:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        from clipadapt.methods.linear_probe import tolerance

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            x, y = d.x.cpu().numpy(), d.y.cpu().numpy()
            tol = tolerance(x, y)  # its own would stop before the first step
            model = LogisticRegression(random_state=0, C=c.C, max_iter=c.max_iter, tol=tol)
            model.fit(x, y)
        found = (model.coef_, model.intercept_)
        weight, bias = (torch.from_numpy(a).float().to(d.x.device) for a in found)
        return weight, bias, int(max(model.n_iter_))

    return fit, lambda weight, bias, _: d.q @ weight.T + bias


def linear_probe_adamw(d: Data, c: Any) -> Sides:
    """The loop of CLIP_benchmark: a linear layer and AdamW, cosine to zero per step."""

    def fit() -> tuple[Any, ...]:
        layer = torch.nn.Linear(d.x.shape[1], len(d.text))
        _copy(layer.weight, d.start["weight"])
        _copy(layer.bias, d.start["bias"])
        optimizer = torch.optim.AdamW(layer.parameters(), lr=c.lr, weight_decay=c.weight_decay)
        batches = [
            b for e in range(c.epochs) for b in d.order("linear_probe", len(d.x), c.batch_size, e)
        ]
        for lr, rows in zip(_cosine(c.lr, len(batches)), batches, strict=True):
            _step(optimizer, lr, lambda rows=rows: F.cross_entropy(layer(d.x[rows]), d.y[rows]))
        return layer.weight.detach(), layer.bias.detach()

    return fit, lambda weight, bias: d.q @ weight.T + bias


def clip_adapter(d: Data, c: Any) -> Sides:
    """Two linear layers, SGD."""

    def adapted(x: torch.Tensor, down: torch.nn.Linear, up: torch.nn.Linear) -> torch.Tensor:
        features = d.norm * x
        mixed = c.ratio * F.relu(up(F.relu(down(features)))) + (1 - c.ratio) * features
        return SCALE * (mixed / mixed.norm(dim=-1, keepdim=True)) @ d.text.T

    def fit() -> tuple[Any, ...]:
        D = d.x.shape[1]
        down = torch.nn.Linear(D, D // c.reduction, bias=False)
        up = torch.nn.Linear(D // c.reduction, D, bias=False)
        _copy(down.weight, d.start["fc.0.weight"])
        _copy(up.weight, d.start["fc.2.weight"])
        optimizer = _sgd([down.weight, up.weight], c)
        for rows in _epochs(d, c, "clip_adapter"):
            _step(
                optimizer, c.lr, lambda r=rows: F.cross_entropy(adapted(d.x[r], down, up), d.y[r])
            )
        return down, up

    def predict(down: torch.nn.Linear, up: torch.nn.Linear) -> torch.Tensor:
        with torch.no_grad():
            return adapted(d.q, down, up)

    return fit, predict


def tip_adapter_f(d: Data, c: Any) -> Sides:
    """Keys in a linear layer, and a product with dense one-hot values in every step."""

    def logits(x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        votes = (-(c.beta - c.beta * (x @ keys.T))).exp() @ values
        return SCALE * x @ d.text.T + c.alpha * votes

    def fit() -> tuple[Any, ...]:
        keys = d.x.clone().requires_grad_()
        values = F.one_hot(d.y, len(d.text)).float()
        optimizer = _adamw([keys], c)
        batches = list(_epochs(d, c, "tip_adapter_f"))
        for lr, rows in zip(_cosine(c.lr, len(batches)), batches, strict=True):
            _step(
                optimizer,
                lr,
                lambda r=rows: F.cross_entropy(logits(d.x[r], keys, values), d.y[r]),
            )
        return keys.detach(), values

    return fit, lambda keys, values: logits(d.q, keys, values)


def ape_t(d: Data, c: Any) -> Sides:
    """Loops over pairs of classes for the channels; keys, texts and dense values are built in every step."""

    def logits(x: torch.Tensor, K: torch.Tensor, W: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
        return SCALE * x @ W.T + c.alpha * (-c.beta * (1 - x @ K.T)).exp() @ V

    def fit() -> tuple[Any, ...]:
        C, D = d.text.shape
        spread = d.text.double().var(dim=0)
        value = -c.similarity_weight * similarity(d.text[:, None]) + c.variance_weight * spread
        chosen = value.topk(round(c.channels * D)).indices
        residual = torch.zeros(C, len(chosen), requires_grad=True)
        weights = torch.ones(len(d.x), 1, requires_grad=True)
        one_hot, shots = F.one_hot(d.y, C).float(), len(d.x) // C

        def built() -> tuple[torch.Tensor, ...]:
            keys, text = d.x.clone(), d.text.clone()
            keys[:, chosen] = keys[:, chosen] + residual.repeat_interleave(shots, dim=0)
            text[:, chosen] = text[:, chosen] + residual
            return keys, text, one_hot * weights

        optimizer = _adamw([residual, weights], c)
        batches = list(_epochs(d, c, "ape_t"))
        for lr, rows in zip(_cosine(c.lr, len(batches)), batches, strict=True):
            _step(optimizer, lr, lambda r=rows: F.cross_entropy(logits(d.x[r], *built()), d.y[r]))
        with torch.no_grad():
            return built()

    return fit, lambda keys, text, values: logits(d.q, keys, text, values)


def taskres(d: Data, c: Any) -> Sides:
    """Adam on a residual of the text features."""
    base = d.norm * d.text

    def weights(residual: torch.Tensor) -> torch.Tensor:
        mixed = base + c.alpha * residual
        return mixed / mixed.norm(dim=-1, keepdim=True)

    def fit() -> tuple[Any, ...]:
        residual = torch.zeros_like(base, requires_grad=True)
        optimizer = torch.optim.Adam([residual], lr=c.lr, weight_decay=c.weight_decay)
        for rows in _epochs(d, c, "taskres"):
            _step(
                optimizer,
                c.lr,
                lambda r=rows: F.cross_entropy(SCALE * d.x[r] @ weights(residual).T, d.y[r]),
            )
        return (weights(residual.detach()),)

    return fit, lambda W: SCALE * d.q @ W.T


def clap(d: Data, c: Any) -> Sides:
    """Multipliers from a product with one-hot labels of which only the diagonal is used; SGD on the prototypes."""
    base = d.norm * d.text

    def scores(x: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
        return SCALE * x @ (prototypes / prototypes.norm(dim=-1, keepdim=True)).T

    def fit() -> tuple[Any, ...]:
        one_hot = F.one_hot(d.y, len(base)).float()
        p = scores(d.x, base).softmax(dim=-1)
        multipliers = (one_hot.T @ p).diagonal() / (one_hot.sum(dim=0) + 1e-10)
        prototypes = base.clone().requires_grad_()
        optimizer = _sgd([prototypes], c)

        def loss(rows: Any) -> torch.Tensor:
            distance = (prototypes - base).pow(2).sum(-1)
            ce = F.cross_entropy(scores(d.x[rows], prototypes), d.y[rows])
            return ce + (multipliers * distance).mean()

        for rows in _epochs(d, c, "clap"):
            _step(optimizer, c.lr, lambda r=rows: loss(r))
        return (prototypes.detach(),)

    return fit, lambda prototypes: scores(d.q, prototypes)


def lp_plus_plus(d: Data, c: Any) -> Sides:
    """Logits of images and texts as two products in every step; a loop over classes for a step size."""

    def logits(x: torch.Tensor, layer: torch.nn.Linear, alpha: torch.Tensor) -> torch.Tensor:
        return layer(x) + alpha * (x @ d.text.T)

    def fit() -> tuple[Any, ...]:
        (C, D), N = d.text.shape, len(d.x)
        one_hot = F.one_hot(d.y, C).float()
        layer = torch.nn.Linear(D, C)
        _copy(layer.weight, one_hot.T @ d.x)
        _copy(layer.bias, d.start["bias"])
        lr = 4 * N / float(torch.linalg.eigvalsh(d.x.T @ d.x).max())
        squares = max(float((d.x @ d.text[i]).square().sum()) for i in range(C))
        lr_alpha = N / (4 * squares)
        similar = one_hot.T @ (d.x @ d.text.T) / one_hot.sum(dim=0)[:, None]
        start = c.alpha_init * float(similar.diagonal().mean())
        alpha = torch.full((C,), start, requires_grad=True)
        optimizer = torch.optim.SGD(layer.parameters(), lr=lr, momentum=c.momentum)

        def loss() -> torch.Tensor:
            return F.cross_entropy(logits(d.x, layer, alpha), d.y)

        for i in range(c.epochs):
            # The gradient of alpha is not in the optimizer, and never set to zero.
            _step(optimizer, lr, loss)
            if (i + 1) % c.alpha_every == 0:
                with torch.no_grad():
                    alpha.sub_(lr_alpha * alpha.grad)
        return layer, alpha

    def predict(layer: torch.nn.Linear, alpha: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return logits(d.q, layer, alpha)

    return fit, predict


def prolip(d: Data, c: Any) -> Sides:
    """Adam on the projection, full batches."""
    pretrained = d.projection
    assert pretrained is not None

    def logits(x: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
        z = x @ projection
        return SCALE * (z / z.norm(dim=-1, keepdim=True)) @ d.text.T

    def fit() -> tuple[Any, ...]:
        weight = len(d.text) / len(d.x)  # 1 / shots
        projection = pretrained.clone().requires_grad_()
        optimizer = torch.optim.Adam([projection], lr=c.lr, eps=c.eps)

        def loss() -> torch.Tensor:
            penalty = (projection - pretrained).square().sum()
            return F.cross_entropy(logits(d.x, projection), d.y) + weight * penalty

        for lr in _cosine(c.lr, c.epochs):
            _step(optimizer, lr, loss)
        return (projection.detach(),)

    return fit, lambda projection: logits(d.q, projection)


def cross_modal(d: Data, c: Any) -> Sides:
    """Half of each batch images, half texts; AdamW on the weights of all classes in every step."""

    def fit() -> tuple[Any, ...]:
        head = torch.nn.Linear(*d.text.T.shape, bias=False)
        _copy(head.weight, d.text)
        optimizer = _adamw([head.weight], c)
        half, labels = c.batch_size // 2, torch.arange(len(d.text))
        images = _endless(d, "cross_modal", len(d.x), half)
        texts = _endless(d, "cross_modal.text", len(d.text), half)
        for i in range(c.steps):
            own, also = next(images), next(texts)
            x, y = torch.cat([d.x[own], d.text[also]]), torch.cat([d.y[own], labels[also]])
            _step(optimizer, _warm(c, i), lambda x=x, y=y: F.cross_entropy(SCALE * head(x), y))
        return (head.weight.detach(),)

    return fit, lambda W: SCALE * d.q @ W.T


def _warm(c: Any, i: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine."""
    if i < c.warmup_steps:
        return float(c.lr * i / c.warmup_steps if i else c.warmup_lr)
    return float(c.lr / 2 * (1 + math.cos(math.pi * (i - c.warmup_steps) / c.steps)))


def _cosine(lr: float, steps: int) -> list[float]:
    return [0.5 * lr * (1 + math.cos(math.pi * t / steps)) for t in range(steps)]


def _epochs(d: Data, c: Any, stream: str) -> Iterator[Any]:
    for epoch in range(c.epochs):
        yield from d.order(stream, len(d.x), c.batch_size, epoch)


def _endless(d: Data, stream: str, n: int, size: int) -> Iterator[Any]:
    epoch = 0
    while True:
        yield from d.order(stream, n, size, epoch)
        epoch += 1


def _sgd(parameters: list[Any], c: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay)


def _adamw(parameters: list[Any], c: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=c.lr, eps=c.eps, weight_decay=c.weight_decay)


def _step(optimizer: torch.optim.Optimizer, lr: float, loss: Callable[[], torch.Tensor]) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    value = loss()
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    value.item()


def _copy(parameter: torch.Tensor, value: torch.Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)
