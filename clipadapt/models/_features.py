"""Features of any number of examples, through the feature cache, in constant memory."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import torch

from clipadapt.core.api.features import Space
from clipadapt.core.files import hardware, identity
from clipadapt.models import LIBRARIES, SMALLEST_CROP
from clipadapt.models._attention import DECODER
from clipadapt.tensor import batching
from clipadapt.tensor.moves import stacked
from clipadapt.tensor.weights import WeightsHash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from clipadapt.core.api.context import Services
    from clipadapt.core.api.data import Inputs
    from clipadapt.models import Layer, Tower
    from clipadapt.models._encode import Towers
    from clipadapt.models._preprocess import Preprocess
    from clipadapt.models._tokenize import Tokenizer

    Batches = Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]
    Started = tuple[NDArray[np.int64], Callable[[], NDArray[np.float32]]]

IMAGE_BATCH: Final = 32
TEXT_BATCH: Final = 64


@dataclass(frozen=True)
class Request:
    """Which features of an example.

    Attributes:
        tower: Which encoder.
        layer: Which layer.
        view: 0 for the evaluation transform; each other number is one fixed augmentation.
        smallest_crop: Smallest share of the area that an augmented view shows.
    """

    tower: Tower
    layer: Layer = "output"
    view: int = 0
    smallest_crop: float = SMALLEST_CROP


class Features:
    """Computes the features of one network."""

    def __init__(
        self,
        towers: Towers,
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        model_cfg: Mapping[str, Any],
    ) -> None:
        """Store everything that features depend on.

        Args:
            towers: The encoders.
            preprocess: Preprocessing of images.
            tokenizer: Tokenizer of texts.
            model_cfg: open_clip's ``model_cfg``.
        """
        self.towers = towers
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.model_cfg = model_cfg
        self._hash = WeightsHash()

    def get(self, inputs: Inputs[Any], request: Request, services: Services) -> NDArray[np.float32]:
        """Return the features of ``n`` examples, shape ``(n, D)``; those not in the cache are computed."""
        if request.tower == "text" and request.view:
            raise ValueError("texts have no augmented views")
        batches = self._images if request.tower == "image" else self._texts
        with services.meter.stage("reading"):
            digests = inputs.digests()
        with torch.no_grad():
            got = services.cache.get_or_compute(
                self.space(request, services),
                digests,
                partial(batches, inputs, request, services),
            )
        services.meter.add(got.encode_seconds, got.seconds_spent, got.computed)
        return cast("NDArray[np.float32]", got.rows)

    def weights_sha256(self, tower: Tower | None = None) -> str:
        """Return the sha256 of the current weights, of both towers or of one."""

        def counts(name: str) -> bool:
            visual = name.startswith("visual.")
            return (
                tower is None
                or (tower == "image" and visual)
                or (tower == "text" and not visual and not name.startswith(("logit_", DECODER)))
            )

        state = self.towers.net.state_dict(keep_vars=True)
        return self._hash.of((name, tensor) for name, tensor in state.items() if counts(name))

    def space(self, request: Request, services: Services) -> Space:
        """Return everything that decides these features beside the example."""
        tower = request.tower
        # Equal weights may belong to other heads, patches, pooling or activations: the config is hashed too.
        config = json.dumps(_portable(self.model_cfg), sort_keys=True)
        weights = hashlib.sha256(f"{self.weights_sha256(tower)} {config}".encode()).hexdigest()
        arithmetic = self.towers.arithmetic(tower, fast=services.fast, compiled=services.compile)
        return Space(
            weights=weights,
            activation="quick_gelu" if self.model_cfg.get("quick_gelu") else "gelu",
            layer=request.layer,
            preprocess=self.preprocess.description(request.view, request.smallest_crop)
            if tower == "image"
            else self.tokenizer.description,
            dtype=" ".join(arithmetic),
            view=request.view,
            tower=tower,
            libraries=identity.versions(*LIBRARIES[tower]),
        )

    def _images(
        self,
        inputs: Inputs[Any],
        request: Request,
        services: Services,
        indices: NDArray[np.int64],
    ) -> Batches:
        load = self.preprocess.loader(inputs, request.view, request.smallest_crop)
        size = services.batch_size or IMAGE_BATCH
        workers = services.workers or hardware.cpu_count()
        layer, fast = request.layer, services.fast
        network: Callable[[torch.Tensor], torch.Tensor]
        network, least = (
            partial(self.towers.encode_image, layer=layer, fast=fast),
            batching.MIN_ROWS,
        )
        if services.compile:
            # Compiled for one shape, so every batch is filled up to it.
            network, least = self.towers.compiled_image(layer, fast=fast), size
        with services.progress.track("encode images", len(indices), "images") as bar:
            loaded = batching.ahead(load, indices.tolist(), workers, window=2 * size)
            device = self.towers.device

            def started() -> Iterator[Started]:
                for begin in range(0, len(indices), size):
                    part = indices[begin : begin + size]
                    with services.meter.stage("decoding"):
                        rows = [next(loaded) for _ in part]
                        pixels = stacked(rows, device)  # (m, 3, H, W)
                    with services.meter.stage("model"):
                        wait = batching.started(network, pixels, size, least, device)
                    yield part, wait

            for part, encoded in batching.in_flight(started(), device, services.meter):
                yield part, encoded
                bar.advance(len(part))

    def _texts(
        self,
        inputs: Inputs[Any],
        request: Request,
        services: Services,
        indices: NDArray[np.int64],
    ) -> Batches:
        """Yield batches of texts of the same length: a text's features depend on that text only."""
        size = services.batch_size or TEXT_BATCH
        network = partial(self.towers.encode_text, layer=request.layer, fast=services.fast)

        def started() -> Iterator[Started]:
            for start in range(0, len(indices), batching.CHUNK):
                part = indices[start : start + batching.CHUNK]
                with services.meter.stage("decoding"):
                    tokens = self.tokenizer([inputs.examples[int(i)] for i in part])  # (m, L)
                used = self.towers.used_lengths(tokens, fast=services.fast).numpy()
                lengths = (-(-used // batching.PAD_TO) * batching.PAD_TO).clip(max=tokens.shape[1])
                for rows, length in batching.same_length(lengths, size):
                    with services.meter.stage("model"):
                        # The tower reads the tokens on the host too, so they are not sent ahead.
                        wait = batching.started(network, tokens[rows, :length], size)
                    yield part[rows], wait

        device = self.towers.device
        with services.progress.track("encode texts", len(indices), "texts") as bar:
            for part, encoded in batching.in_flight(started(), device, services.meter):
                yield part, encoded
                bar.advance(len(part))


def _portable(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without the paths of text towers, which change when a folder is moved."""
    text = {
        k: v
        for k, v in model_cfg["text_cfg"].items()
        if not k.startswith("hf_model_") and k != "hf_tokenizer_name"
    }
    vision = {k: v for k, v in model_cfg["vision_cfg"].items() if k != "timm_model_pretrained"}
    return {**model_cfg, "text_cfg": text, "vision_cfg": vision}
