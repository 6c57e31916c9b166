"""The adapter over open_clip's ``CLIP`` and ``CustomTextCLIP``.

``_build`` makes the network, ``_tokenize`` and ``_preprocess`` turn examples into tensors, ``_encode`` runs the towers,
``_features`` encodes whole datasets through the feature cache, ``_prompts`` makes prompts with slots. This class puts
them behind the protocols of :mod:`clipadapt.models`, where the methods are documented.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, Self, cast

import torch

from clipadapt.core.api.model import ModelOptions
from clipadapt.core.files import hardware, identity
from clipadapt.models import (
    SMALLEST_CROP,
    PortableCode,
    _attention,
    _projection,
    _prompts,
    _snippet,
    _sources,
)
from clipadapt.models._build import RANDOM_SEED, build, cast_weights
from clipadapt.models._encode import Towers
from clipadapt.models._features import Features, Request
from clipadapt.models._preprocess import Preprocess
from clipadapt.models._recalled import space_key
from clipadapt.tensor.batching import ahead
from clipadapt.tensor.devices import calculating
from clipadapt.tensor.moves import placed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from clipadapt.core.api.context import Services
    from clipadapt.core.api.data import Inputs
    from clipadapt.core.api.model import ModelIdentity
    from clipadapt.models import Layer, Projection, PromptPosition, Tower
    from clipadapt.models._recalled import Noted
    from clipadapt.models._tokenize import Tokenizer


class OpenClipModel:
    """An :class:`~clipadapt.models.AdapterTunable` over a network of open_clip.

    Attributes:
        identity: Name and hash of the files that were loaded; None for a copy and for random weights.
        noted: Remembers what later processes may ask without building the network; None for a copy and for random
            weights.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        tokenizer: Tokenizer,
        source: _sources.Source,
        *,
        name: str,
        device: str,
        dtype: str,
        services: Services,
        options: ModelOptions | None = None,
    ) -> None:
        self.module = module
        self.options = options or ModelOptions()
        self._net: Any = module
        self.tokenizer = tokenizer
        self.source = source
        self.name = name
        self.device = device
        self.dtype = dtype
        self.services = services
        self.identity: ModelIdentity | None = None
        self.noted: Noted | None = None
        self._towers = Towers(module, name, device, dtype)
        self._preprocess = Preprocess(module, source.preprocess_cfg)
        self._features = Features(self._towers, self._preprocess, tokenizer, source.model_cfg)
        self._in_dtype: dict[str, Self] = {}
        self._values: dict[str, tuple[tuple[int, int], float]] = {}

    @property
    def embed_dim(self) -> int:
        """Width of the joint space."""
        return int(self.source.model_cfg["embed_dim"])

    @property
    def context_length(self) -> int:
        """Tokens of each row that :meth:`tokenize` returns."""
        return self.tokenizer.context_length

    @property
    def logit_scale(self) -> float:
        """The factor of the logits: exp of the parameter."""
        return math.exp(self._value_of("logit_scale"))

    @property
    def logit_bias(self) -> float:
        """The constant added to every logit; 0 if the network has none."""
        return 0.0 if self._net.logit_bias is None else self._value_of("logit_bias")

    def _value_of(self, name: str) -> float:
        """Return the value of a parameter of one element; the host waits for a GPU only if it has changed."""
        parameter = getattr(self._net, name)
        seen = id(parameter), parameter._version
        if self._values.get(name, (None, 0.0))[0] != seen:
            self._values[name] = seen, float(parameter.detach().reshape(()))
        return self._values[name][1]

    @property
    def n_params(self) -> int:
        """Parameters of both towers."""
        decoder = _attention.DECODER
        named = self._net.named_parameters()
        return sum(p.numel() for name, p in named if not name.startswith(decoder))

    @property
    def weights_sha256(self) -> str:
        """sha256 over name, shape, dtype and bytes of every tensor as it is now."""
        return self._features.weights_sha256()

    # ---------------------------------------------------------------- images

    def preprocess(self, train: bool = False, /) -> Callable[[Image.Image], torch.Tensor]:
        """Return the transform from an image to ``(3, H, W)``: open_clip's, or for ``train`` a random crop and flip."""
        if not train:
            return cast("Callable[[Image.Image], torch.Tensor]", self._preprocess.transform)
        augment = self._preprocess.augment()
        return lambda image: augment(image, int(torch.randint(2**62, (1,))))

    def pixels(
        self,
        inputs: Inputs[Any],
        rows: NDArray[np.int64],
        view: int = 0,
        smallest_crop: float = SMALLEST_CROP,
    ) -> torch.Tensor:
        """Load and preprocess some images, in threads; shape ``(len(rows), 3, H, W)``, float32."""
        load = self._preprocess.loader(inputs, view, smallest_crop)
        workers = self.services.workers or hardware.cpu_count()
        return torch.stack(list(ahead(load, rows.tolist(), workers, 2 * len(rows))))

    def encode_image(self, pixels: torch.Tensor, /, layer: Layer = "output") -> torch.Tensor:
        """Encode preprocessed images ``(n, 3, H, W)`` to float32 ``(n, D)``."""
        return self._towers.encode_image(pixels, layer, fast=self.services.fast)

    def image_units(self) -> tuple[tuple[str, ...], ...]:
        """Return for each unit of the image tower the prefixes of its parameters' names, input side first."""
        return tuple(unit.names for unit in self._towers.units(fast=self.services.fast))

    def encode_image_from(
        self, states: torch.Tensor, unit: int, /, layer: Layer = "output"
    ) -> torch.Tensor:
        """Continue from the result of ``encode_image(pixels, f"unit:{unit}")``; float32 ``(n, D)``."""
        return self._towers.encode_image_from(states, unit, layer, fast=self.services.fast)

    def image_projection(self) -> Projection:
        """Return a copy of the linear projection of the image tower, float32.

        Raises:
            ModelError: If the image tower does not end in one.
        """
        return _projection.of(self._net.visual, self.name)

    # ---------------------------------------------------------------- texts

    def tokenize(self, texts: Sequence[str], /) -> torch.Tensor:
        """Return token ids, shape ``(n, context_length)``, int64.

        Raises:
            ModelError: If a text is longer than the context; no text is truncated silently.
        """
        return self.tokenizer(texts)

    def name_tokens(self, names: Sequence[str], /) -> list[tuple[tuple[int, ...], int]]:
        """Return for each name its token ids, without special tokens, and how many of them are unknown."""
        found = []
        for name in names:
            ids = tuple(self.tokenizer.plain_ids(name))
            found.append((ids, ids.count(cast("int", self.tokenizer.unknown_id))))
        if self.noted is not None:
            self.noted.names(names, found)
        return found

    def trim(self, tokens: torch.Tensor, /) -> torch.Tensor:
        """Truncate tokens ``(n, L)`` after the last one that decides a feature."""
        lengths = self._towers.used_lengths(tokens, fast=self.services.fast)
        return tokens[:, : int(lengths.max())]

    def encode_text(self, tokens: torch.Tensor, /, layer: Layer = "output") -> torch.Tensor:
        """Encode token ids ``(n, L)``, ``L <= context_length``, to float32 ``(n, D)``."""
        return self._towers.encode_text(tokens, layer, fast=self.services.fast)

    def prompt_slots(
        self, classnames: Sequence[str], n_ctx: int, position: PromptPosition = "end", /
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens ``(C, L)`` of prompts with slots for trained vectors, and the slots ``(C, n_ctx)``, int64.

        The prompts are truncated after the last token that decides a feature. Both are on the host.

        Args:
            classnames: ``C`` class names.
            n_ctx: Slots per prompt.
            position: Position of the class name: after the slots, between them, or before them.

        Raises:
            ModelError: If slots and name are longer than the context.
        """
        tokens, slots = _prompts.slots(self.tokenizer, classnames, n_ctx, position)
        return self.trim(tokens), slots

    def context_tokens(self, text: str, /) -> torch.Tensor:
        """Return the token ids of a text that context vectors start from, without special tokens.

        Raises:
            ModelError: If they leave no room for a class name.
        """
        return _prompts.context_tokens(self.tokenizer, text)

    def embed_tokens(self, tokens: torch.Tensor, /) -> torch.Tensor:
        """Return float32 token embeddings ``(..., W)``, before positions are added."""
        out: torch.Tensor = self._towers.token_embedding(placed(tokens, self.device))
        return out.detach().float()

    def encode_token_embeddings(
        self,
        embeddings: torch.Tensor,
        tokens: torch.Tensor,
        /,
        layer: Layer = "output",
        shared: int = 0,
    ) -> torch.Tensor:
        """Encode texts whose token embeddings ``(n, L, W)`` are given; ``tokens`` decide masks and pooling.

        Args:
            embeddings: Token embeddings, before positions are added.
            tokens: Token ids, shape ``(n, L)``.
            layer: Which features.
            shared: Leading positions whose embeddings are the same in every text. Under a causal mask their
                states are the same too, and are computed once.
        """
        return self._towers.encode_token_embeddings(
            embeddings, tokens, layer, shared, fast=self.services.fast
        )

    def nearest_tokens(self, vectors: torch.Tensor, k: int, /) -> list[list[tuple[str, float]]]:
        """Return per vector ``(n, W)`` the ``k`` tokens of smallest Euclidean distance, with the distances."""
        return _prompts.nearest_tokens(self.tokenizer, self._towers.token_embedding, vectors, k)

    # ---------------------------------------------------------------- prompts in both towers

    def prompt_blocks(self, tower: Tower, /) -> tuple[int, int]:
        """Return the number of blocks of a tower that can take prompts, and the width of a prompt token."""
        return self._towers.prompt_blocks(tower)

    def encode_image_with_prompts(
        self, states: torch.Tensor, prompts: Sequence[torch.Tensor], /, layer: Layer = "output"
    ) -> torch.Tensor:
        """Continue from the result of ``encode_image(pixels, "unit:1")`` with prompts; float32 ``(n, D)``."""
        return self._towers.encode_image_with_prompts(
            states, prompts, layer, fast=self.services.fast
        )

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
        """Encode texts with prompts in the positions ``slots``; float32 ``(n, D)``."""
        return self._towers.encode_text_with_prompts(
            embeddings, tokens, slots, prompts, layer, shared, fast=self.services.fast
        )

    # ---------------------------------------------------------------- both

    def encode(
        self,
        inputs: Inputs[Any],
        /,
        tower: Tower,
        layer: Layer = "output",
        view: int = 0,
        smallest_crop: float = SMALLEST_CROP,
    ) -> NDArray[np.float32]:
        """Encode any number of examples through the feature cache, in constant memory."""
        request, services = Request(tower, layer, view, smallest_crop), self.services
        key = space_key(services, tower, layer, view, smallest_crop)
        with self.calculating():
            if self.noted is not None and self.noted.is_new(key):
                self.noted.space(key, self, self._features.space(request, services))
            return self._features.get(inputs, request, services)

    def calculating(self) -> AbstractContextManager[None]:
        """Return a block that calculates with this model's ``tf32`` and ``deterministic``."""
        return calculating(self.options, self.device)

    def logits(self, image_features: torch.Tensor, text_features: torch.Tensor, /) -> torch.Tensor:
        """Return ``logit_scale * image_features @ text_features.T + logit_bias``, shape ``(n, C)``."""
        scale = self._net.logit_scale.exp().reshape(())
        out: torch.Tensor = scale * image_features @ text_features.T
        bias = self._net.logit_bias
        return out if bias is None else out + bias.reshape(())

    # ---------------------------------------------------------------- copies

    def with_services(self, services: Services, /) -> Self:
        """Return a model that shares these weights and encodes through other services."""
        other = copy.copy(self)
        other.services = services
        return other

    def clone(self, *, split: bool = False) -> Self:
        """Return a copy whose weights may be trained; ``split`` gives attention separate projections."""
        module = copy.deepcopy(self.module)
        if split:
            _attention.split(module)
        return self._with(module, self.dtype)

    def in_dtype(self, dtype: str, /) -> Self:
        """Return the model with its weights as stored, cast to ``fp32`` or ``bf16``; frozen, built once."""
        if dtype == self.dtype:
            return self
        if dtype not in self._in_dtype:
            module = build(self.source, self.name)
            if self.identity is not None:
                identity.require_files(self.source.files, self.identity)
            self._in_dtype[dtype] = self._with(cast_weights(module, self.device, dtype), dtype)
        if self._in_dtype[dtype].services is not self.services:
            self._in_dtype[dtype] = self._in_dtype[dtype].with_services(self.services)
        return self._in_dtype[dtype]

    def _with(self, module: torch.nn.Module, dtype: str) -> Self:
        return type(self)(
            module,
            self.tokenizer,
            self.source,
            name=self.name,
            device=self.device,
            dtype=dtype,
            services=self.services,
            options=self.options,
        )

    # ---------------------------------------------------------------- adapters and exports

    def adapter_targets(self, tower: Tower, /) -> dict[str, list[str]]:
        """Return the layers that may carry adapters by role, input side first; of a split clone."""
        return _attention.targets(self._net)[tower]

    def fused_state(self, network: torch.nn.Module, /) -> dict[str, torch.Tensor]:
        """Return the state of a network with split attention under the names of an ordinary one."""
        return _attention.fuse(network)

    def fused_adapters(
        self, updates: Mapping[str, Mapping[str, torch.Tensor]], /
    ) -> dict[str, dict[str, torch.Tensor]]:
        """Convert low-rank updates of this split clone to updates of an ordinary network."""
        return _attention.fuse_adapters(self._net, updates)

    def save_folder(
        self,
        directory: Path,
        state: Mapping[str, torch.Tensor] | None = None,
        output: Path | None = None,
    ) -> None:
        """Write the model as a folder that ``local-dir:`` and open_clip load.

        Args:
            directory: An existing folder.
            state: Weights of the same architecture, used instead of its own.
            output: Final path of the folder, as the user wrote it; ``directory`` if omitted.
        """
        _sources.save_folder(
            directory, self._net, self.tokenizer.inner, self.source, state, output=output
        )

    def open_clip_code(
        self, layer: Layer = "output", *, saved: bool = False, adapter: bool = False
    ) -> PortableCode:
        """Return code that computes image features with open_clip only."""
        code = _snippet.code(
            self.name,
            self.source,
            self._net.visual,
            layer,
            saved=saved,
            adapter=adapter,
            seed=RANDOM_SEED,
        )
        steps = ", ".join(str(step) for step in self._preprocess.transform.transforms)
        return PortableCode(*code, preprocessing=f"upright, RGB on white; {steps}")
