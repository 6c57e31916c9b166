"""Texts without padding give the features and gradients of padded texts."""

from __future__ import annotations

import pytest
import torch

from clipadapt.core.api.context import Services
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import MODELS
from clipadapt.core.features.cache import FeatureCache
from clipadapt.methods._text import leading
from clipadapt.models._packed_text import Packing

TEXTS = ["a dog", "a photo of the red cat", "a x", "a horse .", "a blue square , the circle"]


def load(name: str, *, fast: bool = True, precision: str = "fp32"):
    found = MODELS.resolve(name, "clip")
    services = Services(FeatureCache(enabled=False), workers=1, fast=fast)
    return found.provider.load(found.argument, ModelOptions(precision, "cpu"), services)


def test_packing_maps_rows_and_texts():
    packing = Packing.of(torch.tensor([3, 1, 3]), 4, "cpu")

    assert packing.groups == ((1, 1), (2, 3))
    assert packing.rows.tolist() == [4, 0, 1, 2, 8, 9, 10]
    assert packing.ends.tolist() == [0, 3, 6]
    assert packing.back.tolist() == [1, 0, 2]
    one, two = packing.split(torch.arange(7))
    assert one.tolist() == [[0]]
    assert two.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], ["a dog", "a cat"]], ids=len)
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("family", ["clip", "custom"])
def test_packed_texts_equal_padded_ones(family, split, share, texts, tiny_models):
    found = []
    for fast in (False, True):
        model = load(tiny_models[family], fast=fast).clone(split=split)
        tokens = model.trim(model.tokenize(texts))
        assert fast == (tokens.shape[1] < model.context_length)
        embeddings = model.embed_tokens(tokens).requires_grad_()
        shared = leading(tokens) if share else 0
        features = model.encode_token_embeddings(embeddings, tokens, shared=shared)
        (by_embeddings,) = torch.autograd.grad(features.square().cumsum(1).sum(), embeddings)
        # The gradient of a shared position belongs to all texts together.
        own = by_embeddings[:, shared:].flatten(0, 1)
        by_embeddings = torch.cat([by_embeddings[:, :shared].sum(0), own])
        found.append((features, by_embeddings))

    (plain, by_plain), (packed, by_packed) = found
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=1e-5)
    used = [t for t in by_packed if t.any()]
    kept = [t for t in by_plain if t.any()]
    assert len(used) == len(kept) > 0
    torch.testing.assert_close(torch.stack(used), torch.stack(kept), atol=5e-5, rtol=1e-4)


def test_texts_are_packed_in_low_precision_too(tiny_models):
    plain, packed = (
        load(tiny_models["clip"], fast=fast, precision="bf16") for fast in (False, True)
    )
    tokens = plain.tokenize(TEXTS)

    expected = plain.encode_token_embeddings(plain.embed_tokens(tokens), tokens)
    found = packed.encode_token_embeddings(packed.embed_tokens(tokens).requires_grad_(), tokens)

    torch.testing.assert_close(found, expected, atol=0.03, rtol=0.03)
