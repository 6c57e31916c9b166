"""``clip/cocoop``: equal to a loop over images, chunks, the report of its cost."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch

from clipadapt.core.api.context import Services
from clipadapt.core.api.progress import Silent
from clipadapt.core.features.cache import FeatureCache
from clipadapt.methods import _prompts
from clipadapt.methods._passes import Passes, duration
from tests.unit.methods.conftest import FAMILIES, context, method

SHORT = {"epochs": 2, "batch_size": 4, "augment": "none", "lr": 0.1, "warmup_epochs": 0}


class Notes(Silent):
    """Progress that collects its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str, /) -> None:
        self.notes.append(message)


@pytest.mark.parametrize("family", FAMILIES)
def test_prediction_equals_a_loop_over_images_and_classes(family, models, small, tmp_path):
    model, (task, inputs) = models(family), small
    fitted = method("cocoop", **SHORT).fit(model, task, context(tmp_path))
    features = torch.from_numpy(model.encode(inputs, "image"))
    p = {n: torch.from_numpy(a) for n, a in fitted.parameters.items()}
    tokens, slots = model.prompt_slots(task.classnames, len(p["ctx"]))
    base = model.embed_tokens(tokens)

    expected = np.zeros((len(inputs), 3), dtype=np.float32)
    for i, feature in enumerate(features):
        hidden = torch.relu(p["meta_net.linear1.weight"] @ feature + p["meta_net.linear1.bias"])
        shift = p["meta_net.linear2.weight"] @ hidden + p["meta_net.linear2.bias"]
        for c in range(3):
            filled = base[c].clone()
            filled[slots[c]] = p["ctx"] + shift
            with torch.no_grad():
                text = model.encode_token_embeddings(filled[None], tokens[c : c + 1])
                expected[i, c] = model.logits(feature[None], text)

    np.testing.assert_allclose(fitted.predict_scores(inputs), expected, atol=1e-4)


@pytest.mark.parametrize("alone", [1, 64])
@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_chunks_give_the_same_result(chunk, alone, models, small, tmp_path, monkeypatch):
    task, inputs = small

    def fit(chunk):
        learner = method("cocoop", class_chunk=chunk, **SHORT)
        return learner.fit(models("clip"), task, context(tmp_path / f"{chunk}"))

    whole = fit(None)
    expected = whole.predict_scores(inputs)
    monkeypatch.setattr(_prompts, "ALONE", alone)
    part = fit(chunk)

    for name, value in whole.parameters.items():
        np.testing.assert_allclose(part.parameters[name], value, atol=1e-4)
    np.testing.assert_allclose(part.predict_scores(inputs), expected, atol=2e-3)


def test_the_cost_is_reported_before_it_is_paid(models, small, tmp_path):
    model, (task, inputs) = models("clip"), small
    ctx, notes = context(tmp_path), Notes()
    ctx.services.progress = notes

    fitted = method("cocoop", **SHORT).fit(model, task, ctx)

    n = len(task.train)
    assert notes.notes[0] == (
        f"cocoop: training: {2 * n * 3:,} passes of the text tower ({2 * n} images x 3 classes)"
    )
    assert re.fullmatch(r"cocoop: training: about \d+ s", notes.notes[1])
    assert len(notes.notes) == 2
    after = Notes()
    heard = model.with_services(Services(FeatureCache(enabled=False), progress=after, workers=1))
    dataclasses.replace(fitted, model=heard).predict_scores(inputs)
    assert after.notes[0].startswith(f"cocoop: prediction: {len(inputs) * 3} passes")


def test_the_estimate_is_made_once():
    notes = Notes()
    cost = Passes(notes, "x", 10, 2, each=3)
    for _ in range(4):
        cost.begin(6)

    assert notes.notes[0] == "x: 60 passes of the text tower (10 images x 2 classes x 3 times)"
    assert len(notes.notes) == 2
    assert [duration(s) for s in (0.1, 90, 600, 9000)] == ["1 s", "90 s", "10 min", "2.5 h"]


def test_keep_best_selects_an_epoch_on_val(models, small, tmp_path):
    fitted = method("cocoop", keep="best", **SHORT).fit(models("clip"), small[0], context(tmp_path))

    assert fitted.selection["by"] == "val accuracy"
