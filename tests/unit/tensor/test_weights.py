"""The hash of weights: over name, shape, dtype and bytes, computed again only where bytes changed."""

from __future__ import annotations

import hashlib

import torch

from clipadapt.tensor.weights import WeightsHash


def reference(state):
    total = hashlib.sha256()
    for name, tensor in state.items():
        data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        head = f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode()
        total.update(hashlib.sha256(head + hashlib.sha256(data).digest()).hexdigest().encode())
    return total.hexdigest()


def test_it_is_the_documented_hash_and_follows_every_change():
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    weights = WeightsHash()
    before = weights.of(state.items())

    assert before == reference(state) == WeightsHash().of(state.items())
    state["a"].data[0, 0] = 7.0
    after = weights.of(state.items())
    assert before != after == reference(state)
    assert weights.of([("c", state["a"]), ("b", state["b"])]) not in {before, after}
    assert weights.of([("a", state["a"].reshape(3, 2)), ("b", state["b"])]) != after
