"""The environment of a run: software versions, hardware, git commit and peak memory."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

from clipadapt.core.files import hardware
from clipadapt.core.records.schema import Environment

LIBRARIES: Final = (
    "torch", "torchvision", "open-clip-torch", "timm", "transformers", "tokenizers", "pillow", "peft", "scikit-learn",
)  # fmt: skip
"""Packages whose version affects results: runs with different versions are not averaged."""


def environment(
    *, device: str | None = None, threads: int | None = None, devices: tuple[str, ...] = ()
) -> Environment:
    """Return the environment of this process; no ML framework is imported.

    Args:
        device: Device of the model, None for the CPU.
        threads: Threads of the numeric libraries; None takes ``OMP_NUM_THREADS``, or the number of CPUs.
        devices: Device of each process if several did the fit together.
    """
    commit, dirty = _git()
    if threads is None:
        given = os.environ.get("OMP_NUM_THREADS", "")
        threads = int(given) if given.isdecimal() else hardware.cpu_count()
    return Environment(
        git_commit=commit,
        git_dirty=dirty,
        python=platform.python_version(),
        platform=platform.platform(),
        cpu_flags=hardware.cpu_flags(),
        device=device or "cpu",
        threads=threads,
        devices=devices,
        packages=_packages(),
        gpu=hardware.gpu_name(device or "cpu"),
        folder=_folder(),
    )


def _folder() -> str | None:
    try:
        return str(Path.cwd())
    except OSError:  # the folder was removed
        return None


@cache  # of the code that this process imported; a later edit is not part of its runs
def _git() -> tuple[str | None, bool | None]:
    """Return commit and dirty state of the clipadapt checkout, None for an installed package."""
    root = Path(__file__).resolve().parents[3]

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
        return done.stdout.strip()

    try:
        # A virtual environment inside another repository is not a clipadapt checkout.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None, None
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


@cache
def _packages() -> dict[str, str]:
    """Return the installed versions of clipadapt and its runtime dependencies."""
    versions = {}
    try:
        requirements = importlib.metadata.requires("clipadapt") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    names = [re.split(r"[^A-Za-z0-9._-]", r)[0] for r in requirements if "'dev'" not in r]
    for name in ["clipadapt", *names, "tokenizers"]:  # tokenizers comes with transformers
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name.replace("_", "-").lower()] = importlib.metadata.version(name)
    return versions


_peak_was_reset = False


def reset_peak_memory(device: str = "cpu") -> bool:
    """Start a new measurement of peak memory; return whether the system supports it (Linux does)."""
    global _peak_was_reset  # noqa: PLW0603  the kernel's counter is also one per process
    hardware.reset_device_peak(device)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        _peak_was_reset = False
    else:
        _peak_was_reset = True
    return _peak_was_reset


def peak_memory(device: str = "cpu") -> int | None:
    """Return the peak memory in bytes since :func:`reset_peak_memory`, or None if unknown.

    Args:
        device: On ``cuda`` GPU memory is measured, on ``cpu`` the resident memory of the process.
    """
    if device != "cpu":
        return hardware.device_peak(device)
    if not _peak_was_reset:
        return None
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, flags=re.MULTILINE)
    return int(found[1]) * 1024 if found else None
