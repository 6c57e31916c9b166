"""Several processes that do one fit together, as ``torchrun`` and ``accelerate launch`` start them.

Every process runs the same command. The main process, rank 0, plans, evaluates, writes and prints; the others only do
their part of each fit that it sends them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from clipadapt.core.api.errors import ClipAdaptError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Launch:
    """The place of this process among those that a launcher started.

    Attributes:
        rank: Number of this process, from 0.
        count: Number of processes, at least 2.
        local_rank: Number of this process on its machine, from 0.
    """

    rank: int
    count: int
    local_rank: int


class LostProcessError(ClipAdaptError):
    """Another process of a fit has ended or failed; the fit is not recorded as failed, and can be resumed."""


class Team(Protocol):
    """The processes of a launcher, joined. :mod:`clipadapt.tensor.ranks` has the implementation."""

    @property
    def launch(self) -> Launch: ...
    @property
    def local_ranks(self) -> tuple[int, ...]:
        """Number of each process on its machine, by rank."""
        ...

    def send(self, task: Mapping[str, Any] | None, /) -> None:
        """Send plain data to the other processes; None tells them to end."""
        ...

    def receive(self) -> dict[str, Any] | None:
        """Wait for what the main process sends next."""
        ...

    def fails_first(self) -> bool:
        """Report that this process fails; return whether no other one has reported it before."""
        ...

    def leave(self) -> None:
        """End the connection after work that went well."""
        ...


def launched() -> Launch | None:
    """Return the place of this process among those of a launcher; None if it runs alone."""
    try:
        rank, count, local_rank = (
            int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        )
    except (KeyError, ValueError):
        return None
    return Launch(rank, count, local_rank) if count > 1 else None
