"""IVLP: independent prompts in both towers, replaced at each block; both towers are frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from clipadapt.core.api.errors import ConfigError
from clipadapt.methods import _deep_prompts, _independent_prompts
from clipadapt.methods._deep_prompts import DeepPromptConfig
from clipadapt.models import DeepPromptTunable

if TYPE_CHECKING:
    from pathlib import Path

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Task
    from clipadapt.core.api.method import MethodConfig
    from clipadapt.methods._deep_prompts import PromptedClassifier


class IVLPConfig(DeepPromptConfig):
    """Hyperparameters of ``clip/ivlp``.

    Attributes:
        n_ctx_text: Number of prompt tokens in the text tower.
        n_ctx_vision: Number of prompt tokens in the image tower; 0 trains text prompts only.
        depth_text: Number of blocks of the text tower with a prompt of their own.
        depth_vision: The same for the image tower; 0 trains text prompts only.
    """

    n_ctx_text: int = Field(default=2, gt=0, le=1000)
    n_ctx_vision: int = Field(default=2, ge=0, le=1000)
    depth_text: int = Field(default=12, gt=0, le=1000)
    depth_vision: int = Field(default=12, ge=0, le=1000)

    def check(self, task: Task[Any]) -> None:
        """Check that the image tower has both prompt tokens and depth, or neither; and the warm-up."""
        super().check(task)
        if bool(self.n_ctx_vision) != bool(self.depth_vision):
            raise ConfigError(
                f"method.n_ctx_vision is {self.n_ctx_vision} and method.depth_vision is {self.depth_vision}",
                hint="set both to 0 for text prompts only, or neither",
            )


class IVLP:
    """Each of the first blocks of both towers has prompt tokens of its own, trained with cross-entropy.

    References:
        M. Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, section 3.2, independent V-L prompting.
        arXiv:2210.03117
    """

    Config: ClassVar[type[MethodConfig]] = IVLPConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = DeepPromptTunable

    def __init__(self, config: IVLPConfig) -> None:
        self.config = config

    def check_model(self, backbone: DeepPromptTunable) -> None:
        """Check that the towers take the prompts.

        Raises:
            ConfigError: If a tower has fewer blocks than prompts.
            ModelError: If a tower cannot take prompts.
        """
        config = self.config
        _independent_prompts.independent_widths(
            "ivlp", backbone, text=config.depth_text, vision=config.depth_vision
        )

    def fit(
        self, backbone: DeepPromptTunable, task: Task[Any], ctx: RunContext
    ) -> PromptedClassifier:
        """Train the prompts on ``task.train``; with ``keep: best``, ``task.val`` selects the epoch.

        Raises:
            ConfigError: If a tower has fewer blocks than prompts.
            ModelError: If a tower cannot take prompts, or a prompt is longer than the model's context length.
        """
        config = self.config
        config.check(task)
        prompts = _independent_prompts.independent(
            "ivlp",
            backbone,
            task,
            config,
            ctx,
            text=(config.n_ctx_text, config.depth_text),
            vision=(config.n_ctx_vision, config.depth_vision),
        )
        return prompts.towers.fit("ivlp", prompts.parameters, prompts.current)

    def load(self, directory: Path, backbone: DeepPromptTunable) -> PromptedClassifier:
        """Return the classifier saved in ``directory``."""
        return _deep_prompts.load(directory, backbone, self.config)


METHOD = IVLP
