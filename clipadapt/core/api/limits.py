"""Bounds of settings: what lies beyond them is a slip, and would fill the memory or never end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from pydantic import AfterValidator, Field

from clipadapt.core.api.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_EPOCHS: Final = 100_000
LEAST_PENALTY: Final = 1e-12
MAX_SEED: Final = 2**32 - 1  # the largest that PyTorch, NumPy and scikit-learn take alike


def _whole_or_share(value: float) -> float:
    if value >= 1 and value != int(value):
        raise ValueError("take a whole number of steps, or a share of all steps below 1")
    return value


def _not_tiny(value: float) -> float:
    if value < LEAST_PENALTY:
        raise ValueError(f"take {LEAST_PENALTY:g} or more")
    return value


Epochs = Annotated[int, Field(ge=0, le=MAX_EPOCHS)]
BatchSize = Annotated[int, Field(gt=0, le=65_536)]
Steps = Annotated[int, Field(gt=0, le=10_000_000)]
WarmupSteps = Annotated[float, Field(ge=0, le=1_000_000), AfterValidator(_whole_or_share)]
"""Steps of linear warm-up; below 1 the share of all steps."""
Iterations = Annotated[int, Field(gt=0, le=1_000_000)]
Penalty = Annotated[float, Field(gt=0, le=1e12), AfterValidator(_not_tiny)]
"""``C``, inverse strength of an L2 penalty."""
Units = Annotated[int, Field(gt=0, le=1_000)]
"""Blocks or units of a tower; how many there are is checked against the model."""
Rank = Annotated[int, Field(gt=0, le=65_536)]
"""Rank of an update; the layers' width is checked against the model."""
Shots = Annotated[int, Field(gt=0, le=1_000_000)]
Examples = Annotated[int, Field(gt=0, le=1_000_000_000)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Threads = Annotated[int, Field(gt=0, le=1_024)]


def check_rank(r: int, widths: Mapping[str, int], model: str) -> None:
    """Refuse the rank of an update that a layer does not have.

    Args:
        r: The rank.
        widths: Name of each layer, and the smaller side of its weights.
        model: Name of the model.

    Raises:
        ConfigError: Naming the narrowest layer.
    """
    width, name = min((width, name) for name, width in widths.items())
    if r > width:
        raise ConfigError(
            f"method.r is {r}; the layer '{name}' of '{model}' is {width} wide, and no update of it has a higher rank",
            hint=f"take 1 to {width}",
        )


def check_warmup(warmup_steps: float, steps: int) -> None:
    """Refuse a warm-up that is longer than the training.

    Args:
        warmup_steps: See :data:`WarmupSteps`.
        steps: All steps.

    Raises:
        ConfigError: If the learning rate would never reach its peak.
    """
    if warmup_steps >= 1 and warmup_steps > steps:
        raise ConfigError(
            f"the training has {steps} steps, of which method.warmup_steps={int(warmup_steps)} would warm up: the "
            f"learning rate would end at {steps / warmup_steps:.1%} of its peak",
            hint="take a share of the steps, as in --set method.warmup_steps=0.1, or more epochs; recipes whose names "
            "end in -fewshot are made for few examples",
        )
