"""Texts that a Python caller gives, as the inputs of a method."""

from __future__ import annotations

from typing import Any

from clipadapt.core.api.data import Inputs
from clipadapt.core.api.errors import DataError


def text_inputs(texts: Any) -> Inputs[str]:
    """Return several texts as the inputs of a method, with their positions as ids.

    Args:
        texts: A list, array or series of texts.

    Raises:
        DataError: If they are not texts, or there are none.
    """
    if isinstance(texts, str | bytes):
        raise DataError(
            f"expected several texts, got one {type(texts).__name__}", hint="put it into a list"
        )
    if getattr(texts, "ndim", 1) != 1:
        shape = getattr(texts, "shape", "unknown")
        raise DataError(
            f"expected a list of texts; got a {type(texts).__name__} of shape {shape}",
            hint="give one column, as in frame['text']",
        )
    try:
        items = list(texts)
    except TypeError:
        raise DataError(f"expected a list of texts; got {type(texts).__name__}") from None
    if not items:
        raise DataError("found no texts (n_samples=0) while a minimum of 1 is required")
    for i, item in enumerate(items):
        if not isinstance(item, str):
            raise DataError(f"text {i}: expected a str, got {type(item).__name__} ({item!r:.40})")
        if not item.strip():
            raise DataError(f"text {i} is empty")
    return Inputs([str(item) for item in items], tuple(map(str, range(len(items)))))
