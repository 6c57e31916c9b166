"""``clip/cocoop``: equal to a loop over images, chunks, the report of its cost."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from clipadapt.core.api.context import Services
from clipadapt.core.api.progress import Silent
from clipadapt.core.features.cache import FeatureCache
from clipadapt.methods import _passes, _prompts
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


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize(("batch_size", "drop_last"), [(4, False), (5, True), (100, True)])
def test_the_cost_is_reported_before_it_is_paid(
    keep, batch_size, drop_last, models, small, tmp_path, monkeypatch
):
    model, (task, inputs) = models("clip"), small
    ctx, notes, paid = context(tmp_path), Notes(), []
    ctx.services.progress = notes
    settings = SHORT | {"keep": keep, "batch_size": batch_size, "drop_last": drop_last}
    encode = _prompts.Prompts._encode

    def counted(self, contexts, *rest):
        paid.append((len(contexts) * contexts.shape[1], contexts.requires_grad))
        return encode(self, contexts, *rest)

    monkeypatch.setattr(_prompts.Prompts, "_encode", counted)

    fitted = method("cocoop", **settings).fit(model, task, ctx)

    trained, evaluated = (sum(n for n, grad in paid if grad is kind) for kind in (True, False))
    told = [n for n in notes.notes if "passes" in n]
    assert told[0] == (
        f"cocoop: training: {trained:,} passes of the text tower ({trained // 3} images x 3 classes)"
    )
    assert trained == 2 * 3 * (len(task.train) - len(task.train) % 5 * (batch_size == 5))
    assert evaluated == (2 * 3 * len(task.val) if keep == "best" else 0)
    assert told[1:] == (
        [
            f"cocoop: evaluation on val after each epoch: {evaluated:,} passes of the text tower "
            f"({evaluated // 3} images x 3 classes)"
        ]
        if keep == "best"
        else []
    )
    times = [n.rpartition(": about ")[0] for n in notes.notes if "about" in n]
    assert times == [n.rpartition(": ")[0] for n in told]
    after = Notes()
    heard = model.with_services(Services(FeatureCache(enabled=False), progress=after, workers=1))
    dataclasses.replace(fitted, model=heard).predict_scores(inputs)
    assert after.notes[0].startswith(f"cocoop: prediction: {len(inputs) * 3} passes")


def test_the_estimate_leaves_out_other_work(monkeypatch):
    now, notes = [0.0], Notes()
    monkeypatch.setattr(_passes.time, "monotonic", lambda: now[0])
    cost = Passes(notes, "x", 10, 2)
    now[0] = 1.0
    cost.begin(5)
    now[0] = 4.0
    cost.end()
    now[0] = 1000.0
    cost.begin(5)
    assert notes.notes[1:] == ["x: about 12 s"]


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
