"""Labels and weights of the scikit-learn estimators, checked as scikit-learn checks them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def as_labels(y: Any, n: int, noun: str) -> list[Any]:
    """Return ``n`` labels as Python values.

    Args:
        y: The labels.
        n: Number of examples.
        noun: What one example is, for messages.

    Raises:
        ValueError: If there are not ``n`` labels, a label is not a single value, or one is missing.
    """
    if y is None or isinstance(y, str | bytes | Mapping | AbstractSet):  # not a sequence of labels
        expected = f"expected one label per {noun}, got y={y!r:.80}"
        raise ValueError(
            f"requires y to be passed, but the target y is None: {expected}"
            if y is None
            else expected
        )
    if hasattr(y, "detach"):  # a tensor, which may need gradients or be on another device
        y = y.detach().cpu().numpy()
    array = y if isinstance(y, np.ndarray) else getattr(y, "to_numpy", lambda: None)()
    if array is None and hasattr(y, "__array__"):
        array = np.asarray(y)
    if array is not None and array.ndim != 1:
        array = _one_column(array)
    labels = list(y) if array is None else array.tolist()
    # Convert scalars of numpy and torch.
    labels = [v.item() if getattr(v, "ndim", None) == 0 else v for v in labels]
    missing = [i for i, value in enumerate(labels) if _is_missing(value)]
    if missing:
        raise ValueError(
            f"Input y contains missing values: {labels[missing[0]]!r} at position {missing[0]} "
            f"(cases: {len(missing)} of {len(labels)})"
        )
    infinite = [v for v in labels if isinstance(v, float) and np.isinf(v)]
    if infinite:
        raise ValueError(f"Input y contains infinity: {infinite[0]!r}")
    if len(labels) != n:
        raise ValueError(
            f"found input variables with inconsistent numbers of samples: {[n, len(labels)]}"
        )
    return labels


def encode(labels: list[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the sorted distinct labels, shape ``(C,)``, and the index of each example's label.

    Raises:
        ValueError: If the labels are not classes, or all equal.
    """
    for value in labels:
        if isinstance(value, float) and not value.is_integer():
            raise ValueError(f"Unknown label type: {value!r} is a number, not a class")
    try:
        distinct = set(labels)
    except TypeError as err:
        raise ValueError(f"labels must be hashable: {err}") from None
    if len(distinct) < 2:
        raise ValueError(
            f"labels of at least two classes are required, got only one class: {labels[0]!r}"
        )
    try:
        ordered = sorted(distinct)
    except TypeError:  # labels of several types: use an order that does not depend on the hash
        ordered = sorted(distinct, key=lambda v: (type(v).__name__, str(v)))
    index = {value: i for i, value in enumerate(ordered)}
    classes: NDArray[Any] = np.empty(len(ordered), dtype=object)
    classes[:] = ordered
    if len({type(v) for v in ordered}) == 1 and isinstance(ordered[0], str | bool | int | float):
        classes = np.array(ordered)
    return classes, np.array([index[v] for v in labels], dtype=np.int64)


def as_weights(sample_weight: ArrayLike, n: int) -> NDArray[np.float64]:
    """Return the weights of ``n`` examples.

    Raises:
        ValueError: If there are not ``n`` of them, or they are not finite, negative, or all zero.
    """
    weights = np.array(sample_weight, dtype=np.float64)  # a copy: the caller's is left as it is
    if weights.ndim != 1:
        raise ValueError(
            f"Sample weights must be 1D array or scalar, got {weights.ndim}D array of shape {weights.shape}"
        )
    if len(weights) != n:
        raise ValueError(f"sample_weight.shape == {weights.shape}, expected {(n,)}!")
    if not np.isfinite(weights).all() or weights.min(initial=0) < 0:
        raise ValueError("sample_weight must be finite and not negative")
    if not weights.any():
        raise ValueError("Sample weights must contain at least one non-zero number.")
    return weights


def _one_column(array: NDArray[Any]) -> NDArray[Any]:
    """Return the labels of an array with a single column, with scikit-learn's warning.

    Raises:
        ValueError: If it has several columns.
    """
    if array.ndim != 2 or array.shape[1] != 1:
        raise ValueError(f"y should be a 1d array, got an array of shape {array.shape} instead")
    from sklearn.exceptions import DataConversionWarning

    warnings.warn(
        "A column-vector y was passed when a 1d array was expected. Please change the shape of y to "
        "(n_samples,), for example using ravel().",
        DataConversionWarning,
        stacklevel=4,
    )
    return array.ravel()


def _is_missing(value: Any) -> bool:
    """Return whether a label is None, NaN, NaT or pandas.NA, for which comparisons are undefined."""
    try:
        return value is None or bool(value != value)
    except (TypeError, ValueError):
        return type(value).__name__ == "NAType"
