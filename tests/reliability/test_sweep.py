"""A sweep survives other processes, interruptions and kill -9."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from clipadapt.core.files.atomic import is_temporary
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.runs.claims import FOLDER
from clipadapt.core.runs.leftovers import WORK
from tests import kills
from tests.watch import matching

pytestmark = pytest.mark.slow


# A method without a framework, so that a process starts fast. It logs every fit that it starts. A fit waits until
# MEET processes have started one, and, if it is later than the first HOLD fits, until the file ``fits.log.go`` exists.
METHOD = """
import json, os, time
from pathlib import Path
from typing import Any, ClassVar
import numpy as np
from clipadapt.core.api.method import MethodConfig

class Config(MethodConfig):
    break_seed: int = 0

def waits(log, number):
    met = {line.split()[0] for line in log.read_text().splitlines()}
    if len(met) < int(os.environ.get("MEET", 1)):
        return True
    return number > int(os.environ.get("HOLD", 1000)) and not Path(f"{log}.go").exists()

class Means:
    Config: ClassVar[type[MethodConfig]] = Config
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = None

    def __init__(self, config): self.config = config

    def fit(self, backbone, task, ctx):
        if "FITS" in os.environ:
            log = Path(os.environ["FITS"])
            with log.open("a") as file:
                file.write(f"{os.getpid()} {ctx.work_dir.name} {ctx.seed}\\n")
            number = len(log.read_text().splitlines())
            while waits(log, number):
                time.sleep(0.01)
        if ctx.seed == self.config.break_seed:
            raise RuntimeError("broken on purpose")
        x = pixels(task.train.inputs)
        y = task.train.labels
        noise = ctx.rng("noise").normal(size=(len(task.classnames), x.shape[1])) * 0.01
        means = np.stack([x[y == c].mean(axis=0) for c in range(len(task.classnames))]) + noise
        return Classifier(task.classnames, means.astype(np.float32))

    def load(self, directory, backbone):
        facts = json.loads((directory / "facts.json").read_text())
        return Classifier(tuple(facts), np.load(directory / "means.npy"))

def pixels(inputs):
    return np.stack([np.asarray(e.resize((6, 6)), np.float32).ravel() / 255 for e in inputs.examples])

class Classifier:
    score_kind: ClassVar[str] = "logit"

    def __init__(self, classnames, means):
        self.classnames, self.means, self.n_trainable_params = classnames, means, int(means.size)

    def predict_scores(self, inputs):
        x = pixels(inputs)
        return -((x[:, None] - self.means[None]) ** 2).sum(axis=2).astype(np.float32)

    def save(self, directory):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "facts.json").write_text(json.dumps(self.classnames))
        np.save(directory / "means.npy", self.means)

METHOD = Means
"""
MAIN = "from tests import kills; kills.arm(); from clipadapt.cli import main; main()"
TIMINGS = {"cost", "started_at", "environment"}


@pytest.fixture
def plan(tmp_path):
    """A sweep of 24 fits, 48 runs, and the environment to start it in."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "means.py").write_text(METHOD)
    (tmp_path / "means.yaml").write_text("method: {name: clip/means}\n")
    sweep = {
        "datasets": ["synthetic:3x6", "synthetic:4x6"],
        "methods": [str(tmp_path / "means.yaml")],
        "shots": [1, 2, 3],
        "seeds": [1, 2, 3, 4],
        "settings": {"evaluation.also": [{"split": "val"}]},
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps(sweep))
    environ = {
        **os.environ,
        "CLIPADAPT_PLUGINS": str(tmp_path / "plugins"),
        "FITS": str(tmp_path / "fits.log"),
    }
    return path, environ


def start(plan, out, *more, **environment) -> subprocess.Popen:
    path, environ = plan
    words = ["bench", str(path), "--out", str(out), *more]
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *words],
        env=environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def content(out: Path) -> dict[str, dict]:
    """Return every record by id, without timings, and the other files of its folder; predictions are checked."""
    store, found = RunStore(out), {}
    for record in store.load_all():
        folder = store.run_dir(record)
        RunStore.load_predictions(folder)
        assert record.run_id not in found
        files = {
            str(p.relative_to(folder)): p.read_bytes()
            for p in folder.rglob("*")
            if p.is_file() and p.name != "record.json"
        }
        found[record.run_id] = {**record.model_dump(mode="json", exclude=TIMINGS), "files": files}
    return found


def n_records(out: Path) -> int:
    # Read while other processes write: their unfinished folders come and go.
    return sum(not is_temporary(p.parent) for p in matching(out, "*/*/*/record.json"))


def fits(plan) -> list[str]:
    log = Path(plan[1]["FITS"])
    return log.read_text().splitlines() if log.exists() else []


def test_ten_kills_change_nothing(plan, tmp_path):
    code, _, err = finish(start(plan, tmp_path / "calm"))
    assert code == 0, err
    wanted = content(tmp_path / "calm")
    assert len(wanted) == 48

    out, rng = tmp_path / "killed", random.Random(0)
    killed_at = []
    for _ in range(10):
        # Somewhere between the first record that it writes and the fifth.
        process = start(
            plan, out, **kills.killed_at(out, rng.randrange(1, 80), after="record.json")
        )
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the sweep was over before ten kills"
        killed_at.append(n_records(out))
        RunStore(out).load_all()  # every record is readable

    code, printed, err = finish(start(plan, out, "--json"))

    assert code == 0, err
    assert 0 < killed_at[-1] < 48
    assert len(set(killed_at)) > 5
    assert content(out) == wanted
    assert len(json.loads(printed)["records"]) == 48
    assert not (out / FOLDER).exists()
    assert not (out / WORK).exists()


def test_two_processes_do_each_run_once(plan, tmp_path):
    out = tmp_path / "runs"

    both = [start(plan, out, "--json", MEET="2") for _ in range(2)]
    results = [finish(process) for process in both]

    begun = fits(plan)
    for code, printed, err in results:
        assert code == 0, err
        assert len(json.loads(printed)["records"]) == 48  # each waits for the runs of the other
    assert len(begun) == len({line.split()[1] for line in begun}) == 24
    assert {line.split()[0] for line in begun} == {str(p.pid) for p in both}
    assert n_records(out) == len(content(out)) == 48
    assert not (out / FOLDER).exists()


def test_a_run_and_a_sweep_do_not_do_the_same_fit(plan, tmp_path):
    out, (_, environ) = tmp_path / "runs", plan
    small = ("datasets=[synthetic:3x6]", "shots=[1]", "seeds=[1]")
    sweep = start(plan, out, *(w for s in small for w in ("--set", s)), HOLD="0")
    while not fits(plan):
        assert sweep.poll() is None, sweep.communicate()
        time.sleep(0.01)

    same = (
        "data.name=synthetic:3x6",
        "data.shots=1",
        "seeds=[1]",
        "evaluation.also=[{split: val}]",
    )
    words = ["run", str(tmp_path / "means.yaml"), "--out", str(out), "--json"]
    words += [w for s in same for w in ("--set", s)]
    run = subprocess.Popen(
        [sys.executable, "-c", MAIN, *words],
        env=environ | {"PYTHONUNBUFFERED": "1"},  # messages come at once then, too
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said, watch = "", threading.Timer(120, run.kill)
    watch.start()
    while "waiting for 1 run" not in said:
        line = run.stderr.readline()
        assert line, said
        said += line
    watch.cancel()
    Path(f"{environ['FITS']}.go").touch()
    code, printed, _ = finish(run)

    assert code == 0
    assert f"waiting for 1 run done by process {sweep.pid}" in said
    assert len(json.loads(printed)["records"]) == 2
    assert finish(sweep)[0] == 0
    assert len(fits(plan)) == 1


def test_an_interruption_ends_cleanly_and_the_same_command_resumes(plan, tmp_path):
    out = tmp_path / "runs"
    process = start(plan, out, HOLD="2")
    while len(fits(plan)) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)

    assert code == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not (out / FOLDER).exists()
    assert n_records(out) == 4

    code, _, err = finish(start(plan, out))

    assert code == 0, err
    assert n_records(out) == 48
    assert len(fits(plan)) == 24 + 1  # only the interrupted fit started twice


def test_a_run_that_fails_in_another_process_is_not_tried_again_at_once(plan, tmp_path):
    out = tmp_path / "runs"
    small = ("datasets=[synthetic:3x6]", "shots=[1]", "seeds=[1,2]")
    broken = [w for s in (*small, "method.break_seed=2") for w in ("--set", s)]

    results = [finish(p) for p in [start(plan, out, *broken, MEET="2") for _ in range(2)]]

    found = RunStore(out).load_all()
    assert {code for code, _, _ in results} == {1}
    assert [r.attempt for r in found if r.status == "failed"] == [1, 1], results
    assert [r.seed for r in found if r.status == "failed"] == [2, 2]
    assert sum("RuntimeError: broken on purpose" in err for _, _, err in results) >= 1
    assert len(fits(plan)) == 2


def test_equal_scores_of_equal_seeds(plan, tmp_path):
    """The method of these tests is deterministic; otherwise the other tests would prove nothing."""
    for name in ("a", "b"):
        code, _, err = finish(start(plan, tmp_path / name, "--set", "seeds=[1]"))
        assert code == 0, err
    first, second = content(tmp_path / "a"), content(tmp_path / "b")
    assert first == second
    assert len({v["predictions_sha256"] for v in first.values()}) == len(first)
    assert np.mean([v["metrics"]["accuracy"]["value"] for v in first.values()]) > 0.4
