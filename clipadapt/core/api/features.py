"""Frozen features: what identifies them, and the ``typing.Protocol`` of the cache that models read them through."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


DIGEST_BYTES: Final = 32


FORMAT: Final = 1


Compute = Callable[["NDArray[np.int64]"], Iterator[tuple["NDArray[np.int64]", "NDArray[Any]"]]]


@dataclass(frozen=True, slots=True)
class Space:
    """Everything that determines a feature, except the example's content.

    Attributes:
        weights: sha256 of the weights.
        activation: Activation function, such as ``quick_gelu``, which is not part of the weights.
        layer: ``output``, ``pre_projection`` or another named layer.
        preprocess: Text that determines the preprocessing (resize, crop, mean, std, tokenizer).
        dtype: Effective dtype of the computation, ``fp32``, ``bf16`` or ``fp16``, and other facts that affect the last
            bits, such as ``compiled``.
        view: Number of the augmented view; 0 is not augmented.
        tower: ``image`` or ``text``.
        libraries: Versions of the packages that compute it, see
            :func:`~clipadapt.core.files.identity.versions`; another version may give other bits.
    """

    weights: str
    activation: str
    layer: str
    preprocess: str
    dtype: str
    view: int
    tower: str
    libraries: str = ""

    @property
    def key(self) -> str:
        """sha256 of the canonical JSON of the fields, 64 hexadecimal digits."""
        fields = {"format": FORMAT, **dataclasses.asdict(self)}
        return hashlib.sha256(
            json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
        ).hexdigest()


@dataclass(frozen=True, slots=True)
class StoredFeatures:
    """Features in the caller's order, with their cost.

    Attributes:
        rows: One row per digest, shape ``(n, ...)``.
        encode_seconds: Cost of all rows, cached rows included; each distinct example counts once.
        computed: Number of distinct examples encoded by this call.
        seconds_spent: Seconds that this call spent on encoding, or on waiting for another process that encodes.
    """

    rows: NDArray[Any]
    encode_seconds: float
    computed: int
    seconds_spent: float


class FeatureReader(Protocol):
    """The feature cache as a model uses it; only missing features are computed."""

    def get_or_compute(
        self,
        space: Space,
        digests: NDArray[np.uint8],
        compute: Compute,
        *,
        out: NDArray[Any] | None = None,
    ) -> StoredFeatures:
        """Return one row per example, see :meth:`clipadapt.core.features.cache.FeatureCache.get_or_compute`."""
        ...
