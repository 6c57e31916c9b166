"""Tip-Adapter's cache model: few-shot features are keys, labels are values; alpha and beta are searched on val."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from pydantic import Field, PositiveFloat

from clipadapt.core.api.method import MethodConfig
from clipadapt.core.files import saved
from clipadapt.methods import _export
from clipadapt.methods._images import tensor
from clipadapt.methods._training import nonempty
from clipadapt.methods._views import each_view

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Split
    from clipadapt.core.api.method import Exported, ScoreKind
    from clipadapt.models import ImageTextModel

BLOCK_BYTES: Final = 32 << 20
"""Maximum size of the affinities of one block of val in the search, which holds several copies."""
SCORE_BYTES: Final = 64 << 20
"""Maximum size of the affinities of one block of predictions; products of narrower blocks are slower."""
BETAS_AT_ONCE: Final = 10
ROUNDING: Final = 1e-4
"""Tolerance, relative to the best logit, with which a class is kept as a possible prediction."""
LONG_SEARCH_SECONDS: Final = 30.0
"""A search that takes longer than this is announced with an estimate of its duration."""
GRID_START: Final = 0.1
CACHE_FORMULA: Final = """votes = np.exp(a['beta'] * (x @ a['keys'].T - 1)) @ np.eye(len(a['weight']))[a['labels']]
scores = a['logit_scale'] * x @ a['weight'].T + a['alpha'] * votes"""


class SearchConfig(MethodConfig):
    """Hyperparameters shared by the methods with a cache: Tip-Adapter, Tip-Adapter-F, APE and APE-T.

    Attributes:
        alpha: Weight of the cache logits if there is no search.
        beta: Sharpness of the affinities if there is no search.
        search: Search ``alpha`` and ``beta`` on val; without val there is no search.
        alpha_max: End of the search range of ``alpha``, exclusive.
        beta_max: End of the search range of ``beta``, exclusive.
        alpha_steps: Number of values of ``alpha``.
        beta_steps: Number of values of ``beta``.
        views: Number of random crops of each image whose features are averaged into a key; 0 uses the image itself.
        logit_scale: Scale of the zero-shot logits.
        smallest_crop: Minimum fraction of the image area in a crop.
    """

    smallest_crop: float = Field(default=0.5, gt=0, le=1)
    alpha: PositiveFloat = 1.17
    beta: PositiveFloat = 1.0
    search: bool = True
    alpha_max: PositiveFloat = 3.0
    beta_max: PositiveFloat = 7.0
    alpha_steps: int = Field(default=20, gt=0, le=1000)
    beta_steps: int = Field(default=200, gt=0, le=1000)
    views: int = Field(default=10, ge=0, le=1000)
    logit_scale: PositiveFloat = 100.0


@dataclass(frozen=True, slots=True)
class CacheModel:
    """Keys and values of a cache.

    Attributes:
        keys: Features of the training examples, shape ``(N, D)``.
        labels: Labels of the training examples, shape ``(N,)``.
        n_classes: Number of classes ``C``.
        value_weights: Weight of each key's vote, shape ``(N,)``; None for equal weights of 1.
    """

    keys: torch.Tensor
    labels: NDArray[np.int64]
    n_classes: int
    value_weights: torch.Tensor | None = None

    def values(self) -> torch.Tensor:
        """Return one-hot labels, shape ``(N, C)``."""
        import torch
        import torch.nn.functional as F

        return F.one_hot(torch.from_numpy(self.labels), self.n_classes).float()

    def votes(self, features: torch.Tensor, beta: float) -> torch.Tensor:
        """Return ``exp(-beta (1 - f K)) V`` for unit-norm features ``(n, D)``, shape ``(n, C)``."""
        exponents = (self.keys @ features.T).sub_(1).mul_(beta)  # (N, n)
        return self.by_class(self.weighted(exponents.exp_())).T  # in place: no copy of this size

    def weighted(self, votes: torch.Tensor) -> torch.Tensor:
        """Multiply the votes of the keys, shape ``(N, n)``, by their weights."""
        return votes if self.value_weights is None else votes * self.value_weights[:, None]

    def by_class(self, weights: torch.Tensor) -> torch.Tensor:
        """Sum ``(N, n)`` over the keys of each class, shape ``(C, n)``; equals a product with one-hot ``V``."""
        import torch

        sums = weights.new_zeros((self.n_classes, weights.shape[1]))
        return sums.index_add(0, torch.from_numpy(self.labels).to(weights.device), weights)

    def scores(
        self,
        features: torch.Tensor,
        weights: torch.Tensor,
        alpha: float,
        beta: float,
        scale: float,
    ) -> NDArray[np.float32]:
        """Return :func:`logits` as an array, computed in blocks."""
        import torch

        out = np.empty((len(features), self.n_classes), dtype=np.float32)
        step = max(1, SCORE_BYTES // (4 * max(self.n_classes, len(self.labels))))
        with torch.no_grad():
            for i in range(0, len(features), step):
                block = features[i : i + step]
                out[i : i + step] = logits(self, block, weights, alpha, beta, scale).cpu().numpy()
        return out


def build(
    model: ImageTextModel, train: Split[Any], config: SearchConfig, n_classes: int
) -> CacheModel:
    """Build the cache of a train split: average the unnormalized features over views, then normalize.

    References:
        R. Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022,
        section 3.1. arXiv:2207.09519
    """
    import torch.nn.functional as F

    views = each_view(model, train.inputs, config.views, config.smallest_crop, "projected")
    total = sum(tensor(features) for features in views)
    keys = F.normalize(total / max(1, config.views), dim=-1)  # type: ignore[arg-type]
    return CacheModel(keys, train.labels, n_classes)


def logits(
    cache: CacheModel,
    features: torch.Tensor,
    weights: torch.Tensor,
    alpha: float,
    beta: float,
    scale: float,
) -> torch.Tensor:
    """Return zero-shot logits plus ``alpha`` times the votes of the cache, shape ``(n, C)``."""
    votes = cache.votes(features, beta).mul_(alpha)
    return (scale * features @ weights.T).add_(votes)


def search(
    cache: CacheModel,
    features: torch.Tensor,
    labels: NDArray[np.int64],
    weights: torch.Tensor,
    config: SearchConfig,
    ctx: RunContext,
) -> dict[str, Any]:
    """Return the ``alpha`` and ``beta`` of the official grid with the best val accuracy, the first on ties.

    Args:
        cache: The cache.
        features: Unit-norm val features, shape ``(m, D)``.
        labels: Val labels, shape ``(m,)``.
        weights: Text features, shape ``(C, D)``.
        config: The grid.
        ctx: Receives the progress and, for an observer, the grid of accuracies.
    """
    betas = grid(config.beta_max, config.beta_steps)
    alphas = grid(config.alpha_max, config.alpha_steps)
    m, C, N = len(features), cache.n_classes, len(cache.labels)
    accuracy = np.zeros((len(betas), len(alphas)))
    step = max(1, BLOCK_BYTES // (4 * max(C, N)))
    begun = time.perf_counter()
    with ctx.progress.track("search alpha and beta", m, "val examples") as bar:
        for begin in range(0, m, step):
            rows = slice(begin, begin + step)
            zero_shot = config.logit_scale * weights @ features[rows].T  # (C, b)
            accuracy += _hits(cache, features[rows], zero_shot, labels[rows], alphas, betas)
            bar.advance(len(features[rows]))
            left = (time.perf_counter() - begun) * (m - step) / step
            if begin == 0 and left > LONG_SEARCH_SECONDS:
                ctx.progress.note(
                    f"searching alpha and beta on {m:,} val examples with {N:,} keys and {C:,} classes takes about "
                    f"{left / 60:.0f} min (method.search=false uses the values of the config)"
                )
    accuracy /= m
    i, j = divmod(int(accuracy.argmax()), len(alphas))  # the first on ties: beta outer, alpha inner
    if ctx.observe:
        ctx.observe("grid", accuracy)
    alpha, beta, value = float(alphas[j]), float(betas[i]), float(accuracy[i, j])
    by = f"val accuracy over alpha and beta (alpha={alpha:.4g}, beta={beta:.4g})"
    return {"alpha": alpha, "beta": beta, "by": by, "value": value}


def _hits(
    cache: CacheModel,
    features: torch.Tensor,
    zero_shot: torch.Tensor,
    labels: NDArray[np.int64],
    alphas: NDArray[np.float64],
    betas: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Count the correct predictions in a block of val at each beta and alpha, shape ``(betas, alphas)``.

    A key's vote decreases as beta grows, or grows if its affinity is positive, as that of a trained key can be; a
    negative weight turns its largest vote into the smallest. For a range of betas, the largest votes of a class and
    the smallest votes of the zero-shot prediction therefore bound the difference of their scores. Most classes cannot
    be predicted anywhere in the range, and only the scores of the remaining candidates are computed.

    Args:
        cache: The cache.
        features: Unit-norm features of ``b`` examples, shape ``(b, D)``.
        zero_shot: Zero-shot logits, shape ``(C, b)``.
        labels: Labels, shape ``(b,)``.
        alphas: Values of alpha, ascending.
        betas: Values of beta, ascending.
    """
    import torch

    affinity = cache.keys @ features.T - 1  # (N, b)
    y, factors = torch.from_numpy(labels), torch.tensor(alphas, dtype=torch.float32)
    best, predicted = zero_shot.max(dim=0)  # (b,)
    behind = zero_shot - best  # (C, b), at most 0
    negative, positive = affinity.clamp(max=0), affinity.clamp(min=0)
    hits = np.zeros((len(betas), len(alphas)))
    for begin in range(0, len(betas), BETAS_AT_ONCE):
        betas_here = betas[begin : begin + BETAS_AT_ONCE]
        low, high = float(betas_here[0]), float(betas_here[-1])
        most, least = _bounds(cache, negative, positive, low, high)  # (C, b)
        lead = most - least.gather(0, predicted[None])
        lead = torch.maximum(float(alphas[0]) * lead, float(alphas[-1]) * lead)
        candidate = ~(behind + lead < -ROUNDING * (1 + best.abs()))  # also if it is not a number
        candidate.scatter_(0, predicted[None], value=True)
        classes, valid = _padded(candidate)  # (b, K)
        logits_of = zero_shot.T.gather(1, classes).masked_fill(~valid, -torch.inf)
        gathered, factor = _affinities(cache, affinity, classes)
        for i, beta in enumerate(betas_here):
            if gathered is None:
                every = cache.weighted((float(beta) * affinity).exp())
                votes = cache.by_class(every).T.gather(1, classes)
            else:
                kept = (float(beta) * gathered).exp()  # (b, K, k)
                votes = (kept if factor is None else kept.mul_(factor)).sum(-1)
            block = max(1, BLOCK_BYTES // (4 * votes.numel()))
            counts = [
                (
                    classes.gather(1, (logits_of + a[:, None, None] * votes).argmax(-1).T)
                    == y[:, None]
                ).sum(0)
                for a in factors.split(block)
            ]
            hits[begin + i] = torch.cat(counts).numpy()
    return hits


def _bounds(
    cache: CacheModel, negative: torch.Tensor, positive: torch.Tensor, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most and the least votes of each class for betas from ``low`` to ``high``, both ``(C, b)``.

    Args:
        cache: The cache.
        negative: Affinities of the keys ``(N, b)``, 0 where they are positive.
        positive: The same, 0 where they are negative.
        low: Smallest beta.
        high: Largest beta.
    """
    import torch

    one = cache.weighted(
        (low * negative + high * positive).exp()
    )  # the largest if its weight is positive
    other = cache.weighted((high * negative + low * positive).exp())
    return cache.by_class(torch.maximum(one, other)), cache.by_class(torch.minimum(one, other))


def _padded(candidate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the classes ``(b, K)`` marked in each column of ``(C, b)``, ascending, and a mask without the padding."""
    import torch

    column, marked = candidate.T.nonzero(as_tuple=True)
    counts = candidate.sum(0)  # (b,)
    place = torch.arange(len(column)) - (counts.cumsum(0) - counts)[column]
    classes = torch.zeros((candidate.shape[1], int(counts.max())), dtype=torch.int64)
    classes[column, place] = marked
    return classes, torch.arange(classes.shape[1]) < counts[:, None]


def _affinities(
    cache: CacheModel, affinity: torch.Tensor, classes: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the affinities of the keys of ``classes`` and their weights, both ``(b, K, k)``.

    The affinities are None if they are not fewer than those of all keys, and the weights if the keys have none.
    """
    import torch

    counts = np.bincount(cache.labels, minlength=cache.n_classes)
    k, N = int(counts.max()), len(cache.labels)
    if classes.shape[1] * k >= N:
        return None, None
    order = np.argsort(cache.labels, kind="stable")
    slots = np.full((cache.n_classes, k), N)  # index N is padding
    sorted_labels = cache.labels[order]
    slots[sorted_labels, np.arange(N) - (np.cumsum(counts) - counts)[sorted_labels]] = order
    padding = affinity.new_full((1, affinity.shape[1]), -torch.inf)
    keys = torch.from_numpy(slots)[classes]  # (b, K, k)
    found = torch.cat([affinity, padding]).T.gather(1, keys.flatten(1)).view(keys.shape)
    if cache.value_weights is None:
        return found, None
    return found, torch.cat([cache.value_weights, affinity.new_zeros(1)])[keys]


def chosen(
    model: ImageTextModel,
    cache: CacheModel,
    val: Split[Any] | None,
    weights: torch.Tensor,
    config: SearchConfig,
    ctx: RunContext,
    trained: dict[str, Any] | None = None,
) -> tuple[float, float, dict[str, Any] | None]:
    """Return ``alpha``, ``beta`` and the ``selection`` of the record; without val, the values of the config.

    Args:
        model: The backbone.
        cache: The cache.
        val: The examples of the search.
        weights: Text features, shape ``(C, D)``.
        config: The grid.
        ctx: See :func:`search`.
        trained: The selection of an epoch before the search.
    """
    val = nonempty(val)
    if val is None or not config.search:
        return config.alpha, config.beta, trained
    features = tensor(model.encode(val.inputs, "image"))
    best = search(cache, features, val.labels, weights, config, ctx)
    selection = {"epoch": None, "by": best["by"], "value": best["value"]}
    if trained is not None:
        by = f"val accuracy by epoch, then {best['by'].removeprefix('val accuracy ')}"
        selection |= {"epoch": trained["epoch"], "by": by}
    return best["alpha"], best["beta"], selection


def grid(end: float, steps: int) -> NDArray[np.float64]:
    """Return the values of a search range, whose end is excluded."""
    return GRID_START + np.arange(steps) * (end - GRID_START) / steps


@dataclass(frozen=True, slots=True)
class CacheClassifier:
    """Zero-shot logits plus the votes of a cache.

    Attributes:
        model: The backbone.
        classnames: ``C`` class names.
        cache: Keys and values.
        weights: Unit-norm text features, shape ``(C, D)``.
        alpha: Weight of the votes.
        beta: Sharpness of the affinities.
        logit_scale: Scale of the zero-shot logits.
        n_trainable_params: Size of the keys if they were trained, else 0.
        selection: What was selected on val, or None.
        score_kind: The scores are logits.
        export_formats: ``classifier`` alone, or ``openclip`` together with the model.
    """

    model: ImageTextModel
    classnames: tuple[str, ...]
    cache: CacheModel
    weights: NDArray[np.float32]
    alpha: float
    beta: float
    logit_scale: float
    n_trainable_params: int
    selection: dict[str, Any] | None
    score_kind: ClassVar[ScoreKind] = "logit"
    export_formats: ClassVar[tuple[str, ...]] = _export.FORMATS

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``."""
        features = tensor(self.model.encode(inputs, "image"))  # (n, D)
        args = (self.alpha, self.beta, self.logit_scale)
        return self.cache.scores(features, tensor(self.weights), *args)

    def zero_shot_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the scores of the prompts without the cache, shape ``(n, C)``."""
        features = self.model.encode(inputs, "image")
        return np.float32(self.logit_scale) * (features @ self.weights.T)

    def export(
        self,
        form: str,
        path: Path,
        /,
        *,
        temperature: float | None = None,
        output: Path | None = None,
    ) -> Exported:
        """Write the cache and text features, alone or with the model; see :func:`_export.export`."""
        arrays = _export.cosine_arrays(self.weights, self.logit_scale, 0.0)
        arrays |= {
            "keys": self.cache.keys.numpy(),
            "labels": self.cache.labels,
            "alpha": np.array(self.alpha, dtype=np.float32),
            "beta": np.array(self.beta, dtype=np.float32),
        }
        return _export.export(
            form,
            path,
            self.model,
            self.classnames,
            arrays,
            CACHE_FORMULA,
            temperature=temperature,
            output=output,
        )

    def save(self, directory: Path) -> None:
        """Write keys, labels, text features and settings."""
        arrays = {
            "keys": self.cache.keys.numpy(),
            "labels": self.cache.labels,
            "weights": self.weights,
        }
        names = ("classnames", "alpha", "beta", "logit_scale", "n_trainable_params", "selection")
        saved.save(directory, arrays, {name: getattr(self, name) for name in names})


def load(directory: Path, backbone: ImageTextModel) -> CacheClassifier:
    """Return the classifier saved in ``directory``."""
    names = ("classnames", "alpha", "beta", "logit_scale", "n_trainable_params", "selection")
    facts = saved.load_facts(directory, names)
    D = (None, backbone.embed_dim)
    arrays = saved.load_arrays(directory, {"keys": D, "labels": (None,), "weights": D})
    classnames = tuple(facts.pop("classnames"))
    cache = CacheModel(tensor(arrays["keys"]), arrays["labels"], len(classnames))
    return CacheClassifier(backbone, classnames, cache, arrays["weights"], **facts)
