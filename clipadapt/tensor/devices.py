"""Device, dtype and threads of a model. torch is only imported when the machine may have an accelerator."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clipadapt.core.api.errors import ModelError, did_you_mean
from clipadapt.core.files import hardware

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from clipadapt.core.api.context import Services
    from clipadapt.core.api.model import ModelOptions

TORCH_DTYPES: Final = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
PRECISIONS: Final = ("auto", *TORCH_DTYPES)


@dataclass(frozen=True, slots=True)
class Accelerator:
    """The devices of one kind on this machine.

    Attributes:
        count: Number of devices.
        bf16: Whether they multiply bfloat16 in hardware.
    """

    count: int
    bf16: bool


def device_and_dtype(options: ModelOptions) -> tuple[str, str]:
    """Return the device and the dtype that these options select on this machine.

    Precision ``auto`` selects bfloat16 if the CPU (AMX, AVX512-BF16) or GPU multiplies it in hardware, float16 on a
    CUDA GPU that does not, and float32 elsewhere.

    Raises:
        ModelError: If this machine does not have the device, or a name is unknown.
    """
    if options.precision not in PRECISIONS:
        raise ModelError(
            f"unknown precision '{options.precision}'{did_you_mean(options.precision, PRECISIONS)}",
            hint=f"use one of {', '.join(PRECISIONS)}",
        )
    kind, _, index = options.device.partition(":")
    if kind not in {"auto", "cpu", "cuda", "mps"} or (index and not index.isdigit()):
        raise ModelError(
            f"unknown device '{options.device}'", hint="use auto, cpu, cuda, cuda:INDEX or mps"
        )
    found = accelerators() if kind != "cpu" and hardware.accelerator_possible() else {}
    device = next(iter(found), "cpu") if kind == "auto" else options.device
    kind = device.partition(":")[0]
    if kind != "cpu" and (kind not in found or int(index or 0) >= found[kind].count):
        raise ModelError(
            f"torch finds no device '{options.device}' on this machine",
            hint="use device auto or cpu",
        )
    if kind == "cpu":
        device = "cpu"
    if options.precision != "auto":
        return device, options.precision
    has_bf16 = hardware.cpu_has_bf16() if kind == "cpu" else found[kind].bf16
    return device, "bf16" if has_bf16 else "fp16" if kind == "cuda" else "fp32"


def accelerators() -> dict[str, Accelerator]:
    """Return the accelerators that torch finds, by kind, the preferred kind first."""
    import torch

    found = {}
    if torch.cuda.is_available():
        bf16 = bool(torch.cuda.is_bf16_supported(including_emulation=False))
        found["cuda"] = Accelerator(torch.cuda.device_count(), bf16)
    if torch.backends.mps.is_available():
        # Support of bfloat16 on mps depends on the version of macOS.
        found["mps"] = Accelerator(1, bf16=False)
    return found


def torch_dtype(dtype: str) -> torch.dtype:
    """Return torch's dtype for ``fp32``, ``bf16`` or ``fp16``."""
    import torch

    found: torch.dtype = getattr(torch, TORCH_DTYPES[dtype])
    return found


def set_arithmetic(options: ModelOptions, device: str) -> None:
    """Set how GPUs calculate, for the whole process: exactly in float32 and freely, unless the options differ."""
    import torch

    chosen = options.arithmetic(device)
    tf32, deterministic = "tf32" in chosen, "deterministic" in chosen
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    if device.startswith("cuda"):
        # Read once, at the first product of the process, which may be that of a model without the option.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = False


@contextlib.contextmanager
def calculating(options: ModelOptions, device: str) -> Iterator[None]:
    """Calculate with the options of one model inside the block, and as before after it; see :func:`set_arithmetic`."""
    import torch

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    set_arithmetic(options, device)
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def arithmetic(device: str, dtype: str) -> Iterator[str]:
    """Yield what decides the last bits of a result beside weights and input: dtype, kind of device, TF32."""
    import torch

    yield dtype
    kind = device.partition(":")[0]
    if kind != "cpu":
        yield kind
    if kind == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        yield "tf32"


def report_resumed(services: Services, device: str, name: str) -> None:
    """Flag a run whose fit continues on a GPU that does not repeat its results bit for bit."""
    import torch

    if device.startswith("cuda") and not torch.are_deterministic_algorithms_enabled():
        services.report(
            "resumed_inexactly",
            f"{name} continues on a GPU without deterministic algorithms: the result may differ from an undisturbed "
            "fit in the last bits; --set model.deterministic=true avoids it",
        )


def set_threads(services: Services) -> None:
    """Set torch's number of threads to ``services.threads``, unless it is None."""
    import torch

    if services.threads is not None and services.threads != torch.get_num_threads():
        torch.set_num_threads(services.threads)
