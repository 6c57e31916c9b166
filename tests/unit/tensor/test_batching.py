"""Batches: every row once, rows of one batch padded alike, short batches filled up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipadapt.tensor.batching import (
    MIN_ROWS,
    PAD_TO,
    ahead,
    forward,
    n_filler,
    pad_tokens,
    padded_batches,
)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_every_text_is_in_one_batch_and_padded_by_its_own_length(size):
    lengths = np.random.default_rng(0).integers(1, 41, size=200)

    batches = list(padded_batches(lengths, 40, size))

    assert sorted(np.concatenate([rows for rows, _ in batches])) == list(range(200))
    for rows, padded in batches:
        assert 0 < len(rows) <= size
        expected = np.minimum((lengths[rows] // PAD_TO + 1) * PAD_TO, 40)
        assert set(expected) == {padded}
        assert len(set(lengths[rows] == padded)) == 1  # all have padding, or none has
    assert [padded for _, padded in batches] == sorted((p for _, p in batches), reverse=True)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 31, 32])
def test_short_batches_are_filled_up_and_the_filler_is_dropped(n):
    seen = []
    batch = torch.arange(float(n))[:, None]

    rows = forward(lambda x: seen.append(len(x)) or 2 * x, batch, 32)

    np.testing.assert_array_equal(rows, 2 * batch.numpy())
    assert seen == [n + n_filler(n, 32)]
    assert seen[0] % MIN_ROWS == 0


def test_no_filler_beyond_the_size_of_a_batch():
    assert n_filler(3, 4) == 1
    assert n_filler(3, 1) == 0
    assert n_filler(3, 32, least=32) == 29


def test_padding_and_mask():
    ids, mask = pad_tokens([[5, 6], [7]], 3, 9)
    assert ids.tolist() == [[5, 6, 9], [7, 9, 9]]
    assert mask.tolist() == [[1, 1, 0], [1, 0, 0]]


def test_look_ahead_keeps_the_order_and_its_bound():
    begun = []

    def make(item):
        begun.append(item)
        return item

    stream = ahead(make, list(range(50)), 2, window=4)
    assert next(stream) == 0
    assert len(begun) <= 4
    assert [*stream] == list(range(1, 50))
