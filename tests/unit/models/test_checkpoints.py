"""Weights of training code: the same features in any wrapper, or an error that names the content of the file."""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clipadapt.core.api.context import Services
from clipadapt.core.api.errors import ModelError
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import MODELS
from clipadapt.core.features.cache import FeatureCache
from tests.unit.models import tiny

TEXTS = ("a photo of a dog", "a photo of a red square")


class Odd:
    """A class of a training script."""


def load(name: str):
    found = MODELS.resolve(name, "clip")
    services = Services(FeatureCache(enabled=False), workers=1)
    return found.provider.load(found.argument, ModelOptions("fp32", "cpu"), services)


def identify(name: str) -> str:
    found = MODELS.resolve(name, "clip")
    return found.provider.identify(found.argument, ModelOptions("fp32", "cpu")).weights_sha256


def features(name: str) -> np.ndarray:
    model = load(name)
    return model.encode_text(model.tokenize(TEXTS)).detach().numpy()


@pytest.fixture
def folder(tiny_clip, tmp_path):
    """A folder of the tiny CLIP without weights, which a test writes as a pickle."""
    where = tmp_path / "model"
    where.mkdir()
    shutil.copy(pathlib.Path(tiny_clip.removeprefix("local-dir:")) / "open_clip_config.json", where)
    return where


@pytest.fixture
def state(tiny_clip) -> dict[str, torch.Tensor]:
    return load_file(tiny_clip.removeprefix("local-dir:") + "/open_clip_model.safetensors")


def prefixed(prefix: str, state):
    return {prefix + k: v for k, v in state.items()}


WRAPPERS = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {}, "loss": 1.0},
    "model": lambda s: {"model": s},
    "module": lambda s: {"module": s, "step": torch.tensor(3)},
    "ema": lambda s: {"ema": s},
    "network": lambda s: {"network": {"state_dict": s}},
    "unknown name": lambda s: {"my_weights_of_june": s},
    "module.": lambda s: prefixed("module.", s),
    "_orig_mod.": lambda s: prefixed("_orig_mod.", s),
    "module._orig_mod.": lambda s: {"epoch": 3, "state_dict": prefixed("module._orig_mod.", s)},
    "model.": lambda s: {"state_dict": prefixed("model.", s), "pytorch-lightning_version": "2"},
    "clip.": lambda s: prefixed("clip.", s),
    "module.clip.": lambda s: prefixed("module.clip.", s),
    "open_clip_train": lambda s: {"epoch": 2, "name": "run", "state_dict": prefixed("module.", s)},
    "numpy scalar": lambda s: {"state_dict": s, "optimizer": {"lr": np.float64(1e-3)}, "best": np.int64(3)},
    "namespace": lambda s: {"state_dict": s, "args": argparse.Namespace(lr=1e-3, out=pathlib.PurePosixPath("x"))},
    "averaged": lambda s: {"n_averaged": torch.tensor(10), **prefixed("module.", s)},
    "a count beside": lambda s: {"step": torch.tensor(10), **s},
    "numpy array": lambda s: {"state_dict": s, "rng": np.arange(3)},
}  # fmt: skip


@pytest.mark.parametrize("how", WRAPPERS)
def test_weights_in_any_wrapper_give_the_same_features(how, folder, state, tiny_clip):
    torch.save(WRAPPERS[how](state), folder / "open_clip_pytorch_model.bin")

    np.testing.assert_array_equal(features(f"local-dir:{folder}"), features(tiny_clip))


def test_half_precision_and_safetensors_with_a_prefix(folder, state, tiny_clip):
    half = {k: v.half() for k, v in prefixed("module.", state).items()}
    save_file(half, folder / "open_clip_model.safetensors")

    np.testing.assert_allclose(features(f"local-dir:{folder}"), features(tiny_clip), atol=5e-3)


REFUSED = {
    "two models": (
        lambda s: {"model": s, "ema": s},
        "more than one model: 'model' and 'ema'",
    ),
    "two prefixes": (
        lambda s: {"state_dict": {**prefixed("model.", s), **prefixed("ema.", s)}},
        "more than one model in 'state_dict', with the prefixes 'model.' and 'ema.'",
    ),
    "a head beside it": (
        lambda s: {**prefixed("clip.", s), "head.weight": torch.ones(3, 3)},
        "1 tensors beside the CLIP with the prefix 'clip.', such as 'head.weight'",
    ),
    "an optimizer alone": (
        lambda s: {"a": {"x": torch.ones(3)}, "b": {"y": torch.ones(3)}},
        "holds no weights of a CLIP; tensors are in 'a' (1 tensors), 'b' (1 tensors)",
    ),
    "no tensors": (lambda s: {"epoch": 3}, "holds no weights of a CLIP, only a dict"),
    "a class of one's own": (
        lambda s: {"state_dict": s, "config": Odd()},
        "contains objects of tests.unit.models.test_checkpoints.Odd besides its weights",
    ),
    "too few": (
        lambda s: {"model": {k: v for k, v in s.items() if k != "ln_final.weight"}},
        "tensor 'ln_final.weight' of shape (32,) is missing (1 of",
    ),
    "no finite number": (
        lambda s: {"model": s | {"ln_final.weight": s["ln_final.weight"] * float("nan")}},
        "hold NaN or infinite values: tensor 'ln_final.weight'",
    ),
    "whole numbers": (
        lambda s: {"model": s | {"ln_final.weight": s["ln_final.weight"].to(torch.int8)}},
        "are quantised: tensor 'ln_final.weight' is torch.int8",
    ),
    "another shape": (
        lambda s: {"model": s | {"ln_final.weight": torch.ones(5)}},
        "tensor 'ln_final.weight' has shape (5,), expected (32,)",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_ambiguous_files_are_refused_with_what_they_hold(what, folder, state):
    make, message = REFUSED[what]
    torch.save(make(state), folder / "open_clip_pytorch_model.bin")

    with pytest.raises(ModelError) as error:
        load(f"local-dir:{folder}")

    assert message in str(error.value)
    assert error.value.hint


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_damaged_files_and_programs_are_refused(folder, state):
    file = folder / "open_clip_pytorch_model.bin"
    torch.save(state, file)
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ModelError, match="cannot be read as plain tensors"):
        load(f"local-dir:{folder}")

    file.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ModelError, match=r"begins with b'version https://git") as caught:
        load(f"local-dir:{folder}")
    assert "weights_only" not in str(caught.value)

    torch.jit.script(torch.nn.Linear(2, 2)).save(str(file))
    with pytest.raises(ModelError, match="is a TorchScript archive"):
        load(f"local-dir:{folder}")


# ---------------------------------------------------------------- transformers


@pytest.fixture
def transformers_clip(tmp_path):
    model, processor = tiny.write_transformers(tmp_path / "hf")
    return tmp_path / "hf", model, processor


def test_a_clip_of_transformers_gives_the_same_features(transformers_clip):
    folder, theirs, processor = transformers_clip
    ours = load(f"local-dir:{folder}")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8))
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    tokens = ours.tokenize(TEXTS)

    with torch.no_grad():
        out = theirs(input_ids=tokens, pixel_values=pixels, attention_mask=torch.ones_like(tokens))
        image_features, text_features = ours.encode_image(pixels), ours.encode_text(tokens)

    np.testing.assert_allclose(ours.preprocess()(image)[None], pixels, atol=0.02)
    np.testing.assert_allclose(image_features, out.image_embeds, atol=1e-5)
    np.testing.assert_allclose(text_features, out.text_embeds, atol=1e-5)
    assert ours.logit_scale == pytest.approx(theirs.logit_scale.exp().item())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_config": {"vocab_size": 100}}, "its vocabulary has 100 tokens, not 49408"),
        ({"vision_config": {"hidden_act": "gelu"}}, "its activations are gelu and quick_gelu"),
        ({"model_type": "siglip"}, "but a 'siglip' of transformers, of which only CLIP is read"),
    ],
)
def test_other_models_of_transformers_are_refused_by_kind(change, message, transformers_clip):
    folder, _, _ = transformers_clip
    config = json.loads((folder / "config.json").read_text())
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(ModelError) as error:
        load(f"local-dir:{folder}")

    assert message in str(error.value)


def test_the_preprocessor_in_processor_config_is_read(transformers_clip):
    """CLIPProcessor.save_pretrained writes processor_config.json, which nests the image processor's settings."""
    folder, _, _ = transformers_clip
    before = folder / "preprocessor_config.json"
    own = json.loads(before.read_text()) | {"image_mean": [0.1, 0.2, 0.3]}
    before.unlink()
    path = folder / "processor_config.json"
    path.write_text(json.dumps({"image_processor": own, "processor_class": "CLIPProcessor"}))

    assert tuple(load(f"local-dir:{folder}").preprocess().transforms[-1].mean) == (0.1, 0.2, 0.3)

    first = identify(f"local-dir:{folder}")
    own["image_mean"] = [0.5] * 3
    path.write_text(json.dumps({"image_processor": own}))
    assert identify(f"local-dir:{folder}") != first

    own["do_center_crop"] = False
    path.write_text(json.dumps({"image_processor": own}))
    with pytest.raises(ModelError, match="its preprocessor has do_center_crop=false"):
        load(f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("preprocessor_config.json", '{"image_mean"', "is not the configuration of a preprocessor"),
        ("preprocessor_config.json", "[1]", "is not the configuration of a preprocessor"),
        ("config.json", '{"model_type": "clip", "vision_config": [1]}', "of a CLIP: TypeError"),
    ],
)
def test_a_damaged_config_of_transformers_is_one_message(transformers_clip, file, content, message):
    folder, _, _ = transformers_clip
    (folder / file).write_text(content)
    with pytest.raises(ModelError, match=message):
        load(f"local-dir:{folder}")
