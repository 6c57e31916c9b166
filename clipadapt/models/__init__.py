"""Models: dual encoders behind one protocol.

A file here is a registered model; a name without a file of its own is open_clip's.
Nothing here imports a framework at run time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, runtime_checkable

from clipadapt.core.protocols import Backbone

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL import Image

    from clipadapt.core.context import Services
    from clipadapt.core.protocols import Inputs

DEFAULT: Final = "openclip"

Tower = Literal["image", "text"]
Layer = Literal["output", "projected", "pre_projection"]


@runtime_checkable
class ImageTextModel(Backbone, Protocol):
    """A dual encoder of joint width ``D``; frozen, in evaluation mode, BatchNorm included.

    Attributes:
        services: Store, progress and meter that :meth:`encode` uses.
        module: The network itself.
        embed_dim: ``D``, the width of the joint space.
        context_length: Tokens the tokenizer gives per text.
        logit_scale: The factor itself, exp of the parameter.
        logit_bias: Added to every logit; 0 for CLIP.
        n_params: Parameters of both towers.
    """

    @property
    def services(self) -> Services: ...
    @property
    def module(self) -> torch.nn.Module: ...
    @property
    def embed_dim(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def logit_scale(self) -> float: ...
    @property
    def logit_bias(self) -> float: ...
    @property
    def n_params(self) -> int: ...

    def preprocess(self, train: bool = False, /) -> Callable[[Image.Image], torch.Tensor]:
        """Return the transform from an image to a tensor ``(3, H, W)``; ``train`` augments."""
        ...

    def tokenize(self, texts: Sequence[str], /) -> torch.Tensor:
        """Return token ids, shape ``(n, context_length)``, int64.

        Raises:
            ModelError: If a text is longer than the context; nothing is cut in silence.
        """
        ...

    def encode_image(self, pixels: torch.Tensor, /, layer: Layer = "output") -> torch.Tensor:
        """Encode preprocessed images ``(n, 3, H, W)``.

        Returns:
            float32 features ``(n, D)``: unit norm at ``output``, before the norm at ``projected``;
            at ``pre_projection`` the pooled features that the last projection reads.
        """
        ...

    def encode_text(self, tokens: torch.Tensor, /, layer: Layer = "output") -> torch.Tensor:
        """Encode token ids ``(n, L)`` to float32 ``(n, D)``, unit norm at ``output``."""
        ...

    def encode(
        self, inputs: Inputs[Any], /, tower: Tower, layer: Layer = "output", view: int = 0
    ) -> NDArray[np.float32]:
        """Encode any number of examples through the feature store, in constant memory.

        Args:
            inputs: Images or texts, ``n`` of them.
            tower: Which encoder.
            layer: Which features.
            view: 0 for the plain preprocessing; each other number is one fixed augmentation.

        Returns:
            float32 features, shape ``(n, D)`` or ``(n, width)``.
        """
        ...

    def logits(self, image_features: torch.Tensor, text_features: torch.Tensor, /) -> torch.Tensor:
        """Return ``logit_scale * image_features @ text_features.T + logit_bias``, shape ``(n, C)``."""
        ...

    def clone(self) -> ImageTextModel:
        """Return a copy whose weights may be trained without a change to this model."""
        ...
