"""Features: what decides them, what comes back, and the cache that models read them through."""

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
    """Everything that decides a feature beside the example's content.

    Attributes:
        weights: sha256 of the weights.
        activation: Activation function, such as ``quick_gelu``; open_clip sets it apart from the weights.
        layer: ``output``, ``pre_projection`` or another named place.
        preprocess: Text that determines the preprocessing (resize, crop, mean, std, tokenizer).
        dtype: Effective dtype of the computation, ``fp32``, ``bf16`` or ``fp16``, and what else of the arithmetic
            decides the last bits, such as ``compiled``.
        view: Number of the augmented view; 0 is the plain one.
        tower: ``image`` or ``text``.
        libraries: Releases of the packages that compute it, see
            :func:`~clipadapt.core.files.identity.versions`; another release may give other bits.
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
        """sha256 over the canonical JSON of the fields, 64 hexadecimal digits."""
        fields = {"format": FORMAT, **dataclasses.asdict(self)}
        return hashlib.sha256(
            json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
        ).hexdigest()


@dataclass(frozen=True, slots=True)
class StoredFeatures:
    """Features in the caller's order, with their cost.

    Attributes:
        rows: One row per digest, shape ``(n, ...)``.
        encode_seconds: What all rows used cost, whoever paid; each distinct example counts once.
        computed: Distinct examples computed now.
        seconds_spent: Seconds of encoding spent now, or of waiting for another process that did it.
    """

    rows: NDArray[Any]
    encode_seconds: float
    computed: int
    seconds_spent: float


class FeatureReader(Protocol):
    """Where a model gets features from: the feature cache, which computes only the missing ones."""

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
