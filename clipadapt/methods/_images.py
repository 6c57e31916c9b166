"""Where the image features of a training step come from: the store, or fresh views of the pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from clipadapt.core.protocols import Inputs
    from clipadapt.methods._training import TrainingConfig
    from clipadapt.models import ImageTextModel, Layer


class FrozenFeatures:
    """Features of a frozen image tower, by row and view; nothing is computed twice that need not be."""

    def __init__(
        self, model: ImageTextModel, inputs: Inputs[Any], config: TrainingConfig, layer: Layer
    ) -> None:
        """Read the plain features, unless each epoch sees views of its own.

        Args:
            model: The model.
            inputs: ``n`` images.
            config: Says whether images are augmented.
            layer: Which features.
        """
        self.model, self.inputs, self.layer = model, inputs, layer
        self.smallest_crop = config.smallest_crop
        self.plain = None
        if config.augment == "none" and config.epochs:
            self.plain = tensor(model.encode(inputs, "image", layer), model.device)

    def __call__(self, rows: NDArray[np.int64], view: int) -> torch.Tensor:
        """Return float32 features of some rows, shape ``(b, D)``."""
        import torch

        if self.plain is not None and not view:
            return self.plain[torch.from_numpy(rows)]
        with torch.no_grad():
            pixels = self.model.pixels(self.inputs, rows, view, self.smallest_crop)
            return self.model.encode_image(pixels, self.layer)


def tensor(array: NDArray[np.float32], device: str = "cpu") -> torch.Tensor:
    """Return a tensor of an array that may be read-only."""
    import numpy as np
    import torch

    writable = array if array.flags.writeable else np.array(array)
    return torch.from_numpy(writable).to(device)
