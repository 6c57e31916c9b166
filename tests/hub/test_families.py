"""Families beyond CLIP in the layout of the hub: config, weights and tokenizer in one repository, or in two."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from clipadapt.core.api.errors import ModelError
from tests.hub.test_hub import identify, load, offline
from tests.unit.models import tiny

TEXTS = ["a dog", "A photo of the Red Cat.", "the blue square , the circle"]


def serve(hub, family: str, tokenizer: str = "") -> str:
    """Write a repository; its tokenizer is in it, or in the repository ``tokenizer``."""
    folder = tiny.write(hub.root / f"models/org/{family}/main", family)
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    text = config["model_cfg"]["text_cfg"]
    if "hf_tokenizer_name" in text:
        text["hf_tokenizer_name"] = tokenizer or f"org/{family}"
    path.write_text(json.dumps(config))
    if tokenizer:
        other = hub.root / f"models/{tokenizer}/main"
        other.mkdir(parents=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).rename(other / name)
    return f"hf-hub:org/{family}"


@pytest.mark.parametrize("family", ["siglip2", "clipa", "coca", "mobile", "metaclip"])
def test_a_repository_equals_open_clips_model_online_and_offline(family, hub, monkeypatch):
    name = serve(hub, family)
    own, _, transform = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(f"local-dir:{hub.root}/models/org/{family}/main")(TEXTS)
    image = Image.fromarray(np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3))
    with torch.no_grad():
        pixels = transform(image)[None]
        features = own.eval().encode_image(pixels, normalize=True)
        text = own.encode_text(tokens, normalize=True)

    for _ in range(2):
        model = load(name)
        assert torch.equal(model.tokenize(TEXTS), tokens)
        assert torch.equal(model.preprocess()(image)[None], pixels)
        torch.testing.assert_close(model.encode_image(pixels), features, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(model.encode_text(tokens), text, rtol=1e-5, atol=2e-6)
        offline(monkeypatch)


def test_a_tokenizer_in_a_repository_of_its_own(hub):
    model = load(serve(hub, "siglip", tokenizer="timm/tokens"))
    assert model.tokenize(["a dog"]).shape == (1, 16)
    assert hub.asked("timm/tokens")


def test_a_wrong_tokenizer_is_refused_before_the_weights_are_drawn(hub, cli):
    """The real architecture: its tokenizer pads with the end token, this one with a token of its own."""
    serve(hub, "siglip2", tokenizer="timm/ViT-B-16-SigLIP")
    with pytest.raises(ModelError, match="was padded with token 1"):
        identify("random:ViT-B-16-SigLIP")
    done = cli("zeroshot", "--model", "random:ViT-B-16-SigLIP", "--dataset", "synthetic:3x12")
    assert done.code == 2
    assert "does not fit its text tower" in done.text
    assert "Traceback" not in done.err


def test_doctor_says_what_a_model_needs(hub, cli):
    done = cli("doctor", "--model", serve(hub, "siglip2"))
    assert done.code == 0
    words = (
        "SigLIP; texts padded to 16 tokens, without capitals and punctuation; sigmoid probabilities"
    )
    assert words in " ".join(done.out.split())
