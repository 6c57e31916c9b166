"""Concurrent processes and kill -9 leave the feature cache and the records intact."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.features.result import Result
from tests import kills
from tests.watch import matching

# A writer in small segments, which prints a line when it starts and one at the end of each round.
WRITER = """
import hashlib, sys
from pathlib import Path
import numpy as np
from clipadapt.core.features import space as module
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.api.features import Space
from tests import kills

N, WIDTH = 3000, 64
SPACE = Space("w", "gelu", "output", "p", "fp32", 0, "image")
KEYS = np.frombuffer(
    b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(N)), np.uint8
).reshape(N, 32)
ROWS = np.arange(N, dtype=np.float32)[:, None] + np.arange(WIDTH, dtype=np.float32) / WIDTH

def compute(indices):
    for i in range(0, len(indices), 50):
        yield indices[i : i + 50], ROWS[indices[i : i + 50]]

def main(root, rounds):
    kills.arm()
    module.SEGMENT_BYTES = 100 * WIDTH * 4  # set here because the test executes the rest of this script
    print("ready", flush=True)
    for _ in range(int(rounds)):
        got = FeatureCache(Path(root)).get_or_compute(SPACE, KEYS, compute)
        assert np.array_equal(got.rows, ROWS)
        print(got.computed, flush=True)

if __name__ == "__main__":
    main(*sys.argv[1:])
"""

RECORDER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import numpy as np
from clipadapt.core.records.predictions import Predictions
from clipadapt.core.records.run_store import RunStore
from tests import kills
from tests.unit.core.records.test_records import make_record

kills.arm()
store = RunStore(Path(sys.argv[1]))
scores = np.random.default_rng(0).standard_normal((3000, 50)).astype(np.float32)
predictions = Predictions(tuple(map(str, range(3000))), np.zeros(3000, np.int64), scores)
print("ready", flush=True)
for i in range(100_000):
    store.save(make_record(run_id=f"{i % 7:016x}"), predictions, history=[{"loss": 1.0}] * 100)
"""


@pytest.fixture
def writer(tmp_path):
    path = tmp_path / "writer.py"
    path.write_text(WRITER)
    scope: dict = {"__name__": "writer"}
    exec(compile(WRITER, str(path), "exec"), scope)
    return path, scope


def start(*arguments, **environment):
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_killed_writer_leaves_nothing_half_done(tmp_path, writer):
    path, scope = writer
    rng = random.Random(0)
    root = tmp_path / "cache"

    def segments():
        return sorted(matching(root, "features/*/*/*.safetensors"))

    grown = 0
    for _ in range(3):
        before = len(segments())
        operation = rng.randrange(1, 20)
        process = start(path, root, 1, **kills.killed_at(root, operation, after=".safetensors"))
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert len(segments()) >= before
        grown += len(segments()) > before

        for segment in segments():
            load_file(segment)
        cache = FeatureCache(root)
        assert cache.verify().damaged == ()
        result = Result(scope["N"])
        found, _ = cache.open(scope["SPACE"]).fill(scope["KEYS"], result)
        np.testing.assert_array_equal(
            result.rows()[found], scope["ROWS"][found, : result.rows().shape[1]]
        )

    assert grown
    last = cache.get_or_compute(scope["SPACE"], scope["KEYS"], scope["compute"])
    np.testing.assert_array_equal(last.rows, scope["ROWS"])
    assert 0 < last.computed < scope["N"]  # some rows were kept, some were left to compute


def test_two_writers_at_once(tmp_path, writer):
    path, _ = writer
    root = tmp_path / "cache"
    both = [start(path, root, 2) for _ in range(2)]
    for process in both:
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert out.split()[-1] == "0"  # the second round computes nothing
    assert FeatureCache(root).verify().damaged == ()


def test_a_writer_survives_another_that_prunes(tmp_path, writer):
    path, _ = writer
    root = tmp_path / "cache"
    process = start(path, root, 1)
    while process.poll() is None:
        FeatureCache(root).prune(everything=True)
    process.communicate()
    assert process.returncode == 0


def test_a_flipped_byte_and_a_truncated_segment_are_found(tmp_path, writer):
    path, scope = writer
    root = tmp_path / "cache"
    start(path, root, 1).communicate(timeout=30)
    first, second, *rest = sorted(root.glob("features/*/*/*.safetensors"))
    assert rest
    raw = bytearray(first.read_bytes())
    raw[-1000] ^= 0x10
    first.write_bytes(raw)
    second.write_bytes(second.read_bytes()[:-500])

    cache = FeatureCache(root)
    found = cache.get_or_compute(scope["SPACE"], scope["KEYS"], scope["compute"])
    np.testing.assert_array_equal(found.rows, scope["ROWS"])
    assert found.computed == 200  # two segments of a hundred rows
    assert not first.exists()
    assert not second.exists()
    assert cache.verify().damaged == ()


def test_a_killed_run_leaves_no_half_record(tmp_path, request):
    from clipadapt.core.records.run_store import RunStore

    script = tmp_path / "recorder.py"
    script.write_text(RECORDER)
    rng = random.Random(1)
    root = tmp_path / "runs"
    store = RunStore(root)
    for _ in range(3):
        at = kills.killed_at(root, rng.randrange(1, 60), after="record.json")
        process = start(script, root, request.config.rootpath, **at)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        for record in store.load_all():
            assert len(store.load_predictions(store.run_dir(record)).ids) == 3000
            assert len((store.run_dir(record) / "history.jsonl").read_text().splitlines()) == 100
    assert store.load_all()
