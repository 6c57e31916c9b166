"""Train one model in several processes that ``torchrun`` or ``accelerate launch`` started.

The processes exchange tasks and errors as JSON through the launcher's store, and tensors through torch's process
group: gloo between CPUs, NCCL between GPUs.
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from clipadapt.core.api.errors import ConfigError, first_line
from clipadapt.core.api.processes import LostProcessError, launched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from clipadapt.core.api.processes import Launch

_POLL_SECONDS: Final = 0.1
_LOST: Final = ("connection", "peer", "gloo", "nccl", "socket", "broken pipe")
"""Words of the errors that torch raises if another process has ended."""


class Processes:
    """The processes of a launcher; making one waits for all of them."""

    def __init__(self) -> None:
        """Meet the other processes.

        Raises:
            ConfigError: If they cannot be reached.
        """
        launch = launched()
        assert launch is not None
        self.launch: Launch = launch
        try:
            store, _, _ = next(rendezvous("env://", launch.rank, launch.count))
        except (ValueError, RuntimeError) as err:
            raise ConfigError(
                f"WORLD_SIZE is {launch.count}, but the other processes cannot be reached: {first_line(err)}",
                hint="start the command with torchrun, or unset RANK and WORLD_SIZE",
            ) from err
        self._store = PrefixStore("clipadapt", store)
        self._sent, self._failures = 0, "failures"
        if torch.cuda.is_available():
            torch.cuda.set_device(launch.local_rank % torch.cuda.device_count())
        # Without a backend: gloo for CPU tensors, and NCCL for those on a GPU.
        distributed.init_process_group(
            store=PrefixStore("group", store), rank=launch.rank, world_size=launch.count
        )
        self.local_ranks = tuple(int(own) for own in gathered(str(launch.local_rank).encode()))

    def send(self, task: Mapping[str, Any] | None, /) -> None:
        """Send plain data to the other processes; None tells them to end."""
        self._store.set(f"task{self._sent}", json.dumps(task))
        self._sent += 1

    def receive(self) -> dict[str, Any] | None:
        """Wait for what the main process sends next."""
        key = f"task{self._sent}"
        while not self._store.check([key]):  # wait() would not let a signal through
            time.sleep(_POLL_SECONDS)
        self._sent += 1
        task: dict[str, Any] | None = json.loads(self._store.get(key))
        return task

    def fails_first(self) -> bool:
        """Report that this process fails; return whether no other one has reported it before."""
        try:
            return int(self._store.add(self._failures, 1)) == 1
        except RuntimeError:  # the process that keeps the store has ended
            return False

    def leave(self) -> None:
        """End the connection after work that went well."""
        distributed.destroy_process_group()


def count() -> int:
    """Return how many processes train together; 1 if this one is alone."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_main() -> bool:
    """Return whether this process writes and prints."""
    return count() == 1 or distributed.get_rank() == 0


def gathered(own: bytes) -> list[bytes]:
    """Return what each process gives, by rank. Every process must call it."""
    if count() == 1:
        return [own]
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(count())]
    distributed.all_gather(sizes, torch.tensor([len(own)]))
    longest = max(int(size) for size in sizes)
    padded = torch.tensor([*own, *bytes(longest - len(own))], dtype=torch.uint8)
    found = [torch.zeros(longest, dtype=torch.uint8) for _ in range(count())]
    distributed.all_gather(found, padded)
    return [bytes(row[: int(size)].tolist()) for row, size in zip(found, sizes, strict=True)]


def from_main(make: Callable[[], str]) -> str:
    """Return what ``make`` returns in the main process. Every process must call it."""
    return gathered(make().encode() if is_main() else b"")[0].decode()


def own_device(device: str) -> str:
    """Return the device of this process for the device of a model: several processes take a GPU each.

    Raises:
        ConfigError: If its machine has fewer GPUs than processes.
    """
    launch = launched()
    if count() == 1 or launch is None or device != "cuda":
        return device
    gpus = torch.cuda.device_count()
    if launch.local_rank >= gpus:
        raise ConfigError(
            f"there are more processes than GPUs: torch finds {gpus} on this machine",
            hint=f"use torchrun --nproc-per-node {gpus}",
        )
    return f"cuda:{launch.local_rank}"


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Do work in which the processes wait for one another.

    Raises:
        LostProcessError: If another process has ended.
    """
    try:
        yield
    except RuntimeError as err:
        if count() > 1 and any(word in str(err).lower() for word in _LOST):
            raise LostProcessError(
                f"another one of the {count()} processes of this fit has ended or does not answer: {first_line(err)}",
                hint="it may have been killed, for example because memory ran out; the same command resumes",
            ) from err
        raise
