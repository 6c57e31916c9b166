"""Files of weights, checked before a framework reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipadapt.core.api.errors import ModelError
from clipadapt.core.files import hub

if TYPE_CHECKING:
    from pathlib import Path


def check_safetensors(path: Path) -> None:
    """Read the header of a safetensors file; a file with another suffix passes.

    Raises:
        ModelError: If it is not a safetensors file, or holds no tensors.
    """
    if path.suffix != ".safetensors":
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            empty = not list(file.keys())
    except (SafetensorError, OSError) as err:
        problem = f"'{path}' is not a safetensors file: {err}"
        try:
            hub.refuse_damaged(path)
        except ModelError as damage:
            raise ModelError(f"{problem}; {damage.problem}", hint=damage.hint) from None
        except OSError:
            pass
        raise ModelError(
            problem, hint="save it with safetensors, or download the file again"
        ) from None
    if empty:
        raise ModelError(f"'{path}' holds no tensors")
