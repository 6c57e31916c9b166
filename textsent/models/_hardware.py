"""Device and effective dtype; torch is asked only where an accelerator can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipadapt.core.files import hardware

if TYPE_CHECKING:
    from clipadapt.core.api.model import ModelOptions


def effective_dtype(options: ModelOptions) -> tuple[str, str]:
    """Return device and dtype that the options mean on this machine.

    Raises:
        ModelError: If the machine lacks the device, or a name is not known.
    """
    return hardware.effective_dtype(options, accelerators)


def accelerators() -> dict[str, hardware.Accelerator]:
    """Return what torch finds, the first choice first."""
    import torch

    found = {}
    if torch.cuda.is_available():
        bf16 = bool(torch.cuda.is_bf16_supported(including_emulation=False))
        found["cuda"] = hardware.Accelerator(torch.cuda.device_count(), bf16)
    if torch.backends.mps.is_available():
        # bfloat16 there depends on the system's release
        found["mps"] = hardware.Accelerator(1, bf16=False)
    return found
