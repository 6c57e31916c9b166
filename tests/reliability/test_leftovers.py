"""Files of killed processes are removed by the next run, and their checkpoints by ``cache prune``."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipadapt.core.runs import leftovers
from clipadapt.core.runs.claims import FOLDER, Claims
from tests import kills
from tests.watch import matching

pytestmark = pytest.mark.slow


# A method without a framework that writes to every place where methods write.
METHOD = """
import os, time
from pathlib import Path
from typing import ClassVar
import numpy as np
from clipadapt.core.files.atomic import atomic_directory, scratch_folder
from clipadapt.core.files.folders import cache_dir
from clipadapt.core.api.method import MethodConfig

class Config(MethodConfig):
    pass

class Writer:
    Config: ClassVar[type[MethodConfig]] = Config
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = None

    def __init__(self, config): self.config = config

    def fit(self, backbone, task, ctx):
        (ctx.work_dir / "checkpoint").write_bytes(b"0" * 1000)
        with atomic_directory(cache_dir() / "models" / "big") as new, scratch_folder() as scratch:
            for i in range(5):
                (new / f"part{i}").write_bytes(b"0" * 1000)
                (scratch / f"part{i}").write_bytes(b"0" * 1000)
                while "GATE" in os.environ and not Path(os.environ["GATE"]).exists():
                    time.sleep(0.01)
        return Classifier(task.classnames)

    def load(self, directory, backbone): raise NotImplementedError

class Classifier:
    score_kind: ClassVar[str] = "logit"
    n_trainable_params = 0

    def __init__(self, classnames): self.classnames = classnames

    def predict_scores(self, inputs):
        return np.eye(len(self.classnames), dtype=np.float32)[np.arange(len(inputs)) % len(self.classnames)]

    def save(self, directory):
        directory.mkdir()
        (directory / "classifier").write_bytes(b"0" * 1000)

METHOD = Writer
"""
MAIN = "from tests import kills; kills.arm(); from clipadapt.cli import main; main()"


@pytest.fixture
def place(tmp_path):
    for name in ("plugins", "tmp", "cache", "runs"):
        (tmp_path / name).mkdir()
    (tmp_path / "plugins" / "writer.py").write_text(METHOD)
    (tmp_path / "writer.yaml").write_text("method: {name: clip/writer}\n")
    return tmp_path


def start(place: Path, *words: object, **more: str) -> subprocess.Popen:
    environment = (
        os.environ
        | more
        | {
            "CLIPADAPT_PLUGINS": str(place / "plugins"),
            "CLIPADAPT_CACHE": str(place / "cache"),
            "TMPDIR": str(place / "tmp"),
        }
    )
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *map(str, words)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(place: Path, seed: int, *, held: bool = False, **more: str) -> subprocess.Popen:
    """Start a run; a held one stops in its fit, after the first of its files, until :func:`release`."""
    settings = ("data.name=synthetic:3x6", f"seeds=[{seed}]")
    words = [word for setting in settings for word in ("--set", setting)]
    if held:
        more["GATE"] = str(place / "gate")
    return start(place, "run", place / "writer.yaml", *words, "--out", place / "runs", **more)


def release(place: Path) -> None:
    (place / "gate").touch()


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def leftovers_in(place: Path) -> list[str]:
    """Return everything that is not a record or a complete cache entry."""
    # Not rglob: a living process may remove what is being listed.
    found = [
        Path(folder, name)
        for folder, folders, files in os.walk(place)
        for name in (*folders, *files)
        if name.startswith(".tmp-")
    ]
    found += [*(place / "tmp").iterdir(), *place.glob("runs/.*"), *place.glob("cache/locks/*")]
    return sorted(str(p.relative_to(place)) for p in found)


def test_after_twenty_kills_a_complete_run_and_a_prune_remove_all_leftovers(place):
    rng, seen = random.Random(0), set()
    for seed in range(20):
        # Anywhere between its first file and its record.
        process = run(
            place, seed, **kills.killed_at(place, rng.randrange(1, 38), after="checkpoint")
        )
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        seen |= {name.split("/")[0] for name in leftovers_in(place)}
        assert len([n for n in leftovers_in(place) if ".tmp-" in n or n.startswith("tmp/")]) <= 4
    assert seen == {"cache", "runs", "tmp"}, "nothing was left that could be removed"

    finish(run(place, 99))
    assert {n.split("/")[0] for n in leftovers_in(place)} <= {
        "runs"
    }  # checkpoints are kept for a week
    printed = json.loads(finish(start(place, "cache", "prune", "--json")))

    assert leftovers_in(place) == []
    assert printed["leftovers"] > 0
    assert len(list((place / "runs").glob("*/*/*/record.json"))) >= 1


def test_files_of_a_running_process_are_never_removed(place):
    process = run(place, 1, held=True)
    while not matching(place / "cache", "models/.tmp-*/part0"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    before = leftovers_in(place)

    finish(start(place, "cache", "prune", "--all"))
    finish(run(place, 2))
    finish(start(place, "cache", "prune"))

    assert set(before) <= set(leftovers_in(place))
    release(place)
    finish(process)
    assert leftovers_in(place) == []
    assert len(list((place / "runs").glob("*/*/*/record.json"))) == 2


@pytest.mark.parametrize(
    "sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name
)
def test_an_interrupted_run_leaves_only_its_checkpoint(place, sent):
    process = run(place, 1, held=True)
    while not matching(place / "cache", "models/.tmp-*/part0"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("interrupted; complete runs are kept")
    assert "Traceback" not in err
    assert leftovers_in(place) == ["runs/.work"]
    finish(run(place, 1))
    assert leftovers_in(place) == []


def test_checkpoints_are_kept_for_a_week(tmp_path):
    work = tmp_path / ".work"
    for name in ("old", "young", "empty", "finished", "held"):
        (work / name).mkdir(parents=True)
        (work / name / "checkpoint").write_text("0")
    (work / "empty" / "checkpoint").unlink()
    week_ago = time.time() - leftovers.KEEP_SECONDS - 60
    for name in ("old", "held"):
        os.utime(work / name / "checkpoint", (week_ago, week_ago))

    with Claims(tmp_path) as mine, Claims(tmp_path) as other:
        other.acquire("held")
        leftovers.clear(tmp_path, mine, {"finished"})
        assert sorted(p.name for p in work.iterdir()) == ["held", "young"]
    leftovers.prune()
    assert not work.exists()


def test_the_next_run_removes_the_claim_of_a_killed_one(place):
    process = run(place, 1, held=True)
    while not matching(place / "cache", "models/.tmp-*/part0"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert len(list((place / "runs" / FOLDER).glob("*.lock"))) == 1

    finish(run(place, 2))

    assert not (place / "runs" / FOLDER).exists()


def test_a_file_named_like_the_work_folder_is_one_message(place):
    (place / "runs" / ".work").write_text("")
    process = run(place, 1)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"hint: remove the file '{place / 'runs' / '.work'}'" in err
    assert "Traceback" not in err
