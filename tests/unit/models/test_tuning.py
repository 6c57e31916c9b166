"""What training needs from a model, for every family: units, split attention, prompts, folders."""

from __future__ import annotations

import importlib.util
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from clipadapt.core.api.context import Services
from clipadapt.core.api.errors import ModelError
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import MODELS
from clipadapt.core.features.cache import FeatureCache
from clipadapt.methods._images import unit_of
from clipadapt.models import AdapterTunable, ImageTextModel, PromptTunable, _attention, stitched
from clipadapt.models._text_tower import CausalTextTower
from tests.unit.models.tiny import WORDS

FAMILIES = ("clip", "custom", "hf", "siglip")
TEXTS = ["a dog", "a photo of the red cat", "x", "horse .", "the blue square , the circle"]

real = [
    pytest.param("random:RN50", marks=pytest.mark.slow),
    pytest.param(
        "stitched",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(
                any(
                    importlib.util.find_spec(i[0]) is None
                    for i in (stitched.IMAGE_WEIGHTS, stitched.TEXT_WEIGHTS)
                ),
                reason="the extra 'offline' is not installed",
            ),
        ],
    ),
]


def load(name: str, precision: str = "fp32") -> ImageTextModel:
    found = MODELS.resolve(name, "clip")
    services = Services(FeatureCache(enabled=False), workers=1)
    return found.provider.load(found.argument, ModelOptions(precision, "cpu"), services)


@pytest.fixture(scope="module")
def get(tiny_models):
    loaded: dict[str, ImageTextModel] = {}

    def model(name: str) -> ImageTextModel:
        if name not in loaded:
            loaded[name] = load(tiny_models.get(name, name))
        return loaded[name]

    return model


def pixels(model: ImageTextModel, n: int = 3) -> torch.Tensor:
    size = model.module.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- units


@pytest.mark.parametrize("name", [*FAMILIES, *real])
def test_the_units_in_sequence_equal_the_tower(name, get):
    model = get(name)
    x, units = pixels(model, 2), model.image_units()
    inner = range(len(units) + 1) if name in FAMILIES else (1, len(units) - 1)

    with torch.no_grad():
        whole = model.encode_image(x, "projected")
        for k in inner:
            states = model.encode_image(x, f"unit:{k}")
            torch.testing.assert_close(
                model.encode_image_from(states, k, "projected"), whole, atol=1e-5, rtol=1e-4
            )
            torch.testing.assert_close(
                model.encode_image_from(states, k).norm(dim=1), torch.ones(2)
            )

    assert len(units) > 3
    assert torch.equal(model.encode_image(x, "unit:0"), x)


@pytest.mark.parametrize("name", [*FAMILIES, *real])
def test_every_parameter_of_the_tower_belongs_to_one_unit(name, get):
    model = get(name)
    units = model.image_units()
    names = [n for n, _ in model.module.named_parameters() if n.startswith("visual.")]

    for parameter in names:
        holders = [
            i for i, begins in enumerate(units) if any(parameter.startswith(b) for b in begins)
        ]
        assert len(holders) == 1, parameter
        assert unit_of(units, parameter) == holders[0]
    assert {unit_of(units, n) for n in names} == set(range(len(units)))
    with pytest.raises(ValueError, match="no unit contains 'transformer"):
        unit_of(units, "transformer.resblocks.0.attn.q")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_change_above_a_unit_does_not_change_its_input(name, get):
    model = get(name)
    x, k = pixels(model, 2), len(model.image_units()) - 1
    changed = model.clone()
    with torch.no_grad():
        for n, p in changed.module.named_parameters():
            if n.startswith(tuple(model.image_units()[k])):
                p.add_(0.5)
        assert torch.equal(changed.encode_image(x, f"unit:{k}"), model.encode_image(x, f"unit:{k}"))
        assert not torch.allclose(changed.encode_image(x), model.encode_image(x))


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize("name", [*FAMILIES, *real])
def test_split_attention_gives_the_same_features(name, get):
    model = get(name)
    split, x = model.clone(split=True), pixels(model, 2)
    tokens = model.tokenize(["a photo of a dog", "cat"])

    with torch.no_grad():
        np.testing.assert_allclose(split.encode_image(x), model.encode_image(x), atol=1e-5)
        np.testing.assert_allclose(split.encode_text(tokens), model.encode_text(tokens), atol=1e-5)
        short, cut = split.trim(tokens), model.trim(tokens)
        np.testing.assert_allclose(split.encode_text(short), model.encode_text(cut), atol=1e-5)

    fused, own = model.fused_state(split.module), model.module.state_dict()
    assert fused.keys() == own.keys()
    assert all(torch.equal(fused[n], own[n]) for n in own)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", [None, "shared", "per head"])
def test_split_attention_equals_that_of_torch(batch_first, mask):
    torch.manual_seed(0)
    whole = nn.MultiheadAttention(24, 3, batch_first=batch_first)
    nn.init.normal_(whole.in_proj_bias)
    part = _attention.SplitAttention(whole)
    n, length = 2, 5
    x = torch.randn(n, length, 24) if batch_first else torch.randn(length, n, 24)
    shape = {"shared": (length, length), "per head": (n * 3, length, length)}
    given = None if mask is None else torch.randn(shape[mask])

    with torch.no_grad():
        expected = whole(x, x, x, need_weights=False, attn_mask=given)[0]
        torch.testing.assert_close(part(x, x, x, attn_mask=given)[0], expected)


def test_split_layers_of_timm_without_a_bias():
    whole = nn.Linear(6, 18, bias=False)
    part, x = _attention.SplitProjection(whole), torch.randn(2, 4, 6)

    torch.testing.assert_close(part(x), whole(x))
    assert [n for n, _ in part.named_parameters()] == ["q.weight", "k.weight", "v.weight"]


@pytest.mark.parametrize("name", FAMILIES)
def test_adapter_targets_are_layers_of_a_split_copy(name, get):
    split = get(name).clone(split=True)
    assert isinstance(split, AdapterTunable)
    for tower in ("image", "text"):
        for role, names in split.adapter_targets(tower).items():
            assert role in _attention.ROLES
            for layer in names:
                module = split.module.get_submodule(layer)
                kind = nn.Conv2d if role == "pointwise" else nn.Linear
                assert isinstance(module, kind)
                assert layer.startswith("visual.") == (tower == "image")
            order = [[int(p) for p in n.split(".") if p.isdigit()] for n in names]
            assert role == "pointwise" or order == sorted(order)  # input side first


def test_projections_of_attention_pooling_are_no_targets(get):
    targets = get("siglip").clone(split=True).adapter_targets("image")

    assert not [n for names in targets.values() for n in names if "attn_pool" in n]


# ---------------------------------------------------------------- prompts


class Arithmetic:
    """Tokens of a prompt, assembled by hand: start token, words, full stop, end token, padding."""

    def __init__(self, family: str) -> None:
        if family in {"clip", "custom"}:
            import open_clip

            bpe = open_clip.tokenizer.SimpleTokenizer()
            self.word, self.length, self.pad = bpe.encode, 77, 0
            self.first, self.stop, self.last = [49406], bpe.encode("."), 49407
        elif family == "hf":
            self.word, self.length, self.pad = self._words(WORDS, "[UNK]"), 16, 0
            self.first, self.stop, self.last = [2], [WORDS.index(".")], 3
        else:
            vocabulary = ("<unk>", "</s>", *WORDS[2:])
            # Its cleaning removes punctuation; it pads with the token that ends a text.
            self.word, self.length, self.pad = self._words(vocabulary, "<unk>"), 16, 1
            self.first, self.stop, self.last = [], [], 1

    @staticmethod
    def _words(vocabulary, unknown):
        index = {w: i for i, w in enumerate(vocabulary)}
        return lambda text: [index.get(w, index[unknown]) for w in text.lower().split()]

    def prompt(self, name: str, n_ctx: int, position: str) -> tuple[list[int], list[int]]:
        """Return padded tokens and slots."""
        (mark,) = self.word("x")
        words = self.word(name)
        ahead = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
        body = [mark] * ahead + words + [mark] * (n_ctx - ahead) + self.stop
        tokens = [*self.first, *body, self.last]
        begin = len(self.first)
        slots = [begin + i + (len(words) if i >= ahead else 0) for i in range(n_ctx)]
        return tokens + [self.pad] * (self.length - len(tokens)), slots


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("n_ctx", [1, 4, 5])
def test_slots_by_token_arithmetic(family, position, n_ctx, get):
    model, names = get(family), ("dog", "red blue cat", "the_horse")
    assert isinstance(model, PromptTunable)
    by_hand = Arithmetic(family)
    expected = [by_hand.prompt(n.replace("_", " "), n_ctx, position) for n in names]

    tokens, slots = model.prompt_slots(names, n_ctx, position)

    assert slots.tolist() == [s for _, s in expected]
    whole = torch.tensor([t for t, _ in expected])
    assert torch.equal(tokens, whole[:, : tokens.shape[1]])
    # Only padding was truncated.
    assert (whole[:, tokens.shape[1] :] == by_hand.pad).all()
    (mark,) = by_hand.word("x")
    assert (tokens.gather(1, slots) == mark).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_words_of_a_context(family, get):
    by_hand = Arithmetic(family)
    for text in ("a photo of a", "the", "red, blue"):
        expected = by_hand.word(text.replace(",", "" if family == "siglip" else " ,"))
        assert get(family).context_tokens(text).tolist() == expected


def test_names_of_several_tokens(get):
    """A word of CLIP's vocabulary may be several tokens."""
    model, by_hand = get("clip"), Arithmetic("clip")
    name = "xylophonist"
    assert len(by_hand.word(name)) > 1
    for position in ("end", "middle", "front"):
        tokens, slots = model.prompt_slots((name, "dog"), 4, position)
        wanted, places = by_hand.prompt(name, 4, position)
        assert tokens[0].tolist() == wanted[: tokens.shape[1]]
        assert slots[0].tolist() == places


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_longer_than_the_context_are_refused(family, get):
    model = get(family)
    with pytest.raises(ModelError, match=f"longer than the {model.context_length}"):
        model.prompt_slots(("dog",), model.context_length)
    with pytest.raises(ModelError, match="leave no room for a class name"):
        model.context_tokens("a photo " * model.context_length)


@pytest.mark.parametrize("name", [*FAMILIES, *real])
def test_the_models_own_embeddings_give_the_same_features(name, get):
    model = get(name)
    tokens = model.trim(model.tokenize(TEXTS))

    with torch.no_grad():
        plain = model.encode_text(tokens)
        given = model.encode_token_embeddings(model.embed_tokens(tokens), tokens)
        after = model.encode_text(tokens)

    tower = CausalTextTower.of(model.module)
    if tower is not None and tower.can_share():  # its texts are packed
        torch.testing.assert_close(given, plain, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(given, plain)
    assert torch.equal(after, plain)  # the hook was removed


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_embeddings_but_no_weights(family, get):
    model = get(family)
    tokens, slots = model.prompt_slots(("dog", "red cat"), 2)
    embeddings = model.embed_tokens(tokens).requires_grad_()

    # A plain sum of layer-normalised features is constant.
    weight = torch.randn(model.embed_dim, generator=torch.Generator().manual_seed(0))
    (model.encode_token_embeddings(embeddings, tokens, "projected") @ weight).sum().backward()

    at_slots = embeddings.grad[torch.arange(2)[:, None], slots]
    assert (at_slots.abs().amax(dim=-1) > 0).all()
    assert not any(p.requires_grad or p.grad is not None for p in model.module.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_hook_is_removed_after_an_error(family, get):
    model = get(family)
    tokens = model.tokenize(["a dog"])
    before = model.encode_text(tokens)

    with pytest.raises(RuntimeError):
        model.encode_token_embeddings(torch.zeros(1, 3, 7), tokens)

    assert torch.equal(model.encode_text(tokens), before)


@pytest.mark.parametrize("name", [*FAMILIES, *real])
def test_trimmed_tokens_give_the_same_features(name, get):
    model = get(name)
    tokens = model.tokenize(TEXTS)

    cut = model.trim(tokens)

    if name == "siglip":  # it pools at the last position
        assert torch.equal(cut, tokens)
    else:
        assert cut.shape[1] < tokens.shape[1]
    with torch.no_grad():
        np.testing.assert_allclose(model.encode_text(cut), model.encode_text(tokens), atol=1e-6)


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("name", [*FAMILIES, *real])
def test_a_saved_folder_loads_with_equal_logits(name, get, tmp_path):
    model = get(name)
    (tmp_path / "a").mkdir()

    model.save_folder(tmp_path / "a")
    moved = load(f"local-dir:{shutil.move(tmp_path / 'a', tmp_path / 'b')}")

    x, tokens = pixels(model, 2), model.tokenize(TEXTS)
    assert torch.equal(moved.tokenize(TEXTS), tokens)
    with torch.no_grad():
        logits = model.logits(model.encode_image(x), model.encode_text(tokens))
        again = moved.logits(moved.encode_image(x), moved.encode_text(tokens))
    assert torch.equal(again, logits)
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    assert torch.equal(moved.preprocess()(image), model.preprocess()(image))
    assert moved.weights_sha256 == model.weights_sha256


@pytest.mark.parametrize("family", ["clip", "custom", "siglip"])
def test_open_clip_itself_loads_the_folder(family, get, tmp_path):
    import open_clip

    model = get(family)
    model.save_folder(tmp_path)

    own = open_clip.create_model(f"local-dir:{tmp_path}").eval()

    x = pixels(model, 2)
    with torch.no_grad():
        np.testing.assert_allclose(
            own.encode_image(x, normalize=True), model.encode_image(x), atol=1e-6
        )


def test_a_folder_with_other_weights(get, tmp_path):
    model = get("custom")
    state = {n: t.clone() for n, t in model.module.state_dict().items()}
    state["visual.proj"] *= -1

    model.save_folder(tmp_path, state)

    x = pixels(model, 2)
    with torch.no_grad():
        other = load(f"local-dir:{tmp_path}").encode_image(x)
        assert torch.equal(other, -model.encode_image(x))


@pytest.mark.parametrize("family", ["clip", "custom"])
@pytest.mark.parametrize("split", [False, True])
def test_skipping_unread_computation_changes_nothing(family, split, tiny_models):
    fast, plain = (load(tiny_models[family]).clone(split=split) for _ in range(2))
    fast.services.fast, plain.services.fast = True, False
    x = pixels(fast, 3).requires_grad_()
    tokens = fast.tokenize(TEXTS)
    blocks = (
        fast.module.visual.transformer.resblocks[-1],
        plain.module.visual.transformer.resblocks[-1],
    )
    widths: list[list[int]] = []
    for block in blocks:
        block.mlp.register_forward_hook(lambda _, given, __: widths.append(list(given[0].shape)))

    for layer in ("output", "pre_projection"):
        got, expected = (m.encode_image(x, layer) for m in (fast, plain))
        by_got, by_expected = (
            torch.autograd.grad(y.square().cumsum(1).sum(), x)[0] for y in (got, expected)
        )
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(by_got, by_expected, atol=1e-5, rtol=1e-4)
    positions = widths[1][1]
    assert widths == [[3, 32], [3, positions, 32]] * 2
    assert positions > 1
    torch.testing.assert_close(
        fast.encode_text(tokens), plain.encode_text(tokens), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["none", "boolean", "added"])
def test_attention_in_half_precision_is_close_to_float32(kind):
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 16, generator=draw).bfloat16() for _ in range(3))
    sees = torch.ones(7, 7, dtype=torch.bool).tril()
    added = torch.zeros(7, 7).masked_fill(~sees, float("-inf"))
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        given = [t.to(dtype).requires_grad_() for t in (q, k, v)]
        mask = {"none": None, "boolean": sees, "added": added.to(dtype)}[kind]
        out = _attention.attend(*given, mask)
        assert out.dtype == dtype
        found.append([out.float(), *torch.autograd.grad(out.float().square().sum(), given)])

    for low, full in zip(*found, strict=True):
        torch.testing.assert_close(low.float(), full.float(), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_low_precision_model_in_float32_has_the_stored_weights(family, tiny_models, get):
    low = load(tiny_models[family], "bf16")

    full = low.in_dtype("fp32")

    assert low.dtype == "bf16"
    assert full.weights_sha256 == get(family).weights_sha256
    assert low.in_dtype("fp32") is full
    assert get(family).in_dtype("fp32") is get(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_other_services_shares_the_weights_in_every_dtype(family, tiny_models):
    model = load(tiny_models[family], "bf16")
    own = model.services
    other = model.with_services(Services(FeatureCache(enabled=False)))

    assert other.services is not own
    assert model.services is own
    assert other.module is model.module
    full = model.in_dtype("fp32")
    assert other.in_dtype("fp32").module is full.module
    assert other.in_dtype("fp32").services is other.services
    assert model.in_dtype("fp32").services is full.services is own


@pytest.mark.parametrize("family", ["clip", "custom"])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_computing_a_shared_beginning_once_changes_nothing(family, position, get):
    from clipadapt.methods._text import leading

    model = get(family)
    tokens, slots = model.prompt_slots(["dog", "a horse", "tench"], 5, position)
    context = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    places = slots.unsqueeze(-1).expand(-1, -1, 32)
    filled = model.embed_tokens(tokens).scatter(1, places, context.expand(3, 5, 32))
    shared = leading(tokens)
    assert shared >= {"end": 6, "middle": 3, "front": 1}[position]

    plain = model.encode_token_embeddings(filled, tokens)
    fast = model.encode_token_embeddings(filled, tokens, shared=shared)
    by_plain, by_fast = (
        torch.autograd.grad(x.square().cumsum(1).sum(), context, retain_graph=True)[0]
        for x in (plain, fast)
    )

    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_fast, by_plain, atol=1e-5, rtol=1e-4)
