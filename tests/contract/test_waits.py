"""A training step on a GPU is queued without waiting: the number of waits does not grow with the number of steps."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from clipadapt.core.api.context import Services
from clipadapt.core.api.data import Inputs
from clipadapt.core.api.model import ModelOptions, calculating
from clipadapt.core.api.registry import METHODS, MODELS
from clipadapt.core.features.cache import FeatureCache
from clipadapt.tensor import batching
from clipadapt.tensor.devices import set_arithmetic
from tests.contract import fake_device as simulated
from tests.contract.conftest import settings
from tests.contract.fake_device import fake_device

TRAINED = (
    *("ape_t", "clap", "clip_adapter", "cocoop", "coop", "full_finetune", "ivlp", "kgcoop", "lora"),
    *("maple", "prograd", "promptsrc", "taskres"),
)


@pytest.mark.parametrize("name", TRAINED)
def test_more_steps_do_not_wait_more_often(name, tiny_case, tiny_models, tmp_path, monkeypatch):
    case = tiny_case(f"clip/{name}", "clip")
    method = METHODS.get(f"clip/{name}")
    # torch clips by a tensor that this simulated device copies.
    given = settings(f"clip/{name}", "clip") | {"clip_norm": None}
    task = dataclasses.replace(case.task, val=None)  # an evaluation on val has to wait
    found = []
    with fake_device("cuda", monkeypatch):
        resolved = MODELS.resolve(tiny_models["clip"], "clip")
        for batch in (8, 4):
            services = Services(FeatureCache(enabled=False), workers=1)
            backbone = resolved.provider.load(
                resolved.argument, ModelOptions("fp32", "cuda"), services
            )
            context = case.context(tmp_path / str(batch))
            context.services = services
            simulated.waits.clear()
            method(method.Config(**given | {"batch_size": batch, "epochs": 1})).fit(
                backbone, task, context
            )
            found.append(Counter(simulated.waits))
    more = found[1] - found[0]
    assert not more, more


@pytest.mark.parametrize(
    ("name", "family", "options"),
    [
        ("clip/zero_shot", "clip", {"tower": "image"}),
        ("clip/zero_shot", "clip", {"tower": "text"}),
        ("text/logreg", "bert", {"pooling": "mean"}),
    ],
)
def test_one_batch_is_in_flight_while_features_are_encoded(
    name, family, options, tiny_case, tiny_models, tiny_texts, monkeypatch
):
    case = tiny_case(name, family)
    inputs = case.inputs
    if options.get("tower") == "text":
        texts = [f"a {'very ' * (i % 3)}short text, number {i}" for i in range(10)]
        inputs = Inputs(texts, tuple(map(str, range(10))))

    def encoded(backbone: Any) -> Any:
        services = Services(FeatureCache(enabled=False), workers=1, batch_size=2)
        return backbone.with_services(services).encode(inputs, **options)

    def one_by_one(batches: Any, *_: Any) -> Any:
        return ((what, wait()) for what, wait in batches)

    with fake_device("cuda", monkeypatch):
        named = tiny_models[family] if name.startswith("clip/") else tiny_texts[family]
        resolved = MODELS.resolve(named, name.partition("/")[0])
        services = Services(FeatureCache(enabled=False), workers=1)
        backbone = resolved.provider.load(resolved.argument, ModelOptions("fp32", "cuda"), services)
        simulated.waits.clear()
        simulated.events.clear()
        found = encoded(backbone)
        events, waits = list(simulated.events), list(simulated.waits)
        monkeypatch.setattr(batching, "in_flight", one_by_one)
        expected = encoded(backbone)

    n = events.count("queued")
    assert n >= len(inputs) / 2
    # The next batch is queued before the host waits for one.
    assert events == ["queued", *["queued", "waited"] * (n - 1), "waited"]
    # The weights are hashed once, before the first batch; transformers looks at each mask on the host.
    mask = "_local_scalar_dense" if name.startswith("text/") else "weights.py"
    others = [w for w in waits if "an event" not in w and "weights.py" not in w and mask not in w]
    assert not others, others
    np.testing.assert_array_equal(found, expected)


class Spaces(FeatureCache):
    """A cache that is off and notes the arithmetic of the features it is asked for."""

    def __init__(self) -> None:
        super().__init__(enabled=False)
        self.seen: list[bool] = []

    def get_or_compute(self, space, *args, **kwargs):
        self.seen.append("tf32" in space.dtype)
        assert torch.backends.cuda.matmul.allow_tf32 == self.seen[-1]
        return super().get_or_compute(space, *args, **kwargs)


@pytest.mark.parametrize(("name", "family"), [("clip/zero_shot", "clip"), ("text/logreg", "bert")])
def test_two_models_of_a_process_keep_their_own_arithmetic(
    name, family, tiny_case, tiny_models, tiny_texts, monkeypatch
):
    case, track = tiny_case(name, family), name.partition("/")[0]
    cache = Spaces()
    with fake_device("cuda", monkeypatch):
        resolved = MODELS.resolve((tiny_models | tiny_texts)[family], track)

        def model(*, tf32: bool) -> Any:
            options = ModelOptions("fp32", "cuda", tf32=tf32)
            return resolved.provider.load(resolved.argument, options, Services(cache, workers=1))

        exact, fast = model(tf32=False), model(tf32=True)
        options = {"tower": "image"} if track == "clip" else {}
        for one in (exact, fast, exact, fast):
            one.encode(case.inputs, **options)
            assert torch.backends.cuda.matmul.allow_tf32  # as the last one that was loaded left it
        with calculating(exact):
            assert not torch.backends.cuda.matmul.allow_tf32
        set_arithmetic(ModelOptions(), "cpu")

    assert cache.seen == [False, True, False, True]
