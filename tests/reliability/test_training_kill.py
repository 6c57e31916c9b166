"""After kill -9 during training, the same command resumes and gives the predictions of an uninterrupted run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipadapt.core.files.atomic import files_below

# The console script, with a checkpoint after each step instead of every ten seconds.
PROGRAM = """
from clipadapt.methods import _training
_training.CHECKPOINT_SECONDS = 0.0
from clipadapt.cli import main
main()
"""
TRAININGS = {
    "lora": ["steps_per_shot=null", "lora_dropout=0.25", "lr=0.01"],
    "coop": ["n_ctx=4", "keep=best"],
}


def command(recipe: str, model: str, out: Path) -> list[str]:
    settings = [
        f"model.name={model}", "data.name=synthetic:3x8", "data.shots=4", "seeds=[1]", "threads=1",
        "method.epochs=60", "method.augment=none", "method.batch_size=5",
        *(f"method.{s}" for s in TRAININGS[recipe]),
    ]  # fmt: skip
    words = [w for s in settings for w in ("--set", s)]
    return [sys.executable, "-c", PROGRAM, "run", recipe, *words, "--out", str(out), "--json"]


def only(root: Path, name: str) -> Path:
    (path,) = root.rglob(name)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("recipe", TRAININGS)
def test_a_killed_training_resumes_to_equal_predictions(recipe, tiny_clip, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def finished(out: Path) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command(recipe, tiny_clip, out), capture_output=True, text=True, env=environment, check=False
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    uninterrupted = finished(tmp_path / "uninterrupted")
    out = tmp_path / "killed"
    process = subprocess.Popen(
        command(recipe, tiny_clip, out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    deadline = time.monotonic() + 120
    while not list(files_below(out, "checkpoint.safetensors")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)
    assert process.poll() is None, "the training ended before it could be killed"
    process.kill()
    process.wait()
    assert not list(out.rglob("record.json"))

    resumed = finished(out)

    (note,) = [line for line in resumed.stderr.splitlines() if "resumed after step" in line]
    assert 0 < int(note.rsplit(" ", 1)[1]) < 60 * 3
    for name in ("predictions.npz", "history.jsonl", "classifier.safetensors"):
        assert (
            only(out, name).read_bytes() == only(tmp_path / "uninterrupted", name).read_bytes()
        ), name
    records = [json.loads(d.stdout)["records"][0] for d in (uninterrupted, resumed)]
    same = ("run_id", "fit_id", "selection", "calibration", "metrics", "predictions_sha256", "attempt")  # fmt: skip
    for key in same:
        assert records[0][key] == records[1][key], key
    assert not (out / ".work").exists()
