"""Linear probe: logistic regression on frozen image features, with three published recipes.

=================  ===========================  ==============================  =========================
setting            CLIP paper (default)         CoOp ``lpclip``                 CLIP_benchmark
=================  ===========================  ==============================  =========================
``layer``          ``pre_projection``           ``projected``                   ``output`` (unit norm)
``solver``         ``lbfgs``                    ``lbfgs``                       ``adamw``
``search``         ``peak`` over C              ``bisect`` over C               ``peak`` over weight decay
``refit``          on train + val               no                              on train + val
=================  ===========================  ==============================  =========================

With ``refit: auto``, few-shot runs are not refitted on val, which would double the number of training shots.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat

from clipadapt.core.api.errors import DataError
from clipadapt.core.api.limits import MAX_EPOCHS, BatchSize, Iterations, Penalty
from clipadapt.core.api.method import MethodConfig
from clipadapt.core.files import saved
from clipadapt.core.scoring.calibration import fit_temperature
from clipadapt.core.scoring.scores import nll, topk_accuracy
from clipadapt.methods import _export
from clipadapt.methods._training import linear_start, nonempty
from clipadapt.models import ImageTextModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Task
    from clipadapt.core.api.method import Exported, ScoreKind

    Solver = Callable[[Sequence[float]], list["Linear"]]
    Attempt = Callable[[Sequence[float]], list["Trial"]]

# 8 values per decade, both ends included; steps of 16, 8, 4, 2, 1 indices halve the interval around the peak.
C_GRID = np.logspace(-6, 6, 97)
WEIGHT_DECAY_GRID = np.logspace(-6, 2, 97)
PEAK_START = tuple(range(0, 97, 16))
PEAK_SPANS = (8, 4, 2, 1)
BISECT_START = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)
BISECT_STEPS = 8
# A class without training examples is never predicted: its logit is this far below the smallest bias.
UNSEEN_MARGIN = 1e4


TOLERANCE: Final = 1e-4
"""scikit-learn's tolerance: L-BFGS stops where no entry of the gradient of the mean loss is larger."""
LEAST_DECREASE: Final = 0.01
"""The gradient must at least have fallen to this share of its first value; with many classes the first value is below
scikit-learn's tolerance, and the weights would stay zero."""


class LinearProbeConfig(MethodConfig):
    """Hyperparameters of ``clip/linear_probe``.

    Attributes:
        layer: Image features: before the projection, after it, or after it with unit norm.
        solver: ``lbfgs`` (scikit-learn's logistic regression), ``batched`` (Newton's method, to a relative tolerance
            of 1e-8 for every penalty) or ``adamw`` (a linear layer).
        search: How the penalty is selected on val: ``peak``, ``bisect``, ``grid`` (all 97 values) or ``none``.
            Without val there is no search.
        C: Inverse strength of the L2 penalty if there is no search (lbfgs, batched).
        weight_decay: Weight decay if there is no search (adamw).
        refit: Fit again on train and val with the selected penalty; ``auto`` refits on full data, and not in few-shot
            runs (``data.shots`` or a manifest).
        max_iter: Maximum number of iterations (lbfgs).
        span: With fewer examples than features, solve in the span of the examples (lbfgs), which is the same problem
            in fewer dimensions. Off for CoOp's search, where rounding decides ties.
        lr: Peak learning rate (adamw); the schedule is cosine to zero, per step.
        epochs: Passes over the training split (adamw).
        batch_size: Images per step (adamw).
    """

    layer: Literal["pre_projection", "projected", "output"] = "pre_projection"
    solver: Literal["lbfgs", "batched", "adamw"] = "lbfgs"
    search: Literal["peak", "bisect", "grid", "none"] = "peak"
    C: Penalty = 0.316
    weight_decay: NonNegativeFloat = 0.0
    refit: bool | Literal["auto"] = "auto"
    max_iter: Iterations = 1000
    span: bool = True
    lr: PositiveFloat = 0.1
    epochs: int = Field(default=10, gt=0, le=MAX_EPOCHS)
    batch_size: BatchSize = 64

    @property
    def learning_rate(self) -> float | None:
        """The learning rate, which only ``adamw`` has."""
        return self.lr if self.solver == "adamw" else None


@dataclass(frozen=True, slots=True)
class Linear:
    """A fitted linear layer: ``weight`` of shape ``(C, D)``, ``bias`` of shape ``(C,)``, float32."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``."""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True, slots=True)
class Trial:
    """One value of the penalty: the layer fitted on train, and its accuracy and loss on val."""

    value: float
    layer: Linear
    accuracy: float
    loss: float


class LinearProbe:
    """Logistic regression on frozen features; the L2 penalty is selected on val.

    References:
        A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
        ICML 2021, appendix A.3. arXiv:2103.00020. Search and refit follow the paper, which does not
        say how ties on val are broken; here the lower val loss wins.
        K. Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022 (``lpclip``).
        LAION-AI, CLIP_benchmark, ``metrics/linear_probe.py``.
    """

    Config: ClassVar[type[MethodConfig]] = LinearProbeConfig
    version: ClassVar[int] = 4
    requires: ClassVar[type | None] = ImageTextModel
    open_vocabulary: ClassVar[bool] = False
    reads_classnames: ClassVar[bool] = False

    def __init__(self, config: LinearProbeConfig) -> None:
        self.config = config

    def fit(
        self, backbone: ImageTextModel, task: Task[Any], ctx: RunContext
    ) -> LinearProbeClassifier:
        """Fit on train, select the penalty on val, and refit on both if the recipe says so."""
        config, names = self.config, task.classnames
        train, val = task.require_train("linear_probe"), nonempty(task.val)
        x, y = backbone.encode(train.inputs, "image", config.layer), train.labels  # (n, D), (n,)
        weights = task.sample_weight
        fit_on_train = self._solver([x], y, len(names), ctx, weights)
        fixed = config.weight_decay if config.solver == "adamw" else config.C
        if val is None:
            (layer,) = fit_on_train([fixed])
            return LinearProbeClassifier(backbone, names, config.layer, layer)
        xv, yv = backbone.encode(val.inputs, "image", config.layer), val.labels
        if config.search == "none":
            (layer,) = fit_on_train([fixed])
            temperature = fit_temperature(layer(xv), yv)
            return LinearProbeClassifier(backbone, names, config.layer, layer, temperature)

        def attempt(penalties: Sequence[float]) -> list[Trial]:
            trials = []
            for penalty, layer in zip(penalties, fit_on_train(penalties), strict=True):
                logits = layer(xv)
                accuracy, loss = topk_accuracy(logits, yv, 1), nll(logits, yv)
                ctx.log(**{self._penalty: penalty, "val_accuracy": accuracy, "val_loss": loss})
                trials.append(Trial(penalty, layer, accuracy, loss))
            return trials

        best = self._search(attempt, ctx)
        if ctx.observe:
            ctx.observe("chosen", best)
        # A refit trains on val, so the temperature comes from the fit on train alone.
        temperature = fit_temperature(best.layer(xv), yv)
        layer = best.layer
        if self.refits_on_val(few_shot=task.few_shot):
            if weights is not None:
                weights = np.concatenate([weights, np.ones(len(yv))])
            fit_on_both = self._solver([x, xv], np.concatenate([y, yv]), len(names), ctx, weights)
            (layer,) = fit_on_both([best.value])
        by = f"val accuracy over {self._penalty} ({self._penalty}={best.value:.4g})"
        selection = {"epoch": None, "by": by, "value": best.accuracy}
        return LinearProbeClassifier(backbone, names, config.layer, layer, temperature, selection)

    @property
    def uses_sample_weight(self) -> bool:
        """Whether the training examples can be weighed: with scikit-learn's solver."""
        return self.config.solver == "lbfgs"

    def refits_on_val(self, *, few_shot: bool) -> bool:
        """Return whether the final fit also trains on val, if there is one."""
        refit = not few_shot if self.config.refit == "auto" else self.config.refit
        return refit and self.config.search != "none"

    def load(self, directory: Path, backbone: ImageTextModel) -> LinearProbeClassifier:
        """Return the classifier saved in ``directory``."""
        facts = saved.load_facts(directory, ("classnames", "layer", "temperature", "selection"))
        arrays = saved.load_arrays(directory, {"weight": (None, None), "bias": (None,)})
        return LinearProbeClassifier(
            backbone,
            tuple(facts["classnames"]),
            facts["layer"],
            Linear(arrays["weight"], arrays["bias"]),
            facts["temperature"],
            facts["selection"],
        )

    def _solver(
        self,
        parts: Sequence[NDArray[np.float32]],
        y: NDArray[np.int64],
        n_classes: int,
        ctx: RunContext,
        weights: NDArray[np.float64] | None,
    ) -> Solver:
        """Return the function that maps penalties to layers fitted on features ``parts`` and labels ``y``."""
        config = self.config
        if config.solver == "batched":
            return Batched(parts, y, n_classes, ctx)
        x = np.concatenate(parts) if len(parts) > 1 else parts[0]
        if config.solver == "adamw":
            return lambda penalties: [self._fit_adamw(x, y, p, n_classes, ctx) for p in penalties]
        args = (config.max_iter, n_classes)
        return lambda penalties: [
            fit_logistic(x, y, p, *args, span=config.span, sample_weight=weights) for p in penalties
        ]

    @property
    def _penalty(self) -> str:
        return "weight_decay" if self.config.solver == "adamw" else "C"

    def _search(self, attempt: Attempt, ctx: RunContext) -> Trial:
        if self.config.search == "bisect":
            return search_bisect(attempt, ctx)
        grid, ties_by_loss = C_GRID, True
        if self.config.solver == "adamw":
            # CLIP_benchmark keeps the first value on ties; the CLIP paper does not specify it.
            grid, ties_by_loss = WEIGHT_DECAY_GRID, False
        if self.config.search == "grid":
            return _best(attempt(grid.tolist()), ties_by_loss=ties_by_loss)
        return search_peak(attempt, grid, ties_by_loss=ties_by_loss)

    def _fit_adamw(
        self,
        x: NDArray[np.float32],
        y: NDArray[np.int64],
        weight_decay: float,
        n_classes: int,
        ctx: RunContext,
    ) -> Linear:
        """Train a linear layer as CLIP_benchmark does; every call has the same initial weights."""
        import torch
        import torch.nn.functional as F

        config, width = self.config, x.shape[1]
        rng = ctx.rng("linear_probe.init")
        start = linear_start(rng, (n_classes, width), width)
        bias0 = linear_start(rng, (n_classes,), width)
        weight = torch.tensor(ctx.initial("weight", start), requires_grad=True)
        bias = torch.tensor(ctx.initial("bias", bias0), requires_grad=True)
        optimizer = torch.optim.AdamW([weight, bias], lr=config.lr, weight_decay=weight_decay)
        features, labels = torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y)
        epochs = [
            ctx.batches("linear_probe", len(y), config.batch_size, e) for e in range(config.epochs)
        ]
        total, step = sum(len(e) for e in epochs), 0
        for batches in epochs:
            for rows in batches:
                for group in optimizer.param_groups:
                    group["lr"] = 0.5 * config.lr * (1 + np.cos(np.pi * step / total))
                logits = features[rows] @ weight.T + bias  # (b, C)
                loss = F.cross_entropy(logits, labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
        return Linear(weight.detach().numpy(), bias.detach().numpy())


@dataclass(frozen=True, slots=True)
class LinearProbeClassifier:
    """A linear layer on frozen image features.

    Attributes:
        model: The backbone that encodes images.
        classnames: ``C`` class names.
        features: Layer of the image features.
        linear: The fitted linear layer.
        temperature: Softmax temperature fitted on val before the refit, or None.
        selection: What was selected on val, or None.
        score_kind: The scores are logits.
        export_formats: ``classifier`` alone, or ``openclip`` together with the model.
    """

    model: ImageTextModel
    classnames: tuple[str, ...]
    features: Literal["pre_projection", "projected", "output"]
    linear: Linear
    temperature: float | None = None
    selection: dict[str, Any] | None = None
    score_kind: ClassVar[ScoreKind] = "logit"
    export_formats: ClassVar[tuple[str, ...]] = _export.FORMATS

    @property
    def n_trainable_params(self) -> int:
        """Number of weights and biases."""
        return self.linear.weight.size + self.linear.bias.size

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``."""
        return self.linear(self.model.encode(inputs, "image", self.features))

    def export(
        self,
        form: str,
        path: Path,
        /,
        *,
        temperature: float | None = None,
        output: Path | None = None,
    ) -> Exported:
        """Write the linear layer, alone or with the model; see :func:`_export.export`."""
        return _export.export(
            form,
            path,
            self.model,
            self.classnames,
            {"weight": self.linear.weight, "bias": self.linear.bias},
            _export.LINEAR,
            temperature=temperature,
            output=output,
            layer=self.features,
        )

    def save(self, directory: Path) -> None:
        """Write the linear layer and the class names."""
        facts = {
            "classnames": self.classnames,
            "layer": self.features,
            "temperature": self.temperature,
            "selection": self.selection,
        }
        saved.save(directory, {"weight": self.linear.weight, "bias": self.linear.bias}, facts)


def fit_logistic(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    C: float,
    max_iter: int,
    n_classes: int,
    *,
    span: bool = True,
    sample_weight: NDArray[np.float64] | None = None,
) -> Linear:
    """Fit scikit-learn's L-BFGS logistic regression.

    Args:
        x: Features, shape ``(n, D)``.
        y: Labels, shape ``(n,)``.
        C: Inverse strength of the L2 penalty.
        max_iter: Maximum number of iterations.
        n_classes: Number of classes; classes without examples are never predicted.
        span: With fewer examples than features, solve in the span of the examples.
        sample_weight: Weight of each example, shape ``(n,)``; None weighs all equally.

    Raises:
        DataError: If all examples belong to one class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    seen, _ = _seen(y)
    # The solution is in the span of the examples and L-BFGS is invariant to rotation, so with fewer
    # examples than features the same iterates are found in n dimensions.
    basis = np.linalg.qr(x.T.astype(np.float64))[0] if span and len(x) < x.shape[1] else None
    features = x if basis is None else x @ basis
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the paper stops at 1,000 iterations
        fitted = LogisticRegression(
            random_state=0, C=C, max_iter=max_iter, tol=tolerance(features, y)
        ).fit(features, y, sample_weight)
    coef, intercept = fitted.coef_, fitted.intercept_
    if basis is not None:
        coef = coef @ basis.T
    if len(seen) == 2:  # scikit-learn returns one row: the logit of the second class
        coef, intercept = (
            np.concatenate([-coef, coef]) / 2,
            np.concatenate([-intercept, intercept]) / 2,
        )
    return _widened(coef, intercept, seen, n_classes)


def tolerance(x: NDArray[np.floating[Any]], y: NDArray[np.int64]) -> float:
    """Return the tolerance of L-BFGS for features ``(n, D)``: scikit-learn's, or less where the gradient begins low."""
    classes, of = np.unique(y, return_inverse=True)
    sums = np.zeros((len(classes), x.shape[1]))
    np.add.at(sums, of, x)
    first = np.abs(sums.sum(axis=0) / len(classes) - sums).max() / len(y)
    return min(TOLERANCE, LEAST_DECREASE * float(first) or TOLERANCE)


class Batched:
    """Solver of logistic regressions with many penalties, each initialized from the neighbouring solutions."""

    def __init__(
        self,
        x: Sequence[NDArray[np.float32]],
        y: NDArray[np.int64],
        n_classes: int,
        ctx: RunContext | None = None,
    ) -> None:
        """Prepare the problem.

        Args:
            x: Features in one or more parts, ``n`` rows of width ``D`` in total.
            y: Labels, shape ``(n,)``.
            n_classes: Number of classes; classes without examples are never predicted.
            ctx: Receives a warning if a problem does not converge; with its ``fast`` off, each penalty is solved
                independently.

        Raises:
            DataError: If all examples belong to one class.
        """
        from clipadapt.methods import _logistic

        self.x, self.n_classes, self.ctx = x, n_classes, ctx
        self.seen, self.labels = _seen(y)
        self.path = _logistic.Path(x, self.labels, len(self.seen))

    def __call__(self, penalties: Sequence[float]) -> list[Linear]:
        """Return the fitted layer for each value of ``C``."""
        from clipadapt.methods import _logistic

        if self.ctx is None or self.ctx.services.fast:
            solutions = self.path.solve(penalties)
        else:
            problem = (self.x, self.labels, len(self.seen))
            solutions = [_logistic.Path(*problem).solve([p])[0] for p in penalties]
        for penalty, found in zip(penalties, solutions, strict=True):
            if found.gap > _logistic.TOLERANCE and self.ctx is not None:
                self.ctx.progress.note(
                    f"warning: linear_probe: the fit at C={penalty:.4g} did not converge: its relative gap is "
                    f"{found.gap:.1g}, above {_logistic.TOLERANCE:g}"
                )
        return [_widened(f.weight, f.bias, self.seen, self.n_classes) for f in solutions]


def _seen(y: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the classes that have examples, and the labels as indices into them."""
    seen, labels = np.unique(y, return_inverse=True)
    if len(seen) < 2:
        raise DataError(
            f"linear_probe needs examples of at least two classes, got {len(seen)}",
            hint="add training examples of the other classes",
        )
    return seen, labels


def _widened(
    coef: NDArray[Any], intercept: NDArray[Any], seen: NDArray[np.int64], n_classes: int
) -> Linear:
    """Return the layer for all classes; classes without examples get a very low bias."""
    weight = np.zeros((n_classes, coef.shape[1]), dtype=np.float32)
    bias = np.full(n_classes, intercept.min() - UNSEEN_MARGIN, dtype=np.float32)
    weight[seen], bias[seen] = coef, intercept
    return Linear(weight, bias)


def search_peak(attempt: Attempt, grid: NDArray[np.float64], *, ties_by_loss: bool) -> Trial:
    """Try every 16th value, then halve the interval around the best down to adjacent values.

    Args:
        attempt: Fits on train with the given penalties and evaluates on val.
        grid: 97 values; 8 per decade for C.
        ties_by_loss: Break ties in accuracy by the lower val loss; else the first value tried wins.
    """
    tried: dict[int, Trial] = {}

    def peak(indices: tuple[int, ...]) -> int:
        new = [i for i in dict.fromkeys(indices) if i not in tried]
        tried.update(zip(new, attempt([float(grid[i]) for i in new]), strict=True))
        best = _best([tried[i] for i in indices], ties_by_loss=ties_by_loss)
        return next(i for i in indices if tried[i] is best)

    best = peak(PEAK_START)
    for span in PEAK_SPANS:
        best = peak((max(best - span, 0), best, min(best + span, len(grid) - 1)))
    return tried[best]


def _best(trials: Sequence[Trial], *, ties_by_loss: bool) -> Trial:
    """Return the best trial, the first on ties."""
    best = trials[0]
    for trial in trials[1:]:
        if _better(trial, best, ties_by_loss=ties_by_loss):
            best = trial
    return best


def _better(a: Trial, b: Trial, *, ties_by_loss: bool) -> bool:
    if a.accuracy != b.accuracy:
        return a.accuracy > b.accuracy
    return ties_by_loss and a.loss < b.loss


def search_bisect(attempt: Attempt, ctx: RunContext) -> Trial:
    """Search as CoOp does: the best of seven powers of ten, then eight bisections in log10; ties go left."""
    start = attempt(BISECT_START)
    peak = max(start, key=lambda t: t.accuracy).value  # the first on ties
    left, right = 0.1 * peak, 10.0 * peak
    final = start[0]
    for _ in range(BISECT_STEPS):
        low, high = attempt((left, right))
        middle = 0.5 * (np.log10(left) + np.log10(right))
        if low.accuracy < high.accuracy:
            final, left = high, float(10**middle)
        else:
            final, right = low, float(10**middle)
        if ctx.observe:
            ctx.observe("step", final)
    return final


METHOD = LinearProbe
