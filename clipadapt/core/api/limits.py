"""Bounds of settings: values outside them are mistakes that would fill the memory or never finish."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field

from clipadapt.core.api.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_EPOCHS: Final = 100_000
LEAST_PENALTY: Final = 1e-12
LARGEST_FLOAT32: Final = 3.4e38
MAX_SEED: Final = 2**32 - 1  # the largest seed that PyTorch, NumPy and scikit-learn all accept


def _whole_or_share(value: float) -> float:
    if value >= 1 and value != int(value):
        raise ValueError("must be a whole number of steps, or a fraction of all steps below 1")
    return value


def _not_tiny(value: float) -> float:
    if value < LEAST_PENALTY:
        raise ValueError(f"must be at least {LEAST_PENALTY:g}")
    return value


def fits_float32(value: float) -> float:
    """Return a number that PyTorch computes with in float32.

    Raises:
        ValueError: If it is too large for that.
    """
    if abs(value) > LARGEST_FLOAT32:
        raise ValueError(f"must be at most {LARGEST_FLOAT32:g}, the largest number in float32")
    return value


def _known_order(value: Any) -> Any:
    if value is None:
        raise ValueError(
            "the predictions depend on the order of the test examples, so it cannot be missing; "
            "use a whole number, such as 1"
        )
    return value


Epochs = Annotated[int, Field(ge=0, le=MAX_EPOCHS)]
BatchSize = Annotated[int, Field(gt=0, le=65_536)]
Steps = Annotated[int, Field(gt=0, le=10_000_000)]
WarmupSteps = Annotated[float, Field(ge=0, le=1_000_000), AfterValidator(_whole_or_share)]
"""Steps of linear warm-up; a value below 1 is a fraction of all steps."""
Iterations = Annotated[int, Field(gt=0, le=1_000_000)]
Penalty = Annotated[float, Field(gt=0, le=1e12), AfterValidator(_not_tiny)]
"""``C``, the inverse strength of an L2 penalty."""
Units = Annotated[int, Field(gt=0, le=1_000)]
"""Number of blocks or units of a tower, also checked against the model."""
Rank = Annotated[int, Field(gt=0, le=65_536)]
"""Rank of an update, also checked against the widths of the model's layers."""
Shots = Annotated[int, Field(gt=0, le=1_000_000)]
Examples = Annotated[int, Field(gt=0, le=1_000_000_000)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
OrderSeed = Annotated[int, Field(ge=0, le=MAX_SEED), BeforeValidator(_known_order)]
"""Seed of the order in which an online method sees the examples of an evaluation."""
Threads = Annotated[int, Field(gt=0, le=1_024)]


def check_rank(r: int, widths: Mapping[str, int], model: str) -> None:
    """Check the rank of an update against the widths of the layers.

    Args:
        r: The rank.
        widths: The smaller dimension of each layer's weights, by name.
        model: Name of the model.

    Raises:
        ConfigError: If a layer is narrower than the rank; the message names the narrowest.
    """
    width, name = min((width, name) for name, width in widths.items())
    if r > width:
        raise ConfigError(
            f"method.r is {r}, but the layer '{name}' of '{model}' is only {width} wide, which limits the rank",
            hint=f"use 1 to {width}",
        )


def check_warmup(warmup_steps: float, steps: int) -> None:
    """Check that the warm-up is not longer than the training.

    Args:
        warmup_steps: See :data:`WarmupSteps`.
        steps: Number of training steps.

    Raises:
        ConfigError: If the learning rate would never reach its peak.
    """
    if warmup_steps >= 1 and warmup_steps > steps:
        raise ConfigError(
            f"method.warmup_steps={int(warmup_steps)} is more than the {steps} training steps: the learning rate "
            f"would end at {steps / warmup_steps:.1%} of its peak",
            hint="use a fraction of the steps, such as method.warmup_steps=0.1, or more epochs; recipes whose names "
            "end in -fewshot are for few examples",
        )
