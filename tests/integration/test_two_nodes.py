"""Two Ray nodes on this machine: one is killed in the middle, and features and records are those of a local run."""

from __future__ import annotations

import contextlib
import json
import os
import signal

import pytest

from clipadapt.core.experiments.sweep import load_sweep
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.runs import extraction, shards, sweep
from clipadapt.core.runs.extraction_plan import Asked, plan_extraction
from tests.encoding import SHARD, encode_until, rows_of, stored_rows
from tests.integration.test_ray import facts, json_of

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'clipadapt[ray]'")
pytestmark = pytest.mark.slow


class Silence:
    """Progress that is kept."""

    def __init__(self):
        from clipadapt.core.api.progress import Silent

        self.track, self.job = Silent().track, Silent().job
        self.notes: list[str] = []

    def note(self, message):
        self.notes.append(message)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head node with one processor, on which the driver and one worker run."""
    from ray.cluster_utils import Cluster

    os.environ["CLIPADAPT_CACHE"], before = (
        str(tmp_path_factory.mktemp("cluster")),
        os.environ["CLIPADAPT_CACHE"],
    )
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()
    os.environ["CLIPADAPT_CACHE"] = before


def test_a_killed_node_and_a_killed_worker_change_nothing(
    cluster, monkeypatch, tmp_path, tiny_clip
):
    from clipadapt.core.runs.extraction_ray import Actors

    monkeypatch.setattr(shards, "FIRST", 8)
    monkeypatch.setattr(shards, "MOST", 8)
    plan = plan_extraction(
        Asked({"name": "synthetic:4x20"}, tiny_clip), "clip", Silence(), threads=1
    )
    local, remote = tmp_path / "local", tmp_path / "remote"
    extraction.extract(plan, extraction.Here(plan, Silence()), Silence(), FeatureCache(local))
    node = cluster.add_node(num_cpus=1)
    killed: list[str] = []

    class Both(Actors):
        """Workers that begin when all are ready."""

        def open(self):
            spaces = super().open()
            while self._opening:
                self.finished()
            return spaces

    workers = Both(plan, 2)

    def kill(done):
        """Kill the second node when both workers are at work, then the first worker that replies."""
        used = {worker for worker, _ in workers._running.values()} | set(workers._idle)
        if not killed and len(used) == 2:
            cluster.remove_node(node, allow_graceful=False)
            killed.append("node")
        elif killed == ["node"] and done.shard.begin > 40:
            with contextlib.suppress(ProcessLookupError):  # the one that died with the node
                os.kill(int(done.worker.rpartition(":")[2]), signal.SIGKILL)
                killed.append("worker")

    found = extraction.extract(plan, workers, Silence(), FeatureCache(remote), on_encoded=kill)

    assert killed == ["node", "worker"]
    assert found.lost >= 1
    assert found.encoded == sum(len(rows) for rows in rows_of(local).values()) == 244
    assert rows_of(remote) == rows_of(local)  # byte for byte


def test_a_sweep_survives_a_killed_node(cluster, monkeypatch, tmp_path, tiny_clip):
    from clipadapt.core.runs.distributed import Ray

    content = {
        "datasets": ["synthetic:3x6"],
        "models": [tiny_clip],
        "methods": ["zero_shot", {"recipe": "linear_probe-quick", "set": {"method.max_iter": 20}}],
        "shots": [2],
        "seeds": [1, 2, 3],
        "settings": {"threads": 1, "model.precision": "fp32"},
    }
    (tmp_path / "s.yaml").write_text(json.dumps(content))
    experiments = load_sweep(str(tmp_path / "s.yaml"))
    sweep.run_sweep(experiments, tmp_path / "local")
    node = cluster.add_node(num_cpus=1)
    killed: list[bool] = []

    def kill(_):
        if not killed:
            killed.append(True)
            cluster.remove_node(node, allow_graceful=False)

    with Ray(2) as executor:
        outcome = sweep.run_sweep(
            experiments, tmp_path / "remote", executor=executor, on_records=kill
        )

    assert killed == [True]
    assert outcome.failures == []
    assert facts(tmp_path / "remote") == facts(tmp_path / "local")


def test_a_killed_driver_resumes_exactly(cluster, cli, monkeypatch, tmp_path, tiny_clip):
    monkeypatch.setattr(shards, "FIRST", SHARD)
    monkeypatch.setattr(shards, "MOST", SHARD)
    words = ("encode", "--dataset", "synthetic:4x4", "--model", tiny_clip, "--json")
    on_ray = (*words, "--executor", "ray", "--workers", "1")
    local, remote = tmp_path / "local", tmp_path / "remote"
    monkeypatch.setenv("CLIPADAPT_CACHE", str(local))
    whole = cli(*words, "--set", "threads=1")
    assert whole.code == 0, whole.err
    first = json_of(whole.out)
    third = ("clipadapt.core.runs.extraction", "_take", 3)

    done = encode_until(
        signal.SIGKILL, third, on_ray, CLIPADAPT_CACHE=str(remote), RAY_ADDRESS=cluster.address
    )

    assert done.returncode == -signal.SIGKILL, done.stderr
    assert stored_rows(remote) == 2 * SHARD
    monkeypatch.setenv("CLIPADAPT_CACHE", str(remote))
    resumed = cli(*on_ray)
    assert resumed.code == 0, resumed.err
    assert json_of(resumed.out)["encoded"] == first["encoded"] - 2 * SHARD
    assert rows_of(remote) == rows_of(local)  # byte for byte
    assert stored_rows(remote) == first["encoded"]
