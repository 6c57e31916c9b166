"""Images that a Python caller gives: PIL images, paths, arrays or tensors, as the inputs of a method."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from clipadapt.core.api.data import Inputs, digest
from clipadapt.core.api.errors import DataError
from clipadapt.datasets._decode import opened_rgb
from clipadapt.datasets._images import ImageFiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

ACCEPTED: Final = (
    "PIL images, paths of image files, uint8 arrays of shape (height, width, 3), or tensors of shape "
    "(3, height, width), uint8 or in [0, 1]"
)


class GivenImages(Sequence[Image.Image]):
    """The given images, converted to RGB lazily."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items
        self._files = ImageFiles(Path(), [os.fspath(i) if _is_path(i) else "" for i in items])

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return GivenImages(self._items[index])
        item = self._items[index]
        if _is_path(item):
            return self._files[index]
        if isinstance(item, Image.Image):
            return opened_rgb(item, f"image {index}")
        return Image.fromarray(item)

    def digest(self, index: int) -> bytes:
        """Return the hash of one image's content, or of the file's bytes if it is a file."""
        if _is_path(self._items[index]):
            return self._files.digest(index)
        return digest([self[index]], 0)


def image_inputs(images: Any) -> Inputs[Image.Image]:
    """Return several images as the inputs of a method, with their positions as ids.

    Args:
        images: A list of PIL images, paths, arrays and tensors, or one array ``(n, height, width, 3)`` or tensor
            ``(n, 3, height, width)``.

    Raises:
        DataError: If they are not of an accepted type.
    """
    if isinstance(images, str | bytes | os.PathLike | Image.Image):
        raise DataError(
            f"expected several images, got one {type(images).__name__}", hint="put it into a list"
        )
    if _is_tensor(images):
        images = _pixels(images, 4, "")
    if not isinstance(images, np.ndarray) and getattr(images, "ndim", 1) != 1:
        shape = getattr(images, "shape", "unknown")
        raise DataError(f"expected {ACCEPTED}; got a {type(images).__name__} of shape {shape}")
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OU":
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise DataError(
                f"expected {ACCEPTED}; got an array of {images.dtype} and shape {images.shape}"
            )
        items: Any = images
    else:
        try:
            items = list(images)
        except TypeError:
            raise DataError(f"expected {ACCEPTED}; got {type(images).__name__}") from None
        items = [_pixels(x, 3, f"image {i}: ") if _is_tensor(x) else x for i, x in enumerate(items)]
    if len(items) == 0:
        raise DataError("found no images (n_samples=0) while a minimum of 1 is required")
    for i, item in enumerate(items):
        _check(item, i)
    return Inputs(GivenImages(items), tuple(map(str, range(len(items)))))


def _check(item: Any, i: int) -> None:
    """Raise DataError if one image is not of an accepted type."""
    array = isinstance(item, np.ndarray)
    if array and (item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3):
        raise DataError(
            f"image {i}: expected a uint8 array of shape (height, width, 3), got {item.dtype} {item.shape}"
        )
    if not (array or _is_path(item) or isinstance(item, Image.Image)):
        raise DataError(f"image {i}: expected {ACCEPTED}; got {type(item).__name__}")


def _pixels(tensor: Any, ndim: int, where: str) -> NDArray[np.uint8]:
    """Return the pixels of a tensor, uint8, channels last; channels may be first, as in torchvision, or last.

    Raises:
        DataError: If it is not an RGB image, or its values are not pixels.
    """
    values = tensor.detach().cpu()
    channels_first = values.ndim == ndim and values.shape[ndim - 3] == 3
    if not channels_first and not (values.ndim == ndim and values.shape[-1] == 3):
        expected = "(n, 3, height, width)" if ndim == 4 else "(3, height, width)"
        raise DataError(f"{where}expected a tensor of shape {expected}, got {tuple(values.shape)}")
    dtype = str(values.dtype).removeprefix("torch.")
    pixels: NDArray[Any] = values.float().numpy() if "float" in dtype else values.numpy()
    if "float" in dtype:
        if not (pixels.size and pixels.min() >= 0 and pixels.max() <= 1):
            raise DataError(
                f"{where}a {dtype} tensor must be in [0, 1], got values from {pixels.min():.3g} to {pixels.max():.3g}",
                hint="give the image as it is: normalisation belongs to the model",
            )
        pixels = np.rint(pixels * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise DataError(f"{where}expected a tensor of uint8 or floats in [0, 1], got {dtype}")
    if channels_first:
        pixels = np.moveaxis(pixels, ndim - 3, -1)
    return np.ascontiguousarray(pixels)


def _is_path(item: Any) -> bool:
    return isinstance(item, str | os.PathLike)


def _is_tensor(item: Any) -> bool:
    return hasattr(item, "detach") and hasattr(item, "cpu")
