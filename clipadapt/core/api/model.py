"""Models: the ``typing.Protocol`` of a backbone, its options and identity, and what a file below ``models/`` exports.

Those of more specific backbones, such as models that embed images and texts, are in ``clipadapt.models`` and
``textsent.models``.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Literal,
    Protocol,
    Self,
    runtime_checkable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from clipadapt.core.api.context import Services


Precision = Literal["auto", "fp32", "bf16", "fp16"]


@runtime_checkable
class Backbone(Protocol):
    """A pretrained model that a method uses and must leave unchanged, bit for bit."""

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str:
        """Effective dtype of the frozen weights: ``fp32``, ``bf16`` or ``fp16``."""
        ...

    @property
    def weights_sha256(self) -> str:
        """sha256 over the names, shapes and bytes of the current weights."""
        ...

    def with_services(self, services: Services, /) -> Self:
        """Return a model that shares these weights and encodes through other services.

        Neither model changes the other's services. It is a shallow copy: cheap, and no weights are duplicated.
        """
        ...


def calculating(backbone: Backbone | None) -> AbstractContextManager[None]:
    """Return a block in which a model, and what is trained on it, calculates with the model's own options.

    Two models in one process may differ in ``tf32`` and ``deterministic``, which a framework holds for the process. A
    backbone may have a method ``calculating()`` that returns such a block; without one nothing is changed.
    """
    own: Callable[[], AbstractContextManager[None]] | None = getattr(backbone, "calculating", None)
    return nullcontext() if own is None else own()


@runtime_checkable
class ReadsNames(Protocol):
    """A backbone that reports the tokens of class names."""

    @property
    def name(self) -> str: ...
    def name_tokens(self, names: Sequence[str], /) -> list[tuple[tuple[int, ...], int]]:
        """Return for each name its token ids, without special tokens, and how many of them are unknown."""
        ...


def provides(backbone: Backbone, protocol: type) -> bool:
    """Return whether a model satisfies a runtime protocol.

    A model that builds its network when it is used names the protocols in ``PROVIDES``: ``isinstance`` reads every
    property, the network too.
    """
    return protocol in getattr(type(backbone), "PROVIDES", ()) or isinstance(backbone, protocol)


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Options of every model.

    Attributes:
        precision: Dtype of the frozen weights.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:INDEX`` or ``mps``.
        tf32: On a GPU, multiply float32 matrices with 10 of the 23 bits of the mantissa, which is faster.
        deterministic: On a GPU, use algorithms whose result is the same in every run, some of which are slower.
    """

    precision: Precision = "auto"
    device: str = "auto"
    tf32: bool = False
    deterministic: bool = False

    def arithmetic(self, device: str) -> str:
        """Return what these options change about the results on a device: ``tf32``, ``deterministic`` or both."""
        chosen = {"tf32": self.tf32, "deterministic": self.deterministic}
        return " ".join(k for k, on in chosen.items() if on and device.startswith("cuda"))


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The identity of a model, found without building it.

    Attributes:
        name: Name in tables and records, without an absolute path.
        weights_sha256: sha256 of the files of the model.
        dtype: Effective dtype: ``fp32``, ``bf16`` or ``fp16``.
        device: Device; its type (``cpu``, ``cuda``, ``mps``) decides the last bits of the results.
        revision: Commit of the hub repository of the weights, or None.
        licence: Licence of the weights, or where to find it.
        citation: How to cite the model, or where to find it.
        notes: Notes for the user, reported before the run starts; one sentence each.
    """

    name: str
    weights_sha256: str
    dtype: str
    device: str = "cpu"
    revision: str | None = None
    licence: str = ""
    citation: str = ""
    notes: tuple[str, ...] = ()


class ModelProvider(Protocol):
    """The object that a file under ``models/`` exports as ``MODEL``.

    Optional: ``check_name(name)`` raises a ClipAdaptError for a name that is not valid, and loads nothing.
    """

    def identify(self, name: str, options: ModelOptions, /) -> ModelIdentity:
        """Check the name and hash the weights; the hash is cached.

        Raises:
            ModelError: If the model is not available; the message says what would work.
        """
        ...

    def load(self, name: str, options: ModelOptions, services: Services, /) -> Backbone:
        """Load the model on its device, ready to encode.

        Raises:
            ModelError: If the model cannot be loaded.
        """
        ...
