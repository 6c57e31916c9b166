"""On a real NVIDIA GPU: methods, exact resume, steps that do not wait, features in flight, and what a record says.

Without one these tests are skipped; simulated devices stand in for it in the other files of this folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.progress import Silent
from clipadapt.core.api.registry import METHODS, MODELS
from clipadapt.core.features.cache import FeatureCache
from clipadapt.tensor import batching, graphs
from tests.contract.conftest import Case, build_case
from tests.contract.test_devices import WITH_MODEL
from tests.contract.test_waits import TRAINED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
TEXT = ("text/full_finetune", "text/lora", "text/bitfit", "text/head")
FITS = [*((f"clip/{name}", "clip") for name in TRAINED), *((name, "bert") for name in TEXT)]
EXACT = ModelOptions("fp32", "cuda", deterministic=True)


class Stopped(BaseException):
    """In place of a signal."""


class Steps:
    """Progress that calls a function after each training step with the number of steps so far."""

    def __init__(self, after: Any = lambda _: None) -> None:
        self.done, self.after = 0, after
        self.notes: list[str] = []

    def track(self, _description: str, _total: int | None, unit: str = "", /) -> Any:
        return self if unit == "steps" else Silent().track("", None)

    def job(self, title: str, /) -> Any:
        return Silent().job(title)

    def advance(self, n: int = 1, /, **_: float) -> None:
        if n:
            self.done += n
            self.after(self.done)

    def note(self, message: str, /) -> None:
        self.notes.append(message)

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture(autouse=True)
def recorded(monkeypatch):
    """Record graphs, which real fits do only for many steps."""
    monkeypatch.setattr(graphs, "WORTH", 0)


@pytest.fixture
def card(tiny_models, tiny_texts):
    """Load the tiny model of a family on the GPU."""

    def load(family: str, options: ModelOptions = EXACT) -> Any:
        track = "clip" if family in tiny_models else "text"
        found = MODELS.resolve((tiny_models | tiny_texts)[family], track)
        services = Services(FeatureCache(enabled=False), workers=1)
        return found.provider.load(found.argument, options, services)

    return load


def fitted_on(
    backbone: Any, case: Case, folder: Path, progress: Any = None
) -> tuple[Any, RunContext]:
    """Fit a case with another backbone."""
    services = dataclasses.replace(backbone.services, progress=progress or Silent())
    context = RunContext(1, folder, services)
    return case.method.fit(backbone.with_services(services), case.task, context), context


def in_small_batches(case: Case) -> Case:
    """Return a case whose method takes several steps."""
    method = METHODS.get(case.name)
    config = case.method.config.model_dump() | {"batch_size": 4, "epochs": 2}
    return dataclasses.replace(case, method=method(method.Config(**config)))


@pytest.mark.parametrize("case", WITH_MODEL, ids="-".join)
def test_every_method_gives_the_scores_of_the_cpu(case, backbones, card, tmp_path):
    built = build_case(*case, backbones)
    if built.name == "clip/lora":  # its dropout masks are drawn on the device
        config = built.method.config.model_copy(update={"lora_dropout": 0})
        built = dataclasses.replace(built, method=METHODS.get(built.name)(config))
    context = built.context(tmp_path / "cpu")
    if built.name.startswith("text/"):  # packed texts, on a CPU alone, have other dropout masks
        context.services = dataclasses.replace(context.services, fast=False)
    want = built.method.fit(built.backbone, built.task, context).predict_scores(built.inputs)
    backbone = card(case[1])

    fitted, _ = fitted_on(backbone, built, tmp_path / "card")
    scores = fitted.predict_scores(built.inputs)
    fitted.save(tmp_path / "saved")
    loaded = built.method.load(tmp_path / "saved", backbone)

    assert {t.device.type for t in backbone.module.state_dict().values()} == {"cuda"}
    if built.name not in TEXT:  # the networks' own dropout is drawn on the device
        np.testing.assert_allclose(scores, want, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(loaded.predict_scores(built.inputs), scores)


@pytest.mark.parametrize("fit", FITS, ids="-".join)
def test_an_interrupted_fit_equals_the_whole_one(fit, backbones, card, tmp_path, every_checkpoint):
    case, backbone = build_case(*fit, backbones), card(fit[1])
    if fit[1] == "clip":
        case = in_small_batches(case)
    whole, first = fitted_on(backbone, case, tmp_path / "whole", progress=Steps())

    def stop(done: int) -> None:
        if done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        fitted_on(backbone, case, tmp_path / "work", progress=Steps(stop))
    steps = Steps()
    resumed, second = fitted_on(backbone, case, tmp_path / "work", progress=steps)

    # Images continue at the step, texts at the epoch.
    assert any("resumed after step" in note for note in steps.notes) or fit[1] != "clip"
    assert second.history == first.history
    assert "resumed_inexactly" not in backbone.services.flags
    np.testing.assert_array_equal(
        resumed.predict_scores(case.inputs), whole.predict_scores(case.inputs)
    )


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_does_not_wait_for_the_card(name, backbones, card, tmp_path):
    case = in_small_batches(build_case(f"clip/{name}", "clip", backbones))
    case = dataclasses.replace(case, task=dataclasses.replace(case.task, val=None))
    seen = []

    def after(done: int) -> None:  # from the second step to the fourth
        seen.append(done)
        torch.cuda.set_sync_debug_mode("error" if 2 <= done < 4 else "default")

    backbone = card("clip", ModelOptions("fp32", "cuda"))
    try:
        fitted_on(backbone, case, tmp_path, progress=Steps(after))
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert len(seen) >= 4


@pytest.mark.parametrize(
    ("name", "family", "recorded"),
    [
        ("clip/coop", "clip", True),
        ("clip/kgcoop", "clip", True),
        ("clip/prograd", "clip", False),  # two backward passes
        ("clip/coop", "hf", False),  # attention masks are read on the host
    ],
)
def test_a_fit_with_graphs_equals_the_plain_one(
    name, family, recorded, backbones, card, tmp_path, monkeypatch
):
    case, backbone = build_case(name, family, backbones), card(family)
    replays = []
    make = torch.cuda.make_graphed_callables

    def made(*given: Any) -> Any:
        graph = make(*given)
        return lambda x: replays.append(1) or graph(x)

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", made)
    graphed, first = fitted_on(backbone, case, tmp_path / "graphs")
    monkeypatch.setattr(graphs, "possible", lambda _: False)
    used = len(replays)
    plain, second = fitted_on(backbone, case, tmp_path / "plain")

    assert (used > 1) is recorded
    assert len(replays) == used
    assert first.history == second.history
    np.testing.assert_array_equal(
        graphed.predict_scores(case.inputs), plain.predict_scores(case.inputs)
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("name", "family"), [("clip/zero_shot", "clip"), ("text/logreg", "bert")])
def test_features_in_flight_equal_those_one_by_one(
    name, family, precision, backbones, card, monkeypatch
):
    case = build_case(name, family, backbones)
    backbone = card(family, ModelOptions(precision, "cuda"))
    services = Services(FeatureCache(enabled=False), workers=2, batch_size=2)
    options = {"tower": "image"} if family == "clip" else {"pooling": "mean"}

    found = backbone.with_services(services).encode(case.inputs, **options)
    monkeypatch.setattr(
        batching, "in_flight", lambda batches, *_: ((what, wait()) for what, wait in batches)
    )
    expected = backbone.with_services(services).encode(case.inputs, **options)

    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, expected)


def test_a_deterministic_model_after_a_plain_one(tiny_models, tmp_path):
    """cuBLAS reads its setting at the first product of a process, which may be that of another model."""
    program = f"""
from clipadapt.core.api.context import Services
from clipadapt.core.api.data import Inputs
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import MODELS
from clipadapt.core.features.cache import FeatureCache

texts = Inputs(["one text", "another text"], ("a", "b"))
found = MODELS.resolve({tiny_models["clip"]!r}, "clip")
for deterministic in (False, True):
    options = ModelOptions("fp32", "cuda", deterministic=deterministic)
    services = Services(FeatureCache(enabled=False), workers=1)
    print(found.provider.load(found.argument, options, services).encode(texts, tower="text").shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "CUBLAS_WORKSPACE_CONFIG"}
        | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_a_record_names_the_card_and_its_memory(cli, tiny_clip, tmp_path):
    done = cli(
        "run", "coop", "--model", tiny_clip, "--dataset", "synthetic:3x8", "--set", "data.shots=2",
        "--set", "method.n_ctx=2", "--set", "method.epochs=2", "--set", "method.augment=none",
        "--set", "seeds=[1]", "--set", "model.tf32=true", "--out", tmp_path / "runs", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    (record,) = json.loads(done.out)["records"]
    at = record["environment"]

    assert at["device"] == "cuda"
    assert at["gpu"] == torch.cuda.get_device_name()
    assert record["model"]["dtype"] == "bf16"
    assert record["config"]["model"]["tf32"] is True
    memory = record["cost"]["peak_memory_bytes"]
    assert 0 < memory < torch.cuda.get_device_properties(0).total_memory
