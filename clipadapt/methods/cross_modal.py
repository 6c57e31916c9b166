"""Cross-modal linear probe: half of each batch are images, the other half are the prompts of the classes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

import numpy as np
from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat

from clipadapt.core.api import limits
from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.limits import BatchSize, Steps, WarmupSteps
from clipadapt.core.files import saved
from clipadapt.methods import _export, _linear_head, _search, _training
from clipadapt.methods._images import tensor
from clipadapt.methods._linear_head import LinearHead
from clipadapt.methods._text import text_features, zero_shot_weights
from clipadapt.methods._training import Objective, TrainingConfig
from clipadapt.methods._views import view_features
from clipadapt.models import ImageTextModel
from clipadapt.tensor.moves import placed

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Split, Task
    from clipadapt.core.api.method import Exported, MethodConfig, ScoreKind

Parameters = dict[str, "torch.Tensor"]
Rate = Annotated[PositiveFloat, AfterValidator(limits.fits_float32)]
Decay = Annotated[NonNegativeFloat, AfterValidator(limits.fits_float32)]
Rates = Annotated[tuple[Rate, ...], Field(min_length=1, max_length=100)]
Decays = Annotated[tuple[Decay, ...], Field(min_length=1, max_length=100)]
Sizes = Annotated[tuple[BatchSize, ...], Field(min_length=1, max_length=100)]
FORMULA: Final = (
    """adapted = np.maximum(np.maximum(x @ a['down'].T, 0) @ a['up'].T, 0)
x = a['ratio'] * adapted + (1 - a['ratio']) * x
"""
    + _export.COSINE
)


class CrossModalConfig(TrainingConfig):
    """Hyperparameters of ``clip/cross_modal``.

    Attributes:
        text: Whether half of each batch are prompts; without it, whole batches are images.
        head: ``linear``, or an ``adapter`` on the features of both modalities before it.
        init: Initial weights of the head: the text features, or random values.
        wise_ft: Weight of the text features in the final head; the trained head has weight ``1 - wise_ft``.
        ratio: Weight of the adapted features (adapter).
        reduction: Width of the features divided by the width of the bottleneck (adapter).
        views: Number of random crops of each image that join the image itself.
        steps: Number of training steps; None trains for ``epochs``.
        every: Steps between evaluations on val, the first after step 1.
        search: Select ``lr``, ``weight_decay`` and ``batch_size`` on val; without val, their own values are used.
        lr_grid: Learning rates of the search.
        weight_decay_grid: Weight decays of the search.
        batch_size_grid: Batch sizes of the search; one is left out if a half of it is not smaller than the data.
        logit_scale: Scale of the logits.
        batch_size: Examples per step, of both modalities together.
        augment: Always ``none``: the crops are encoded once, before training.
        keep: The best evaluation by val accuracy, the first on ties.
    """

    text: bool = True
    head: Literal["linear", "adapter"] = "linear"
    init: Literal["zero_shot", "random"] = "zero_shot"
    wise_ft: float = Field(default=0.0, ge=0, le=1)
    ratio: float = Field(default=0.2, ge=0, le=1)
    reduction: int = Field(default=4, gt=0, le=65_536)
    views: int = Field(default=1, ge=0, le=1000)
    smallest_crop: float = Field(default=1.0, gt=0, le=1)
    steps: Steps | None = 12_800
    every: Steps = 100
    search: bool = True
    lr_grid: Rates = (1e-3, 1e-4)
    weight_decay_grid: Decays = (0.0, 0.01, 1e-4)
    batch_size_grid: Sizes = (8, 32)
    logit_scale: PositiveFloat = 100.0
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.01
    schedule: Literal["dassl", "dassl_step", "cosine", "constant"] = "dassl_step"
    warmup_steps: WarmupSteps = 50
    batch_size: BatchSize = 8
    drop_last: bool = True
    keep: Literal["last", "best"] = "best"
    augment: Literal["none"] = "none"

    @property
    def halves(self) -> tuple[int, int]:
        """Images and prompts per step."""
        prompts = self.batch_size // 2 if self.text else 0
        return self.batch_size - prompts, prompts

    def examples_for(self, train: Split[Any]) -> int:
        """Return the number of images and crops in an epoch; the prompts have epochs of their own."""
        return (1 + self.views) * len(train)

    def valid_sizes(self, images: int, prompts: int) -> list[int]:
        """Return the batch sizes of the search.

        Args:
            images: Number of images and crops; half a batch must be smaller.
            prompts: Number of prompts of all classes; half a batch must be smaller.

        Returns:
            The smallest batch size if there is no other.
        """

        def fits(size: int) -> bool:
            halves = self.model_copy(update={"batch_size": size}).halves
            return halves[0] < images and halves[1] < prompts

        return [size for size in self.batch_size_grid if fits(size)] or [min(self.batch_size_grid)]

    def check(self, task: Task[Any]) -> None:
        """Check that a batch has both modalities, and that the warm-up ends before training does.

        Raises:
            ConfigError: If not.
        """
        sizes = self.batch_size_grid if self.search else (self.batch_size,)
        if self.text and min(sizes) < 2:
            raise ConfigError(
                f"half of each batch are prompts, but the batch size is {min(sizes)}",
                hint="set method.batch_size and method.batch_size_grid to 2 or more, or method.text=false",
            )
        if self.steps is not None and self.schedule != "dassl":
            limits.check_warmup(self.warmup_steps, self.steps)
        elif self.steps is None and task.train is not None:
            if self.search and _training.nonempty(task.val) is not None:
                prompts = len(task.classnames) * len(task.templates)
                sizes = tuple(self.valid_sizes(self.examples_for(task.train), prompts))
            else:
                sizes = (self.batch_size,)
            # The longest steps are the fewest.
            longest = sized(self.model_copy(update={"batch_size": max(sizes)}))
            TrainingConfig.check(longest, task)


class CrossModal:
    """Linear probe whose training examples are images and texts; its weights start at the text features.

    References:
        Z. Lin et al., "Multimodality Helps Unimodality: Cross-Modal Few-Shot Learning with Multimodal Models",
        CVPR 2023, section 3. arXiv:2301.06267
    """

    Config: ClassVar[type[MethodConfig]] = CrossModalConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = ImageTextModel
    open_vocabulary: ClassVar[bool] = False

    def __init__(self, config: CrossModalConfig) -> None:
        self.config = config

    def fit(
        self, backbone: ImageTextModel, task: Task[Any], ctx: RunContext
    ) -> LinearHead | AdapterHead:
        """Train the head on ``task.train`` and the prompts; ``task.val`` selects settings and step.

        Raises:
            ConfigError: If a batch has only one modality, the bottleneck is narrower than one feature, or training ends
                before the warm-up.
        """
        config, width = self.config, backbone.embed_dim
        task.require_train("cross_modal")
        config.check(task)
        if config.head == "adapter" and config.reduction > width:
            raise ConfigError(
                f"method.reduction is {config.reduction}; the features of '{backbone.name}' are {width} wide",
                hint=f"choose a value from 1 to {width}",
            )
        problem = _Problem(backbone, task, config)
        if ctx.observe:
            ctx.observe("start", problem.start)
        searched = None
        if config.search and problem.val is not None and (config.steps or config.epochs):
            config, searched = self._searched(problem, ctx)
        parameters, objective, steps = problem.objective(config, ctx)
        selection = _training.train(objective, sized(config), ctx, steps=steps)
        if searched is not None:
            epoch = None if selection is None else selection["epoch"]
            selection = {**searched, "epoch": epoch}
        found = {name: p.detach().cpu().numpy() for name, p in parameters.items()}
        weights = (1 - config.wise_ft) * found["head.weight"] + config.wise_ft * problem.start
        head = LinearHead(
            backbone,
            task.classnames,
            weights,
            np.zeros(len(weights), dtype=np.float32),
            zero_shot_weights(backbone, task.classnames, task.templates),
            config.logit_scale,
            sum(p.numel() for p in parameters.values()),
            selection,
        )
        if config.head == "linear":
            return head
        return AdapterHead(head, found["fc.0.weight"], found["fc.2.weight"], config.ratio)

    def load(self, directory: Path, backbone: ImageTextModel) -> LinearHead | AdapterHead:
        """Return the classifier saved in ``directory``."""
        if self.config.head == "linear":
            return _linear_head.load(directory, backbone)
        head = _linear_head.load(directory / "head", backbone)
        D = backbone.embed_dim
        arrays = saved.load_arrays(directory, {"down": (None, D), "up": (D, None)})
        return AdapterHead(head, arrays["down"], arrays["up"], self.config.ratio)

    def _searched(
        self, problem: _Problem, ctx: RunContext
    ) -> tuple[CrossModalConfig, dict[str, Any]]:
        """Return the config with the first best setting on val, and the selection."""
        config = self.config
        sizes = config.valid_sizes(len(problem.image_labels), len(problem.text_labels))
        grid = product(config.lr_grid, config.weight_decay_grid, sizes)
        names = ("lr", "weight_decay", "batch_size")
        settings = [dict(zip(names, values, strict=True)) for values in grid]

        def objective(changed: CrossModalConfig) -> tuple[Objective, TrainingConfig, int | None]:
            _, found, steps = problem.objective(changed, ctx)
            return found, sized(changed), steps

        best, found = _search.search("cross_modal", objective, config, settings, ctx)
        if ctx.observe:
            ctx.observe("grid", found)
        chosen = ", ".join(f"{name}={value:g}" for name, value in settings[best].items())
        by = f"val accuracy over lr, weight_decay, batch_size and step ({chosen})"
        return (
            config.model_copy(update=settings[best]),
            {"epoch": None, "by": by, "value": found[best]},
        )


def sized(config: CrossModalConfig) -> CrossModalConfig:
    """Return the config with the number of images as the batch size, which the training loop counts."""
    return config.model_copy(update={"batch_size": config.halves[0]})


class _Problem:
    """Examples of both modalities, from which each fit of a search starts."""

    def __init__(self, model: ImageTextModel, task: Task[Any], config: CrossModalConfig) -> None:
        import torch
        import torch.nn.functional as F

        def encoded(inputs: Inputs[Any], views: int) -> NDArray[np.float32]:
            found = view_features(model, inputs, views, config.smallest_crop, "projected")
            return found.reshape(-1, found.shape[-1])

        def unit(features: NDArray[np.float32]) -> torch.Tensor:
            return F.normalize(tensor(features, model.device), dim=-1)

        self.model, self.task = model, task
        train = task.require_train("cross_modal")
        copies = 1 + config.views
        images = encoded(train.inputs, 0)
        if config.views:
            images = np.concatenate([images, encoded(train.inputs, config.views)])
        self.images = unit(images)  # (V * N, D)
        self.image_labels = torch.from_numpy(np.tile(train.labels, copies))
        texts = text_features(model, task.classnames, task.templates)  # (C, T, D)
        C, T, D = texts.shape
        self.start: NDArray[np.float32] = unit(texts.mean(axis=1)).cpu().numpy()  # (C, D)
        self.texts = unit(texts.reshape(-1, D))  # (C * T, D)
        self.text_labels = torch.arange(C).repeat_interleave(T)
        self.val: Split[Any] | None = _training.nonempty(task.val)
        self.val_features = None if self.val is None else unit(encoded(self.val.inputs, 0))

    def objective(
        self, config: CrossModalConfig, ctx: RunContext
    ) -> tuple[Parameters, Objective, int | None]:
        """Return new parameters, the objective that trains them, and the number of steps."""
        import torch
        import torch.nn.functional as F

        device = self.model.device
        parameters = self._parameters(config, ctx)
        step = torch.zeros(1, dtype=torch.int64)
        prompts = _Prompts(ctx, len(self.text_labels), config.halves[1]) if config.text else None

        def scores(x: torch.Tensor) -> torch.Tensor:
            if config.head == "adapter":
                x = adapt(x, parameters["fc.0.weight"], parameters["fc.2.weight"], config.ratio)
            return config.logit_scale * (x @ parameters["head.weight"].T)

        def loss(rows: NDArray[np.int64], view: int) -> torch.Tensor:  # noqa: ARG001
            x, y = self.images[tensor(rows, device)], self.image_labels[rows]
            if prompts is not None:
                also = prompts.at(int(step))
                x = torch.cat([x, self.texts[tensor(also, device)]])
                y = torch.cat([y, self.text_labels[also]])
            step.add_(1)
            return F.cross_entropy(scores(x), placed(y, device))

        def val_scores() -> NDArray[np.float32]:
            assert self.val_features is not None
            with torch.no_grad():
                return scores(self.val_features).cpu().numpy()

        objective = Objective(
            "cross_modal",
            parameters,
            loss,
            len(self.image_labels),
            None if self.val is None else val_scores,
            None if self.val is None else self.val.labels,
            _training.key_of(self.model, self.task),
            {"step": step},
            every=config.every,
        )
        return parameters, objective, config.steps

    def _parameters(self, config: CrossModalConfig, ctx: RunContext) -> Parameters:
        device, rng = self.model.device, ctx.rng("cross_modal.init")
        C, D = self.start.shape

        def drawn(rows: int, columns: int) -> NDArray[np.float32]:
            return _training.linear_start(rng, (rows, columns), columns)

        values = {"head.weight": self.start if config.init == "zero_shot" else drawn(C, D)}
        if config.head == "adapter":
            hidden = D // config.reduction
            values |= {"fc.0.weight": drawn(hidden, D), "fc.2.weight": drawn(D, hidden)}
        return {n: _training.parameter(ctx, n, value, device) for n, value in values.items()}


class _Prompts:
    """The order of the prompts: shuffled in epochs of their own, the last batch dropped if it is incomplete."""

    def __init__(self, ctx: RunContext, n: int, size: int) -> None:
        self.ctx, self.n, self.size, self.epoch = ctx, n, size, -1
        self.batches: list[NDArray[np.int64]] = []
        self.per_epoch = len(self._of(0))

    def at(self, step: int) -> NDArray[np.int64]:
        """Return the prompts of a step, counted from 0."""
        return self._of(step // self.per_epoch)[step % self.per_epoch]

    def _of(self, epoch: int) -> list[NDArray[np.int64]]:
        if epoch != self.epoch:
            name = "cross_modal.text"
            self.epoch = epoch
            self.batches = self.ctx.batches(name, self.n, self.size, epoch, drop_last=True)
        return self.batches


def adapt(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, ratio: float) -> torch.Tensor:
    """Return the adapted features for unit-norm features ``x``, shape ``(n, D)``; they are not normalized again."""
    import torch.nn.functional as F

    adapted = F.relu(F.relu(x @ down.T) @ up.T)  # (n, D)
    return ratio * adapted + (1 - ratio) * x


@dataclass(frozen=True, slots=True)
class AdapterHead:
    """A linear head on adapted image features.

    Attributes:
        linear: The head, with the model, class names and selection.
        down: First layer of the adapter, shape ``(D / reduction, D)``.
        up: Second layer, shape ``(D, D / reduction)``.
        ratio: Weight of the adapted features.
        score_kind: The scores are logits.
        export_formats: ``classifier`` alone, or ``openclip`` together with the model.
    """

    linear: LinearHead
    down: NDArray[np.float32]
    up: NDArray[np.float32]
    ratio: float
    score_kind: ClassVar[ScoreKind] = "logit"
    export_formats: ClassVar[tuple[str, ...]] = _export.FORMATS

    @property
    def classnames(self) -> tuple[str, ...]:
        """``C`` class names."""
        return self.linear.classnames

    @property
    def n_trainable_params(self) -> int:
        """Number of weights of adapter and head."""
        return self.linear.n_trainable_params

    @property
    def selection(self) -> dict[str, Any] | None:
        """What was selected on val, or None."""
        return self.linear.selection

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``."""
        x = tensor(self.linear.model.encode(inputs, "image"))  # (n, D)
        adapted = adapt(x, tensor(self.down), tensor(self.up), self.ratio).numpy()
        return np.float32(self.linear.scale) * (adapted @ self.linear.weights.T)

    def zero_shot_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the scores of the prompts without training, shape ``(n, C)``."""
        return self.linear.zero_shot_scores(inputs)

    def export(
        self,
        form: str,
        path: Path,
        /,
        *,
        temperature: float | None = None,
        output: Path | None = None,
    ) -> Exported:
        """Write adapter and head, alone or with the model; see :func:`_export.export`."""
        arrays = _export.cosine_arrays(self.linear.weights, self.linear.scale, 0.0)
        arrays |= {"down": self.down, "up": self.up, "ratio": np.array(self.ratio, np.float32)}
        return _export.export(
            form,
            path,
            self.linear.model,
            self.classnames,
            arrays,
            FORMULA,
            temperature=temperature,
            output=output,
        )

    def save(self, directory: Path) -> None:
        """Write the adapter, and the head in the folder ``head``."""
        self.linear.save(directory / "head")
        saved.save(directory, {"down": self.down, "up": self.up}, {})


METHOD = CrossModal
