"""The order in which an online method sees the examples of an evaluation."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.method import setting_of
from clipadapt.core.api.registry import METHODS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from clipadapt.core.experiments.config import Experiment


def order_seed(experiment: Experiment) -> int | None:
    """Return the ``order_seed`` of an online method, None for other methods.

    Raises:
        ConfigError: If an online method has no such key.
    """
    if setting_of(METHODS.get(experiment.method_name)) != "online":
        return None
    seed: int | None = getattr(experiment.method, "order_seed", None)
    if seed is None:
        raise ConfigError(
            f"{experiment.method_name} is an online method, whose predictions depend on the order of the test "
            "examples, and its config has no 'order_seed'",
            hint="add 'order_seed: OrderSeed = 1' to its Config, as CONTRIBUTING.md shows",
        )
    return seed


def evaluation_order(experiment: Experiment, n: int) -> NDArray[np.int64] | None:
    """Return the order of ``n`` examples as indices, None where it does not matter; equal on every platform."""
    seed = order_seed(experiment)
    if seed is None:
        return None
    return np.random.Generator(np.random.PCG64(seed)).permutation(n).astype(np.int64)


def order_sha256(experiment: Experiment, ids: Sequence[str]) -> str | None:
    """Return the sha256 of the ids of an evaluation in their order, None where it does not matter or none is known."""
    order = evaluation_order(experiment, len(ids))
    if order is None or not len(order):
        return None
    return hashlib.sha256("\0".join(ids[i] for i in order).encode()).hexdigest()
