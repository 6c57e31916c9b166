"""The usual training transform, a random resized crop and a flip, with one random generator per image and view.

A view is a number. The same view of the same image is the same crop in every process and thread, so views can be
cached, and a resumed training sees the same crops as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

if TYPE_CHECKING:
    import torch
    from PIL import Image

VERSION: Final = 1
"""Increased when a view of an image changes."""
ATTEMPTS: Final = 10
RATIO: Final = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class CropFlip:
    """Random resized crop (bicubic), flip with probability one half, CLIP's normalisation.

    Attributes:
        size: Height and width of the result.
        smallest: Smallest share of the image's area that is cropped; the largest is 1.
        mean: Mean per channel.
        std: Standard deviation per channel.
    """

    size: tuple[int, int]
    smallest: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image, seed: int) -> torch.Tensor:
        """Return one view, shape ``(3, H, W)``."""
        rng = np.random.Generator(np.random.PCG64(seed))
        image = image.convert("RGB")
        top, left, height, width = self._box(image.height, image.width, rng)
        box: Any = TF.resized_crop(
            image, top, left, height, width, list(self.size), InterpolationMode.BICUBIC
        )
        if rng.random() < 0.5:
            box = TF.hflip(box)
        out: torch.Tensor = TF.normalize(TF.to_tensor(box), list(self.mean), list(self.std))
        return out

    def _box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Draw a crop as torchvision's RandomResizedCrop does: area and log aspect ratio uniform."""
        for _ in range(ATTEMPTS):
            area = height * width * rng.uniform(self.smallest, 1.0)
            ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(rng.integers(0, height - h + 1))
                left = int(rng.integers(0, width - w + 1))
                return top, left, h, w
        # No box fitted: use the largest one of an allowed ratio, in the centre.
        w, h = width, height
        if width / height < RATIO[0]:
            h = round(width / RATIO[0])
        elif width / height > RATIO[1]:
            w = round(height * RATIO[1])
        return (height - h) // 2, (width - w) // 2, h, w


def view_seed(view: int, digest: bytes) -> int:
    """Return the seed of one view of the image with this content hash."""
    return int.from_bytes(hashlib.sha256(f"{view}:".encode() + digest).digest()[:8], "little")
