"""Training steps that a GPU repeats as graphs, with a stand-in that writes into the same memory in every call."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.features.cache import FeatureCache
from clipadapt.tensor import graphs
from clipadapt.tensor.graphs import Repeated
from tests.unit.methods.conftest import method

SERVICES = Services(FeatureCache(enabled=False), workers=1)


class Recorder:
    """In place of ``torch.cuda.make_graphed_callables``: results and gradients lie in memory that is used again.

    Attributes:
        made: Number of recorded functions.
        calls: Number of calls of all of them.
    """

    def __init__(self) -> None:
        self.made = self.calls = 0

    def __call__(self, part: Any, sample: tuple[Any, ...], *, allow_unused_input: bool) -> Any:
        assert allow_unused_input
        self.made += 1
        recorder, memory = self, {}

        def kept(name: str, value: torch.Tensor | None) -> torch.Tensor | None:
            if value is None:
                return None
            if name not in memory:
                memory[name] = torch.empty_like(value)
            return memory[name].copy_(value).detach()

        for _ in range(3):  # as torch does; random numbers are drawn
            part(*sample)

        class Replayed(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *given: torch.Tensor) -> Any:
                recorder.calls += 1
                n = len(sample)
                with torch.enable_grad():
                    ctx.given = [g.detach().requires_grad_(g.requires_grad) for g in given[:n]]
                    ctx.out = part(*ctx.given)
                ctx.parameters = given[n:]
                return kept("out", ctx.out)

            @staticmethod
            def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
                asked = [t for t in (*ctx.given, *part.parameters()) if t.requires_grad]
                found = iter(torch.autograd.grad(ctx.out, asked, gradients[0], allow_unused=True))
                return tuple(
                    kept(f"gradient {i}", next(found)) if t.requires_grad else None
                    for i, t in enumerate((*ctx.given, *part.parameters()))
                )

        return lambda *given: Replayed.apply(*given, *part.parameters())


@pytest.fixture
def recorder(monkeypatch):
    """Pretend that this machine can record graphs, and that they pay from the first step on."""
    found = Recorder()
    monkeypatch.setattr(graphs, "possible", lambda _: True)
    monkeypatch.setattr(graphs, "WORTH", 0)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", found)
    return found


METHODS: dict[str, tuple[dict[str, Any], int]] = {
    "coop": ({"n_ctx": 3}, 1),
    "kgcoop": ({"n_ctx": 3}, 1),
    "cocoop": ({"n_ctx": 3}, 1),
    "ivlp": ({"depth_text": 2, "depth_vision": 2}, 2),
    "maple": ({"depth": 2}, 2),
    "promptsrc": ({"depth_text": 2, "depth_vision": 2}, 2),
    "lora": ({"steps_per_shot": None, "lora_dropout": 0.5, "lr": 0.02}, 2),
    "full_finetune": ({"lr": 1e-3, "warmup_steps": 2}, 1),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_fit_with_graphs_equals_the_plain_one(name, models, small, tmp_path, recorder):
    settings, n = METHODS[name]
    # Twelve images: two whole batches and a smaller one, which has no graph.
    base = {"epochs": 3, "batch_size": 5, "augment": "none", "drop_last": False, "keep": "best"}
    learner, (task, inputs) = method(name, **base | settings), small

    def fit(folder: str, *, on: bool) -> tuple[Any, list[Any]]:
        context = RunContext(1, tmp_path / folder, SERVICES)
        model = models("clip").with_services(dataclasses.replace(SERVICES))
        with pytest.MonkeyPatch.context() as patch:
            if not on:
                patch.setattr(graphs, "possible", lambda _: False)
            return learner.fit(model, task, context), context.history

    plain, expected = fit("plain", on=False)
    assert not recorder.made
    graphed, history = fit("graphs", on=True)

    assert recorder.made == n
    assert recorder.calls >= 6
    assert history == expected
    assert graphed.selection == plain.selection
    np.testing.assert_array_equal(graphed.predict_scores(inputs), plain.predict_scores(inputs))


def test_prograd_has_no_graph(models, small, tmp_path, recorder):
    """It needs two backward passes; the first one of a graph overwrites what the second one reads."""
    settings = {"n_ctx": 6, "epochs": 2, "batch_size": 5, "augment": "none"}
    model = models("clip").with_services(dataclasses.replace(SERVICES))
    method("prograd", **settings).fit(model, small[0], RunContext(1, tmp_path, SERVICES))
    assert not recorder.made


def test_only_parameters_that_are_used_belong_to_a_graph(recorder, monkeypatch):
    weights = [torch.full((4,), v, requires_grad=True) for v in (2.0, 3.0)]
    seen = []

    def record(part: Any, sample: Any, **given: Any) -> Any:
        seen.extend(part.parameters())
        return recorder(part, sample, **given)

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    repeated = Repeated(lambda x: x * weights[1], weights, SERVICES, "cpu", 100)
    repeated(torch.ones(4)).sum().backward()

    assert seen == [weights[1]]
    assert weights[0].grad is None
    assert torch.equal(weights[1].grad, torch.ones(4))


def square(x: torch.Tensor) -> torch.Tensor:
    return x**2


def test_results_and_gradients_are_not_overwritten(recorder):
    repeated = Repeated(square, (), SERVICES, "cpu", 100)
    given = [torch.tensor([v], requires_grad=True) for v in (2.0, 3.0)]

    results = []
    for x in given:
        results.append(repeated(x))
        results[-1].backward()

    assert [r.item() for r in results] == [4.0, 9.0]
    assert [x.grad.item() for x in given] == [4.0, 6.0]
    assert recorder.made == 1


def test_random_numbers_are_those_without_recording(recorder):
    repeated = Repeated(lambda x: x * torch.rand(4), (), SERVICES, "cpu", 100)
    x = torch.ones(4, requires_grad=True)
    torch.manual_seed(3)
    found = repeated(x)
    torch.manual_seed(3)
    assert torch.equal(found, torch.rand(4))


def test_the_plain_function_runs_where_no_graph_can(recorder, monkeypatch):
    x = torch.ones(4, requires_grad=True)
    repeated = Repeated(square, (), SERVICES, "cpu", 100)
    with torch.no_grad():
        repeated(x)
    assert not recorder.made

    repeated(x)
    repeated(x[:3])  # the last batch of an epoch
    assert (recorder.made, recorder.calls) == (1, 1)

    slow = dataclasses.replace(SERVICES, fast=False)
    for services, steps in ((slow, 100), (SERVICES, 3)):
        monkeypatch.setattr(graphs, "WORTH", 16)
        Repeated(square, (), services, "cpu", steps)(x)
    assert recorder.made == 1


def test_what_cannot_be_recorded_runs_plainly_and_is_not_tried_again(recorder, monkeypatch):
    tried = []

    def fails(*_: Any, **__: Any) -> Any:
        tried.append(1)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fails)
    repeated = Repeated(square, (), SERVICES, "cpu", 100)
    x = torch.tensor([3.0], requires_grad=True)
    assert [repeated(x).item() for _ in range(3)] == [9.0] * 3
    assert len(tried) == 1
