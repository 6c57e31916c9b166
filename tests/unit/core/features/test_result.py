"""Large results: rows in any order, with few windows in memory and few releases."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from clipadapt.core.features import result as module
from clipadapt.core.features import space as space_module
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.features.result import Result
from tests.unit.core.features.test_cache import SPACE, Encoder, digests, flip, rows_of, segments

WIDTH = 64
ROW = 4 * WIDTH
N = 3000
SEGMENT = 200
WINDOW = 512 * ROW  # 32 pages


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of 15 segments whose results are mapped and have 6 windows."""
    monkeypatch.setattr(module, "SCRATCH_BYTES", 1000)
    monkeypatch.setattr(module, "WINDOW_BYTES", WINDOW)
    monkeypatch.setattr(space_module, "SEGMENT_BYTES", SEGMENT * ROW)
    keys = digests(N)
    FeatureCache(tmp_path).open(SPACE).write(keys, rows_of(keys, WIDTH))
    return FeatureCache(tmp_path)


@pytest.fixture
def in_memory(monkeypatch):
    """Bytes of pages that were touched by each write, and the largest sum between two releases."""
    seen = {"now": 0, "most": 0, "releases": 0, "ranges": 0}
    plain = module._Windows._populate

    def populate(self, begin, n):
        seen["now"] += n * ROW + 2 * mmap.PAGESIZE
        seen["most"] = max(seen["most"], seen["now"])
        seen["ranges"] += 1
        plain(self, begin, n)

    def release(_):
        seen["now"] = 0
        seen["releases"] += 1

    monkeypatch.setattr(module._Windows, "_populate", populate)
    monkeypatch.setattr(module, "_release", release)
    return seen


ORDERS = {
    "ordered": np.arange(N),
    "reversed": np.arange(N)[::-1],
    "shuffled": np.random.default_rng(1).permutation(N),
    "some": np.random.default_rng(2).choice(N, 1100, replace=False),
    "repeated": np.random.default_rng(3).integers(0, N // 4, N),
}


@pytest.mark.parametrize("order", ORDERS)
def test_rows_of_any_order_are_in_their_places(cache, in_memory, order):
    keys = digests(N)[ORDERS[order]]

    got = cache.get_or_compute(SPACE, keys, Encoder(keys, width=WIDTH))

    assert got.computed == 0
    np.testing.assert_array_equal(got.rows, rows_of(keys, WIDTH))
    size = len(keys) * ROW
    windows = -(-size // WINDOW)
    assert windows <= in_memory["releases"] <= 2 * windows + 1  # not one for each segment
    slack = windows * 2 * mmap.PAGESIZE  # the pages at both ends of a range
    assert in_memory["most"] <= 2 * WINDOW + SEGMENT * ROW + slack


def test_missing_and_damaged_rows_are_computed_beside_those_in_windows(cache, tmp_path):
    flip(segments(tmp_path)[4], -1)
    keys = digests(N + 500)[np.random.default_rng(4).permutation(N + 500)]
    encoder = Encoder(keys, width=WIDTH)

    got = cache.get_or_compute(SPACE, keys, encoder)

    assert got.computed == 500 + SEGMENT
    np.testing.assert_array_equal(got.rows, rows_of(keys, WIDTH))


def test_a_failed_read_changes_nothing(cache):
    result = Result(N)
    dtype, shape = np.dtype(np.float32), (WIDTH,)
    half = np.random.default_rng(5).permutation(N)[: N // 2]

    def broken(out, at):
        out[at[:10]] = -1
        raise OSError

    with pytest.raises(OSError):
        result.fill(dtype, shape, half[:100], broken)
    result.fill(dtype, shape, half, lambda out, at: out.__setitem__(at, half[:, None]))
    result.settle()

    np.testing.assert_array_equal(result.rows()[half, 0], half)
