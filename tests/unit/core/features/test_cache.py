from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.api.features import Space
from clipadapt.core.features import result as result_module
from clipadapt.core.features import space as space_module
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.features.index import Index
from clipadapt.core.features.result import Result
from clipadapt.core.features.segment import Segment, segment_name

SPACE = Space(
    weights="ab" * 32,
    activation="gelu",
    layer="output",
    preprocess="resize 224",
    dtype="fp32",
    view=0,
    tower="image",
)


def digests(n, start=0):
    """Different keys that determine their rows."""
    out = np.random.default_rng(7).integers(0, 256, (start + n, 32), dtype=np.uint8)
    out[:, 16:24] = np.arange(start + n, dtype="<u8")[:, None].view(np.uint8)
    return out[start:]


def rows_of(keys, width=8):
    number = np.ascontiguousarray(keys[:, 16:24]).view("<u8")[:, 0]
    return (number[:, None] * 100 + np.arange(width)).astype(np.float32)


def stored(cache, keys, space=SPACE):
    """What the cache holds: which keys, the seconds they took, and their rows."""
    result = Result(len(keys))
    found, seconds = cache.open(space).fill(keys, result)
    return found, seconds, result.rows()


class Encoder:
    """Computes rows from keys and remembers the positions requested."""

    def __init__(self, keys, batch=64, width=8):
        self.keys, self.batch, self.width = keys, batch, width
        self.asked = []

    def __call__(self, indices):
        self.asked.append(indices)
        for i in range(0, len(indices), self.batch):
            part = indices[i : i + self.batch]
            yield part, rows_of(self.keys[part], self.width)


def segments(root):
    return sorted(Path(root).glob("features/*/*/*.safetensors"))


def flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_rows_come_back_in_the_callers_order_without_computing(tmp_path):
    keys = digests(500)
    first = FeatureCache(tmp_path).get_or_compute(SPACE, keys, Encoder(keys))
    np.testing.assert_array_equal(first.rows, rows_of(keys))
    assert first.computed == 500

    order = np.random.default_rng(0).permutation(500)
    encoder = Encoder(keys[order])
    again = FeatureCache(tmp_path).get_or_compute(SPACE, keys[order], encoder)

    assert encoder.asked == []
    assert again.computed == 0
    assert again.seconds_spent == 0
    assert again.encode_seconds == pytest.approx(first.encode_seconds)
    np.testing.assert_array_equal(again.rows, rows_of(keys[order]))


def test_only_missing_rows_are_computed_and_duplicates_once(tmp_path):
    cache = FeatureCache(tmp_path)
    keys = digests(10)
    cache.open(SPACE).write(keys[:4], rows_of(keys[:4]), encode_seconds=8.0)
    wanted = keys[[9, 1, 9, 0, 5, 1, 5]]
    encoder = Encoder(wanted)
    got = cache.get_or_compute(SPACE, wanted, encoder)

    assert [a.tolist() for a in encoder.asked] == [[0, 4]]
    np.testing.assert_array_equal(got.rows, rows_of(wanted))
    assert got.computed == 2
    # Rows 0 and 1 cost two seconds each, including cached ones, however often they are used.
    assert got.encode_seconds == pytest.approx(4.0 + got.seconds_spent)


def test_stored_rows_are_found_and_copied_to_a_given_array(tmp_path):
    cache = FeatureCache(tmp_path)
    keys = digests(20)
    cache.open(SPACE).write(keys[:15], rows_of(keys[:15]), encode_seconds=3.0)
    found, seconds, _ = stored(cache, keys)
    assert found.tolist() == [True] * 15 + [False] * 5
    assert seconds == pytest.approx(3.0)

    out = np.zeros((5, 8), np.float32)
    got = cache.get_or_compute(SPACE, keys[3:8], Encoder(keys[3:8]), out=out)
    assert got.rows is out
    assert got.computed == 0
    np.testing.assert_array_equal(out, rows_of(keys[3:8]))


def test_a_segment_is_an_ordinary_safetensors_file(tmp_path):
    keys = digests(300)
    FeatureCache(tmp_path).open(SPACE).write(keys, rows_of(keys).astype(np.float16), 1.5)
    (path,) = segments(tmp_path)
    tensors = load_file(path)
    np.testing.assert_array_equal(tensors["keys"], keys)
    np.testing.assert_array_equal(tensors["rows"], rows_of(keys).astype(np.float16))
    assert json.loads((path.parent / "space.json").read_text()) == dataclasses.asdict(SPACE)


def test_keys_that_share_their_prefix_are_distinguished(tmp_path):
    keys = digests(64)
    keys[:, :8] = 5
    cache = FeatureCache(tmp_path)
    cache.open(SPACE).write(keys[:40], rows_of(keys[:40]))
    found, _, rows = stored(cache, keys)
    assert found.tolist() == [True] * 40 + [False] * 24
    np.testing.assert_array_equal(rows[:40], rows_of(keys[:40]))


def test_keys_that_end_in_zeros_are_distinguished(tmp_path):
    keys = np.zeros((3, 32), np.uint8)
    keys[1, 0] = keys[2, 0] = keys[2, 1] = 1
    rows = np.arange(3, dtype=np.float32)[:, None]
    got = FeatureCache(tmp_path).get_or_compute(
        SPACE, keys[[0, 1, 2, 1]], lambda i: iter([(i, rows[i])])
    )
    assert got.computed == 3
    assert got.rows[:, 0].tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Space)])
def test_every_field_of_a_space_changes_its_key(tmp_path, field):
    other = dataclasses.replace(SPACE, **{field: 1 if field == "view" else "other"})
    keys = digests(3)
    cache = FeatureCache(tmp_path)
    cache.open(SPACE).write(keys, rows_of(keys))
    assert other.key != SPACE.key
    assert not stored(cache, keys, other)[0].any()


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "f8", "i8", "u1"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_dtypes_and_shapes(tmp_path, dtype, shape):
    keys = digests(7)
    rows = np.arange(7 * int(np.prod(shape))).reshape(7, *shape).astype(dtype)
    FeatureCache(tmp_path).open(SPACE).write(keys, rows)
    _, _, back = stored(FeatureCache(tmp_path), keys)
    assert back.shape == rows.shape
    assert back.dtype == np.dtype(dtype).newbyteorder("<")
    np.testing.assert_array_equal(back, rows)


def test_wrong_arguments_are_refused(tmp_path):
    cache = FeatureCache(tmp_path)
    handle = cache.open(SPACE)
    keys = digests(4)
    with pytest.raises(ValueError, match="digests must be uint8"):
        handle.write(keys[:, :16], rows_of(keys))
    with pytest.raises(ValueError, match="4 digests but 3 rows"):
        handle.write(keys, rows_of(keys[:3]))
    with pytest.raises(ValueError, match="cannot be stored"):
        handle.write(keys, np.array(["a"] * 4))
    with pytest.raises(ValueError, match="cannot be stored"):
        handle.write(keys, np.empty((4, 0), np.float32))
    handle.write(keys, rows_of(keys))
    with pytest.raises(ValueError, match=r"holds rows of float32 \(8,\), got float32 \(9,\)"):
        handle.write(digests(2, 10), np.ones((2, 9), np.float32))
    with pytest.raises(ValueError, match="'out' has 3 rows, expected 4"):
        cache.get_or_compute(SPACE, keys, Encoder(keys), out=np.empty((3, 8), np.float32))


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda i: iter([(i[:2], np.ones((2, 3), np.float32))]), "left out 2 of 4"),
        (lambda i: iter([(i, np.ones((3, 3), np.float32))]), "4 positions but 3 rows"),
        (lambda i: iter([(np.append(i, i[0]), np.ones((5, 3), np.float32))]), "twice"),
        (lambda i: iter([(i, np.ones((4, 3), np.float32))] * 2), "twice"),
        (
            lambda i: iter([
                (i[:2], np.ones((2, 3), np.float32)),
                (i[2:], np.ones((2, 4), np.float32)),
            ]),
            "do not fit",
        ),
    ],
)
def test_a_wrong_compute_is_found(tmp_path, compute, message):
    with pytest.raises(ValueError, match=message):
        FeatureCache(tmp_path).get_or_compute(SPACE, digests(4), compute)


def test_no_examples_need_no_compute(tmp_path):
    cache = FeatureCache(tmp_path)
    encoder = Encoder(digests(0))
    assert len(cache.get_or_compute(SPACE, digests(0), encoder).rows) == 0
    cache.open(SPACE).write(digests(2), rows_of(digests(2)))
    assert cache.get_or_compute(SPACE, digests(0), encoder).rows.shape == (0, 8)
    assert encoder.asked == []


def test_rows_computed_before_an_error_are_kept(tmp_path):
    keys = digests(100)

    def breaks(indices):
        yield indices[:60], rows_of(keys[indices[:60]])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureCache(tmp_path).get_or_compute(SPACE, keys, breaks)
    encoder = Encoder(keys)
    got = FeatureCache(tmp_path).get_or_compute(SPACE, keys, encoder)
    assert got.computed == 40
    np.testing.assert_array_equal(got.rows, rows_of(keys))


def test_rows_are_written_while_the_rest_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(space_module, "SEGMENT_BYTES", 100 * 32)
    keys = digests(1000)
    seen = []

    def watched(indices):
        for batch in Encoder(keys)(indices):
            seen.append(len(segments(tmp_path)))
            yield batch

    FeatureCache(tmp_path).get_or_compute(SPACE, keys, watched)
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert seen[-1] > 5
    for path in segments(tmp_path):
        assert len(load_file(path)["rows"]) <= 100


def test_a_slow_encoder_is_written_by_time(tmp_path, monkeypatch):
    monkeypatch.setattr(space_module, "FLUSH_SECONDS", 0.0)
    keys = digests(10)
    FeatureCache(tmp_path).get_or_compute(SPACE, keys, Encoder(keys, batch=2))
    assert len(segments(tmp_path)) == 5


def test_time_spent_outside_the_encoder_does_not_count(tmp_path):
    keys = digests(10)
    got = FeatureCache(tmp_path).get_or_compute(SPACE, keys, Encoder(keys, batch=1))
    again = FeatureCache(tmp_path).get_or_compute(SPACE, keys[:5], Encoder(keys))
    assert again.encode_seconds == pytest.approx(got.encode_seconds / 2)


def test_a_disabled_cache_touches_nothing(tmp_path):
    keys = digests(10)[[0, 1, 0, 2]]
    cache = FeatureCache(tmp_path, enabled=False)
    for _ in range(2):
        got = cache.get_or_compute(SPACE, keys, Encoder(keys))
        assert got.computed == 3
        assert got.encode_seconds == got.seconds_spent > 0
        np.testing.assert_array_equal(got.rows, rows_of(keys))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize(
    "where", ["length", "cost in the header", "keys", "first block", "last block"]
)
def test_a_flipped_bit_is_found_wherever_it_is(tmp_path, caplog, where):
    keys = digests(2000)
    width = 512  # about four blocks of a MiB
    FeatureCache(tmp_path).get_or_compute(SPACE, keys, Encoder(keys, width=width))
    (path,) = segments(tmp_path)
    header = int.from_bytes(path.read_bytes()[:8], "little")
    flip(
        path,
        {
            "length": 6,
            "cost in the header": path.read_bytes().index(b'"encode_seconds":"') + 18,
            "keys": 8 + header + 100,
            "first block": 8 + header + 2000 * 32 + 5,
            "last block": -1,
        }[where],
    )
    encoder = Encoder(keys, width=width)
    with caplog.at_level(logging.WARNING, "clipadapt"):
        got = FeatureCache(tmp_path).get_or_compute(SPACE, keys, encoder)

    np.testing.assert_array_equal(got.rows, rows_of(keys, width))
    assert got.computed == 2000
    assert f"removed a damaged segment of the feature cache, {path}" in caplog.text
    assert path not in segments(tmp_path)
    assert FeatureCache(tmp_path).get_or_compute(SPACE, keys, encoder).computed == 0


def test_damage_while_a_handle_is_open_is_found(tmp_path):
    keys = digests(50)
    cache = FeatureCache(tmp_path)
    cache.get_or_compute(SPACE, keys, Encoder(keys))
    flip(segments(tmp_path)[0], -1)
    got = cache.get_or_compute(SPACE, keys, Encoder(keys))
    assert got.computed == 50
    np.testing.assert_array_equal(got.rows, rows_of(keys))


@pytest.mark.parametrize("left", [0, 7, 100, 0.5, -1])
def test_a_truncated_segment_is_found(tmp_path, caplog, left):
    keys = digests(50)
    FeatureCache(tmp_path).get_or_compute(SPACE, keys, Encoder(keys))
    (path,) = segments(tmp_path)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * left)] if isinstance(left, float) else raw[:left])
    got = FeatureCache(tmp_path).get_or_compute(SPACE, keys, Encoder(keys))
    assert got.computed == 50
    np.testing.assert_array_equal(got.rows, rows_of(keys))
    assert "damaged" in caplog.text


def test_a_segment_that_is_too_long_is_found(tmp_path):
    keys = digests(5)
    FeatureCache(tmp_path).get_or_compute(SPACE, keys, Encoder(keys))
    with segments(tmp_path)[0].open("ab") as file:
        file.write(b"more")
    assert len(FeatureCache(tmp_path).verify().damaged) == 1


def test_a_header_that_claims_too_much_is_found(tmp_path):
    """Even if the file name matches the header: lengths are checked against the file."""
    keys = digests(5)
    FeatureCache(tmp_path).get_or_compute(SPACE, keys, Encoder(keys))
    (path,) = segments(tmp_path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    for old, new in [
        (b'"shape":[5,8]', b'"shape":[9,8]'),
        (b'"F32"', b'"Q32"'),
        (b'"block_rows":"32768"', b'"block_rows":"0"    '),
    ]:
        header = raw[8 : 8 + length].replace(old, new)
        assert header != raw[8 : 8 + length]
        forged = path.with_name(segment_name(header))
        forged.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
        report = FeatureCache(tmp_path).verify()
        assert report.damaged == (forged,)
        assert report.segments == 1


def test_an_unreadable_segment_is_skipped_and_kept(tmp_path, monkeypatch, caplog):
    keys = digests(5)
    FeatureCache(tmp_path).get_or_compute(SPACE, keys, Encoder(keys))
    (path,) = segments(tmp_path)

    def fails(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Segment, "read_into", fails)
    got = FeatureCache(tmp_path).get_or_compute(SPACE, keys, Encoder(keys))
    assert got.computed == 5
    assert path.exists()
    assert "recomputed" in caplog.text


def test_a_segment_that_vanishes_is_recomputed(tmp_path):
    keys = digests(20)
    cache = FeatureCache(tmp_path)
    handle = cache.open(SPACE)
    handle.write(keys[:10], rows_of(keys[:10]))
    handle.write(keys[10:], rows_of(keys[10:]))
    stored(cache, keys)
    segments(tmp_path)[0].unlink()
    got = cache.get_or_compute(SPACE, keys, Encoder(keys))
    assert got.computed == 10
    np.testing.assert_array_equal(got.rows, rows_of(keys))


def test_a_segment_that_vanishes_between_index_and_read_is_recomputed(tmp_path, monkeypatch):
    keys = digests(20)
    FeatureCache(tmp_path).open(SPACE).write(keys, rows_of(keys))
    locate = Index.locate

    def pruned_by_another(self, wanted):
        where = locate(self, wanted)
        FeatureCache(tmp_path).prune(everything=True)
        return where

    monkeypatch.setattr(Index, "locate", pruned_by_another)
    got = FeatureCache(tmp_path).get_or_compute(SPACE, keys, Encoder(keys))
    assert got.computed == 20
    np.testing.assert_array_equal(got.rows, rows_of(keys))


def test_an_unwritable_cache_is_a_warning(tmp_path, caplog):
    (tmp_path / "features").write_text("a file in the way")
    keys = digests(10)
    cache = FeatureCache(tmp_path)
    for _ in range(2):
        np.testing.assert_array_equal(
            cache.get_or_compute(SPACE, keys, Encoder(keys)).rows, rows_of(keys)
        )
    assert caplog.text.count("cannot write to the feature cache") == 1


# ---------------------------------------------------------------- bound, merging, upkeep


def test_the_cache_stays_within_its_bound_and_removes_the_least_recently_used(tmp_path):
    keys = digests(40)
    filled = FeatureCache(tmp_path)
    paths = []
    for i in range(0, 40, 10):
        filled.open(SPACE).write(keys[i : i + 10], rows_of(keys[i : i + 10]))
        (new,) = set(segments(tmp_path)) - set(paths)
        paths.append(new)
        os.utime(new, (1_000_000 + i, 1_000_000 + i))
    size = paths[0].stat().st_size
    cache = FeatureCache(tmp_path, max_bytes=3 * size + 100)
    stored(cache, keys[:10])  # the oldest is used again
    extra = digests(10, 40)
    cache.get_or_compute(SPACE, extra, Encoder(extra))

    left = segments(tmp_path)
    assert len(left) == 3
    assert paths[0] in left
    assert paths[1] not in left
    assert paths[2] not in left
    assert sum(p.stat().st_size for p in left) <= cache.max_bytes


def test_a_call_larger_than_the_bound_still_gets_all_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(space_module, "SEGMENT_BYTES", 64 * 32)
    keys = digests(640)
    cache = FeatureCache(tmp_path, max_bytes=20_000)
    for _ in range(2):
        got = cache.get_or_compute(SPACE, keys, Encoder(keys))
        np.testing.assert_array_equal(got.rows, rows_of(keys))
        assert sum(p.stat().st_size for p in segments(tmp_path)) <= 20_000
    assert 0 < got.computed < 640


def test_many_small_segments_are_merged(tmp_path):
    keys = digests(space_module.SMALL_SEGMENTS + 5)
    cache, other = FeatureCache(tmp_path), FeatureCache(tmp_path)
    for i in range(len(keys)):
        cache.open(SPACE).write(keys[i : i + 1], rows_of(keys[i : i + 1]), encode_seconds=1.0)
        if i == 50:
            stored(other, keys)
    assert len(segments(tmp_path)) < 10
    for each in (cache, other):
        found, seconds, rows = stored(each, keys)
        assert found.all()
        assert seconds == pytest.approx(len(keys))
        np.testing.assert_array_equal(rows, rows_of(keys))


def test_ls_prune_and_verify(tmp_path):
    cache = FeatureCache(tmp_path)
    assert cache.ls() == []
    text = dataclasses.replace(SPACE, tower="text")
    keys = digests(30)
    cache.open(SPACE).write(keys, rows_of(keys))
    cache.open(text).write(keys[:10], rows_of(keys[:10]))
    os.utime(segments(tmp_path / "")[0], (1, 1))
    listed = {s.space: s for s in cache.ls()}
    assert listed[SPACE].rows == 30
    assert listed[text].rows == 10
    assert listed[text].segments == 1
    assert sum(s.bytes for s in listed.values()) == sum(
        p.stat().st_size for p in segments(tmp_path)
    )
    assert cache.ls()[-1].last_used.year == 1970

    leftover = segments(tmp_path)[0].with_name(".tmp-1-0123456789abcdef")
    leftover.write_bytes(b"half")
    os.utime(leftover, (1, 1))
    report = cache.verify()
    assert (report.segments, report.rows, report.damaged) == (2, 40, ())

    flip(segments(tmp_path)[1], -1)
    assert len(cache.verify().damaged) == 1
    assert cache.prune(max_bytes=10**9).segments == 0
    assert not leftover.exists()
    assert cache.prune(everything=True).left == 0
    assert list((tmp_path / "features").iterdir()) == []
    cache.open(SPACE).write(keys, rows_of(keys))
    assert stored(cache, keys)[0].all()


def test_a_large_result_is_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(result_module, "SCRATCH_BYTES", 1000)
    keys = digests(500)
    for _ in range(2):
        rows = FeatureCache(tmp_path).get_or_compute(SPACE, keys, Encoder(keys)).rows
        np.testing.assert_array_equal(rows, rows_of(keys))
        assert rows.flags.writeable
        assert rows.base is not None
    assert not list(tmp_path.glob("features/*tmp*"))


def test_the_bound_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path))
    monkeypatch.setenv("CLIPADAPT_CACHE_BYTES", "12345")
    cache = FeatureCache()
    assert cache.max_bytes == 12345
    assert cache.directory == tmp_path / "features"
    monkeypatch.setenv("CLIPADAPT_CACHE_BYTES", "20GB")
    with pytest.raises(ConfigError, match="CLIPADAPT_CACHE_BYTES is '20GB', expected a whole"):
        FeatureCache()
