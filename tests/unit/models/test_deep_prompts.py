"""Prompts in the towers of every model family: where they go, and what they leave unchanged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from clipadapt.core.api.context import Services
from clipadapt.core.api.errors import ModelError
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import MODELS
from clipadapt.core.features.cache import FeatureCache
from clipadapt.models import DeepPromptTunable, _deep_prompts

IMAGE = ("clip", "custom", "siglip")
TEXT = (*IMAGE, "hf")
SIZES = {"siglip": 160}


@pytest.fixture(scope="module")
def get(tiny_models: dict[str, str]) -> Callable[..., DeepPromptTunable]:
    loaded: dict[str, DeepPromptTunable] = {}

    def model(family: str, *, fast: bool = True) -> DeepPromptTunable:
        if family not in loaded:
            found = MODELS.resolve(tiny_models[family], "clip")
            services = Services(FeatureCache(enabled=False), workers=1)
            loaded[family] = found.provider.load(
                found.argument, ModelOptions("fp32", "cpu"), services
            )
        services = Services(FeatureCache(enabled=False), workers=1, fast=fast)
        return loaded[family].with_services(services)

    return model


def drawn(n: int, tokens: int, width: int) -> list[torch.Tensor]:
    """Return prompts of ``n`` blocks."""
    random = torch.Generator().manual_seed(0)
    return [torch.randn(tokens, width, generator=random).requires_grad_() for _ in range(n)]


def pixels(family: str, n: int = 3) -> torch.Tensor:
    size = SIZES.get(family, 32)
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", IMAGE)
def test_fast_image_features_and_gradients_equal_the_reference(family, get):
    fast, plain = get(family), get(family, fast=False)
    blocks, width = fast.prompt_blocks("image")
    found = []
    for model in (fast, plain):
        prompts = drawn(blocks, 3, width)
        features = model.encode_image_with_prompts(
            model.encode_image(pixels(family), "unit:1"), prompts
        )
        features[:, 0].sum().backward()
        found.append((features, [p.grad for p in prompts]))

    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
        assert a.abs().sum() > 0


@pytest.mark.parametrize("family", IMAGE)
def test_a_prompt_lasts_until_the_next_one_replaces_it(family, get):
    model = get(family)
    blocks, width = model.prompt_blocks("image")
    states = model.encode_image(pixels(family), "unit:1")
    one, other = drawn(blocks, 2, width)[:2]

    alone = model.encode_image_with_prompts(states, [one])
    replaced = model.encode_image_with_prompts(states, [one, other])
    plain = model.encode_image_from(states, 1)

    assert (alone - plain).abs().max() > 1e-4
    assert (alone - replaced).abs().max() > 1e-5
    torch.testing.assert_close(alone.norm(dim=-1), torch.ones(3))


def test_prompts_get_no_position_and_the_first_norm(get):
    model = get("clip")
    visual = model.module.visual
    _, width = model.prompt_blocks("image")
    (prompt,) = drawn(1, 2, width)
    seen = []
    handle = visual.transformer.resblocks[0].register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    try:
        model.encode_image_with_prompts(model.encode_image(pixels("clip"), "unit:1"), [prompt])
    finally:
        handle.remove()

    torch.testing.assert_close(seen[-1][:, -2:], visual.ln_pre(prompt).expand(3, -1, -1))
    torch.testing.assert_close(seen[-1][:, :-2], visual._embeds(pixels("clip")))


NAMES = ("dog", "the red cat", "horse")


def text(model, n_ctx, names=NAMES):
    """Return the arguments of ``encode_text_with_prompts`` for prompts that start with the slots."""
    tokens, slots = model.prompt_slots(names, n_ctx)
    return model.embed_tokens(tokens), tokens, slots


@pytest.mark.parametrize("family", TEXT)
@pytest.mark.parametrize("shared", ["none", "before the slots", "with the slots"])
def test_fast_text_features_and_gradients_equal_the_reference(family, shared, get):
    found = []
    for fast in (True, False):
        model = get(family, fast=fast)
        blocks, width = model.prompt_blocks("text")
        embeddings, tokens, slots = text(model, 2)
        leading = {
            "none": 0,
            "before the slots": int(slots.min()),
            "with the slots": int(slots.max()) + 1,
        }
        prompts = drawn(blocks, 2, width)
        features = model.encode_text_with_prompts(
            embeddings, tokens, slots, prompts, "output", leading[shared]
        )
        features[:, 0].sum().backward()
        found.append((features, [p.grad for p in prompts]))

    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
        assert a.abs().sum() > 0


@pytest.mark.parametrize("family", TEXT)
def test_the_states_of_the_slots_are_replaced_before_each_block(family, get):
    model = get(family, fast=False)
    blocks, width = model.prompt_blocks("text")
    embeddings, tokens, slots = text(model, 2)
    prompts = drawn(blocks, 2, width)
    seen = []
    handles = [
        b.register_forward_hook(lambda _, args, __: seen.append(args[0]))
        for b in _deep_prompts.text_blocks(model.module)
    ]
    try:
        model.encode_text_with_prompts(embeddings, tokens, slots, prompts)
    finally:
        for handle in handles:
            handle.remove()

    assert len(seen) == blocks
    for states, prompt in list(zip(seen, prompts, strict=True))[1:]:
        rows = torch.arange(len(NAMES))[:, None]
        torch.testing.assert_close(states[rows, slots], prompt.expand(len(NAMES), -1, -1))


@pytest.mark.parametrize("family", TEXT)
def test_one_prompt_equals_embeddings_with_filled_slots(family, get):
    model = get(family)
    _, width = model.prompt_blocks("text")
    embeddings, tokens, slots = text(model, 2)
    (prompt,) = drawn(1, 2, width)
    filled = _deep_prompts.fill(embeddings, slots, prompt)

    found = model.encode_text_with_prompts(embeddings, tokens, slots, [prompt], "projected")

    torch.testing.assert_close(found, model.encode_token_embeddings(filled, tokens, "projected"))


def test_a_single_text_equals_the_same_text_among_others(get):
    model = get("clip")
    blocks, width = model.prompt_blocks("text")
    prompts = drawn(blocks, 2, width)
    several = model.encode_text_with_prompts(*text(model, 2), prompts, "output", 3)

    alone = model.encode_text_with_prompts(*text(model, 2, NAMES[:1]), prompts, "output", 0)

    torch.testing.assert_close(F.normalize(several[:1], dim=-1), alone, rtol=1e-4, atol=1e-5)


def test_a_convolutional_tower_is_refused_by_name(get):
    with pytest.raises(ModelError, match=r"image tower of .* \(EfficientNet\) cannot take prompts"):
        get("hf").prompt_blocks("image")
    assert get("hf").prompt_blocks("text") == (2, 24)
