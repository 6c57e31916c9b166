"""A block that draws the CPU's random numbers from a seed."""

from __future__ import annotations

import torch

from clipadapt.tensor.seeding import seeded


def test_a_block_draws_from_its_seed_and_leaves_the_rest_as_it_was(monkeypatch):
    def forbidden(_: int) -> None:
        raise AssertionError("GPUs are seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", forbidden)
    torch.default_generator.manual_seed(1)
    expected = torch.rand(4)
    torch.default_generator.manual_seed(1)
    with seeded(7):
        first = torch.rand(3)
    assert torch.equal(torch.rand(4), expected)

    with seeded(7):
        assert torch.equal(torch.rand(3), first)
    torch.default_generator.manual_seed(1)
    with seeded(None):
        assert torch.equal(torch.rand(4), expected)
    assert torch.equal(torch.rand(4), expected)
