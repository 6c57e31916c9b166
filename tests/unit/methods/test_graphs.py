"""Fits whose steps a GPU would repeat as graphs equal the plain ones; with a stand-in for the graphs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.features.cache import FeatureCache
from clipadapt.methods import _text
from clipadapt.tensor import graphs
from tests.graphs import recorder
from tests.unit.methods.conftest import method

__all__ = ["recorder"]
SERVICES = Services(FeatureCache(enabled=False), workers=1)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("coop", {"n_ctx": 3}),
        ("coop", {"n_ctx": 3, "CSC": True}),
        ("coop", {"n_ctx": 3, "class_chunk": 2}),
        ("kgcoop", {"n_ctx": 3}),
    ],
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
    # One call to compare, then three epochs of three batches.
    assert (recorder.made, recorder.calls) == (1, 1 + 9)
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


@dataclasses.dataclass
class Card:
    """What torch says of a GPU."""

    total_memory: int


class Model:
    """A model on a GPU."""

    def __init__(self, dtype: str, device: str = "cuda") -> None:
        self.dtype, self.device = dtype, device


@pytest.mark.parametrize(
    ("gigabytes", "dtype", "width", "positions"),
    [
        (80, "bf16", 512, 32_552),  # the prompts of 1,000 classes are one chunk
        (80, "fp32", 512, 16_276),
        (80, "fp32", 1280, 8192),
        (192, "bf16", 512, 32_768),  # at most
        (16, "bf16", 512, 8192),  # at least
    ],
)
def test_the_memory_of_a_gpu_decides_how_many_texts_are_encoded_at_a_time(
    gigabytes, dtype, width, positions, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: Card(gigabytes * 10**9), raising=False
    )
    texts = torch.empty(5, 1, width)
    assert _text.texts_at_once(Model(dtype), texts) == positions
    assert _text.texts_at_once(Model(dtype, "cpu"), texts) == 8192
    assert _text.texts_at_once(Model(dtype), torch.empty(5, 10**5, width)) == 1
