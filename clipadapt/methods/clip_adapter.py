"""CLIP-Adapter: a small residual network on the image features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from pydantic import Field

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.files import saved
from clipadapt.methods import _export, _training
from clipadapt.methods._images import FrozenFeatures, tensor
from clipadapt.methods._text import cosine_scores, zero_shot_weights
from clipadapt.methods._training import Objective, TrainingConfig
from clipadapt.models import ImageTextModel

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Task
    from clipadapt.core.api.method import Exported, MethodConfig, ScoreKind

FORMULA: Final = (
    """adapted = np.maximum(np.maximum(x @ a['down'].T, 0) @ a['up'].T, 0)
x = a['ratio'] * adapted + (1 - a['ratio']) * x
x /= np.linalg.norm(x, axis=1, keepdims=True)
"""
    + _export.COSINE
)


class CLIPAdapterConfig(TrainingConfig):
    """Hyperparameters of ``clip/clip_adapter``.

    Attributes:
        ratio: Weight of the adapted features; the frozen features have weight ``1 - ratio``.
        reduction: Width of the features divided by the width of the bottleneck.
        drop_last: Drop the last batch of an epoch if it is incomplete, as the official code does.
    """

    ratio: float = Field(default=0.2, ge=0, le=1)
    reduction: int = Field(default=4, gt=0, le=65_536)
    drop_last: bool = True


class CLIPAdapter:
    """Visual adapter ``f' = ratio * relu(W2 relu(W1 f)) + (1 - ratio) * f``, then the cosine to the text features.

    References:
        P. Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", IJCV 2024,
        section 3.2. arXiv:2110.04544
    """

    Config: ClassVar[type[MethodConfig]] = CLIPAdapterConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = ImageTextModel

    def __init__(self, config: CLIPAdapterConfig) -> None:
        self.config = config

    def fit(
        self, backbone: ImageTextModel, task: Task[Any], ctx: RunContext
    ) -> CLIPAdapterClassifier:
        """Train the adapter on ``task.train``; with ``keep: best``, ``task.val`` selects the epoch.

        Raises:
            ConfigError: If the bottleneck is narrower than one feature, or training ends before the warm-up.
        """
        config, width = self.config, backbone.embed_dim
        train = task.require_train("clip_adapter")
        config.check(task)
        val = _training.nonempty(task.val)
        if config.reduction > width:
            raise ConfigError(
                f"method.reduction is {config.reduction}; the features of '{backbone.name}' are {width} wide",
                hint=f"choose a value from 1 to {width}",
            )
        hidden = width // config.reduction
        rng = ctx.rng("clip_adapter.init")
        start = _training.linear_start
        device = backbone.device
        down = _training.parameter(ctx, "fc.0.weight", start(rng, (hidden, width), width), device)
        up = _training.parameter(ctx, "fc.2.weight", start(rng, (width, hidden), hidden), device)
        text = zero_shot_weights(backbone, task.classnames, task.templates)
        weights = tensor(text, device)
        features = FrozenFeatures(backbone, train.inputs, config, "projected")
        val_features = None
        if val is not None:
            val_features = tensor(backbone.encode(val.inputs, "image", "projected"), device)

        def logits(x: torch.Tensor) -> torch.Tensor:
            return backbone.logits(adapt(x, down, up, config.ratio), weights)

        def loss(rows: NDArray[np.int64], view: int) -> torch.Tensor:
            return _training.cross_entropy(logits(features(rows, view)), train.labels, rows)

        def val_scores() -> NDArray[np.float32]:
            assert val_features is not None
            return logits(val_features).detach().cpu().numpy()

        parameters = {"fc.0.weight": down, "fc.2.weight": up}
        evaluate = None if val is None else val_scores
        objective = Objective.of("clip_adapter", parameters, loss, evaluate, backbone, task)
        selection = _training.train(objective, config, ctx)
        return CLIPAdapterClassifier(
            backbone,
            task.classnames,
            down.detach().cpu().numpy(),
            up.detach().cpu().numpy(),
            text,
            config.ratio,
            selection,
        )

    def load(self, directory: Path, backbone: ImageTextModel) -> CLIPAdapterClassifier:
        """Return the classifier saved in ``directory``."""
        facts = saved.load_facts(directory, ("classnames", "selection"))
        D = backbone.embed_dim
        arrays = saved.load_arrays(
            directory, {"down": (None, D), "up": (D, None), "weights": (None, D)}
        )
        return CLIPAdapterClassifier(
            backbone,
            tuple(facts["classnames"]),
            arrays["down"],
            arrays["up"],
            arrays["weights"],
            self.config.ratio,
            facts["selection"],
        )


def adapt(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, ratio: float) -> torch.Tensor:
    """Return the adapted, unit-norm features for projected features ``x``, shape ``(n, D)``."""
    import torch.nn.functional as F

    adapted = F.relu(F.relu(x @ down.T) @ up.T)  # (n, D)
    return F.normalize(ratio * adapted + (1 - ratio) * x, dim=-1)


@dataclass(frozen=True, slots=True)
class CLIPAdapterClassifier:
    """Cosine of adapted image features and the text features of the prompts.

    Attributes:
        model: The backbone.
        classnames: ``C`` class names.
        down: First layer, shape ``(D / reduction, D)``.
        up: Second layer, shape ``(D, D / reduction)``.
        weights: Unit-norm text features, shape ``(C, D)``.
        ratio: Weight of the adapted features.
        selection: The epoch selected on val, or None.
        score_kind: The scores are logits.
        export_formats: ``classifier`` alone, or ``openclip`` together with the model.
    """

    model: ImageTextModel
    classnames: tuple[str, ...]
    down: NDArray[np.float32]
    up: NDArray[np.float32]
    weights: NDArray[np.float32]
    ratio: float
    selection: dict[str, Any] | None
    score_kind: ClassVar[ScoreKind] = "logit"
    export_formats: ClassVar[tuple[str, ...]] = _export.FORMATS

    @property
    def n_trainable_params(self) -> int:
        """Number of weights in both layers."""
        return self.down.size + self.up.size

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return logits of shape ``(n, C)``."""
        x = tensor(self.model.encode(inputs, "image", "projected"))  # (n, D)
        adapted = adapt(x, tensor(self.down), tensor(self.up), self.ratio).numpy()
        scale, bias = self.model.logit_scale, self.model.logit_bias
        return np.float32(scale) * (adapted @ self.weights.T) + np.float32(bias)

    def zero_shot_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return the scores of the frozen features, shape ``(n, C)``."""
        return cosine_scores(self.model, inputs, self.weights)

    def with_classnames(
        self, classnames: tuple[str, ...], templates: tuple[str, ...]
    ) -> CLIPAdapterClassifier:
        """Return a classifier for other classes; the adapter does not depend on the classes."""
        names = tuple(classnames)
        weights = zero_shot_weights(self.model, names, templates)
        return CLIPAdapterClassifier(
            self.model, names, self.down, self.up, weights, self.ratio, self.selection
        )

    def export(
        self,
        form: str,
        path: Path,
        /,
        *,
        temperature: float | None = None,
        output: Path | None = None,
    ) -> Exported:
        """Write the adapter and text features, alone or with the model; see :func:`_export.export`."""
        arrays = _export.cosine_arrays(self.weights, self.model.logit_scale, self.model.logit_bias)
        ratio = np.array(self.ratio, dtype=np.float32)
        return _export.export(
            form,
            path,
            self.model,
            self.classnames,
            {**arrays, "down": self.down, "up": self.up, "ratio": ratio},
            FORMULA,
            temperature=temperature,
            output=output,
            layer="projected",
        )

    def save(self, directory: Path) -> None:
        """Write the adapter, the text features and the class names."""
        arrays = {"down": self.down, "up": self.up, "weights": self.weights}
        saved.save(directory, arrays, {"classnames": self.classnames, "selection": self.selection})


METHOD = CLIPAdapter
