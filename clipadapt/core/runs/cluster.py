"""The Ray cluster that ``RAY_ADDRESS`` names, or one of this machine that is started and stopped again."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from clipadapt.core.api.errors import ConfigError, first_line
from clipadapt.core.api.user_input import shown
from clipadapt.core.files.hardware import cpu_count

if TYPE_CHECKING:
    from collections.abc import Iterator

RETRIES: Final = 2
"""How often work is repeated whose worker was lost."""
THREADS: Final = 1
"""Threads of a worker if the config does not set them; as for local runs, they are part of the run id."""
CONNECT_SECONDS: Final = 5.0
"""How long the head node of a cluster may take to answer."""
_SHARED: Final = ("CLIPADAPT_", "HF_", "TORCH_HOME", "TRANSFORMERS_")
"""Prefixes of the environment variables that workers take from the driver."""


class WorkerError(Exception):
    """Work that failed on a worker; the message has the worker's traceback."""


@contextlib.contextmanager
def connected(workers: int | None) -> Iterator[Any]:
    """Yield the module ``ray``, connected; a cluster that was started here is stopped at the end.

    Args:
        workers: Workers that are wanted, for a cluster that is started here.

    Raises:
        ConfigError: If Ray is not installed, or the cluster cannot be reached.
    """
    ray = ray_module()
    # Ray reports lost workers on stdout, which is reserved for the output of the command.
    with contextlib.redirect_stdout(sys.stderr):
        own = not ray.is_initialized()
        if own:
            # RAY_ADDRESS names a cluster; without it, one is started here and stopped at exit.
            if address := os.environ.get("RAY_ADDRESS"):
                _connect(ray, address)
            else:
                ray.init(log_to_driver=False, **_of_this_machine(workers))
        try:
            yield ray
        finally:
            if own:
                ray.shutdown()


def shared_environment() -> dict[str, str]:
    """Return the environment variables that workers take from the driver."""
    return {k: v for k, v in os.environ.items() if k.startswith(_SHARED)}


def on_reserved_gpu(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config for a worker that reserves a GPU: Ray hides all others, so ``cuda:3`` is the first one there."""
    model = config.get("model") or {}
    if not str(model.get("device", "")).startswith("cuda:"):
        return config
    return {**config, "model": {**model, "device": "cuda"}}


def require(needed: dict[str, float], cluster: dict[str, float], what: str) -> None:
    """Check that the cluster has what one worker needs; Ray would wait for it.

    Args:
        needed: Amounts by name.
        cluster: Amounts of the whole cluster by name.
        what: What needs them, for the message.

    Raises:
        ConfigError: Naming what is missing.
    """
    for name, amount in needed.items():
        there = cluster.get(name, 0.0)
        if amount > there:
            raise ConfigError(
                f"{what} needs {amount:g} {name}, and the cluster has {there:g}",
                hint="add machines, or ask for less with --set resources.cpus, resources.gpus or resources.custom",
            )


def ray_module() -> Any:
    """Return the module ``ray``.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "--executor ray needs Ray, which is not installed",
            hint="pip install 'clipadapt[ray]'",
        ) from None
    return ray


def _of_this_machine(workers: int | None) -> dict[str, Any]:
    # Without "local", Ray would connect to a cluster of this machine that others started.
    processors = max(workers or 1, cpu_count())
    return {"address": "local", "num_cpus": processors, "include_dashboard": False}


def _connect(ray: Any, address: str) -> None:
    """Connect to a running cluster.

    Raises:
        ConfigError: If it cannot be reached.
    """
    try:
        _knock(address)
        ray.init(log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as err:  # Ray raises all of these
        raise ConfigError(
            f"cannot connect to the Ray cluster {shown(address)} that RAY_ADDRESS names: {first_line(err)}",
            hint="start it with 'ray start --head' and name it as HOST:PORT or ray://HOST:PORT, or unset RAY_ADDRESS "
            "to use this machine",
        ) from err


def _knock(address: str) -> None:
    """Check that something answers at an address; Ray would try for minutes.

    Raises:
        OSError: If nothing does.
        ValueError: If it is not an address.
    """
    if address in {"auto", "local"}:
        return
    scheme, _, place = address.rpartition("://")
    if scheme in {"", "ray"}:
        parts = urlsplit(f"//{place}")
        if parts.hostname is None or parts.port is None:
            raise ValueError("it has no host and port")
        socket.create_connection((parts.hostname, parts.port), CONNECT_SECONDS).close()
