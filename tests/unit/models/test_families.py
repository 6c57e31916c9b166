"""Families beyond CLIP: equal to open_clip's own models, and refused where a setting does not fit the training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip import pretrained
from PIL import Image
from safetensors.torch import load_file, save_file

from clipadapt.core.api.context import Services
from clipadapt.core.api.data import Inputs
from clipadapt.core.api.errors import ModelError
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import MODELS
from clipadapt.core.features.cache import FeatureCache
from clipadapt.models import PromptTunable, _names, _preflight, _sources
from tests.unit.models import tiny

FAMILIES = ("siglip", "siglip2", *tiny.MORE)
TEXTS = ["a dog", "A photo of the Red Cat.", "x", "horse .", "the blue square , the circle"]
NEAR = {"rtol": 1e-5, "atol": 2e-6}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: tiny.write(root / family, family) for family in FAMILIES}


def load(name: str, *, fast: bool = True) -> Any:
    found = MODELS.resolve(name, "clip")
    services = Services(FeatureCache(enabled=False), workers=1, fast=fast)
    return found.provider.load(found.argument, ModelOptions("fp32", "cpu"), services)


def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_and_logits_equal_those_of_open_clips_factory(family, folders):
    name = f"local-dir:{folders[family]}"
    own, _, transform = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)(TEXTS)
    pixels = transform(picture())[None]
    with torch.no_grad():
        image, text = (
            own.eval().encode_image(pixels, normalize=True),
            own.encode_text(tokens, normalize=True),
        )
        logits = own.logit_scale.exp() * image @ text.T
        logits = logits if own.logit_bias is None else logits + own.logit_bias

    model = load(name)
    assert torch.equal(model.tokenize(TEXTS), tokens)
    assert torch.equal(model.preprocess()(picture())[None], pixels)
    given = model.encode_image(pixels)
    torch.testing.assert_close(given, image, **NEAR)
    torch.testing.assert_close(model.encode_text(tokens), text, **NEAR)
    found = model.logits(given, model.encode_text(tokens))
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        projected = own.encode_image(pixels, normalize=False)
    torch.testing.assert_close(model.encode_image(pixels, "projected"), projected, **NEAR)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_that_a_feature_depends_on_is_trimmed(family, folders):
    fast, plain = (load(f"local-dir:{folders[family]}", fast=f) for f in (True, False))
    tokens = fast.tokenize(TEXTS)

    whole = plain.encode_text(tokens)

    torch.testing.assert_close(fast.encode_text(fast.trim(tokens)), whole, **NEAR)
    rows = Inputs(TEXTS, tuple(TEXTS))
    np.testing.assert_allclose(fast.encode(rows, "text"), whole, **NEAR)
    # Attention over the padding, or a feature read behind it: every position counts.
    if family in {"siglip", "siglip2", "mobileclip", "mobile", "coca", "clipa"}:
        assert fast.trim(tokens).shape == tokens.shape


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_with_slots_equal_texts(family, folders):
    model = load(f"local-dir:{folders[family]}")
    assert isinstance(model, PromptTunable)
    tokens, slots = model.prompt_slots(["dog", "red cat"], 2)
    embeddings = model.embed_tokens(tokens)
    assert slots.shape == (2, 2)

    torch.testing.assert_close(
        model.encode_token_embeddings(embeddings, tokens), model.encode_text(tokens), **NEAR
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layer_before_the_projection_is_the_one_it_reads(family, folders):
    model = load(f"local-dir:{folders[family]}")
    pixels = model.preprocess()(picture())[None]
    pooled, projected = (model.encode_image(pixels, n) for n in ("pre_projection", "projected"))
    visual = model.module.visual
    trunk = getattr(visual, "trunk", None)
    last = None if trunk is None else trunk.get_classifier()
    if isinstance(last, torch.nn.Linear):
        torch.testing.assert_close(last(pooled), projected, **NEAR)
    elif getattr(visual, "proj", None) is not None:
        torch.testing.assert_close(pooled @ visual.proj, projected, **NEAR)
    else:  # SigLIP has no projection
        torch.testing.assert_close(pooled, projected, **NEAR)
        return
    projection = model.image_projection()
    bias = 0 if projection.bias is None else projection.bias
    np.testing.assert_allclose(pooled.numpy() @ projection.weight + bias, projected, **NEAR)


def test_an_adapter_leaves_the_captioning_decoder_out(folders):
    model = load(f"local-dir:{folders['coca']}")
    split = model.clone(split=True)
    named = [
        n for tower in ("image", "text") for v in split.adapter_targets(tower).values() for n in v
    ]
    assert named
    assert not [n for n in named if n.startswith("text_decoder")]
    decoder = sum(p.numel() for p in model.module.text_decoder.parameters())
    assert model.n_params == sum(p.numel() for p in model.module.parameters()) - decoder


def test_the_shipped_preprocessing_is_open_clips():
    compared = 0
    for arch in _names.architectures():
        trained = _preflight.trained_preprocessing(_names.architecture_config(arch))
        for tag in pretrained.list_pretrained_tags_by_model(arch) if trained else ():
            cfg = pretrained.get_pretrained_cfg(arch, tag)
            assert {
                k: cfg[k] if isinstance(cfg[k], str) else list(cfg[k]) for k in trained
            } == trained, arch
            compared += 1
    assert compared > 30


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("ViT-B-16-SigLIP", "SigLIP; texts padded to 64 tokens, without capitals and punctuation; sigmoid"),
        ("ViT-B-16-SigLIP2", "SigLIP 2; texts padded to 64 tokens, without capitals; sigmoid"),
        ("EVA02-B-16", "EVA-CLIP; texts of up to 77 tokens; softmax"),
        ("MobileCLIP2-S0", "MobileCLIP; texts of up to 77 tokens; softmax"),
        ("PE-Core-T-16-384", "PE-Core; texts of up to 32 tokens; softmax"),
        ("coca_ViT-B-32", "CoCa; texts of up to 76 tokens; softmax"),
        ("ViT-B-32", "CLIP; texts of up to 77 tokens; softmax"),
    ],
)  # fmt: skip
def test_what_a_family_needs(arch, words):
    config = _names.architecture_config(arch)
    length = config["text_cfg"].get("context_length", 77)
    assert _preflight.needs(config, length) == f"{words} probabilities"


# ---------------------------------------------------------------- refused


@pytest.fixture
def changed(folders, tmp_path) -> Callable[..., str]:
    """Copy a family and change its config or its tokenizer: ``changed(family, text={...}, tokenizer={...})``."""

    def change(
        family: str,
        *,
        text: dict[str, Any] | None = None,
        tokenizer: dict[str, Any] | None = None,
        begin: str = "",
    ) -> str:
        folder = Path(shutil.copytree(folders[family], tmp_path / family))
        path = folder / "open_clip_config.json"
        config = json.loads(path.read_text())
        config["model_cfg"]["text_cfg"] |= text or {}
        path.write_text(json.dumps(config))
        if tokenizer:
            path = folder / "tokenizer_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | tokenizer))
        if begin:
            path = folder / "tokenizer.json"
            whole = json.loads(path.read_text())
            token = {"SpecialToken": {"id": begin, "type_id": 0}}
            whole["post_processor"]["single"].insert(0, token)
            ids = {"id": begin, "ids": [whole["model"]["vocab"][begin]], "tokens": [begin]}
            whole["post_processor"]["special_tokens"][begin] = ids
            path.write_text(json.dumps(whole))
        return f"local-dir:{folder}"

    return change


REFUSED = {
    "capitals": (
        "siglip",
        {"text": {"tokenizer_kwargs": {"clean": "whitespace"}}},
        r"it distinguishes capitals.*clean",
    ),
    "punctuation": (
        "siglip",
        {"text": {"tokenizer_kwargs": {"clean": "lower"}}},
        r"it keeps punctuation.*clean=canonicalize",
    ),
    "start token": ("siglip", {"begin": "[MASK]"}, r"texts begin with token \d+, and SigLIP has no"),
    "left padding": ("siglip2", {"tokenizer": {"padding_side": "left"}}, "it pads on the left"),
    "CLIP's own tokenizer": (
        "siglip",
        {"text": {"hf_tokenizer_name": ""}},
        r"hf_tokenizer_name is missing",
    ),
    "a larger vocabulary": ("clipa", {"text": {"vocab_size": 8}}, r"embeddings of 8 tokens"),
    "another end token": ("metaclip", {"text": {"eos_id": 2}}, r"token 2 \(eos_id\), and texts end with token 49407"),
    "the largest token": ("clipa", {"text": {"pool_type": "argmax"}}, r"at the largest token id, which is not"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_mismatch_of_text_is_one_clear_error(case, changed, cli):
    family, settings, message = REFUSED[case]
    name = changed(family, **settings)
    with pytest.raises(ModelError, match=message):
        load(name)

    done = cli("doctor", "--model", name)
    assert done.code == 2
    assert "does not fit its text tower" in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("size", "settings", "message"),
    [
        (32_000, {"pad_token": "<pad>"}, "it pads with token 2, and this vocabulary of SigLIP was padded with token 1"),
        (256_000, {}, "it pads with token 1, and this vocabulary of SigLIP was padded with token 0"),
        (32_000, {}, "context_length is 16, and SigLIP was trained with texts padded to 64 positions"),
    ],
)  # fmt: skip
def test_the_vocabularies_of_siglip_have_their_padding(size, settings, message, changed):
    with pytest.raises(ModelError, match=message):
        load(changed("siglip", text={"vocab_size": size}, tokenizer=settings))


def without_bias(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v for k, v in state.items() if k != "logit_bias"}


def with_other_positions(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return state | {"text.positional_embedding": torch.zeros(64, 64)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_bias, "the weights have no logit_bias.*trained with a softmax"),
        (with_other_positions, "texts of 64 positions, padding included, and the config has context_length 16"),
    ],
)  # fmt: skip
def test_weights_of_another_training_are_refused(change, message, changed):
    name = changed("siglip")
    path = Path(name.removeprefix("local-dir:")) / "open_clip_model.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(ModelError, match=message):
        load(name)


def test_a_folder_states_how_images_are_normalised():
    config = _names.architecture_config("MobileCLIP2-S0")
    given = {"mean": [0.0] * 3, "std": [1.0] * 3}
    assert _preflight.check_images(config, given, "mine") == ()
    (note,) = _preflight.check_images(config, {"mean": [0.5] * 3, "std": [1.0] * 3}, "mine")
    assert "normalised with mean [0.5, 0.5, 0.5]" in note
    with pytest.raises(
        ModelError, match=r"'mine' does not say how images are normalised \(mean, std\)"
    ):
        _preflight.check_images(config, {}, "mine")
    assert _preflight.check_images(_names.architecture_config("RN50"), {}, "mine") == ()


def test_a_weights_file_is_preprocessed_as_in_training(tmp_path):
    """The file does not say it, and open_clip's default would be OpenAI's."""
    (tmp_path / "mine.safetensors").write_bytes(b"")
    name = _names.parse(f"PE-Core-T-16-384/{tmp_path / 'mine.safetensors'}")
    found = _sources._of_file(name, _names.architecture_config(name.arch))
    assert found.preprocess_cfg["resize_mode"] == "squash"
    assert found.notes[0].startswith(
        "PE-Core-T-16-384/mine.safetensors: images are preprocessed as in the training"
    )
    plain = _names.parse(f"ViT-B-32/{tmp_path / 'mine.safetensors'}")
    assert not _sources._of_file(plain, _names.architecture_config("ViT-B-32")).preprocess_cfg


@pytest.mark.parametrize("family", FAMILIES)
def test_both_towers_take_prompts_if_they_are_plain_transformers(family, folders):
    model = load(f"local-dir:{folders[family]}")
    tokens, slots = model.prompt_slots(["dog", "red cat"], 2)
    blocks, width = model.prompt_blocks("text")
    prompts = [torch.randn(2, width) for _ in range(blocks)]
    text = model.encode_text_with_prompts(model.embed_tokens(tokens), tokens, slots, prompts)
    assert (text - model.encode_text(tokens)).abs().max() > 1e-4
    if family in {"eva", "mobileclip", "mobile", "pe"}:  # rotary positions, convolutions
        with pytest.raises(ModelError, match="image tower of .* cannot take prompts"):
            model.prompt_blocks("image")
        return
    blocks, width = model.prompt_blocks("image")
    pixels = model.preprocess()(picture())[None]
    states = model.encode_image(pixels, "unit:1")
    plain = model.encode_image_from(states, 1)
    torch.testing.assert_close(plain, model.encode_image(pixels), **NEAR)

    image = model.encode_image_with_prompts(states, [torch.randn(2, width)] * blocks)

    assert (image - plain).abs().max() > 1e-4
