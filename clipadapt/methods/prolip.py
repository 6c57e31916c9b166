"""ProLIP: the visual projection is trained, with a penalty on its distance to the pretrained one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

import numpy as np
from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat

from clipadapt.core.api import limits
from clipadapt.core.api.limits import BatchSize, Epochs, WarmupSteps
from clipadapt.core.files import saved
from clipadapt.methods import _export, _search, _training
from clipadapt.methods._images import tensor
from clipadapt.methods._text import cosine_scores, zero_shot_weights
from clipadapt.methods._training import Objective, TrainingConfig
from clipadapt.methods._views import FIRST_VIEW
from clipadapt.models import ProjectionTunable

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Split, Task
    from clipadapt.core.api.method import Exported, MethodConfig, ScoreKind
    from clipadapt.models import Layer, Projection

FULL_BATCH: Final = 65_536
LARGEST_VIEWS: Final = 1 << 30
"""Maximum size in bytes of views that are kept in memory; more are read from the feature cache at each step."""
Value = Annotated[NonNegativeFloat, AfterValidator(limits.fits_float32)]
Grid = Annotated[tuple[Value, ...], Field(min_length=1, max_length=100)]
FORMULA: Final = (
    """x = x @ a['projection'] + a['projection_bias']
x /= np.linalg.norm(x, axis=1, keepdims=True)
"""
    + _export.COSINE
)


class ProLIPConfig(TrainingConfig):
    """Hyperparameters of ``clip/prolip``.

    Attributes:
        penalty: Weight lambda of the squared distance to the pretrained projection: a number, or ``1/n`` or ``1/n^2``
            for ``n`` images of the largest class.
        search: Select ``lr`` and ``penalty`` on val, then train again from the pretrained projection; without val,
            their own values are used.
        lr_grid: Learning rates of the search.
        penalty_grid: Penalties of the search.
        views: Number of random crops of each image; epoch ``e``, from 0, uses crop ``(e + 1) mod views``, as in the
            official code. 0 uses the image itself.
        logit_scale: Scale of the logits.
        batch_size: Images per step; as in the official code, the default is more than a few-shot task has.
        augment: Always ``none``: the crops are encoded once, before training.
    """

    penalty: NonNegativeFloat | Literal["1/n", "1/n^2"] = "1/n"
    search: bool = False
    lr_grid: Grid = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
    penalty_grid: Grid = (10, 1, 0.1, 0.01, 0.001, 0.0001, 0)
    views: int = Field(default=300, ge=0, le=1000)
    smallest_crop: float = Field(default=0.5, gt=0, le=1)
    logit_scale: PositiveFloat = 100.0
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    lr: PositiveFloat = 1e-5
    eps: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 0.0
    schedule: Literal["dassl", "dassl_step", "cosine", "constant"] = "cosine"
    warmup_steps: WarmupSteps = 0
    epochs: Epochs = 300
    batch_size: BatchSize = FULL_BATCH
    augment: Literal["none"] = "none"


class ProLIP:
    """Cross-entropy plus ``lambda ||P - P0||^2``; the text features and all layers below the projection are frozen.

    References:
        M. Fahes et al., "CLIP's Visual Embedding Projector is a Few-shot Cornucopia", 2024, section 3. arXiv:2410.05270
    """

    Config: ClassVar[type[MethodConfig]] = ProLIPConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = ProjectionTunable

    def __init__(self, config: ProLIPConfig) -> None:
        self.config = config

    def check_model(self, backbone: ProjectionTunable) -> None:
        """Check that the model has a linear projection.

        Raises:
            ModelError: If it has none.
        """
        backbone.image_projection()

    def fit(
        self, backbone: ProjectionTunable, task: Task[Any], ctx: RunContext
    ) -> ProLIPClassifier:
        """Train the projection on ``task.train``; with ``search``, ``task.val`` selects ``lr`` and ``penalty``.

        Raises:
            ConfigError: If the warm-up is longer than the training.
            ModelError: If the model has no linear projection.
        """
        config = self.config
        pretrained = backbone.image_projection()
        train = task.require_train("prolip")
        config.check(task)
        own = zero_shot_weights(backbone, task.classnames, task.templates)
        text = ctx.initial("text_features", own)
        problem = _Problem(backbone, pretrained, task, text, config)
        selection = None
        if config.search and problem.val is not None and config.epochs:
            config, selection = self._searched(problem, ctx)
        if isinstance(config.penalty, str):
            n = int(np.bincount(train.labels).max())
            config = config.model_copy(
                update={"penalty": 1 / n if config.penalty == "1/n" else n**-2}
            )
        projection, objective = problem.objective(config, ctx)
        trained = _training.train(objective, config, ctx)
        if selection is not None and trained is not None:
            selection = {**selection, "epoch": trained["epoch"]}
        if ctx.observe:
            ctx.observe("selected", (config.lr, config.penalty))
        return ProLIPClassifier(
            backbone,
            task.classnames,
            projection.detach().cpu().numpy(),
            pretrained.bias,
            text,
            config.logit_scale,
            pretrained.layer,
            selection or trained,
        )

    def load(self, directory: Path, backbone: ProjectionTunable) -> ProLIPClassifier:
        """Return the classifier saved in ``directory``."""
        names = ("classnames", "logit_scale", "layer", "biased", "selection")
        facts = saved.load_facts(directory, names)
        D = backbone.embed_dim
        shapes = {"projection": (None, D), "bias": (D,), "weights": (None, D)}
        arrays = saved.load_arrays(directory, shapes)
        return ProLIPClassifier(
            backbone,
            tuple(facts["classnames"]),
            arrays["projection"],
            arrays["bias"] if facts["biased"] else None,
            arrays["weights"],
            facts["logit_scale"],
            facts["layer"],
            facts["selection"],
        )

    def _searched(self, problem: _Problem, ctx: RunContext) -> tuple[ProLIPConfig, dict[str, Any]]:
        """Return the config with the first best learning rate and penalty on val, and the selection."""
        config = self.config
        pairs = list(product(config.lr_grid, config.penalty_grid))
        settings = [{"lr": lr, "penalty": penalty} for lr, penalty in pairs]

        def objective(changed: ProLIPConfig) -> tuple[Objective, ProLIPConfig, None]:
            return problem.objective(changed, ctx)[1], changed, None

        best, found = _search.search("prolip", objective, config, settings, ctx)
        if ctx.observe:
            grid = np.reshape(found, (len(config.lr_grid), len(config.penalty_grid)))
            ctx.observe("grid", grid)
        lr, penalty = pairs[best]
        by = f"val accuracy over lr and penalty (lr={lr:g}, penalty={penalty:g})"
        return (
            config.model_copy(update=settings[best]),
            {"epoch": None, "by": by, "value": found[best]},
        )


class _Problem:
    """Features, labels and text of a task, from which each fit of a search starts."""

    def __init__(
        self,
        model: ProjectionTunable,
        pretrained: Projection,
        task: Task[Any],
        text: NDArray[np.float32],
        config: ProLIPConfig,
    ) -> None:
        self.model, self.pretrained, self.task = model, pretrained, task
        self.train = task.require_train("prolip")
        self.val: Split[Any] | None = _training.nonempty(task.val)
        self.text = tensor(text, model.device)
        self.bias = None if pretrained.bias is None else tensor(pretrained.bias, model.device)
        self.views, self.smallest_crop = config.views, config.smallest_crop
        self._kept: dict[int, torch.Tensor] = {}
        self._val_features: torch.Tensor | None = None

    def features(self, view: int) -> torch.Tensor:
        """Return what the projection reads of one view of train, shape ``(N, W)``."""
        if view not in self._kept:
            if len(self._kept) * len(self.train) * len(self.pretrained.weight) * 4 > LARGEST_VIEWS:
                self._kept.clear()
            number = FIRST_VIEW + view if self.views else 0
            encoded = self.model.encode(
                self.train.inputs, "image", self.pretrained.layer, number, self.smallest_crop
            )
            self._kept[view] = tensor(encoded, self.model.device)
        return self._kept[view]

    def val_features(self) -> torch.Tensor:
        """Return what the projection reads of val, shape ``(m, W)``."""
        assert self.val is not None
        if self._val_features is None:
            encoded = self.model.encode(self.val.inputs, "image", self.pretrained.layer)
            self._val_features = tensor(encoded, self.model.device)
        return self._val_features

    def objective(self, config: ProLIPConfig, ctx: RunContext) -> tuple[torch.Tensor, Objective]:
        """Return the projection, a new parameter with the pretrained values, and the objective that trains it."""
        import torch

        device = self.model.device
        start = tensor(self.pretrained.weight, device)
        projection = _training.parameter(ctx, "projection", self.pretrained.weight, device)
        epoch = torch.zeros(1, dtype=torch.int64)
        assert not isinstance(config.penalty, str)
        weight = config.penalty

        def scores(x: torch.Tensor) -> torch.Tensor:
            return config.logit_scale * project(x, projection, self.bias) @ self.text.T

        def loss(rows: NDArray[np.int64], view: int) -> torch.Tensor:  # noqa: ARG001
            x = self.features((int(epoch) + 1) % max(self.views, 1))
            logits = scores(x[tensor(rows, device)])  # (b, C)
            ce = _training.cross_entropy(logits, self.train.labels, rows)
            squares = (projection - start).square().sum()
            if ctx.observe:
                ctx.observe("parts", (ce.detach(), squares.detach(), logits.detach()))
            return ce + weight * squares

        def val_scores() -> NDArray[np.float32]:
            with torch.no_grad():
                return scores(self.val_features()).cpu().numpy()

        evaluate = None if self.val is None else val_scores
        objective = Objective.of(
            "prolip",
            {"projection": projection},
            loss,
            evaluate,
            self.model,
            self.task,
            state={"epoch": epoch},
            after_epoch=lambda done: epoch.fill_(done + 1),
        )
        return projection, objective


def project(x: torch.Tensor, projection: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return the unit-norm projection of ``(n, W)``, shape ``(n, D)``."""
    import torch.nn.functional as F

    projected = x @ projection  # (n, D)
    return F.normalize(projected if bias is None else projected + bias, dim=-1)


@dataclass(frozen=True, slots=True)
class ProLIPClassifier:
    """Cosine of image features with a trained projection and the text features of the prompts.

    Attributes:
        model: The backbone.
        classnames: ``C`` class names.
        projection: Trained projection, shape ``(W, D)``.
        bias: Bias of the projection, not trained, shape ``(D,)`` or None.
        weights: Unit-norm text features, shape ``(C, D)``.
        logit_scale: Scale of the logits.
        layer: Layer of the features that the projection reads.
        selection: What was selected on val, or None.
        score_kind: The scores are logits.
        export_formats: ``classifier`` alone, or ``openclip`` together with the model.
    """

    model: ProjectionTunable
    classnames: tuple[str, ...]
    projection: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    weights: NDArray[np.float32]
    logit_scale: float
    layer: Layer
    selection: dict[str, Any] | None
    score_kind: ClassVar[ScoreKind] = "logit"
    export_formats: ClassVar[tuple[str, ...]] = _export.FORMATS

    @property
    def n_trainable_params(self) -> int:
        """Number of elements of the projection."""
        return self.projection.size

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``."""
        x = tensor(self.model.encode(inputs, "image", self.layer))  # (n, W)
        bias = None if self.bias is None else tensor(self.bias)
        features = project(x, tensor(self.projection), bias).numpy()
        return np.float32(self.logit_scale) * (features @ self.weights.T)

    def zero_shot_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the scores with the pretrained projection, shape ``(n, C)``."""
        return cosine_scores(self.model, inputs, self.weights)

    def with_classnames(
        self, classnames: tuple[str, ...], templates: tuple[str, ...]
    ) -> ProLIPClassifier:
        """Return a classifier for other classes; the projection does not depend on the classes."""
        names = tuple(classnames)
        weights = zero_shot_weights(self.model, names, templates)
        return replace(self, classnames=names, weights=weights)

    def export(
        self,
        form: str,
        path: Path,
        /,
        *,
        temperature: float | None = None,
        output: Path | None = None,
    ) -> Exported:
        """Write the projection and text features, alone or with the model; see :func:`_export.export`."""
        return _export.export(
            form,
            path,
            self.model,
            self.classnames,
            {
                **_export.cosine_arrays(self.weights, self.logit_scale, 0.0),
                "projection": self.projection,
                "projection_bias": self._bias(),
            },
            FORMULA,
            temperature=temperature,
            output=output,
            layer=self.layer,
        )

    def save(self, directory: Path) -> None:
        """Write the projection, the text features and the class names."""
        arrays = {"projection": self.projection, "bias": self._bias(), "weights": self.weights}
        facts = {
            "classnames": self.classnames,
            "logit_scale": self.logit_scale,
            "layer": self.layer,
            "biased": self.bias is not None,
            "selection": self.selection,
        }
        saved.save(directory, arrays, facts)

    def _bias(self) -> NDArray[np.float32]:
        return np.zeros(self.projection.shape[1], np.float32) if self.bias is None else self.bias


METHOD = ProLIP
