"""Image-text models behind one protocol.

A file here is a registered model; any other name is a model of open_clip. This module imports no ML framework.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self, runtime_checkable

from clipadapt.core.api.model import Backbone

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL import Image

    from clipadapt.core.api.context import Services
    from clipadapt.core.api.data import Inputs

DEFAULT: Final = "openclip"
_CLIP: Final = "A. Radford et al., ICML 2021, arXiv:2103.00020"
_OPENCLIP: Final = "M. Cherti et al., CVPR 2023, arXiv:2212.07143"


def served() -> dict[str, tuple[str, str, str]]:
    """Return a sentence, the paper and the needs of each form of name that the default file serves, for lists."""
    return {
        "ViT-B-16-quickgelu/openai": ("OpenAI's CLIP; ViT-B-32-quickgelu and RN50-quickgelu too", _CLIP, "a download"),
        "ARCH/TAG": ("any pretrained model of open_clip", _OPENCLIP, "a download"),
        "ARCH/PATH.safetensors": ("your weights for an architecture of open_clip", "", "your file"),
        "hf-hub:ORG/NAME": ("an open_clip model of the Hugging Face Hub", "", "the hub, or its cache"),
        "local-dir:PATH": ("a folder with open_clip_config.json and weights", "", "your files"),
        "random:ARCH": ("an architecture of open_clip with random weights, for tests and timing", "", "nothing else"),
    }  # fmt: skip


Tower = Literal["image", "text"]
Layer = str
"""``output``, ``projected``, ``pre_projection``, or in the image tower ``unit:K``, the input of its unit ``K``, and
``attention`` in a ResNet, what the projection of its attention pooling reads."""
PromptPosition = Literal["end", "middle", "front"]
SMALLEST_CROP: Final = 0.08
"""Smallest share of an image's area that a random crop shows."""
LIBRARIES: Final = {
    "image": ("torch", "torchvision", "timm", "open_clip_torch", "pillow"),
    "text": ("torch", "open_clip_torch", "transformers", "tokenizers", "ftfy", "regex"),
}
"""Packages whose version can change the results numerically, by tower."""


@dataclass(frozen=True, slots=True)
class PortableCode:
    """Python code that computes features ``x`` of ``IMAGES`` with open_clip only.

    Attributes:
        lines: The code; it is run in the folder of the export.
        notes: What the code needs or cannot do, one sentence each.
        preprocessing: The steps from an image to a tensor.
    """

    lines: str
    notes: tuple[str, ...]
    preprocessing: str


@dataclass(frozen=True, slots=True)
class Projection:
    """The linear projection of an image tower: projected features are ``x @ weight + bias``.

    Attributes:
        layer: Layer of the features ``x`` that it reads, of width ``W``.
        weight: Shape ``(W, D)``, float32; a copy.
        bias: Shape ``(D,)``, or None.
    """

    layer: Layer
    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None


@runtime_checkable
class ImageTextModel(Backbone, Protocol):
    """A dual encoder of joint width ``D``; frozen, in evaluation mode, BatchNorm included.

    Attributes:
        services: Feature cache, progress and meter that :meth:`encode` uses.
        module: The network.
        embed_dim: ``D``, the width of the joint space.
        context_length: Tokens per text, as :meth:`tokenize` returns them.
        logit_scale: Factor of the logits, exp of the parameter.
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
            ModelError: If a text is longer than the context; no text is truncated silently.
        """
        ...

    def trim(self, tokens: torch.Tensor, /) -> torch.Tensor:
        """Truncate tokens ``(n, L)`` after the last one that decides a feature."""
        ...

    def pixels(
        self,
        inputs: Inputs[Any],
        rows: NDArray[np.int64],
        view: int = 0,
        smallest_crop: float = SMALLEST_CROP,
    ) -> torch.Tensor:
        """Load and preprocess some images; shape ``(len(rows), 3, H, W)``, float32.

        Args:
            inputs: Images.
            rows: Which of them.
            view: 0 for the evaluation transform; each other number is one fixed random crop and flip.
            smallest_crop: Smallest share of the area that an augmented view shows.
        """
        ...

    def encode_image(self, pixels: torch.Tensor, /, layer: Layer = "output") -> torch.Tensor:
        """Encode preprocessed images ``(n, 3, H, W)``.

        Returns:
            float32 features ``(n, D)``: normalised at ``output``, not normalised at ``projected``;
            at ``pre_projection`` the pooled features that the last projection reads.
        """
        ...

    def encode_text(self, tokens: torch.Tensor, /, layer: Layer = "output") -> torch.Tensor:
        """Encode token ids ``(n, L)`` to float32 ``(n, D)``, unit norm at ``output``."""
        ...

    def image_units(self) -> tuple[tuple[str, ...], ...]:
        """Return for each unit of the image tower the prefixes of its parameters' names, input side first."""
        ...

    def encode_image_from(
        self, states: torch.Tensor, unit: int, /, layer: Layer = "output"
    ) -> torch.Tensor:
        """Continue from the result of ``encode_image(pixels, f"unit:{unit}")``; float32 ``(n, D)``."""
        ...

    def encode(
        self,
        inputs: Inputs[Any],
        /,
        tower: Tower,
        layer: Layer = "output",
        view: int = 0,
        smallest_crop: float = SMALLEST_CROP,
    ) -> NDArray[np.float32]:
        """Encode any number of examples through the feature cache, in constant memory.

        Args:
            inputs: Images or texts, ``n`` of them.
            tower: Which encoder.
            layer: Which features.
            view: 0 for the evaluation transform; each other number is one fixed augmentation.
            smallest_crop: Smallest share of the area that an augmented view shows.

        Returns:
            float32 features, shape ``(n, D)`` or ``(n, width)``.
        """
        ...

    def logits(self, image_features: torch.Tensor, text_features: torch.Tensor, /) -> torch.Tensor:
        """Return ``logit_scale * image_features @ text_features.T + logit_bias``, shape ``(n, C)``."""
        ...

    def clone(self, *, split: bool = False) -> Self:
        """Return a copy whose weights may be trained without changing this model.

        Args:
            split: Use separate attention projections, which adapters need.
        """
        ...

    def in_dtype(self, dtype: str, /) -> Self:
        """Return the model with its weights as stored, cast to ``fp32`` or ``bf16``; frozen, built once."""
        ...

    def save_folder(
        self,
        directory: Path,
        state: Mapping[str, torch.Tensor] | None = None,
        output: Path | None = None,
    ) -> None:
        """Write the model, or the same model with the weights ``state``, as a folder that open_clip loads.

        Args:
            directory: An existing folder.
            state: Weights, used instead of its own.
            output: Final path of the folder, as the user wrote it.
        """
        ...

    def open_clip_code(
        self, layer: Layer = "output", *, saved: bool = False, adapter: bool = False
    ) -> PortableCode:
        """Return code that computes image features with open_clip only.

        Args:
            layer: Which features.
            saved: Whether the model is in the folder, as :meth:`save_folder` writes it.
            adapter: Whether the folder holds a PEFT adapter of the model.
        """
        ...


@runtime_checkable
class ProjectionTunable(ImageTextModel, Protocol):
    """A model whose image features come from a linear projection that may be trained."""

    def image_projection(self) -> Projection:
        """Return a copy of the projection.

        Raises:
            ModelError: If this model has none; families differ.
        """
        ...


@runtime_checkable
class PromptTunable(ImageTextModel, Protocol):
    """A model whose prompts may hold trained vectors of width ``W`` instead of token embeddings."""

    def prompt_slots(
        self, classnames: Sequence[str], n_ctx: int, position: PromptPosition = "end", /
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids ``(C, L)`` of prompts with ``n_ctx`` slots each, and the slots' positions ``(C, n_ctx)``.

        Raises:
            ModelError: If slots and name are longer than the context.
        """
        ...

    def context_tokens(self, text: str, /) -> torch.Tensor:
        """Return the token ids of a text, without special tokens."""
        ...

    def embed_tokens(self, tokens: torch.Tensor, /) -> torch.Tensor:
        """Return float32 token embeddings ``(..., W)``, before positions are added."""
        ...

    def encode_token_embeddings(
        self,
        embeddings: torch.Tensor,
        tokens: torch.Tensor,
        /,
        layer: Layer = "output",
        shared: int = 0,
    ) -> torch.Tensor:
        """Encode texts whose token embeddings ``(n, L, W)`` are given; float32 ``(n, D)``.

        The first ``shared`` positions hold the same embeddings in every text.
        """
        ...

    def nearest_tokens(self, vectors: torch.Tensor, k: int, /) -> list[list[tuple[str, float]]]:
        """Return per vector the ``k`` nearest tokens of the vocabulary and their Euclidean distances."""
        ...


@runtime_checkable
class DeepPromptTunable(PromptTunable, Protocol):
    """A model whose towers may hold trained tokens that are replaced before each block.

    Whether a tower can take prompts depends on its architecture: :meth:`prompt_blocks` raises if it cannot.
    """

    def prompt_blocks(self, tower: Tower, /) -> tuple[int, int]:
        """Return the number of blocks of a tower, and the width of its prompt tokens.

        Raises:
            ModelError: If the tower cannot take prompts, such as a convolutional network.
        """
        ...

    def encode_image_with_prompts(
        self, states: torch.Tensor, prompts: Sequence[torch.Tensor], /, layer: Layer = "output"
    ) -> torch.Tensor:
        """Encode images with prompts in the image tower; float32 ``(n, D)``.

        ``prompts[0]`` is appended to the tokens of the image, without positions and before the first norm;
        ``prompts[i]`` takes its place before block ``i``. The features are pooled from the tokens of the image alone.

        Args:
            states: Result of ``encode_image(pixels, "unit:1")``, the input of the first block.
            prompts: At least one, at most one per block; each of shape ``(P, W)``.
            layer: Which features.
        """
        ...

    def encode_text_with_prompts(
        self,
        embeddings: torch.Tensor,
        tokens: torch.Tensor,
        slots: torch.Tensor,
        prompts: Sequence[torch.Tensor],
        /,
        layer: Layer = "output",
        shared: int = 0,
    ) -> torch.Tensor:
        """Encode texts with prompts in the text tower; float32 ``(n, D)``.

        ``prompts[0]`` replaces the token embeddings at ``slots``; ``prompts[i]`` replaces the states there before
        block ``i``.

        Args:
            embeddings: Token embeddings, shape ``(n, L, W)``.
            tokens: Token ids, shape ``(n, L)``.
            slots: Positions of the prompt tokens, shape ``(n, P)``.
            prompts: At least one, at most one per block; each of shape ``(P, W)``.
            layer: Which features.
            shared: Number of leading positions, slots included, with the same tokens in every text.
        """
        ...


@runtime_checkable
class AdapterTunable(PromptTunable, Protocol):
    """A model whose layers may carry low-rank adapters."""

    def adapter_targets(self, tower: Tower, /) -> dict[str, list[str]]:
        """Return the names of the layers by role (q, k, v, out, mlp, pointwise), input side first.

        To be called on a clone with split attention. A role that the tower does not have is left out.
        """
        ...

    def fused_state(self, network: torch.nn.Module, /) -> dict[str, torch.Tensor]:
        """Return the state of a network with split attention under the names of an ordinary one."""
        ...

    def fused_adapters(
        self, updates: Mapping[str, Mapping[str, torch.Tensor]], /
    ) -> dict[str, dict[str, torch.Tensor]]:
        """Convert low-rank updates of this split clone to updates of an ordinary network.

        Args:
            updates: By layer: ``A`` of shape ``(r, in)``, ``B`` of shape ``(out, r)``, optionally ``magnitude``.
        """
        ...
