"""A model that is built at the first use of its network.

A command on cached features needs little of a model: the keys of its features, the scale of the logits, the tokens of
class names. A model that was built once remembers them, so the next process reads the features and imports neither
torch nor open_clip. What is remembered belongs to the bytes of the model's files, to its config and options, to the
versions of the libraries and to the source code of this folder: if one of them differs, nothing is found and the model
is built. Only models on the CPU are remembered; elsewhere torch is needed to see the device.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, Self, cast

from clipadapt.core.api.features import Space
from clipadapt.core.api.model import ModelIdentity, ReadsNames
from clipadapt.core.files import identity
from clipadapt.models import (
    LIBRARIES,
    SMALLEST_CROP,
    AdapterTunable,
    DeepPromptTunable,
    ImageTextModel,
    ProjectionTunable,
    PromptTunable,
)
from clipadapt.tensor.devices import calculating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    import numpy as np
    from numpy.typing import NDArray

    from clipadapt.core.api.context import Services
    from clipadapt.core.api.data import Inputs
    from clipadapt.core.api.model import ModelOptions
    from clipadapt.models import Layer, Tower
    from clipadapt.models._sources import Source

FACTS: Final = ("context_length", "logit_scale", "logit_bias", "n_params", "weights_sha256")
"""Properties of a model that are remembered."""
MOST_NAMES: Final = 2000
"""Class names whose tokens are remembered at most."""

_building = threading.RLock()


@dataclass(frozen=True, slots=True)
class Memory:
    """What earlier processes found out about one model.

    Attributes:
        files_sha256: sha256 of the model's files.
        key: Hash of everything that it depends on, the files included.
    """

    files_sha256: str
    key: str

    @classmethod
    def of(cls, source: Source, options: ModelOptions, dtype: str) -> Memory:
        """Return the memory of a model with a checkpoint, on the CPU."""
        files_sha256 = identity.of_files(source.files)
        facts = {
            "files": files_sha256,
            "config": [source.model_cfg, source.preprocess_cfg, source.arch],
            "options": [dataclasses.asdict(options), dtype],
            "code": code_sha256(),
            "libraries": [identity.versions(*packages) for packages in LIBRARIES.values()],
        }
        content = json.dumps(facts, sort_keys=True, default=str)
        return cls(files_sha256, hashlib.sha256(content.encode()).hexdigest())

    def get(self, what: str) -> Any:
        """Return something remembered, or None."""
        found = identity.recall(f"recalled|{self.key}|{what}")
        return None if found is None else found["value"]

    def put(self, what: str, value: Any) -> None:
        """Remember something."""
        identity.remember(f"recalled|{self.key}|{what}", {"value": value})


@cache
def code_sha256() -> str:
    """Return the sha256 of the source code that builds models and encodes with them."""
    folder = Path(__file__).parent
    paths = [*folder.glob("*.py"), *(folder.parent / "tensor").glob("*.py")]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


class _MissingError(Exception):
    """The cache does not hold all features of a request."""


def _missing(_: NDArray[np.int64]) -> Iterator[Any]:
    raise _MissingError


class _Network(ImageTextModel, ReadsNames, Protocol):
    """The model with its network, an :class:`clipadapt.models._adapter.OpenClipModel`."""


@dataclass(slots=True)
class _Slot:
    """The network that all copies of a model share, once it is built."""

    model: _Network | None = None
    seconds: float = 0.0


@dataclass(eq=False)
class RecalledModel:
    """An image-text model whose network is built when something is asked that is not remembered.

    Attributes:
        name: Name of the model.
        dtype: Dtype of the network.
        embed_dim: Width of the joint space.
        options: Precision, device and arithmetic.
        services: Feature cache, progress and meter.
        memory: What is remembered.
        facts: The remembered properties, those of :data:`FACTS` and ``load_seconds``.
        build: Builds the network.
    """

    name: str
    dtype: str
    embed_dim: int
    options: ModelOptions
    services: Services
    memory: Memory
    facts: dict[str, Any]
    build: Callable[[Services], _Network]
    _slot: _Slot = field(default_factory=_Slot)

    device: ClassVar[str] = "cpu"
    PROVIDES: ClassVar[tuple[type, ...]] = (
        ImageTextModel,
        ProjectionTunable,
        PromptTunable,
        DeepPromptTunable,
        AdapterTunable,
    )
    """Protocols that the network satisfies, for :func:`~clipadapt.core.api.model.provides`."""

    @property
    def identity(self) -> ModelIdentity:
        """Name and hash of the files."""
        return ModelIdentity(self.name, self.memory.files_sha256, self.dtype)

    @property
    def load_seconds(self) -> float:
        """Seconds of building the network, now or when it was built last."""
        return self._slot.seconds or float(self.facts["load_seconds"])

    @property
    def context_length(self) -> int:
        """Tokens of each row of ``tokenize``."""
        return int(self._fact("context_length"))

    @property
    def logit_scale(self) -> float:
        """The factor of the logits."""
        return float(self._fact("logit_scale"))

    @property
    def logit_bias(self) -> float:
        """The constant added to every logit."""
        return float(self._fact("logit_bias"))

    @property
    def n_params(self) -> int:
        """Parameters of both towers."""
        return int(self._fact("n_params"))

    @property
    def weights_sha256(self) -> str:
        """sha256 over every tensor, of the network as it is now if it is built."""
        return str(self._fact("weights_sha256"))

    def encode(
        self,
        inputs: Inputs[Any],
        /,
        tower: Tower,
        layer: Layer = "output",
        view: int = 0,
        smallest_crop: float = SMALLEST_CROP,
    ) -> NDArray[np.float32]:
        """Read features from the cache; build the network if one is missing."""
        given = (inputs, tower, layer, view, smallest_crop)
        if self._slot.model is not None:
            return self._whole().encode(*given)
        services = self.services
        known = self.memory.get(space_key(services, tower, layer, view, smallest_crop))
        if known is None:
            return self._whole().encode(*given)
        space = dataclasses.replace(Space(**known), view=view)
        with services.meter.stage("reading"):
            digests = inputs.digests()
        try:
            got = services.cache.get_or_compute(space, digests, _missing)
        except _MissingError:
            return self._whole().encode(*given)
        services.meter.add(got.encode_seconds, got.seconds_spent, got.computed)
        return cast("NDArray[np.float32]", got.rows)

    def name_tokens(self, names: Sequence[str], /) -> list[tuple[tuple[int, ...], int]]:
        """Return for each name its token ids and how many of them are unknown."""
        known = None if self._slot.model else self.memory.get(names_key(names))
        if known is None:
            return self._whole().name_tokens(names)
        return [(tuple(ids), n) for ids, n in known]

    def calculating(self) -> AbstractContextManager[None]:
        """Return a block that calculates with this model's options; they concern torch, which may not be loaded."""
        loaded = "torch" in sys.modules
        return calculating(self.options, self.device) if loaded else contextlib.nullcontext()

    def with_services(self, services: Services, /) -> Self:
        """Return a model that shares the network and encodes through other services."""
        other = copy.copy(self)
        other.services = services
        return other

    def _fact(self, name: str) -> Any:
        model = self._slot.model
        return self.facts[name] if model is None else getattr(model, name)

    def _whole(self) -> _Network:
        """Return the network with these services; build it at the first call.

        The seconds are those of loading, so the meter keeps them out of the seconds of a fit.
        """
        slot = self._slot
        with _building:
            if slot.model is None:
                begun = time.perf_counter()
                with self.services.progress.track(f"load model {self.name}", None):
                    model = self.build(self.services)
                identity.require_same(model, self.identity)
                slot.model, slot.seconds = model, time.perf_counter() - begun
                self.services.meter.add(0.0, slot.seconds, 0)
        if slot.model.services is self.services:
            return slot.model
        return slot.model.with_services(self.services)

    def __getattr__(self, name: str) -> Any:
        """Return anything else from the network."""
        if name.startswith("__") or name in {"_slot", "services"}:  # while a copy is being made
            raise AttributeError(name)
        return getattr(self._whole(), name)


for _protocol in RecalledModel.PROVIDES:
    cast("Any", _protocol).register(RecalledModel)  # isinstance does not see __getattr__


def space_key(
    services: Services, tower: Tower, layer: Layer, view: int, smallest_crop: float
) -> str:
    """Return the name under which the space of a request is remembered; all augmented views share one."""
    views = f"augmented {smallest_crop}" if view else "plain"
    return f"space {tower} {layer} {views} {services.fast} {services.compile}"


def names_key(names: Sequence[str]) -> str:
    """Return the name under which the tokens of class names are remembered."""
    return f"names {hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()}"


class Noted:
    """Notes what a network that was just built is asked for, so that it is remembered."""

    def __init__(self, memory: Memory, model: _Network, seconds: float) -> None:
        """Remember the properties of the model; ``seconds`` is what building it took."""
        self.memory = memory
        self.facts = {name: getattr(model, name) for name in FACTS} | {"load_seconds": seconds}
        self._seen = set[str]()
        self._put("facts", self.facts)

    def is_new(self, key: str) -> bool:
        """Return whether this request has not been seen yet."""
        return key not in self._seen

    def space(self, key: str, model: _Network, space: Space) -> None:
        """Remember the space of a request, unless the weights have been changed."""
        if model.weights_sha256 == self.facts["weights_sha256"]:
            self._put(key, dataclasses.asdict(space))
        self._seen.add(key)

    def names(self, names: Sequence[str], tokens: Sequence[tuple[tuple[int, ...], int]]) -> None:
        """Remember the tokens of class names."""
        if len(names) <= MOST_NAMES:
            self._put(names_key(names), list(tokens))

    def _put(self, what: str, value: Any) -> None:
        if what not in self._seen:
            self.memory.put(what, value)
        self._seen.add(what)
