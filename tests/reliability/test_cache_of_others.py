"""A cache that belongs to another user, is read-only or cannot be created: one message, or work without it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="drops Linux capabilities"),
    pytest.mark.slow,
]

PROGRAM = "import sys; from {0}.cli import main; main()"
PR_CAPBSET_DROP = 24


def _as_an_ordinary_user() -> None:
    """Make file modes apply to root, too."""
    for capability in range(41):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@pytest.fixture
def command(tmp_path):
    """Run a command to which file modes apply, even as root."""

    def call(*words: object, program: str = "clipadapt", **environment: str):
        given = {k: v for k, v in os.environ.items() if k != "CLIPADAPT_CACHE"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(program), *map(str, words)],
            env=given | environment, capture_output=True, text=True, check=False, timeout=120,
            preexec_fn=_as_an_ordinary_user, cwd=tmp_path,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done

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
def test_cache_commands_report_what_they_cannot_do(command, cache, tmp_path, which, mode):
    segment = next(cache.glob("features/*/*/*.safetensors"))
    paths = {
        "segment": segment, "space": segment.parent, "top": segment.parent.parent,
        "features": cache / "features", "cache": cache,
    }  # fmt: skip
    paths[which].chmod(mode)
    for words in (("ls",), ("verify", "--json"), ("prune", "--all")):
        done = command("cache", *words, CLIPADAPT_CACHE=str(cache))
        assert done.returncode in {0, 2}, done.stderr
        if done.returncode == 2:
            assert "hint: set CLIPADAPT_CACHE" in done.stderr
    if which == "space" and mode == 0:
        done = command("cache", "prune", CLIPADAPT_CACHE=str(cache))
        assert f"cannot read or remove {segment.parent}" in done.stderr


@pytest.mark.parametrize("mode", [0o000, 0o555])
def test_a_run_works_with_a_cache_it_may_not_use(command, tiny_clip, cache, mode):
    for folder in (*cache.glob("features/*/*"), *cache.glob("features/*"), *cache.iterdir(), cache):
        folder.chmod(mode)
    done = command(*zeroshot(tiny_clip, "runs"), CLIPADAPT_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot write to the feature cache") == 1
    assert "CLIPADAPT_CACHE" in done.stderr


@pytest.mark.parametrize("program", ["clipadapt", "textsent"])
def test_a_home_that_cannot_be_created(command, program):
    for words in (("ls",), ("verify",), ("prune",)):
        done = command("cache", *words, program=program, HOME="/proc/nowhere")
        assert done.returncode == 0, done.stderr


def test_runs_work_where_no_cache_can_be_created(command, tiny_clip, tmp_path):
    done = command(*zeroshot(tiny_clip, "runs"), HOME="/proc/nowhere")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot write to the feature cache") == 1
    rows = [f"{'good' if i % 2 else 'bad'} film {i},{'pos' if i % 2 else 'neg'}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *rows]))
    words = ("run", "tfidf_svm", "--set", "data.name=csv:t.csv", "--out", "runs2")
    done = command(*words, program="textsent", HOME="/proc/nowhere")
    assert done.returncode == 0, done.stderr
    words = ("explore", "--dataset", "csv:t.csv", "--out", "e")
    done = command(*words, program="textsent", HOME="/proc/nowhere")
    assert done.returncode == 0, done.stderr
    words = ("zeroshot", "--model", "stitched", "--dataset", "synthetic:3x6")
    done = command(*words, HOME="/proc/nowhere")
    assert done.returncode == 2
    assert "hint: set CLIPADAPT_CACHE" in done.stderr
