"""The adapter over transformers' encoders.

``_build`` makes the network, ``_tokenize`` turns texts into token ids, ``_states`` runs the network up to a layer; this
class puts them behind the protocol :class:`textsent.models.TextEncoder` and encodes through the feature cache.
"""

from __future__ import annotations

import copy
import hashlib
import json
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, cast, get_args

import numpy as np

from clipadapt.core.api.errors import ModelError, did_you_mean
from clipadapt.core.api.features import Space
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.files import identity
from clipadapt.tensor import batching
from clipadapt.tensor.devices import arithmetic, calculating, set_threads
from clipadapt.tensor.moves import fetched
from clipadapt.tensor.seeding import seeded
from textsent.models import Pooling
from textsent.models._build import (
    build,
    build_tokenizer,
    classifier_of,
    lora_targets,
    max_length,
    quiet,
)
from textsent.models._sources import no_tokenizer
from textsent.models._states import Network
from textsent.models._tokenize import CachedTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from clipadapt.core.api.context import Services
    from clipadapt.core.api.data import Inputs
    from clipadapt.core.api.model import ModelIdentity
    from textsent.models._sources import Source

BATCH: Final = 64
LIBRARIES: Final = ("torch", "transformers", "tokenizers")
"""Packages whose version can change the results numerically."""


def load(
    source: Source,
    *,
    name: str,
    device: str,
    dtype: str,
    services: Services,
    options: ModelOptions | None = None,
) -> Encoder:
    """Build the model of a source on its device.

    Raises:
        ModelError: If transformers cannot build it, or the weights do not fit the configuration.
    """
    set_threads(services)
    module, fresh = build(source, name)
    tokenizer = None
    if source.tokenizer is not None:
        tokenizer = build_tokenizer(source, name)
        embeddings: Any = module.get_input_embeddings()
        n_rows = int(embeddings.num_embeddings)
        if len(tokenizer) > n_rows:
            raise ModelError(
                f"the tokenizer of '{name}' knows {len(tokenizer)} tokens, and the model has {n_rows} embeddings",
                hint="put the tokenizer that the model was trained with into its folder",
            )
    placed: Any = module
    return Encoder(
        placed.to(device),
        tokenizer,
        fresh,
        name=name,
        device=device,
        dtype=dtype,
        services=services,
        options=options,
    )


class Encoder:
    """A :class:`~textsent.models.TextEncoder` over a model of transformers.

    ``module`` holds the weights as they are stored, in float32; :meth:`encode` runs a copy cast to ``dtype``.

    Attributes:
        identity: Name and hash of the files that were loaded; None for a copy.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        fresh: frozenset[str],
        *,
        name: str,
        device: str,
        dtype: str,
        services: Services,
        options: ModelOptions | None = None,
    ) -> None:
        self.module = module
        self.options = options or ModelOptions()
        self._config: Any = module.config
        self._fresh = fresh
        self.name = name
        self.device = device
        self.dtype = dtype
        self.services = services
        self.max_length = max_length(module, tokenizer)
        self.identity: ModelIdentity | None = None
        self._network = Network(module, device, dtype)
        self._tokenizer = (
            None if tokenizer is None else CachedTokenizer(tokenizer, name, self.max_length)
        )

    @property
    def _cached_tokenizer(self) -> CachedTokenizer:
        if self._tokenizer is None:
            raise no_tokenizer(self.name)
        return self._tokenizer

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer.

        Raises:
            ModelError: If the model has none (random weights of a configuration alone).
        """
        return self._cached_tokenizer.inner

    @property
    def architecture(self) -> str:
        """Model type of the configuration."""
        return str(self._config.model_type)

    @property
    def width(self) -> int:
        """Width of a hidden state."""
        return int(self._config.hidden_size)

    @property
    def n_layers(self) -> int:
        """Layers above the embeddings."""
        return int(self._config.num_hidden_layers)

    @property
    def n_params(self) -> int:
        """Parameters of the encoder."""
        return sum(p.numel() for p in self.module.parameters())

    @property
    def weights_sha256(self) -> str:
        """sha256 over name, shape, dtype and bytes of every tensor as it is now."""
        return self._network.weights_sha256

    def tokenize(self, texts: Sequence[str], /, max_length: int | None = None) -> list[list[int]]:
        """Return the token ids of each text, truncated to ``max_length`` tokens.

        Raises:
            ModelError: If the model cannot read ``max_length`` tokens.
        """
        tokenizer = self._cached_tokenizer
        limit = tokenizer.limit(max_length)
        tokenizer.report_truncated(texts, limit, self.services)
        return tokenizer(texts, limit)

    def encode(
        self,
        inputs: Inputs[str],
        /,
        layer: int = -1,
        pooling: Pooling = "cls",
        max_length: int | None = None,
    ) -> NDArray[np.float32]:
        """Encode any number of texts through the feature cache, see :class:`~textsent.models.TextEncoder`."""
        place, limit = self._layer(layer), self._cached_tokenizer.limit(max_length)
        known = get_args(Pooling)
        if pooling not in known:
            raise ModelError(
                f"unknown pooling '{pooling}'{did_you_mean(pooling, known)}",
                hint=f"use {' or '.join(known)}",
            )
        texts = [inputs.examples[i] for i in range(len(inputs))]
        self._cached_tokenizer.report_truncated(texts, limit, self.services)
        set_threads(self.services)
        with self.services.meter.stage("reading"):
            digests = inputs.digests()
        rows = partial(self._rows, inputs, place, pooling, limit)
        with self.calculating():
            space = self._space(place, pooling, limit)
            got = self.services.cache.get_or_compute(space, digests, rows)
        self.services.meter.add(got.encode_seconds, got.seconds_spent, got.computed)
        return cast("NDArray[np.float32]", got.rows)

    def calculating(self) -> AbstractContextManager[None]:
        """Return a block that calculates with this model's ``tf32`` and ``deterministic``."""
        return calculating(self.options, self.device)

    def states(
        self, ids: Sequence[Sequence[int]], layer: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run one batch up to a layer.

        Args:
            ids: ``n`` rows of token ids.
            layer: 0 (the embeddings) to ``n_layers``.

        Returns:
            States ``(n, L, D)``, padded token ids ``(n, L)`` and mask ``(n, L)``, 0 at padding.
        """
        padded, mask = batching.pad_tokens(ids, max(map(len, ids)), self._cached_tokenizer.pad_id)
        states, mask = self._network.states(self._network.in_dtype(), padded, mask, layer)
        return states, padded, mask

    def classifier(self, classnames: Sequence[str], seed: int, /) -> PreTrainedModel:
        """Return a sequence classifier on a copy of this encoder, float32, its new head drawn from ``seed``.

        Raises:
            ModelError: If transformers has no sequence classifier of this architecture.
        """
        config = copy.deepcopy(self._config)
        config.id2label = dict(enumerate(classnames))
        config.label2id = {name: i for i, name in enumerate(classnames)}
        config.problem_type = "single_label_classification"
        if self._tokenizer is not None:
            config.pad_token_id = self._tokenizer.inner.pad_token_id
        with seeded(seed), quiet():
            model: Any = classifier_of(config, self.name)
        # Parameters that the checkpoint does not hold are drawn with the head.
        state = {k: v for k, v in self.module.state_dict().items() if k not in self._fresh}
        body: Any = getattr(model, model.base_model_prefix)
        missing = set(body.load_state_dict(state, strict=False).missing_keys) - self._fresh
        if missing:
            raise ModelError(
                f"the encoder of {type(model).__name__} is not that of '{self.name}': it also has "
                f"'{min(missing)}'",
                hint="use another architecture",
            )
        return cast("PreTrainedModel", model.eval().to(self.device))

    def lora_targets(self) -> tuple[str, ...]:
        """Return the names of the query and value projections.

        Raises:
            ModelError: If they are not known for the architecture; the message says how to name them.
        """
        return lora_targets(self.module)

    def with_services(self, services: Services, /) -> Self:
        """Return a model that shares these weights and encodes through other services."""
        other = copy.copy(self)
        other.services = services
        return other

    def clone(self) -> Self:
        """Return a copy whose weights may be trained without changing this model."""
        return type(self)(
            copy.deepcopy(self.module),
            None if self._tokenizer is None else self._tokenizer.inner,
            self._fresh,
            name=self.name,
            device=self.device,
            dtype=self.dtype,
            services=self.services,
            options=self.options,
        )

    def _layer(self, asked: int) -> int:
        place = asked + self.n_layers + 1 if asked < 0 else asked
        if not 0 <= place <= self.n_layers:
            raise ModelError(
                f"'{self.name}' has no layer {asked}",
                hint=f"use 0 (the embeddings) to {self.n_layers}, or -1 to {-self.n_layers - 1}",
            )
        return place

    def _space(self, layer: int, pooling: str, limit: int) -> Space:
        # Equal weights may belong to another number of heads or activation: the config is hashed too.
        config = json.dumps(_portable(self._config), sort_keys=True, default=str)
        weights = hashlib.sha256(f"{self.weights_sha256} {config}".encode()).hexdigest()
        return Space(
            weights=weights,
            activation=str(
                getattr(self._config, "hidden_act", None) or getattr(self._config, "activation", "")
            ),
            layer=f"{layer}/{pooling}/{limit}",
            preprocess=self._cached_tokenizer.digest,
            dtype=" ".join(arithmetic(self.device, self.dtype)),
            view=0,
            tower="text",
            libraries=identity.versions(*LIBRARIES),
        )

    def _rows(
        self,
        inputs: Inputs[str],
        layer: int,
        pooling: str,
        limit: int,
        indices: NDArray[np.int64],
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        size = self.services.batch_size or BATCH
        # Once and not per batch: every call hashes all weights.
        net = self._network.in_dtype()
        meter = self.services.meter

        def started() -> Iterator[tuple[NDArray[np.int64], Callable[[], NDArray[np.float32]]]]:
            for start in range(0, len(indices), batching.CHUNK):
                part = indices[start : start + batching.CHUNK]
                with meter.stage("decoding"):
                    ids = self._cached_tokenizer([inputs.examples[int(i)] for i in part], limit)
                lengths = np.array([len(row) for row in ids])
                for rows, length in batching.padded_batches(lengths, limit, size):
                    batch = [ids[i] for i in rows]
                    with meter.stage("model"):
                        wait = fetched(self._pooled(net, batch, length, layer, pooling, size))
                    yield part[rows], wait

        with self.services.progress.track("encode texts", len(indices), "texts") as bar:
            for part, pooled in batching.in_flight(started(), self.device, meter):
                yield part, pooled
                bar.advance(len(part))

    def _pooled(
        self, net: Any, ids: list[list[int]], length: int, layer: int, pooling: str, size: int
    ) -> torch.Tensor:
        """Return the features of one batch, float32, shape ``(n, D)``."""
        n = len(ids)
        ids = ids + ids[:1] * batching.n_filler(n, size)
        padded = batching.pad_tokens(ids, length, self._cached_tokenizer.pad_id)
        states, mask = self._network.states(net, *padded, layer)  # (m, L, D), (m, L)
        if pooling == "cls":
            return states[:n, 0].float()
        weight = mask[:n, :, None].float()
        return (states[:n].float() * weight).sum(1) / weight.sum(1)


def _portable(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the part of a configuration that decides the states: no path, label or version."""
    aside = {
        "_name_or_path",
        "architectures",
        "dtype",
        "id2label",
        "label2id",
        "problem_type",
        "transformers_version",
    }
    return {k: v for k, v in config.to_dict().items() if k not in aside}
