"""The hardware of this machine, found without importing an ML framework."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_ML_FLAGS: Final = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_bf16",
    "amx_int8",
    "bf16",
    "asimd",
    "sve",
)


@cache
def cpu_flags() -> tuple[str, ...]:
    """Return the CPU features that matter for speed, in a fixed order."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ()
    for line in text.splitlines():
        if line.lower().startswith(("flags", "features")):
            present = set(line.partition(":")[2].split())
            return tuple(f for f in _ML_FLAGS if f in present)
    return ()


def cpu_has_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware (AMX or AVX512-BF16)."""
    return bool({"amx_bf16", "avx512_bf16"} & set(cpu_flags()))


def cpu_count() -> int:
    """Return the number of CPUs that this process may use (its affinity mask)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def default_threads() -> int:
    """Return the default number of threads: ``OMP_NUM_THREADS`` at the first call, else the number of CPUs."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else cpu_count()


def set_threads(count: int) -> None:
    """Set the number of threads of the numeric libraries, of those already loaded and those loaded later.

    Call :func:`default_threads` first, because this function overwrites what the user set.
    """
    from threadpoolctl import threadpool_limits

    os.environ["OMP_NUM_THREADS"] = str(count)  # read by a library that is loaded later
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
    threadpool_limits(count)  # the pools of BLAS and OpenMP that are loaded


def reset_device_peak(device: str) -> None:
    """Reset the peak memory of a GPU, if the framework is loaded and uses it."""
    torch = _torch_on_cuda()
    if torch is not None and device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def device_peak(device: str) -> int | None:
    """Return the peak memory of a GPU in bytes since :func:`reset_device_peak`; None if it is not measured (mps)."""
    torch = _torch_on_cuda()
    if torch is None or not device.startswith("cuda"):
        return None
    return int(torch.cuda.max_memory_allocated(device))


def gpu_name(device: str) -> str | None:
    """Return the name of a GPU that this process uses; None for other devices and for a GPU that fails."""
    torch = _torch_on_cuda()
    if torch is None or not device.startswith("cuda"):
        return None
    try:
        return str(torch.cuda.get_device_name(device))
    except (RuntimeError, AssertionError):  # torch asserts that there is a GPU of this index
        return None


def free_device_memory() -> None:
    """Release the cached memory of a GPU, so that the next run does not start with that of the last one."""
    torch = _torch_on_cuda()
    if torch is not None:
        gc.collect()
        torch.cuda.empty_cache()


def _torch_on_cuda() -> Any:
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None


def accelerator_possible() -> bool:
    """Return whether this machine may have an accelerator; False is certain, True is not."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}:
        return False
    if sys.platform == "linux":
        return any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))
    return True


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Do not search for garbage while many objects are made that stay; each search would look at all of them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # both together: what was made counts as old
        gc.unfreeze()
        if was_on:
            gc.enable()
