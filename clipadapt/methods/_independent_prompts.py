"""Prompts of both towers that are parameters of their own, as in IVLP and PromptSRC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from clipadapt.methods._deep_prompts import Prompts, Towers, drawn, widths

if TYPE_CHECKING:
    import torch

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Task
    from clipadapt.methods._deep_prompts import DeepPromptConfig
    from clipadapt.models import DeepPromptTunable, Tower


class Independent(NamedTuple):
    """Prompts of both towers that are parameters of their own.

    Attributes:
        towers: The towers.
        parameters: ``text.ctx0``, ``text.ctx1``, ..., ``vision.ctx0``, ...
    """

    towers: Towers
    parameters: dict[str, torch.Tensor]

    def current(self) -> Prompts:
        """Return the prompts for the current parameters."""
        kinds = ("text", "vision")
        return Prompts(*([p for n, p in self.parameters.items() if n.startswith(k)] for k in kinds))


def independent_widths(
    name: str, backbone: DeepPromptTunable, *, text: int, vision: int
) -> dict[Tower, int]:
    """Return the width of the prompts of each tower; a depth of 0 leaves the image tower as it is.

    Raises:
        ConfigError: If a tower has fewer blocks.
        ModelError: If a tower cannot take prompts.
    """
    depths: dict[Tower, tuple[int, str]] = {"text": (text, "depth_text")}
    if vision:
        depths["image"] = vision, "depth_vision"
    return widths(backbone, name, depths)


def independent(
    name: str,
    backbone: DeepPromptTunable,
    task: Task[Any],
    config: DeepPromptConfig,
    ctx: RunContext,
    *,
    text: tuple[int, int],
    vision: tuple[int, int],
) -> Independent:
    """Return the initial prompts of both towers.

    Args:
        name: Name of the method, for random streams and messages.
        backbone: The model.
        task: The task.
        config: Hyperparameters.
        ctx: The run.
        text: Number of prompt tokens and of blocks in the text tower.
        vision: The same for the image tower; a depth of 0 leaves it as it is.

    Raises:
        ConfigError: If a tower has fewer blocks.
        ModelError: If a tower cannot take prompts.
    """
    depths: dict[Tower, tuple[int, int]] = {"text": text}
    if vision[1]:
        depths["image"] = vision
    keys = {"text": "text", "image": "vision"}
    wide = independent_widths(name, backbone, text=text[1], vision=vision[1])
    towers = Towers(backbone, task, config, ctx, n_ctx=text[0])
    parameters = {}
    for tower, (n_ctx, depth) in depths.items():
        for i in range(depth):
            key = f"{keys[tower]}.ctx{i}"
            start = drawn(ctx, name, key, (n_ctx, wide[tower]))
            if key == "text.ctx0":
                start = towers.text.start(ctx, name)
            parameters[key] = towers.parameter(key, start)
    return Independent(towers, parameters)
