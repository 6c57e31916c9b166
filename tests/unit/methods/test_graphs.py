"""Training steps that a GPU repeats as graphs, with a stand-in that writes into the same memory in every call."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.features.cache import FeatureCache
from clipadapt.tensor import graphs, moves
from clipadapt.tensor.graphs import Repeated
from tests.unit.methods.conftest import method

SERVICES = Services(FeatureCache(enabled=False), workers=1)


class Recorder:
    """In place of ``torch.cuda.make_graphed_callables``: results and gradients lie in memory that is used again.

    Attributes:
        made: Number of recorded functions.
        calls: Number of calls of all of them.
        wrong: Added to their results.
    """

    def __init__(self) -> None:
        self.made = self.calls = 0
        self.wrong = 0.0

    def __call__(self, function: Any, sample: tuple[torch.Tensor]) -> Any:
        self.made += 1
        recorder, memory = self, {}

        def kept(name: str, value: torch.Tensor) -> torch.Tensor:
            if name not in memory:
                memory[name] = torch.empty_like(value)
            return memory[name].copy_(value).detach()

        class Replayed(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
                recorder.calls += 1
                with torch.enable_grad():
                    ctx.x = x.detach().requires_grad_()
                    ctx.out = function(ctx.x)
                return kept("out", ctx.out + recorder.wrong)

            @staticmethod
            def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
                (found,) = torch.autograd.grad(ctx.out, ctx.x, gradient)  # once for each call
                return kept("gradient", found)

        assert sample[0].requires_grad
        return Replayed.apply


@pytest.fixture
def recorder(monkeypatch):
    """Pretend that this machine can record graphs, and that they pay from the first step on."""
    found = Recorder()
    monkeypatch.setattr(graphs, "possible", lambda _: True)
    monkeypatch.setattr(graphs, "WORTH", 0)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", found)
    return found


@pytest.mark.parametrize(
    ("name", "settings"),
    [("coop", {"n_ctx": 3}), ("coop", {"n_ctx": 3, "CSC": True}), ("kgcoop", {"n_ctx": 3})],
)
def test_a_fit_with_graphs_equals_the_plain_one(
    name, settings, models, small, tmp_path, recorder, monkeypatch
):
    base = {"epochs": 3, "batch_size": 5, "augment": "none", "drop_last": False, "keep": "best"}
    learner, (task, inputs) = method(name, **base | settings), small

    def fit(folder: str) -> tuple[Any, list[Any]]:
        context = RunContext(1, tmp_path / folder, SERVICES)
        model = models("clip").with_services(dataclasses.replace(SERVICES))
        return learner.fit(model, task, context), context.history

    graphed, history = fit("graphs")
    assert (recorder.made, recorder.calls) == (
        1,
        1 + 9,
    )  # one to compare, then three epochs of three batches
    monkeypatch.setattr(graphs, "possible", lambda _: False)
    plain, expected = fit("plain")

    assert recorder.made == 1
    assert history == expected
    assert graphed.selection == plain.selection
    np.testing.assert_array_equal(graphed.predict_scores(inputs), plain.predict_scores(inputs))


def test_prograd_has_no_graph(models, small, tmp_path, recorder):
    """It needs two backward passes; on a GPU the first one overwrites what the second one reads."""
    settings = {"n_ctx": 6, "epochs": 2, "batch_size": 5, "augment": "none"}
    model = models("clip").with_services(dataclasses.replace(SERVICES))
    method("prograd", **settings).fit(model, small[0], RunContext(1, tmp_path, SERVICES))
    assert not recorder.made


def square(x: torch.Tensor) -> torch.Tensor:
    return x**2


def test_results_and_gradients_are_not_overwritten(recorder):
    repeated = Repeated(square, SERVICES, "cpu", 100)
    given = [torch.tensor([v], requires_grad=True) for v in (2.0, 3.0)]

    results = []
    for x in given:
        results.append(repeated(x))
        results[-1].backward()

    assert [r.item() for r in results] == [4.0, 9.0]
    assert [x.grad.item() for x in given] == [4.0, 6.0]
    assert recorder.made == 1


def test_the_plain_function_runs_where_no_graph_can(recorder, monkeypatch):
    x = torch.ones(4, requires_grad=True)
    repeated = Repeated(square, SERVICES, "cpu", 100)
    with torch.no_grad():
        repeated(x)
    repeated(x.detach())
    assert not recorder.made

    repeated(x)
    repeated(x[:3])
    assert (recorder.made, recorder.calls) == (1, 2)

    monkeypatch.setattr(graphs, "WORTH", 16)
    slow = dataclasses.replace(SERVICES, fast=False)
    for services, steps in ((slow, 100), (SERVICES, 15)):
        Repeated(square, services, "cpu", steps)(x)
    assert recorder.made == 1


def test_what_cannot_be_recorded_runs_plainly_and_is_not_tried_again(monkeypatch, recorder):
    tried = []

    def fails(*_: Any) -> Any:
        tried.append(1)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fails)
    repeated = Repeated(square, SERVICES, "cpu", 100)
    x = torch.tensor([3.0], requires_grad=True)
    assert [repeated(x).item() for _ in range(3)] == [9.0] * 3
    assert len(tried) == 1


@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_a_graph_with_another_result_is_not_used(wrong, recorder):
    recorder.wrong = wrong
    repeated = Repeated(square, SERVICES, "cpu", 100)
    x = torch.tensor([3.0], requires_grad=True)
    assert [repeated(x).item() for _ in range(3)] == [9.0] * 3
    assert recorder.calls == 1


def test_what_was_sent_while_recording_stays_as_long_as_the_graph(recorder, monkeypatch):
    """A graph reads the same memory in every call; on a GPU it would belong to something else by then."""
    sent = []

    def send(values: torch.Tensor, _: torch.device) -> torch.Tensor:
        sent.append(values)
        return values.clone()

    monkeypatch.setattr(moves, "_sent", send)

    def added(x: torch.Tensor) -> torch.Tensor:
        return x + moves.placed(torch.tensor([1.0, 2.0]), "cuda")

    repeated = Repeated(added, SERVICES, "cpu", 100)
    x = torch.ones(2, requires_grad=True)
    assert repeated(x).tolist() == [2.0, 3.0]
    (kept,) = repeated._sent
    assert kept.tolist() == [1.0, 2.0]

    with moves.constants() as once:
        first, second = (moves.placed(torch.tensor([5.0]), "cuda") for _ in range(2))
    assert first is second
    assert list(once.values()) == [first]
    assert moves.placed(torch.tensor([5.0]), "cuda") is not first


def test_an_expanded_tensor_can_be_pinned(monkeypatch):
    """Pinning writes into a tensor of the same layout, which torch refuses for an expanded one."""

    def pin(values: torch.Tensor) -> torch.Tensor:
        assert values.is_contiguous()
        return values

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", lambda values, *_, **__: values)
    found = moves.placed(torch.tensor([[1, 2]]).expand(3, -1), "cuda")
    assert found.tolist() == [[1, 2]] * 3
