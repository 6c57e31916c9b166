"""Texts laid end to end give the loss and the gradients of the padded batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from clipadapt.core.api.context import RunContext, Services
from tests.unit.textsent.tiny import TinyEncoder, make_split, make_task
from textsent.methods import _packed
from textsent.methods.bitfit import BitFit
from textsent.methods.full_finetune import FullFinetune
from textsent.methods.lora import LoRA, _adapted

QUICK = {"epochs": 2, "batch_size": 8, "lr": 3e-3, "warmup_steps": 0.1}
LENGTHS = [3, 24, 4, 23, 5, 22, 3, 24, 11]
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0}


def batch_of(lengths: list[int]) -> dict[str, torch.Tensor]:
    rng, width = np.random.default_rng(0), max(lengths)
    mask = torch.tensor([[1] * n + [0] * (width - n) for n in lengths])
    ids = torch.from_numpy(rng.integers(5, 20, tuple(mask.shape)))
    labels = torch.from_numpy(rng.integers(0, 2, len(lengths)))
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("architecture", ["distilbert", "bert", "roberta"])
@pytest.mark.parametrize("lengths", [LENGTHS, [7] * 8, [12]])
@pytest.mark.parametrize("group_cost", [0, _packed.GROUP_COST])
def test_loss_logits_and_gradients_are_those_of_the_padded_batch(
    architecture, adapted, lengths, group_cost, monkeypatch
) -> None:
    monkeypatch.setattr(_packed, "GROUP_COST", group_cost)
    encoder = TinyEncoder(architecture)
    model = encoder.classifier(("a", "b"), 0).requires_grad_(True)
    if adapted:
        model = _adapted(model, LORA | {"target_modules": list(encoder.lora_targets())})
    model.eval()
    batch = batch_of(lengths)

    plain = model(**batch)
    packed = _packed.PackedClassifier(model)(batch)

    torch.testing.assert_close(packed.logits, plain.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed.loss, plain.loss, atol=1e-6, rtol=1e-5)
    expected = gradients(model, plain.loss)
    found = gradients(model, packed.loss)
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], atol=1e-6, rtol=1e-4, msg=name)


def test_a_packed_batch_has_no_padding_but_the_last_few_tokens() -> None:
    packed = _packed.pack(*itertools.islice(batch_of(LENGTHS).values(), 2))
    assert packed.tokens.shape[1] == sum(LENGTHS) + -sum(LENGTHS) % _packed.FILL_TO
    ids = batch_of(LENGTHS)["input_ids"]
    for i, n in enumerate(LENGTHS):
        at = int(packed.starts[i])
        assert torch.equal(packed.tokens[0, at : at + n], ids[i, :n])
        assert packed.positions[0, at : at + n].tolist() == list(range(n))


@pytest.mark.parametrize("seed", range(5))
def test_the_groups_are_the_cheapest(seed, monkeypatch) -> None:
    monkeypatch.setattr(_packed, "GROUP_COST", 300)
    lengths = sorted(np.random.default_rng(seed).integers(3, 60, 7).tolist(), reverse=True)

    def cost(groups):
        return sum(len(g) * g[0] ** 2 + _packed.GROUP_COST for g in groups)

    found = _packed.split(lengths)
    assert list(itertools.chain(*found)) == lengths
    every = []
    for cuts in itertools.product((False, True), repeat=6):
        ends = [i + 1 for i, cut in enumerate(cuts) if cut]
        every.append([lengths[a:b] for a, b in itertools.pairwise([0, *ends, 7])])
    assert cost(found) == min(map(cost, every))


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [("distilbert", True), ("bert", True), ("roberta", True), ("xlnet", False)],
)
def test_only_a_model_with_the_same_logits_is_packed(architecture, expected) -> None:
    model = TinyEncoder(architecture).classifier(("a", "b"), 0).train()
    state, before = torch.get_rng_state(), model.config._attn_implementation

    assert (_packed.PackedClassifier.of(model, batch_of([24, 4])) is not None) is expected
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert model.config._attn_implementation == before


def test_a_model_whose_texts_would_see_each_other_is_not_packed(monkeypatch) -> None:
    monkeypatch.setattr(_packed, "ATTENTION", "sdpa")  # ignores where the texts end
    model = TinyEncoder().classifier(("a", "b"), 0)
    assert _packed.PackedClassifier.of(model, batch_of([24, 4])) is None


@pytest.mark.slow
@pytest.mark.parametrize("method", [FullFinetune, LoRA, BitFit])
def test_a_packed_fit_equals_the_plain_fit(method, tmp_path) -> None:
    found = {}
    for fast in (True, False):
        encoder = TinyEncoder()
        for key in ("dropout", "attention_dropout", "seq_classif_dropout"):
            setattr(encoder.module.config, key, 0.0)
        more = {"lora_dropout": 0.0} if method is LoRA else {}
        (tmp_path / str(fast)).mkdir()
        ctx = RunContext(1, tmp_path / str(fast), Services(None, fast=fast))
        fitted = method(method.Config(**QUICK, **more)).fit(encoder, make_task(), ctx)
        scores = fitted.predict_scores(make_split(30, 2).inputs)
        found[fast] = scores, [(h["train_loss"], h["val_loss"]) for h in ctx.history]
    for a, b in zip(found[True], found[False], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_dropout_modules_are_fast_for_a_while() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))
    with _packed.fast_dropout(model):
        assert type(model[0]) is not nn.Dropout
        assert torch.equal(model.eval()[0](torch.ones(9)), torch.ones(9))
        assert not torch.equal(model.train()[0](torch.ones(99)), torch.ones(99))
    assert type(model[0]) is nn.Dropout
