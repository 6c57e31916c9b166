"""From an image to pixels: open_clip's transform, or a random view for training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from open_clip.transform import PreprocessCfg, image_transform_v2
from torchvision.transforms import Compose, Resize

from clipadapt.core.api.data import digest
from clipadapt.models import SMALLEST_CROP
from clipadapt.models._augment import VERSION, CropFlip, view_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from PIL import Image

    from clipadapt.core.api.data import Inputs

DECODE_VERSION: Final = 1
"""Increased when the pixels of the same file change."""


class Preprocess:
    """The preprocessing of an image tower.

    Attributes:
        transform: open_clip's evaluation transform, from an image to a tensor ``(3, H, W)``.
    """

    def __init__(self, module: Any, preprocess_cfg: Mapping[str, Any]) -> None:
        """Read the settings of a network.

        Args:
            module: Network of open_clip.
            preprocess_cfg: Its config; with ``resize_size``, images are resized to more than the crop.
        """
        self._cfg = PreprocessCfg(**module.visual.preprocess_cfg)
        self.transform: Any = image_transform_v2(self._cfg, is_train=False)
        larger = preprocess_cfg.get("resize_size")
        if larger is not None:
            first, *rest = self.transform.transforms
            self.transform = Compose([
                Resize(int(larger), interpolation=first.interpolation),
                *rest,
            ])

    def augment(self, smallest_crop: float = SMALLEST_CROP) -> CropFlip:
        """Return the training transform: a random resized crop and a flip."""
        size = self._cfg.size
        size = (size, size) if isinstance(size, int) else tuple(size)
        return CropFlip(size, smallest_crop, tuple(self._cfg.mean), tuple(self._cfg.std))

    def loader(
        self, inputs: Inputs[Any], view: int, smallest_crop: float
    ) -> Callable[[int], torch.Tensor]:
        """Return the function that loads and preprocesses one image ``(3, H, W)`` by index.

        Args:
            inputs: Images.
            view: 0 for the evaluation transform; each other number is one fixed random crop and flip.
            smallest_crop: Smallest share of the area that an augmented view shows.
        """
        augment = self.augment(smallest_crop)

        def load(index: int) -> torch.Tensor:
            image: Image.Image = inputs.examples[index]
            if not view:
                return cast("torch.Tensor", self.transform(image))
            return augment(image, view_seed(view, digest(inputs.examples, index)))

        return load

    def description(self, view: int, smallest_crop: float) -> str:
        """Return text that determines the pixels of an image."""
        steps = f"{self.augment(smallest_crop)} {VERSION}" if view else self.transform
        return f"{steps} decode={DECODE_VERSION}"
