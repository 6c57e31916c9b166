"""ProKeR: kernel ridge regression on image features that starts from the zero-shot classifier; nothing is trained."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

import numpy as np
from pydantic import Field, field_validator

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.method import MethodConfig
from clipadapt.core.files import saved
from clipadapt.methods import _export
from clipadapt.methods._text import cosine_scores, zero_shot_weights
from clipadapt.methods._training import nonempty
from clipadapt.methods._views import view_features
from clipadapt.models import ImageTextModel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from pydantic import ValidationInfo

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Task
    from clipadapt.core.api.method import Exported, ScoreKind

    Wide = NDArray[np.float64]

MAX_VECTORS: Final = 18_000
"""Maximum number of training vectors; their float64 kernel, or a float32 one and its factor, have 2.4 GiB."""
EIGEN_VECTORS: Final = 2_000
"""Maximum size of a kernel that is decomposed once for all values of lambda; a larger one is factorized for each."""
BLOCK_BYTES: Final = 64 << 20
"""Maximum size of the kernel of one block of examples."""
BLOCK: Final = 1_000
"""Rows of one block of the Cholesky factorization."""
REFINEMENTS: Final = 5
"""Maximum number of refinements of a float32 solution."""
ROUNDING: Final = 2.0**-24
"""Relative error of a solution below which float32 coefficients do not change."""
LONG_SEARCH_SECONDS: Final = 30.0
Sharpness = Annotated[float, Field(gt=0, le=1e6)]
"""``beta``. Above 1e6, only equal vectors are similar, and the rounding of their product overflows the kernel."""
Ridge = Annotated[float, Field(ge=1e-6, le=1e6)]
FACTS: Final = ("classnames", "beta", "selection")
FORMULA: Final = (
    "scores = x @ a['weight'].T + np.exp(a['beta'] * (x @ a['vectors'].T - 1)) @ a['coefficients']"
)


class ProKeRConfig(MethodConfig):
    """Hyperparameters of ``clip/proker``.

    Attributes:
        views: Number of random crops of each image, each of them a training vector; 0 uses the image itself.
        smallest_crop: Minimum fraction of the image area in a crop.
        beta: Sharpness of the kernel if there is no search.
        lmbda: Weight of the regularization if there is no search.
        search: Search ``beta`` and ``lmbda`` on val; without val there is no search.
        beta_min: First value of ``beta``.
        beta_max: Last value of ``beta``.
        beta_steps: Number of values of ``beta``.
        lmbda_min: First value of ``lmbda``.
        lmbda_max: Last value of ``lmbda``.
        lmbda_steps: Number of values of ``lmbda``.
    """

    views: int = Field(default=10, ge=0, le=1000)
    smallest_crop: float = Field(default=0.5, gt=0, le=1)
    beta: Sharpness = 1.7
    lmbda: Ridge = 0.1
    search: bool = True
    beta_min: Sharpness = 0.5
    beta_max: Sharpness = Field(default=3.0, validate_default=True)
    beta_steps: int = Field(default=20, gt=0, le=1000)
    lmbda_min: Ridge = 1e-3
    lmbda_max: Ridge = Field(default=1.0, validate_default=True)
    lmbda_steps: int = Field(default=10, gt=0, le=1000)

    @field_validator("beta_max", "lmbda_max")
    @classmethod
    def _not_below_the_first_value(cls, value: float, info: ValidationInfo) -> float:
        first = f"{str(info.field_name).removesuffix('max')}min"
        least = info.data.get(first, value)  # absent if it was refused itself
        if value < least:
            raise ValueError(f"must be at least method.{first}, which is {least:g}")
        return value

    def check(self, task: Task[Any]) -> None:
        """Check that the kernel of all training vectors fits in memory."""
        n, views = 0 if task.train is None else len(task.train), max(1, self.views)
        if n * views <= MAX_VECTORS:
            return
        gib = 8 * (n * views) ** 2 / 2**30
        fits = MAX_VECTORS // n
        raise ConfigError(
            f"proker: {views} views of {n:,} images are {n * views:,} vectors, whose kernel needs {gib:,.1f} GiB; "
            f"at most {MAX_VECTORS:,} vectors are supported",
            hint=f"set method.views={fits}" if fits else "use fewer shots: --set data.shots=...",
        )


class ProKeR:
    """``scores = f W + k(f, X) A`` with ``A = (K / lambda + I)^-1 (Y - X W)`` and ``k(a, b) = exp(-beta (1 - a b))``.

    References:
        Y. Bendou et al., "ProKeR: A Kernel Perspective on Few-Shot Adaptation of Large Vision-Language Models",
        CVPR 2025, section 4. arXiv:2501.11175
    """

    Config: ClassVar[type[MethodConfig]] = ProKeRConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = ImageTextModel
    open_vocabulary: ClassVar[bool] = False

    def __init__(self, config: ProKeRConfig) -> None:
        self.config = config

    def fit(self, backbone: ImageTextModel, task: Task[Any], ctx: RunContext) -> KernelClassifier:
        """Solve on ``task.train``; search ``beta`` and ``lmbda`` on ``task.val``.

        Raises:
            ConfigError: If the kernel of the training vectors is too large.
        """
        config = self.config
        train = task.require_train("proker")
        config.check(task)
        text = zero_shot_weights(backbone, task.classnames, task.templates)
        views = view_features(backbone, train.inputs, config.views, config.smallest_crop)
        vectors = views.reshape(-1, views.shape[-1])  # (M, D)
        labels = np.tile(train.labels, len(views))
        residual = -vectors.astype(np.float64) @ text.T  # (M, C)
        residual[np.arange(len(labels)), labels] += 1
        val, selection = nonempty(task.val), None
        beta, lmbda = config.beta, config.lmbda
        if val is not None and config.search:
            features = backbone.encode(val.inputs, "image")
            beta, lmbda, selection = _search(
                vectors, residual, features, val.labels, text, config, ctx
            )
        if ctx.observe:
            kernel = _kernel(vectors, beta)
            ctx.observe("kernel", np.tril(kernel) + np.tril(kernel, -1).T)
        coefficients = _coefficients(vectors, residual, beta, lmbda)
        return KernelClassifier(
            backbone, task.classnames, vectors, coefficients, text, beta, selection
        )

    def load(self, directory: Path, backbone: ImageTextModel) -> KernelClassifier:
        """Return the classifier saved in ``directory``."""
        facts = saved.load_facts(directory, FACTS)
        names = tuple(facts.pop("classnames"))
        D, C = backbone.embed_dim, len(names)
        shapes = {"vectors": (None, D), "coefficients": (None, C), "weights": (C, D)}
        facts |= saved.load_arrays(directory, shapes)
        return KernelClassifier(backbone, names, **facts)


def grids(config: ProKeRConfig) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the values of ``beta`` and ``lmbda``, both ends included."""
    betas = np.linspace(config.beta_min, config.beta_max, config.beta_steps, dtype=np.float32)
    lambdas = np.linspace(config.lmbda_min, config.lmbda_max, config.lmbda_steps, dtype=np.float32)
    return betas, lambdas


def _search(
    vectors: NDArray[np.float32],
    residual: Wide,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    text: NDArray[np.float32],
    config: ProKeRConfig,
    ctx: RunContext,
) -> tuple[float, float, dict[str, Any]]:
    """Return the ``beta`` and ``lmbda`` with the best val accuracy, the first on ties, and the selection.

    Args:
        vectors: Training vectors, shape ``(M, D)``.
        residual: ``Y - X W``, shape ``(M, C)``.
        features: Val features, shape ``(m, D)``.
        labels: Val labels.
        text: Text features, shape ``(C, D)``.
        config: The grid.
        ctx: Receives the progress and, for an observer, the grid of accuracies.
    """
    betas, lambdas = grids(config)
    accuracy = np.zeros((len(betas), len(lambdas)))
    begun = time.perf_counter()
    cosine = features @ text.T  # (m, C)
    with ctx.progress.track("search beta and lambda", accuracy.size, "pairs") as bar:
        for i, beta in enumerate(betas.tolist()):
            solutions = _solutions(vectors, residual, beta, lambdas.tolist())
            for j, coefficients in enumerate(solutions):
                scores = _add_votes(cosine.copy(), features, vectors, coefficients, beta)
                accuracy[i, j] = (scores.argmax(axis=1) == labels).mean()
                bar.advance(1)
                left = (time.perf_counter() - begun) * (accuracy.size - 1)
                if i == j == 0 and len(vectors) > EIGEN_VECTORS and left > LONG_SEARCH_SECONDS:
                    ctx.progress.note(
                        f"searching beta and lambda with {len(vectors):,} training vectors takes about "
                        f"{left / 60:.0f} min (method.search=false uses the values of the config)"
                    )
    i, j = divmod(int(accuracy.argmax()), len(lambdas))  # the first on ties: beta outer
    beta, lmbda, value = float(betas[i]), float(lambdas[j]), float(accuracy[i, j])
    if ctx.observe:
        ctx.observe("grid", accuracy)
        ctx.observe("pair", np.array([beta, lmbda]))
    by = f"val accuracy over beta and lambda (beta={beta:.4g}, lambda={lmbda:.4g})"
    return beta, lmbda, {"epoch": None, "by": by, "value": value}


def _solutions(
    vectors: NDArray[np.float32], residual: Wide, beta: float, lambdas: list[float]
) -> Iterator[NDArray[np.float32]]:
    """Yield the coefficients for each lambda; a small kernel is decomposed once for all of them."""
    if len(vectors) <= EIGEN_VECTORS and len(lambdas) > 1:
        kernel = _kernel(vectors, beta)
        values, basis = np.linalg.eigh(kernel)  # reads the lower triangle
        rotated = basis.T @ residual
        for lmbda in lambdas:
            shrunk = rotated * (lmbda / (np.maximum(values, 0) + lmbda))[:, None]
            yield (basis @ shrunk).astype(np.float32)
        return
    for lmbda in lambdas:
        yield _coefficients(vectors, residual, beta, lmbda)


def _coefficients(
    vectors: NDArray[np.float32], residual: Wide, beta: float, lmbda: float
) -> NDArray[np.float32]:
    """Return ``(K / lambda + I)^-1 R``, shape ``(M, C)``, as accurate as float32 is.

    A large kernel is factorized in float32, which takes half the time and memory of float64, and the solution is
    refined; a kernel that is too close to singular for that, and a small one, are factorized in float64.
    """
    if len(vectors) > EIGEN_VECTORS:
        refined = _refined(vectors, residual, beta, lmbda)
        if refined is not None:
            return refined.astype(np.float32)
    return _solve(_kernel(vectors, beta), residual, lmbda).astype(np.float32)


def _refined(
    vectors: NDArray[np.float32], residual: Wide, beta: float, lmbda: float
) -> Wide | None:
    """Return ``lambda (K + lambda I)^-1 R`` by a float32 factor and residuals in float64; None if it is not accurate.

    A refinement solves for the error that remains, and multiplies it by about the same small number each time.

    References:
        N. Higham, "Accuracy and Stability of Numerical Algorithms", SIAM 2002, chapter 12.
    """
    import torch

    x = torch.from_numpy(vectors)
    kernel = (x @ x.T).sub_(1).mul_(beta).exp_()  # (M, M)
    kernel.diagonal().add_(lmbda)
    factor, fault = torch.linalg.cholesky_ex(kernel)
    del kernel  # the float32 factor is all that is kept
    if int(fault):
        return None

    def solved(right: Wide) -> Wide:
        found: Wide = torch.cholesky_solve(torch.from_numpy(right).float(), factor).double().numpy()
        return found

    solution, last = solved(residual), 1.0
    for _ in range(REFINEMENTS):
        change = solved(_remainder(vectors, residual, solution, beta, lmbda))
        solution += change
        size = float(np.linalg.norm(change) / max(np.linalg.norm(solution), np.finfo(float).tiny))
        rate, last = size / last, size
        if size * rate <= ROUNDING:  # what the next change would be
            solution *= lmbda
            return solution
        if not rate < 0.5:  # or not a number
            return None
    return None


def _remainder(
    vectors: NDArray[np.float32], right: Wide, solution: Wide, beta: float, lmbda: float
) -> Wide:
    """Return ``R - (K + lambda I) X`` in float64, shape ``(M, C)``; only the lower triangle is computed, in blocks."""
    import torch

    x, given = torch.from_numpy(vectors).double(), torch.from_numpy(solution)
    out = torch.from_numpy(right).sub(given, alpha=lmbda)
    step = max(1, BLOCK_BYTES // (8 * len(x)))
    for i in range(0, len(x), step):
        end = min(i + step, len(x))
        block = (x[i:] @ x[i:end].T).sub_(1).mul_(beta).exp_()  # (M - i, b)
        out[i:].addmm_(block, given[i:end], alpha=-1)
        out[i:end].addmm_(block[end - i :].T, given[end:], alpha=-1)
    remainder: Wide = out.numpy()
    return remainder


def _kernel(vectors: NDArray[np.float32], beta: float) -> Wide:
    """Return ``exp(-beta (1 - X X^T))`` of unit-norm vectors ``(M, D)``; only the lower triangle is computed."""
    M = len(vectors)
    x = vectors.astype(np.float64)
    kernel: Wide = np.zeros((M, M), order="F")
    step = max(1, BLOCK_BYTES // (8 * M))
    for i in range(0, M, step):
        end = min(i + step, M)
        # A column block from the diagonal down is contiguous in Fortran order.
        block = x[i:] @ x[i:end].T
        block -= 1
        block *= beta
        kernel[i:, i:end] = np.exp(block, out=block)
    return kernel


def _solve(kernel: Wide, residual: Wide, lmbda: float) -> Wide:
    """Return ``(K / lambda + I)^-1 R = lambda (K + lambda I)^-1 R`` by Cholesky, in the memory of the kernel.

    LAPACK is called on blocks only: OpenBLAS crashes on the whole matrix at 16,000 vectors.

    Args:
        kernel: Its lower triangle, shape ``(M, M)``; it is overwritten.
        residual: ``R``, shape ``(M, C)``.
        lmbda: ``lambda``.
    """
    from scipy.linalg import solve_triangular

    kernel[np.diag_indices(len(kernel))] += lmbda
    blocks = [slice(i, min(i + BLOCK, len(kernel))) for i in range(0, len(kernel), BLOCK)]
    for n, block in enumerate(blocks):
        corner = kernel[block, block] = np.linalg.cholesky(kernel[block, block])
        below = kernel[block.stop :, block]
        below[:] = solve_triangular(corner, below.T, lower=True, check_finite=False).T
        for later in blocks[n + 1 :]:
            kernel[later.start :, later] -= kernel[later.start :, block] @ kernel[later, block].T
    x = residual.copy(order="F")
    for block in blocks:
        x[block] -= kernel[block, : block.start] @ x[: block.start]
        x[block] = solve_triangular(kernel[block, block], x[block], lower=True, check_finite=False)
    for block in blocks[::-1]:
        x[block] -= kernel[block.stop :, block].T @ x[block.stop :]
        x[block] = solve_triangular(
            kernel[block, block], x[block], trans=1, lower=True, check_finite=False
        )
    x *= lmbda
    return x


def _add_votes(
    scores: NDArray[np.float32],
    features: NDArray[np.float32],
    vectors: NDArray[np.float32],
    coefficients: NDArray[np.float32],
    beta: float,
) -> NDArray[np.float32]:
    """Add ``k(f, X) A`` to scores ``(n, C)`` in blocks."""
    step = max(1, BLOCK_BYTES // (4 * len(vectors)))
    for i in range(0, len(features), step):
        affinity = features[i : i + step] @ vectors.T  # (b, M)
        affinity -= 1
        affinity *= np.float32(beta)
        scores[i : i + step] += np.exp(affinity, out=affinity) @ coefficients
    return scores


@dataclass(frozen=True, slots=True)
class KernelClassifier:
    """Cosine to the text features plus a correction by a kernel; the scores have no factor of 100.

    Attributes:
        model: The backbone.
        classnames: ``C`` class names.
        vectors: Unit-norm training features, shape ``(M, D)``.
        coefficients: Shape ``(M, C)``.
        weights: Unit-norm text features, shape ``(C, D)``.
        beta: Sharpness of the kernel.
        selection: What was selected on val, or None.
        n_trainable_params: Always 0.
        score_kind: The scores are logits of a small scale; the softmax temperature of a run adapts it.
        export_formats: ``classifier`` alone, or ``openclip`` together with the model.
    """

    model: ImageTextModel
    classnames: tuple[str, ...]
    vectors: NDArray[np.float32]
    coefficients: NDArray[np.float32]
    weights: NDArray[np.float32]
    beta: float
    selection: dict[str, Any] | None
    n_trainable_params: ClassVar[int] = 0
    score_kind: ClassVar[ScoreKind] = "logit"
    export_formats: ClassVar[tuple[str, ...]] = _export.FORMATS

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return scores of shape ``(n, C)``."""
        features = self.model.encode(inputs, "image")  # (n, D)
        cosine = features @ self.weights.T
        return _add_votes(cosine, features, self.vectors, self.coefficients, self.beta)

    def zero_shot_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the scores of the prompts alone, shape ``(n, C)``."""
        return cosine_scores(self.model, inputs, self.weights)

    def export(
        self,
        form: str,
        path: Path,
        /,
        *,
        temperature: float | None = None,
        output: Path | None = None,
    ) -> Exported:
        """Write vectors, coefficients and text features; see :func:`_export.export`."""
        arrays = {
            "weight": self.weights,
            "vectors": self.vectors,
            "coefficients": self.coefficients,
            "beta": np.array(self.beta, dtype=np.float32),
        }
        return _export.export(
            form,
            path,
            self.model,
            self.classnames,
            arrays,
            FORMULA,
            temperature=temperature,
            output=output,
        )

    def save(self, directory: Path) -> None:
        """Write vectors, coefficients, text features and class names."""
        arrays = {
            "vectors": self.vectors,
            "coefficients": self.coefficients,
            "weights": self.weights,
        }
        saved.save(directory, arrays, {name: getattr(self, name) for name in FACTS})


METHOD = ProKeR
