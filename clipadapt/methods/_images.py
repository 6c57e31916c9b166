"""Where the image features of a training step come from: the store, or fresh views of the pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.data import Inputs
    from clipadapt.methods._training import TrainingConfig
    from clipadapt.models import ImageTextModel, Layer

PREDICT_BATCH: Final = 64
LARGEST_STATES: Final = 4 << 30
"""States of an image tower's inside are kept up to this many bytes; beyond they are computed at each step."""


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
        if config.augment == "none" and config.epochs and model.services.fast:
            self.plain = tensor(model.encode(inputs, "image", layer), model.device)

    def __call__(self, rows: NDArray[np.int64], view: int) -> torch.Tensor:
        """Return float32 features of some rows, shape ``(b, D)``."""
        import torch

        if self.plain is not None and not view:
            return self.plain[torch.from_numpy(rows).to(self.plain.device)]
        with torch.no_grad():
            pixels = self.model.pixels(self.inputs, rows, view, self.smallest_crop)
            return self.model.encode_image(pixels, self.layer)


def tensor(array: NDArray[np.float32], device: str = "cpu") -> torch.Tensor:
    """Return a tensor of an array that may be read-only."""
    import numpy as np
    import torch

    writable = array if array.flags.writeable else np.array(array)
    return torch.from_numpy(writable).to(device)


class TunedTower:
    """An image tower that is trained from some unit on; what that unit reads never changes."""

    def __init__(self, base: ImageTextModel, model: ImageTextModel, first: int) -> None:
        """Join a frozen model and its trained copy.

        Args:
            base: The model, float32.
            model: Its copy that is trained.
            first: First unit of the image tower that is.
        """
        self.base, self.model, self.first = base, model, first

    def stored(self, inputs: Inputs[Any]) -> NDArray[np.float32] | None:
        """Return what the first trained unit reads, one row an image, from the store.

        None where that is the pixels themselves, or more than is worth keeping.
        """
        import numpy as np

        if self.first == 0 or not len(inputs) or not self.base.services.fast:
            return None
        row = self.below(inputs, np.zeros(1, dtype=np.int64), 0)
        if row.numel() * row.element_size() * len(inputs) > LARGEST_STATES:
            return None
        return self.base.encode(inputs, "image", f"unit:{self.first}")

    def below(
        self,
        inputs: Inputs[Any],
        rows: NDArray[np.int64],
        view: int,
        smallest_crop: float = 0.08,
    ) -> torch.Tensor:
        """Compute what the first trained unit reads."""
        import torch

        with torch.no_grad():
            pixels = self.base.pixels(inputs, rows, view, smallest_crop)
            return self.base.encode_image(pixels, f"unit:{self.first}")

    def features(
        self, inputs: Inputs[Any], stored: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Return unit-norm features ``(n, D)`` as the tower is now, in bounded memory.

        Args:
            inputs: ``n`` images.
            stored: What :meth:`stored` gave for them, where it was asked before.
        """
        import numpy as np

        from clipadapt.models._encode import forward

        if stored is None:
            stored = self.stored(inputs)
        out = np.zeros((len(inputs), self.model.embed_dim), dtype=np.float32)
        with self.model.services.progress.track("encode images", len(inputs), "images") as bar:
            for begin in range(0, len(inputs), PREDICT_BATCH):
                rows = np.arange(begin, min(begin + PREDICT_BATCH, len(inputs)))
                below = self.below(inputs, rows, 0) if stored is None else tensor(stored[rows])
                out[rows] = forward(
                    lambda x: self.model.encode_image_from(x, self.first), below, PREDICT_BATCH
                )
                bar.advance(len(rows))
        return out


class TunedImages:
    """Image features of a tower in training, by row and view."""

    def __init__(self, tower: TunedTower, inputs: Inputs[Any], config: TrainingConfig) -> None:
        """Read what stays as it is, unless each epoch sees views of its own.

        Args:
            tower: The tower.
            inputs: ``n`` images.
            config: Says whether images are augmented.
        """
        self.tower, self.inputs, self.smallest_crop = tower, inputs, config.smallest_crop
        self.stored = tower.stored(inputs) if config.augment == "none" else None

    def __call__(self, rows: NDArray[np.int64], view: int) -> torch.Tensor:
        """Return unit-norm features of some rows, shape ``(b, D)``."""
        tower = self.tower
        if self.stored is not None and not view:
            below = tensor(self.stored[rows])
        else:
            below = tower.below(self.inputs, rows, view, self.smallest_crop)
        return tower.model.encode_image_from(below, tower.first)


def unit_of(units: tuple[tuple[str, ...], ...], name: str) -> int:
    """Return the unit that a parameter or layer of the image tower belongs to."""
    for i, begins in enumerate(units):
        if any(f"{name}.".startswith(begin) for begin in begins):
            return i
    raise ValueError(f"no unit holds '{name}'")
