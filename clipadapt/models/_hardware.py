"""Device and effective dtype, without the framework where no accelerator can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipadapt.core import hardware
from clipadapt.core.errors import ModelError, did_you_mean

if TYPE_CHECKING:
    from clipadapt.core.protocols import ModelOptions

_PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def effective_dtype(options: ModelOptions) -> tuple[str, str]:
    """Return device and dtype that the options mean on this machine.

    ``auto`` takes bfloat16 for frozen towers where CPU (AMX, AVX512-BF16) or GPU multiplies it in hardware.

    Raises:
        ModelError: If the machine lacks the device, or a name is not known.
    """
    if options.precision not in _PRECISIONS:
        raise ModelError(
            f"unknown precision '{options.precision}'{did_you_mean(options.precision, _PRECISIONS)}",
            hint=f"take one of {', '.join(_PRECISIONS)}",
        )
    device = _device(options.device)
    if options.precision != "auto":
        return device, options.precision
    return device, "bf16" if _has_bf16(device) else "fp32"


def _device(asked: str) -> str:
    kind, _, index = asked.partition(":")
    if kind not in {"auto", "cpu", "cuda", "mps"} or (index and not index.isdigit()):
        raise ModelError(
            f"unknown device '{asked}'", hint="take auto, cpu, cuda, cuda:INDEX or mps"
        )
    if kind == "cpu":
        return "cpu"
    if not hardware.accelerator_possible():
        if kind == "auto":
            return "cpu"
        raise _absent(asked)
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind == "auto":
        return next((name for name, found in there.items() if found), "cpu")
    if not there[kind] or (kind == "cuda" and index and int(index) >= torch.cuda.device_count()):
        raise _absent(asked)
    return asked


def _absent(asked: str) -> ModelError:
    return ModelError(
        f"this machine offers no device '{asked}' to torch", hint="take device auto or cpu"
    )


def _has_bf16(device: str) -> bool:
    if device == "cpu":
        return hardware.cpu_has_bf16()
    if device.startswith("cuda"):
        import torch

        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return False  # mps: float32, bfloat16 there depends on the system's release
