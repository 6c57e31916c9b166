"""The file of an interrupted fit: its tensors and its state, sealed with a checksum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a fit continues from.

    Attributes:
        tensors: Tensors by name, on the CPU.
        key: Identifies the fit.
        state: Progress of the fit, JSON.
    """

    tensors: dict[str, torch.Tensor]
    key: str
    state: str


def packed(tensors: Mapping[str, torch.Tensor], key: str, state: str) -> bytes:
    """Return the content of the file; see :class:`Checkpoint`."""
    from safetensors.torch import save

    plain = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
    facts = {"key": key, "state": state, "check": fingerprint(plain, key + state)}
    return save(plain, facts)


def read(path: Path) -> Checkpoint | str | None:
    """Return the content of a file, what is wrong with it, or None if there is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as err:
        return str(err) or type(err).__name__
    key, state = facts.get("key", ""), facts.get("state", "")
    if facts.get("check") != fingerprint(tensors, key + state):
        return "its checksum differs"
    return Checkpoint(tensors, key, state)


def fingerprint(tensors: Mapping[str, torch.Tensor], text: str = "") -> str:
    """Return a fast hash of the names, types, shapes and bytes of CPU tensors; not cryptographic."""
    import torch
    import xxhash

    total = xxhash.xxh3_128(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
