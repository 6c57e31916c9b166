"""Functions that a GPU repeats as graphs, with a stand-in that writes into the same memory in every call."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from clipadapt.core.api.context import Services
from clipadapt.core.features.cache import FeatureCache
from clipadapt.tensor import graphs, moves
from clipadapt.tensor.graphs import Repeated
from tests.graphs import recorder

__all__ = ["recorder"]
SERVICES = Services(FeatureCache(enabled=False), workers=1)
waits = graphs.waits


def square(x: torch.Tensor) -> torch.Tensor:
    return x**2


def test_results_and_gradients_are_not_overwritten(recorder):
    repeated = Repeated(square, SERVICES, "cpu", 100)
    given = [torch.tensor([v, 1.0], requires_grad=True) for v in (2.0, 3.0)]

    results = [repeated(x) for x in given]
    for x, result in zip(given, results, strict=True):
        result.sum().backward()
        x.grad += 0

    assert [r[0].item() for r in results] == [4.0, 9.0]
    assert [x.grad[0].item() for x in given] == [4.0, 6.0]
    assert recorder.made == 1


def test_the_plain_function_runs_where_no_graph_can(recorder, monkeypatch):
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    repeated = Repeated(square, SERVICES, "cpu", 100)
    with torch.no_grad():
        repeated(x)
    repeated(x.detach())
    assert not recorder.made

    repeated(x)
    repeated(x[:2])
    assert (recorder.made, recorder.calls) == (1, 2)

    monkeypatch.setattr(graphs, "WORTH", 16)
    slow = dataclasses.replace(SERVICES, fast=False)
    for services, steps in ((slow, 100), (SERVICES, 15)):
        Repeated(square, services, "cpu", steps)(x)
    assert recorder.made == 1
    Repeated(square, SERVICES, "cpu", 16)(x)
    assert recorder.made == 2


def test_it_is_recorded_on_the_gpu_of_its_argument(recorder):
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    Repeated(square, SERVICES, "cpu", 100)(x)
    assert recorder.devices == [x.device]
    assert recorder.current is None


def test_what_cannot_be_recorded_runs_plainly_and_is_not_tried_again(monkeypatch, recorder):
    tried = []

    def fails(*_: Any) -> Any:
        tried.append(1)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fails)
    repeated = Repeated(square, SERVICES, "cpu", 100)
    x = torch.tensor([3.0, 1.0], requires_grad=True)
    assert [repeated(x)[0].item() for _ in range(3)] == [9.0] * 3
    assert len(tried) == 1


@pytest.mark.parametrize(
    "fault", [{"wrong": 1.0}, {"wrong": float("nan")}, {"stale": True}], ids=str
)
def test_a_graph_with_another_result_is_not_used(fault, recorder):
    vars(recorder).update(fault)
    repeated = Repeated(square, SERVICES, "cpu", 100)
    x = torch.tensor([3.0, 1.0], requires_grad=True)
    assert [repeated(x)[0].item() for _ in range(3)] == [9.0] * 3
    assert (recorder.made, recorder.calls) == (1, 1)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_function_that_waits_for_the_gpu_has_no_graph(where, recorder, monkeypatch):
    mode = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: mode[0], raising=False)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda m: mode.append(m) or mode.pop(0))
    monkeypatch.setattr(graphs, "waits", waits)

    def wait() -> None:
        if mode[0] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    class Waiting(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            if where == "forward":
                wait()
            return x * 2

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            if where == "backward":
                wait()
            return gradient * 2

    x = torch.tensor([3.0, 1.0], requires_grad=True)
    repeated = Repeated(Waiting.apply, SERVICES, "cpu", 100)
    assert repeated(x).tolist() == [6.0, 2.0]
    assert not recorder.made
    assert mode == ["default"]

    Repeated(square, SERVICES, "cpu", 100)(x)
    assert recorder.made == 1
    assert mode == ["default"]


def test_what_was_sent_while_recording_stays_as_long_as_the_graph(recorder, monkeypatch):
    """A graph reads the same memory in every call; on a GPU it would belong to something else by then."""
    monkeypatch.setattr(moves, "_sent", lambda values, _: values.clone())

    def added(x: torch.Tensor) -> torch.Tensor:
        return x + moves.placed(torch.tensor([1.0, 2.0]), "cuda")

    repeated = Repeated(added, SERVICES, "cpu", 100)
    x = torch.ones(2, requires_grad=True)
    assert repeated(x).tolist() == [2.0, 3.0]
    (kept,) = repeated._sent
    assert kept.tolist() == [1.0, 2.0]


def test_equal_values_are_sent_once_inside_the_block(monkeypatch):
    monkeypatch.setattr(moves, "_sent", lambda values, _: values.clone())
    values = (torch.tensor([5, 6]), torch.tensor([5, 6]).expand(2, -1), torch.tensor(True))
    more = (torch.tensor([5, 7]), torch.tensor([5.0, 6.0]).to(torch.bfloat16), torch.tensor(False))
    with moves.constants() as once:
        first = [moves.placed(v, "cuda") for v in (*values, *more)]
        second = [moves.placed(v.clone(), "cuda") for v in (*values, *more)]
    assert all(a is b for a, b in zip(first, second, strict=True))
    assert list(map(id, once.values())) == list(map(id, first))
    assert moves.placed(values[0], "cuda") is not first[0]


def test_an_expanded_tensor_can_be_pinned(monkeypatch):
    """Pinning copies a tensor into the same layout, which torch refuses for an expanded one."""

    def pin(values: torch.Tensor) -> torch.Tensor:
        assert values.is_contiguous()
        return values

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", lambda values, *_, **__: values)
    found = moves.placed(torch.tensor([[1, 2]]).expand(3, -1), "cuda")
    assert found.tolist() == [[1, 2]] * 3
