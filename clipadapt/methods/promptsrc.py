"""PromptSRC: independent prompts in both towers, kept close to the frozen model and averaged over the epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat

from clipadapt.core.api.limits import Epochs
from clipadapt.methods import _deep_prompts, _independent_prompts
from clipadapt.methods._deep_prompts import DeepPromptConfig
from clipadapt.methods._images import FrozenFeatures, tensor
from clipadapt.methods._text import mean_text_features
from clipadapt.models import DeepPromptTunable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Task
    from clipadapt.core.api.method import MethodConfig
    from clipadapt.methods._deep_prompts import PromptedClassifier, Step


class PromptSRCConfig(DeepPromptConfig):
    """Hyperparameters of ``clip/promptsrc``.

    Attributes:
        n_ctx_text: Number of prompt tokens in the text tower.
        n_ctx_vision: Number of prompt tokens in the image tower.
        depth_text: Number of blocks of the text tower with a prompt of their own.
        depth_vision: The same for the image tower.
        text_weight: Weight of the distance to the frozen text features.
        image_weight: Weight of the distance to the frozen image features.
        logit_weight: Weight of the divergence from the frozen predictions.
        gpa_mean: Epoch, from 1, with the largest weight in the average of the prompts.
        gpa_std: Standard deviation of these Gaussian weights, in epochs.
    """

    n_ctx_text: int = Field(default=4, gt=0, le=1000)
    n_ctx_vision: int = Field(default=4, gt=0, le=1000)
    depth_text: int = Field(default=9, gt=0, le=1000)
    depth_vision: int = Field(default=9, gt=0, le=1000)
    text_weight: NonNegativeFloat = 25.0
    image_weight: NonNegativeFloat = 10.0
    logit_weight: NonNegativeFloat = 1.0
    gpa_mean: float = Field(default=15.0, ge=0, le=1_000_000)
    gpa_std: PositiveFloat = 1.0
    lr: PositiveFloat = 2.5e-3
    epochs: Epochs = 20


class PromptSRC:
    """Prompts trained with cross-entropy and three losses of self-consistency with the frozen model.

    The losses are the mean absolute difference to the frozen text features, which are averaged over ``task.templates``,
    the same for image features, and the Kullback-Leibler divergence from the frozen predictions. The result is the
    average of the prompts after each epoch with Gaussian weights.

    References:
        M. Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV 2023,
        section 3.2. arXiv:2307.06948
    """

    Config: ClassVar[type[MethodConfig]] = PromptSRCConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = DeepPromptTunable

    def __init__(self, config: PromptSRCConfig) -> None:
        self.config = config

    def check_model(self, backbone: DeepPromptTunable) -> None:
        """Check that the towers take the prompts.

        Raises:
            ConfigError: If a tower has fewer blocks than prompts.
            ModelError: If a tower cannot take prompts.
        """
        config = self.config
        _independent_prompts.independent_widths(
            "promptsrc", backbone, text=config.depth_text, vision=config.depth_vision
        )

    def fit(
        self, backbone: DeepPromptTunable, task: Task[Any], ctx: RunContext
    ) -> PromptedClassifier:
        """Train the prompts on ``task.train``.

        With ``keep: best``, ``task.val`` selects among the epochs; the average is evaluated as the last one.

        Raises:
            ConfigError: If a tower has fewer blocks than prompts.
            ModelError: If a tower cannot take prompts, or a prompt is longer than the model's context length.
        """
        config = self.config
        config.check(task)
        prompts = _independent_prompts.independent(
            "promptsrc",
            backbone,
            task,
            config,
            ctx,
            text=(config.n_ctx_text, config.depth_text),
            vision=(config.n_ctx_vision, config.depth_vision),
        )
        parameters = prompts.parameters
        average = {f"average.{n}": p.detach().clone().zero_() for n, p in parameters.items()}
        return prompts.towers.fit(
            "promptsrc",
            parameters,
            prompts.current,
            self._self_consistency(prompts.towers.model, task, ctx),
            state=average,
            after_epoch=self._averaging(parameters, average, ctx),
        )

    def load(self, directory: Path, backbone: DeepPromptTunable) -> PromptedClassifier:
        """Return the classifier saved in ``directory``."""
        return _deep_prompts.load(directory, backbone, self.config)

    def _self_consistency(
        self, model: DeepPromptTunable, task: Task[Any], ctx: RunContext
    ) -> Callable[[Step], torch.Tensor]:
        """Return the three losses of a step, section 3.2.1."""
        import torch.nn.functional as F

        config = self.config
        train = task.require_train("promptsrc")
        mean = mean_text_features(model, task.classnames, task.templates)
        fixed = ctx.initial("fixed_text_features", mean)
        text = F.normalize(tensor(np.asarray(fixed, dtype=np.float32), model.device), dim=-1)
        frozen = FrozenFeatures(model, train.inputs, config, "output")

        def losses(step: Step) -> torch.Tensor:
            image = self._frozen(model, frozen, step)
            teacher = model.logits(image, text)  # (b, C)
            text_loss = config.text_weight * F.l1_loss(step.text, text)
            image_loss = config.image_weight * F.l1_loss(step.image, image)
            divergence = F.kl_div(
                F.log_softmax(step.logits, dim=1),
                F.log_softmax(teacher, dim=1),
                reduction="sum",
                log_target=True,
            )
            logit_loss = config.logit_weight * divergence / step.logits.numel()
            if ctx.observe:
                parts = (image, teacher, step.loss, text_loss, image_loss, logit_loss)
                ctx.observe("self_consistency", tuple(p.detach() for p in parts))
            return text_loss + image_loss + logit_loss

        return losses

    def _frozen(self, model: DeepPromptTunable, frozen: FrozenFeatures, step: Step) -> torch.Tensor:
        """Return the image features of the frozen model for the same views, shape ``(b, D)``."""
        import torch

        if frozen.cached is not None:
            return frozen(step.rows, 0)
        assert step.states is not None
        with torch.no_grad():
            return model.encode_image_from(step.states, _deep_prompts.FIRST)

    def _averaging(
        self,
        parameters: dict[str, torch.Tensor],
        average: dict[str, torch.Tensor],
        ctx: RunContext,
    ) -> Callable[[int], None]:
        """Return what happens after an epoch: its prompts are added to the average, which is the result of the last."""
        weights = gaussian(self.config.epochs, self.config.gpa_mean, self.config.gpa_std)
        if ctx.observe:
            ctx.observe("gpa_weights", weights)

        def after_epoch(epoch: int) -> None:
            import torch

            last = epoch + 1 == len(weights)
            if ctx.observe and last:
                ctx.observe("last_epoch", {n: p.detach().clone() for n, p in parameters.items()})
            with torch.no_grad():
                for name, parameter in parameters.items():
                    mean = average[f"average.{name}"]
                    mean.add_(parameter, alpha=float(weights[epoch]))
                    if last:
                        parameter.copy_(mean)

        return after_epoch


def gaussian(epochs: int, mean: float, std: float) -> NDArray[np.float64]:
    """Return the weight of each epoch in the average of the prompts, section 3.2.2; they sum to 1."""
    exponents = -0.5 * ((np.arange(1, epochs + 1) - mean) / std) ** 2
    weights = np.exp(exponents - exponents.max(initial=-np.inf))
    return np.asarray(weights / weights.sum(), dtype=np.float64)


METHOD = PromptSRC
