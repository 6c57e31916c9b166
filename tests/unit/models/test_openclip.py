"""The open_clip adapter on tiny random checkpoints: features, cache, copies, dtypes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from clipadapt.core.api.context import Services
from clipadapt.core.api.data import Inputs
from clipadapt.core.api.errors import ModelError
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import MODELS
from clipadapt.core.features.cache import FeatureCache
from clipadapt.models import ImageTextModel, _sources

from . import tiny

FAMILIES = ("clip", "custom", "hf")
TEXTS = ["a dog", "a photo of the red cat", "x", "horse .", "the blue square , the circle"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: tiny.write(root / family, family) for family in FAMILIES}


def load(
    name: str, store: FeatureCache | None = None, precision: str = "fp32", **services: int
) -> ImageTextModel:
    found = MODELS.resolve(name, "clip")
    given = Services(store or FeatureCache(enabled=False), **services)
    return found.provider.load(found.argument, ModelOptions(precision, "cpu"), given)


def pictures(n: int, seed: int = 0) -> Inputs:
    rng = np.random.default_rng(seed)
    images = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(n)]
    return Inputs(images, tuple(f"{i}.png" for i in range(n)))


def texts(values: list[str]) -> Inputs:
    return Inputs(values, tuple(values))


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> ImageTextModel:
    return load(f"local-dir:{folders[request.param]}")


def test_the_adapter_meets_the_protocol(model: ImageTextModel) -> None:
    assert isinstance(model, ImageTextModel)
    assert not model.module.training
    assert not any(p.requires_grad for p in model.module.parameters())
    assert model.n_params == sum(p.numel() for p in model.module.parameters())


@pytest.mark.parametrize("family", ["clip", "custom"])
def test_features_equal_those_of_open_clip(family: str, folders: dict[str, Path]) -> None:
    name = f"local-dir:{folders[family]}"
    own, transform = open_clip.create_model_from_pretrained(name)
    own = own.eval()
    model = load(name)
    inputs = pictures(5)
    pixels = torch.stack([transform(i) for i in inputs.examples])
    with torch.no_grad():
        image = own.encode_image(pixels, normalize=True)
        text = own.encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True)

    assert torch.equal(torch.stack([model.preprocess()(i) for i in inputs.examples]), pixels)
    torch.testing.assert_close(model.encode_image(pixels), image)
    torch.testing.assert_close(model.encode_text(model.tokenize(TEXTS)), text)
    np.testing.assert_allclose(model.encode(inputs, "image"), image, atol=1e-6)
    np.testing.assert_allclose(model.encode(texts(TEXTS), "text"), text, atol=1e-6)
    assert model.logit_scale == pytest.approx(float(own.logit_scale.detach().exp()))


def test_encode_agrees_with_encode_text(model: ImageTextModel) -> None:
    whole = model.encode_text(model.tokenize(TEXTS)).numpy()
    np.testing.assert_allclose(model.encode(texts(TEXTS), "text"), whole, atol=1e-6)


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_permuted_inputs_give_exactly_permuted_features(
    tower: str, precision: str, folders: dict[str, Path]
) -> None:
    for family in FAMILIES:
        model = load(f"local-dir:{folders[family]}", precision=precision)
        inputs = (
            pictures(37)
            if tower == "image"
            else texts([f"a dog {'x ' * (i % 9)}{i}" for i in range(70)])
        )
        order = np.random.default_rng(3).permutation(len(inputs))

        straight = model.encode(inputs, tower)

        assert straight.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(straight, axis=1), 1.0, atol=1e-5)
        np.testing.assert_array_equal(model.encode(inputs.take(order), tower), straight[order])
        np.testing.assert_array_equal(
            model.encode(inputs.take(order[:3]), tower), straight[order[:3]]
        )


def test_layers(model: ImageTextModel) -> None:
    pixels = torch.rand(3, 3, 32, 32)
    projected = model.encode_image(pixels, layer="projected")
    assert projected.shape == (3, model.embed_dim)
    torch.testing.assert_close(
        model.encode_image(pixels), torch.nn.functional.normalize(projected, dim=-1)
    )
    pooled = model.encode_image(pixels, layer="pre_projection")
    head = getattr(model.module.visual, "head", None)
    torch.testing.assert_close(
        head(pooled) if head is not None else pooled @ model.module.visual.proj, projected
    )
    with pytest.raises(ModelError, match="unknown layer 'pooled'"):
        model.encode_image(pixels, layer="pooled")


def test_logits(model: ImageTextModel) -> None:
    image, text = torch.randn(4, model.embed_dim), torch.randn(3, model.embed_dim)
    torch.testing.assert_close(model.logits(image, text), model.logit_scale * image @ text.T)


def test_the_cache_is_used_and_separates_spaces(tmp_path: Path, folders: dict[str, Path]) -> None:
    model = load(f"local-dir:{folders['clip']}", FeatureCache(tmp_path))
    inputs = pictures(5)
    first = model.encode(inputs, "image")
    meter = model.services.meter
    assert meter.computed == 5
    assert meter.spent_seconds > 0

    np.testing.assert_array_equal(model.encode(inputs, "image"), first)
    assert meter.computed == 5
    model.encode(inputs, "image", layer="projected")
    assert meter.computed == 10
    views = [model.encode(inputs, "image", view=v) for v in (1, 2, 1)]
    assert meter.computed == 20
    assert not np.array_equal(views[0], views[1])
    np.testing.assert_array_equal(views[0], views[2])

    changed = model.clone()
    with torch.no_grad():
        changed.module.visual.proj.mul_(-1)
    np.testing.assert_allclose(changed.encode(inputs, "image"), -first, atol=1e-6)


def test_a_view_depends_on_the_image_only(folders: dict[str, Path]) -> None:
    model, inputs = load(f"local-dir:{folders['clip']}"), pictures(9)
    order = np.array([4, 2, 8])
    np.testing.assert_array_equal(
        model.encode(inputs.take(order), "image", view=3),
        model.encode(inputs, "image", view=3)[order],
    )


def test_a_clone_shares_no_weights_and_the_hash_follows_every_change(model: ImageTextModel) -> None:
    before = model.weights_sha256
    copy = model.clone()
    assert copy.weights_sha256 == before
    parameter = next(copy.module.parameters())
    with torch.no_grad():
        parameter.add_(1.0)
    assert copy.weights_sha256 != before
    assert model.weights_sha256 == before
    with torch.no_grad():
        next(model.module.parameters()).mul_(2.0)
    assert model.weights_sha256 != before


def test_training_mode_does_not_change_batch_norm(folders: dict[str, Path]) -> None:
    copy = load(f"local-dir:{folders['hf']}").clone()
    before = {k: v.clone() for k, v in copy.module.named_buffers() if "running" in k}
    assert before
    copy.module.train()
    copy.encode_image(torch.rand(4, 3, 32, 32))
    for name, value in copy.module.named_buffers():
        if name in before:
            assert torch.equal(value, before[name]), name


def test_a_text_that_is_too_long_is_an_error(folders: dict[str, Path]) -> None:
    for family, limit in (("clip", 77), ("hf", 16)):
        model = load(f"local-dir:{folders[family]}")
        with pytest.raises(
            ModelError, match=rf"102 tokens is longer than the {limit} that .*'x x x"
        ):
            model.tokenize(["a dog", "x " * 100])
        assert model.tokenize(["x " * (limit - 2)]).shape == (1, limit)


def test_bf16_casts_the_weights_and_keeps_the_scale(folders: dict[str, Path]) -> None:
    for family in FAMILIES:
        name = f"local-dir:{folders[family]}"
        low, full = load(name, precision="bf16"), load(name)
        assert low.dtype == "bf16"
        assert low.module.logit_scale.dtype == torch.float32
        assert next(low.module.visual.parameters()).dtype == torch.bfloat16
        cosine = (low.encode(pictures(4), "image") * full.encode(pictures(4), "image")).sum(1)
        assert cosine.min() > 0.99


def test_a_moved_folder_gives_equal_features(tmp_path: Path, folders: dict[str, Path]) -> None:
    for family in FAMILIES:
        moved = tmp_path / "elsewhere" / family
        shutil.copytree(folders[family], moved)
        first, second = load(f"local-dir:{folders[family]}"), load(f"local-dir:{moved}")
        assert first.weights_sha256 == second.weights_sha256
        np.testing.assert_array_equal(
            first.encode(texts(TEXTS), "text"), second.encode(texts(TEXTS), "text")
        )


def test_the_preprocessing_of_every_tag_is_remembered_as_it_is() -> None:
    for arch, tag in open_clip.list_pretrained():
        config = open_clip.get_pretrained_cfg(arch, tag)
        source = _sources.Source({}, {k: config[k] for k in ("mean", "std") if k in config})
        again = _sources.from_json(json.loads(json.dumps(_sources.to_json(source))), {})
        assert repr(again) == repr(source), f"{arch}/{tag}"


def test_a_tag_in_the_hub_cache_needs_no_network(hub_cache: Path) -> None:
    from clipadapt.models import _names, _sources

    files = hub_cache / "models--org--name/snapshots" / ("a" * 40)
    files.mkdir(parents=True)
    (hub_cache / "models--org--name/refs").mkdir()
    (hub_cache / "models--org--name/refs/main").write_text("a" * 40)
    (files / "pytorch_model.safetensors").write_bytes(b"x")
    name = _names.Name("tag", arch="RN50", tag="mine")
    found = _sources._tag_weights(name, {"hf_hub": "org/name/pytorch_model.bin"})
    assert found.checkpoint == files / "pytorch_model.safetensors"
    assert found.revision == "a" * 40
    with pytest.raises(ModelError, match="'RN50/mine': cannot reach the hub"):
        _sources._tag_weights(name, {"hf_hub": "org/name/"})


@pytest.mark.slow
def test_random_weights_are_the_same_at_every_call() -> None:
    identify = MODELS.resolve("random:RN50", "clip").provider.identify
    options = ModelOptions("fp32", "cpu")
    first = identify("random:RN50", options)
    assert first == identify("random:RN50", options)
    model = load("random:RN50")
    assert model.weights_sha256 == first.weights_sha256
    assert model.name == "random:RN50"


def test_a_second_identify_loads_no_framework(tmp_path: Path, folders: dict[str, Path]) -> None:
    code = (
        "import sys\n"
        "from clipadapt.core.api.model import ModelOptions\n"
        "from clipadapt.models.openclip import MODEL\n"
        f"print(MODEL.identify('local-dir:{folders['hf']}', ModelOptions()).name)\n"
        "heavy = {'torch', 'open_clip', 'transformers', 'timm', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "local-dir:hf"


def test_the_hash_notices_a_write_through_data(folders: dict[str, Path]) -> None:
    model = load(f"local-dir:{folders['clip']}")
    before = model.weights_sha256
    model.module.visual.proj.data.mul_(2)
    after = model.weights_sha256
    model.module.visual.proj.data.div_(2)

    assert after != before
    assert model.weights_sha256 == before
