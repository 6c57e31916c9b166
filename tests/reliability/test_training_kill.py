"""After kill -9 during training, the same command resumes and gives the predictions of an uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

STEP = 40
# The console script, with a checkpoint after each step; it ends, as by kill -9, after the one of step 40.
PROGRAM = f"""
import os, signal
from clipadapt.methods import _training

def save(loop):
    loop._read()
    loop._save()
    if loop.state.step == {STEP}:
        os.kill(os.getpid(), signal.SIGKILL)

_training._Loop._save_if_due = save
from clipadapt.cli import main
main()
"""
TRAININGS = {
    "lora": ["steps_per_shot=null", "lora_dropout=0.25", "lr=0.01"],
    "coop": ["n_ctx=4", "keep=best"],
}


def words(recipe: str, model: str, out: Path) -> list[str]:
    settings = [
        f"model.name={model}", "data.name=synthetic:3x8", "data.shots=4", "seeds=[1]", "threads=1",
        "method.epochs=60", "method.augment=none", "method.batch_size=5",
        *(f"method.{s}" for s in TRAININGS[recipe]),
    ]  # fmt: skip
    return [
        "run",
        recipe,
        *(w for s in settings for w in ("--set", s)),
        "--out",
        str(out),
        "--json",
    ]


def only(root: Path, name: str) -> Path:
    (path,) = root.rglob(name)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("recipe", TRAININGS)
def test_a_killed_training_resumes_to_equal_predictions(recipe, tiny_clip, tmp_path, cli):
    uninterrupted = cli(*words(recipe, tiny_clip, tmp_path / "uninterrupted"))
    assert uninterrupted.code == 0, uninterrupted.err
    out = tmp_path / "killed"
    killed = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words(recipe, tiny_clip, out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list(out.rglob("checkpoint.safetensors"))) == 1
    assert not list(out.rglob("record.json"))

    resumed = cli(*words(recipe, tiny_clip, out))

    assert resumed.code == 0, resumed.err
    (note,) = [line for line in resumed.err.splitlines() if "resumed after step" in line]
    assert note.endswith(f" {STEP}")
    for name in ("predictions.npz", "history.jsonl", "classifier.safetensors"):
        assert (
            only(out, name).read_bytes() == only(tmp_path / "uninterrupted", name).read_bytes()
        ), name
    records = [json.loads(done.out)["records"][0] for done in (uninterrupted, resumed)]
    same = ("run_id", "fit_id", "selection", "calibration", "metrics", "predictions_sha256", "attempt")  # fmt: skip
    for key in same:
        assert records[0][key] == records[1][key], key
    assert not (out / ".work").exists()
