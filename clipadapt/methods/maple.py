"""MaPLe: text prompts replaced at each block, and image prompts computed from them; both towers are frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from clipadapt.methods import _deep_prompts, _training
from clipadapt.methods._deep_prompts import DeepPromptConfig, Prompts, Towers
from clipadapt.models import DeepPromptTunable

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Task
    from clipadapt.core.api.method import MethodConfig
    from clipadapt.methods._deep_prompts import PromptedClassifier
    from clipadapt.models import Tower


class MaPLeConfig(DeepPromptConfig):
    """Hyperparameters of ``clip/maple``.

    Attributes:
        n_ctx: Number of prompt tokens in each tower.
        depth: Number of blocks of each tower with a prompt of their own, J in the paper.
    """

    n_ctx: int = Field(default=2, gt=0, le=1000)
    depth: int = Field(default=9, gt=0, le=1000)


class MaPLe:
    """Text prompts ``P_i`` of the first blocks and image prompts ``F_i(P_i)``, where ``F_i`` are linear layers.

    References:
        M. Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, section 3.2. arXiv:2210.03117
    """

    Config: ClassVar[type[MethodConfig]] = MaPLeConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = DeepPromptTunable

    def __init__(self, config: MaPLeConfig) -> None:
        self.config = config

    def check_model(self, backbone: DeepPromptTunable) -> None:
        """Check that the towers take the prompts.

        Raises:
            ConfigError: If a tower has fewer blocks than ``depth``.
            ModelError: If a tower cannot take prompts.
        """
        self._widths(backbone)

    def fit(
        self, backbone: DeepPromptTunable, task: Task[Any], ctx: RunContext
    ) -> PromptedClassifier:
        """Train text prompts and layers on ``task.train``; with ``keep: best``, ``task.val`` selects the epoch.

        Raises:
            ConfigError: If a tower has fewer blocks than ``depth``.
            ModelError: If a tower cannot take prompts, or a prompt is longer than the model's context length.
        """
        config = self.config
        config.check(task)
        wide = self._widths(backbone)
        towers = Towers(backbone, task, config, ctx, n_ctx=config.n_ctx)
        start = self._start(towers, ctx, wide["text"], wide["image"])
        parameters = {name: towers.parameter(name, value) for name, value in start.items()}

        def prompts() -> Prompts:
            return _coupled(parameters, config.depth)

        return towers.fit("maple", parameters, prompts)

    def load(self, directory: Path, backbone: DeepPromptTunable) -> PromptedClassifier:
        """Return the classifier saved in ``directory``."""
        return _deep_prompts.load(directory, backbone, self.config)

    def _widths(self, backbone: DeepPromptTunable) -> dict[Tower, int]:
        depth = self.config.depth, "depth"
        return _deep_prompts.widths(backbone, "maple", {"text": depth, "image": depth})

    def _start(
        self, towers: Towers, ctx: RunContext, wide: int, image_wide: int
    ) -> dict[str, NDArray[np.float32]]:
        """Return the initial parameters under their official names."""
        deep = range(self.config.depth - 1)

        def layer(name: str, stream: str) -> dict[str, NDArray[np.float32]]:
            rng = ctx.rng(f"maple.{stream}")
            return {
                f"{name}.weight": _training.linear_start(rng, (image_wide, wide), wide),
                f"{name}.bias": _training.linear_start(rng, (image_wide,), wide),
            }

        start = {"ctx": towers.text.start(ctx, "maple"), **layer("proj", "proj")}
        for i in deep:
            name = f"compound_prompts_text.{i}"
            start[name] = _deep_prompts.drawn(ctx, "maple", name, (self.config.n_ctx, wide))
        for i in deep:  # copies of one layer, as in the official code
            start |= layer(f"compound_prompt_projections.{i}", "compound_prompt_projections")
        return start


def _coupled(parameters: dict[str, torch.Tensor], depth: int) -> Prompts:
    """Return the text prompts and the image prompts computed from them."""
    import torch.nn.functional as F

    text, vision = [], []
    for i in range(depth):
        prompt = parameters["ctx" if i == 0 else f"compound_prompts_text.{i - 1}"]
        name = "proj" if i == 0 else f"compound_prompt_projections.{i - 1}"
        text.append(prompt)
        vision.append(F.linear(prompt, parameters[f"{name}.weight"], parameters[f"{name}.bias"]))
    return Prompts(text, vision)


METHOD = MaPLe
