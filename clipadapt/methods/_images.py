"""Image features of a training step: cached, or computed from new augmented views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from clipadapt.tensor.moves import placed

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from clipadapt.core.api.data import Inputs
    from clipadapt.methods._training import TrainingConfig
    from clipadapt.models import ImageTextModel, Layer

PREDICT_BATCH: Final = 64
LARGEST_STATES: Final = 4 << 30
"""Maximum size in bytes of cached hidden states; larger ones are recomputed at each step."""


class FrozenFeatures:
    """Features of a frozen image tower, by row and view; unaugmented features are computed once."""

    def __init__(
        self, model: ImageTextModel, inputs: Inputs[Any], config: TrainingConfig, layer: Layer
    ) -> None:
        """Read the unaugmented features, unless every epoch has its own views.

        Args:
            model: The model.
            inputs: ``n`` images.
            config: Whether and how images are augmented.
            layer: Layer of the features.
        """
        self.model, self.inputs, self.layer = model, inputs, layer
        self.smallest_crop = config.smallest_crop
        self.cached = None
        if config.augment == "none" and config.epochs and model.services.fast:
            self.cached = tensor(model.encode(inputs, "image", layer), model.device)

    def __call__(self, rows: NDArray[np.int64], view: int) -> torch.Tensor:
        """Return float32 features of ``rows``, shape ``(b, D)``."""
        import torch

        if self.cached is not None and not view:
            return self.cached[placed(rows, self.cached.device)]
        with torch.no_grad():
            pixels = self.model.pixels(self.inputs, rows, view, self.smallest_crop)
            return self.model.encode_image(pixels, self.layer)


def tensor(array: NDArray[Any], device: torch.device | str = "cpu") -> torch.Tensor:
    """Return a tensor with the values of an array, which may be read-only."""
    return placed(array, device)


class TunedTower:
    """An image tower whose units from ``first`` on are trained; the input of unit ``first`` never changes."""

    def __init__(
        self,
        base: ImageTextModel,
        model: ImageTextModel,
        first: int,
        run: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """Join a frozen model and its trainable copy.

        Args:
            base: The frozen model, float32.
            model: The trainable copy.
            first: First trained unit of the image tower.
            run: Maps the input of that unit to unit-norm features; None runs the units of the copy.
        """
        self.base, self.model, self.first = base, model, first
        self.run = run or (lambda states: model.encode_image_from(states, first))

    def stored(self, inputs: Inputs[Any]) -> NDArray[np.float32] | None:
        """Return the input of the first trained unit from the feature cache, one row per image.

        None if that input is the pixels, or if it is larger than :data:`LARGEST_STATES`.
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
        """Compute the input of the first trained unit."""
        import torch

        with torch.no_grad():
            pixels = self.base.pixels(inputs, rows, view, smallest_crop)
            return self.base.encode_image(pixels, f"unit:{self.first}")

    def features(
        self, inputs: Inputs[Any], stored: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Return unit-norm features ``(n, D)`` for the current parameters, in bounded memory.

        Args:
            inputs: ``n`` images.
            stored: The result of :meth:`stored` for these images, if it is known already.
        """
        import numpy as np

        from clipadapt.tensor.batching import forward

        if stored is None:
            stored = self.stored(inputs)
        out = np.zeros((len(inputs), self.model.embed_dim), dtype=np.float32)
        with self.model.services.progress.track("encode images", len(inputs), "images") as bar:
            for begin in range(0, len(inputs), PREDICT_BATCH):
                rows = np.arange(begin, min(begin + PREDICT_BATCH, len(inputs)))
                below = self.below(inputs, rows, 0) if stored is None else tensor(stored[rows])
                out[rows] = forward(self.run, below, PREDICT_BATCH)
                bar.advance(len(rows))
        return out


class TunedImages:
    """Image features of a tower in training, by row and view."""

    def __init__(self, tower: TunedTower, inputs: Inputs[Any], config: TrainingConfig) -> None:
        """Read the input of the trained units, unless every epoch has its own views.

        Args:
            tower: The tower.
            inputs: ``n`` images.
            config: Whether and how images are augmented.
        """
        self.tower, self.inputs, self.smallest_crop = tower, inputs, config.smallest_crop
        self.stored = tower.stored(inputs) if config.augment == "none" else None

    def __call__(self, rows: NDArray[np.int64], view: int) -> torch.Tensor:
        """Return unit-norm features of ``rows``, shape ``(b, D)``."""
        return self.tower.run(self.states(rows, view))

    def states(self, rows: NDArray[np.int64], view: int) -> torch.Tensor:
        """Return the input of the first trained unit for ``rows``."""
        if self.stored is not None and not view:
            return placed(self.stored[rows], self.tower.model.device)
        return self.tower.below(self.inputs, rows, view, self.smallest_crop)


def unit_of(units: tuple[tuple[str, ...], ...], name: str) -> int:
    """Return the index of the unit that contains a parameter or layer of the image tower."""
    for i, prefixes in enumerate(units):
        if any(f"{name}.".startswith(prefix) for prefix in prefixes):
            return i
    raise ValueError(f"no unit contains '{name}'")
