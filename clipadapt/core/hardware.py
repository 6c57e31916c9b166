"""What this machine offers, found without importing an ML framework."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

_ML_FLAGS = (
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
    """Tell whether the CPU multiplies bfloat16 in hardware (AMX or AVX512-BF16)."""
    return bool({"amx_bf16", "avx512_bf16"} & set(cpu_flags()))


def cpu_count() -> int:
    """Return the processors this process may use (its affinity mask)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def accelerator_possible() -> bool:
    """Tell whether asking the framework for a GPU can be of use; False is certain, True is not."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}:
        return False
    if sys.platform == "linux":
        return any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))
    return True
