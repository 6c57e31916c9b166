"""TODO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Literal,
    Protocol,
    Self,
    runtime_checkable,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipadapt.core.api.context import Services


Precision = Literal["auto", "fp32", "bf16", "fp16"]


@runtime_checkable
class Backbone(Protocol):
    """A pretrained model a method may use and must leave bit for bit as it was."""

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


@runtime_checkable
class ReadsNames(Protocol):
    """A backbone that says what its tokenizer makes of class names."""

    @property
    def name(self) -> str: ...
    def name_tokens(self, names: Sequence[str], /) -> list[tuple[tuple[int, ...], int]]:
        """Return the token ids of each name, without special tokens, and how many of them stand for the unknown."""
        ...


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What a user may ask of any model."""

    precision: Precision = "auto"
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What tells two models apart, found without building the model.

    Attributes:
        name: Name without any absolute path, as it stands in tables and records.
        weights_sha256: sha256 of the weights as they are stored.
        dtype: Effective dtype: ``fp32``, ``bf16`` or ``fp16``.
        device: Device it runs on; its type (``cpu``, ``cuda``, ``mps``) decides the last bits.
        revision: Commit of the hub's repository that the weights are of, or None.
        licence: Licence of the weights, or where it stands.
        citation: How to cite the model, or where it stands.
        notes: What is worth telling the user before the run, one sentence each.
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
    """What a file under ``models/`` exports as ``MODEL``."""

    def identify(self, name: str, options: ModelOptions, /) -> ModelIdentity:
        """Check the name and hash the weights; cheap the second time.

        Raises:
            ModelError: If the model cannot be had; the message says what would work.
        """
        ...

    def load(self, name: str, options: ModelOptions, services: Services, /) -> Backbone:
        """Build the model on its device, ready to encode.

        Raises:
            ModelError: If the model cannot be built.
        """
        ...
