"""A killed or interrupted ``encode`` keeps what it stored, and the same command encodes the rest, bit for bit."""

from __future__ import annotations

import json
import signal

import pytest

from clipadapt.core.runs import shards
from tests.encoding import SHARD, encode_until, rows_of, stored_rows

pytestmark = pytest.mark.slow


@pytest.fixture
def encode(cli, monkeypatch, tiny_clip):
    """Return a function that encodes into a cache in this process, and its words."""
    monkeypatch.setattr(shards, "FIRST", SHARD)
    monkeypatch.setattr(shards, "MOST", SHARD)
    words = ("encode", "--dataset", "synthetic:4x4", "--model", tiny_clip, "--json")

    def call(cache):
        monkeypatch.setenv("CLIPADAPT_CACHE", str(cache))
        done = cli(*words)
        assert done.code == 0, done.err
        return json.loads(done.out)

    return call, words


def test_a_killed_encode_resumes_exactly(encode, tmp_path):
    run, words = encode
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = run(whole)
    third = ("clipadapt.core.features.space", "write_segment", 3)

    done = encode_until(signal.SIGKILL, third, words, CLIPADAPT_CACHE=str(killed))

    assert done.returncode == -signal.SIGKILL
    kept = stored_rows(killed)
    assert kept == 2 * SHARD
    resumed = run(killed)
    assert resumed["encoded"] == first["encoded"] - kept
    assert resumed["stored_before"] == first["stored_before"] + kept
    assert rows_of(killed) == rows_of(whole)  # byte for byte
    assert stored_rows(killed) == first["encoded"]  # no row twice


def test_an_interrupted_encode_says_what_is_stored(encode, tmp_path):
    run, words = encode
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    first = run(whole)
    third = ("clipadapt.core.runs.shards", "compute_rows", 3)

    done = encode_until(signal.SIGINT, third, words, CLIPADAPT_CACHE=str(cut))

    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert (
        last == "interrupted after 16 of 52 images; they are stored, and the same command resumes"
    )
    assert stored_rows(cut) == 2 * SHARD
    assert run(cut)["encoded"] == first["encoded"] - 2 * SHARD
    assert rows_of(cut) == rows_of(whole)
