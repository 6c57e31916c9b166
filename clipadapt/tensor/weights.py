"""sha256 of the weights of a network: over name, shape, dtype and bytes of every tensor."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
import xxhash

if TYPE_CHECKING:
    from collections.abc import Iterable


class WeightsHash:
    """Hashes the same network again and again, fast where its weights have not changed.

    The sha256 of each tensor is cached under a fast hash of its bytes. The fast hash is computed each time, because a
    write through ``.data`` changes neither the address nor the version of a tensor.
    """

    def __init__(self) -> None:
        self._cached: dict[str, tuple[tuple[str, int], str]] = {}  # by name: state, sha256

    def of(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
        """Return the sha256 of named tensors, as 64 hexadecimal digits."""
        total = hashlib.sha256()
        for name, tensor in tensors:
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            head = f"{name} {tuple(tensor.shape)} {tensor.dtype} "
            state = head, xxhash.xxh3_128_intdigest(data)
            cached = self._cached.get(name)
            if cached is None or cached[0] != state:
                content = head.encode() + hashlib.sha256(data).digest()
                cached = state, hashlib.sha256(content).hexdigest()
                self._cached[name] = cached
            total.update(cached[1].encode())
        return total.hexdigest()
