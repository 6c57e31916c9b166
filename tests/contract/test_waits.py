"""A training step on a GPU is queued without waiting: the number of waits does not grow with the number of steps."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from clipadapt.core.api.context import Services
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import METHODS, MODELS
from clipadapt.core.features.cache import FeatureCache
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
