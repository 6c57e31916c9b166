"""Runs as Ray tasks on this machine: the driver writes the same records as for local runs."""

from __future__ import annotations

import contextlib
import json

import pytest

from clipadapt.core.experiments.sweep import load_sweep
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.runs import sweep
from tests.reliability.test_sweep import METHOD, TIMINGS

pytestmark = pytest.mark.slow


ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'clipadapt[ray]'")

# A fitted classifier that gives every input the same scores, for the plug-ins.
CONSTANT = """
from typing import ClassVar
import numpy as np

class Constant:
    score_kind: ClassVar[str] = "logit"
    n_trainable_params: ClassVar[int] = 0
    def __init__(self, classnames): self.classnames = classnames
    def predict_scores(self, inputs):
        return np.tile(np.arange(len(self.classnames), dtype=np.float32), (len(inputs), 1))
    def save(self, directory): directory.mkdir(parents=True, exist_ok=True)
"""
# A method that kills its worker the first ``times`` times.
DYING = (
    CONSTANT
    + """
import os, pathlib
from clipadapt.core.api.method import MethodConfig

class Config(MethodConfig):
    marks: str = ""
    times: int = 1

class Dying:
    Config: ClassVar[type[MethodConfig]] = Config
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = None

    def __init__(self, config): self.config = config

    def fit(self, backbone, task, ctx):
        marks = pathlib.Path(self.config.marks)
        n = len(list(marks.glob(f"{ctx.seed}-*")))
        if n < self.config.times:
            (marks / f"{ctx.seed}-{n}").touch()
            os._exit(9)
        return Constant(task.classnames)

    def load(self, directory, backbone): raise NotImplementedError

METHOD = Dying
"""
)


@contextlib.contextmanager
def ray_with(folder, plugins, **resources):
    """Ray with resources of this machine, and with the given plug-ins in a folder."""
    for name, content in plugins.items():
        (folder / f"{name}.py").write_text(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPADAPT_PLUGINS", str(folder))
        ray.init("local", include_dashboard=False, log_to_driver=False, **resources)
        try:
            yield
        finally:
            ray.shutdown()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Ray with two processors of this machine and the plug-ins of these tests."""
    folder = tmp_path_factory.mktemp("plugins")
    with ray_with(folder, {"means": METHOD, "dying": DYING}, num_cpus=2):
        yield folder


def write(path, content) -> str:
    path.write_text(json.dumps(content))  # JSON is YAML
    return str(path)


def json_of(out: str) -> dict:
    """The JSON that a command printed; Ray, which stays connected here, may print there that it lost a worker."""
    begin = 0 if out.startswith("{") else out.index("\n{") + 1
    return json.JSONDecoder().raw_decode(out[begin:])[0]


def facts(out) -> dict[str, dict]:
    store, found = RunStore(out), {}
    for record in store.load_all():
        folder = store.run_dir(record)
        RunStore.load_predictions(folder)
        files = {
            str(p.relative_to(folder)): p.read_bytes()
            for p in folder.rglob("*")
            if p.is_file() and p.name != "record.json"
        }
        found[record.run_id] = {
            **record.model_dump(mode="json", exclude=TIMINGS),
            "threads": record.environment.threads,
            "files": files,
        }
    return found


def test_ray_and_local_give_the_same(cli, cluster, tmp_path, tiny_clip):
    plan = write(
        tmp_path / "sweep.yaml",
        {
            "datasets": ["synthetic:3x6"],
            "models": [tiny_clip],
            "methods": [
                "zero_shot",
                {"recipe": "linear_probe-quick", "set": {"method.max_iter": 20}},
            ],
            "shots": [2],
            "seeds": [1, 2],
            "settings": {
                "threads": 1,
                "evaluation.also": [{"split": "val"}],
                "model.precision": "fp32",  # set by one of the recipes only
            },
        },
    )
    local, remote = tmp_path / "local", tmp_path / "remote"

    assert cli("bench", plan, "--out", local).code == 0
    done = cli("bench", plan, "--out", remote, "--executor", "ray", "--workers", 2, "--json")

    assert done.code == 0, done.err
    assert len(json_of(done.out)["records"]) == 8
    assert facts(remote) == facts(local)
    assert {f["threads"] for f in facts(remote).values()} == {1}
    assert not (remote / ".claims").exists()
    again = cli("bench", plan, "--out", remote)  # resumes locally
    assert again.code == 0
    assert "2 of 2 runs were complete already" in again.err


def test_both_executors_apply_and_record_threads(cli, cluster, tmp_path):
    recipe = write(tmp_path / "means.yaml", {"method": {"name": "clip/means"}})
    plan = write(
        tmp_path / "s.yaml",
        {"datasets": ["synthetic:2x4"], "methods": [recipe], "shots": [1], "seeds": [1]},
    )

    for name, words, threads in (
        ("a", ("--set", "threads=2"), 2),
        ("b", ("--set", "threads=2", "--executor", "ray"), 2),
        ("c", ("--executor", "ray"), 1),
    ):
        assert cli("bench", plan, "--out", tmp_path / name, *words).code == 0
        (record,) = RunStore(tmp_path / name).load_all()
        assert record.environment.threads == threads


def test_a_lost_worker_is_replaced(cluster, tmp_path):
    (tmp_path / "marks").mkdir()
    recipe = write(
        tmp_path / "dying.yaml",
        {"method": {"name": "clip/dying", "marks": str(tmp_path / "marks")}},
    )
    plan = write(
        tmp_path / "s.yaml", {"datasets": ["synthetic:2x4"], "methods": [recipe], "seeds": [1, 2]}
    )
    from clipadapt.core.runs.distributed import Ray

    with Ray(2) as executor:
        outcome = sweep.run_sweep(load_sweep(plan), tmp_path / "runs", executor=executor)

    assert outcome.failures == []
    assert [r.status for r in outcome.records] == ["ok", "ok"]
    assert len(list((tmp_path / "marks").iterdir())) == 2  # each worker died once


def test_failures_on_workers_are_recorded_and_do_not_stop_the_rest(cli, cluster, tmp_path):
    (tmp_path / "marks").mkdir()
    always = write(
        tmp_path / "dying.yaml",
        {"method": {"name": "clip/dying", "marks": str(tmp_path / "marks"), "times": 99}},
    )
    means = write(tmp_path / "means.yaml", {"method": {"name": "clip/means", "break_seed": 2}})
    plan = write(
        tmp_path / "s.yaml",
        {
            "datasets": ["synthetic:2x4"],
            "methods": [{"recipe": always, "seeds": [1]}, means],
            "shots": [1],
            "seeds": [1, 2],
        },
    )

    done = cli(
        "bench", plan, "--out", tmp_path / "runs", "--executor", "ray", "--workers", 2, "--json"
    )

    found = {(r["method"]["name"], r["seed"]): r for r in json_of(done.out)["records"]}
    assert done.code == 1
    assert found["clip/means", 1]["status"] == "ok"
    assert "RuntimeError: broken on purpose" in found["clip/means", 2]["error"]
    assert "the worker was lost 3 times" in found["clip/dying", 1]["error"]
    assert len(list((tmp_path / "marks").iterdir())) == 3
