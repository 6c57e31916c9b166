"""GPUs of a Ray cluster that only pretends to have two: what each worker reserves and sees."""

from __future__ import annotations

import json
import os

import pytest

from clipadapt.core.records.run_store import RunStore
from tests.integration.test_ray import CONSTANT, ray_with, write

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'clipadapt[ray]'")
pytestmark = pytest.mark.slow

# A model on a GPU, as far as names go: it finds as many cards as are visible, like torch.
MODEL = """
import copy, os
from dataclasses import dataclass
from clipadapt.core.api.errors import ModelError
from clipadapt.core.api.model import ModelIdentity

def device_of(options):
    visible = [c for c in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if c]
    device = "cuda" if options.device == "auto" else options.device
    if int(device.partition(":")[2] or 0) >= len(visible):
        raise ModelError(f"torch finds no device '{device}' on this machine")
    return device

@dataclass
class Carded:
    device: str
    name = "carded"
    dtype = "fp32"
    weights_sha256 = "0" * 64
    def with_services(self, services): return copy.copy(self)

class Provider:
    def identify(self, name, options):
        return ModelIdentity("carded", "0" * 64, "fp32", device_of(options))
    def load(self, name, options, services):
        return Carded(device_of(options))

MODEL = Provider()
"""
# A method that notes its card, and waits for another fit that runs at the same time.
METHOD = (
    CONSTANT
    + """
import os, pathlib, time
from clipadapt.core.api.method import MethodConfig

class Config(MethodConfig):
    marks: str = ""

class Cards:
    Config: ClassVar[type[MethodConfig]] = Config
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = object

    def __init__(self, config): self.config = config

    def fit(self, backbone, task, ctx):
        marks = pathlib.Path(self.config.marks)
        seen = f"{os.environ['CUDA_VISIBLE_DEVICES']} {backbone.device} {os.getpid()}"
        (marks / f"{ctx.seed}").write_text(seen)
        deadline = time.monotonic() + 60
        while len(list(marks.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        return Constant(task.classnames)

    def load(self, directory, backbone): raise NotImplementedError

METHOD = Cards
"""
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Ray with four processors and two GPUs that are not there, and the plug-ins of these tests."""
    folder = tmp_path_factory.mktemp("plugins")
    plugins = {"cards": METHOD, "carded": MODEL}
    with (
        ray_with(folder, plugins, num_cpus=4, num_gpus=2),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # of the driver
        yield


@pytest.fixture
def plan(tmp_path):
    """A sweep of two fits that note their cards."""
    (tmp_path / "marks").mkdir()
    recipe = write(
        tmp_path / "cards.yaml",
        {"method": {"name": "clip/cards", "marks": str(tmp_path / "marks")}},
    )
    return write(
        tmp_path / "s.yaml",
        {
            "datasets": ["synthetic:2x4"],
            "models": ["carded"],
            "methods": [recipe],
            "shots": [1],
            "seeds": [1, 2],
        },
    )


@pytest.mark.parametrize(
    ("device", "seen"), [("auto", "cuda"), ("cuda:1", "cuda")], ids=["auto", "second"]
)
def test_each_fit_has_a_card_of_its_own(cli, cluster, plan, tmp_path, device, seen):
    done = cli(
        "bench", plan, "--out", tmp_path / "runs", "--executor", "ray",
        "--set", f"model.device={device}", "--set", "threads=1", "--json",
    )  # fmt: skip

    assert done.code == 0, done.err
    marks = sorted(p.read_text().split()[:2] for p in (tmp_path / "marks").iterdir())
    assert marks == [["0", seen], ["1", seen]]
    assert {r.environment.device for r in RunStore(tmp_path / "runs").load_all()} == {seen}


def test_no_more_fits_are_claimed_than_there_are_cards_and_no_process_is_used_twice(
    cluster, plan, tmp_path
):
    from clipadapt.core.experiments.sweep import load_sweep
    from clipadapt.core.runs import sweep
    from clipadapt.core.runs.distributed import Ray

    marks = tmp_path / "marks"
    for name in ("other", "another"):  # so that no fit waits
        (marks / name).touch()
    running: list[int] = []

    class Counted(Ray):
        def start(self, spec, /):
            super().start(spec)
            running.append(self.busy)

    with Counted() as executor:
        found = sweep.run_sweep(
            load_sweep(plan, ["seeds=[1,2,3]"]), tmp_path / "runs", executor=executor
        )

    assert len(found.records) == 3
    assert max(running) == 2  # and not four, as there are processors
    # A process that has used one card cannot change to another.
    assert len({(marks / seed).read_text().split()[2] for seed in "123"}) == 3


def test_what_no_machine_has_ends_the_sweep(cli, cluster, plan, tmp_path):
    done = cli(
        "bench", plan, "--out", tmp_path / "runs", "--executor", "ray", "--set", "resources.gpus=3"
    )

    assert done.code == 2
    assert "needs 3 GPU, and the cluster has 2" in done.err
    assert not list((tmp_path / "marks").iterdir())


def test_an_extraction_has_one_worker_per_card(cluster, tiny_clip, tmp_path, monkeypatch):
    from clipadapt.core.runs import extraction_ray
    from clipadapt.core.runs.extraction_plan import Asked, plan_extraction
    from tests.integration.test_two_nodes import Silence

    class Seen(extraction_ray.RemoteWorker):
        def encode(self, shard, stored):
            return os.environ["CUDA_VISIBLE_DEVICES"]

    monkeypatch.setattr(extraction_ray, "RemoteWorker", Seen)
    asked = Asked({"name": "synthetic:4x20"}, tiny_clip, settings=["resources.gpus=1"])
    plan = plan_extraction(asked, "clip", Silence(), threads=1)
    with extraction_ray.Actors(plan) as workers:
        assert workers.count == 2
        workers.open()
        while workers._opening:
            workers.finished()
        workers.know([0] * len(plan.parts))
        part = type("Shard", (), {"part": 0})
        found = ray.get([a.encode.remote(part, None) for a in workers._idle])

    assert sorted(found) == ["0", "1"]


def test_a_card_of_the_driver_is_the_only_one_of_a_worker():
    from clipadapt.core.runs.cluster import on_reserved_gpu

    config = {"model": {"name": "x", "device": "cuda:3"}, "data": {}}

    assert json.loads(json.dumps(on_reserved_gpu(config))) == {
        "model": {"name": "x", "device": "cuda"},
        "data": {},
    }
    assert config["model"]["device"] == "cuda:3"
    for other in ({"model": None}, {"model": {"name": "x", "device": "auto"}}):
        assert on_reserved_gpu(other) == other
