"""A cache that belongs to another user, is read-only or cannot be created: one message, or work without it."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="drops Linux capabilities"),
    pytest.mark.slow,
]

# Several commands after each other: a process for each would import the package each time.
PROGRAM = """
import contextlib, io, json, sys
from clipadapt.core.cli.streams import run_app
from {0}.cli import app

done = []
for words in json.loads(sys.argv[1]):
    code = 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            run_app(app, words)
        except SystemExit as end:
            code = end.code or 0
    done.append((code, err.getvalue()))
print(json.dumps(done))
"""
PR_CAPBSET_DROP = 24


def _as_an_ordinary_user() -> None:
    """Make file modes apply to root, too."""
    for capability in range(41):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


class Done(NamedTuple):
    """Exit code and messages of a command."""

    code: int
    err: str


@pytest.fixture
def commands(tmp_path):
    """Run commands to which file modes apply, even as root."""

    def call(*commands: tuple[object, ...], program: str = "clipadapt", **environment: str):
        given = {k: v for k, v in os.environ.items() if k != "CLIPADAPT_CACHE"}
        words = json.dumps([[str(w) for w in command] for command in commands])
        process = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(program), words],
            env=given | environment, capture_output=True, text=True, check=False, timeout=120,
            preexec_fn=_as_an_ordinary_user, cwd=tmp_path,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        found = [Done(*one) for one in json.loads(process.stdout)]
        assert not [one for one in found if "Traceback" in one.err]
        return found

    yield call
    for folder, folders, _ in os.walk(tmp_path):  # pytest removes it later
        for name in folders:
            Path(folder, name).chmod(0o755)


def zeroshot(tiny_clip: str, out: str) -> tuple[str, ...]:
    return ("zeroshot", "--model", tiny_clip, "--dataset", "synthetic:3x6", "--out", out)


@pytest.fixture
def cache(tmp_path) -> Path:
    """A cache with one segment in each of two spaces, and a leftover."""
    import numpy as np

    from clipadapt.core.api.features import Space
    from clipadapt.core.features.cache import FeatureCache

    keys = np.random.default_rng(0).integers(0, 256, (10, 32), dtype=np.uint8)
    for view in (0, 1):
        space = Space("w", "gelu", "output", "p", "fp32", view, "image")
        FeatureCache(tmp_path / "cache").open(space).write(keys, np.ones((10, 3), np.float32))
    return tmp_path / "cache"


@pytest.mark.parametrize("mode", [0o000, 0o555])
@pytest.mark.parametrize("which", ["space", "top", "features", "cache", "segment"])
def test_cache_commands_report_what_they_cannot_do(commands, cache, tmp_path, which, mode):
    segment = next(cache.glob("features/*/*/*.safetensors"))
    paths = {
        "segment": segment, "space": segment.parent, "top": segment.parent.parent,
        "features": cache / "features", "cache": cache,
    }  # fmt: skip
    paths[which].chmod(mode)
    words = [("ls",), ("verify", "--json"), ("prune", "--all"), ("prune",)]
    found = commands(*(("cache", *w) for w in words), CLIPADAPT_CACHE=str(cache))
    for done in found:
        assert done.code in {0, 2}, done.err
        if done.code == 2:
            assert "hint: set CLIPADAPT_CACHE" in done.err
    if which == "space" and mode == 0:
        assert f"cannot read or remove {segment.parent}" in found[-1].err


@pytest.mark.parametrize("mode", [0o000, 0o555])
def test_a_run_works_with_a_cache_it_may_not_use(commands, tiny_clip, cache, mode):
    for folder in (*cache.glob("features/*/*"), *cache.glob("features/*"), *cache.iterdir(), cache):
        folder.chmod(mode)
    (done,) = commands(zeroshot(tiny_clip, "runs"), CLIPADAPT_CACHE=str(cache))
    assert done.code == 0, done.err
    assert done.err.count("cannot write to the feature cache") == 1
    assert "CLIPADAPT_CACHE" in done.err


@pytest.mark.parametrize("program", ["clipadapt", "textsent"])
def test_a_home_that_cannot_be_created(commands, program):
    words = [("cache", "ls"), ("cache", "verify"), ("cache", "prune")]
    for done in commands(*words, program=program, HOME="/proc/nowhere"):
        assert done.code == 0, done.err


def test_runs_work_where_no_cache_can_be_created(commands, tiny_clip, tmp_path):
    run, refused = commands(
        zeroshot(tiny_clip, "runs"),
        ("zeroshot", "--model", "stitched", "--dataset", "synthetic:3x6"),
        HOME="/proc/nowhere",
    )
    assert run.code == 0, run.err
    assert run.err.count("cannot write to the feature cache") == 1
    assert refused.code == 2
    assert "hint: set CLIPADAPT_CACHE" in refused.err
    rows = [f"{'good' if i % 2 else 'bad'} film {i},{'pos' if i % 2 else 'neg'}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *rows]))
    for done in commands(
        ("run", "tfidf_svm", "--set", "data.name=csv:t.csv", "--out", "runs2"),
        ("explore", "--dataset", "csv:t.csv", "--out", "e"),
        program="textsent",
        HOME="/proc/nowhere",
    ):
        assert done.code == 0, done.err
