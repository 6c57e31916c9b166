"""Messages for wrong model names."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from clipadapt.core.api.context import Services
from clipadapt.core.api.errors import ClipAdaptError, ModelError
from clipadapt.core.api.model import ModelIdentity, ModelOptions
from clipadapt.core.api.registry import MODELS
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.files import network
from clipadapt.models import _names, _sources

from . import tiny

OPTIONS = ModelOptions("fp32", "cpu")


def identify(name: str, options: ModelOptions = OPTIONS) -> ModelIdentity:
    found = MODELS.resolve(name, "clip")
    return found.provider.identify(found.argument, options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-32/openai", "trained with QuickGELU, and the architecture ViT-B-32 computes GELU"),
        ("ViT-B-32/openai", "write ViT-B-32-quickgelu/openai"),
        ("ViT-B-32-quickgelu/laion2b_s34b_b79k", "write ViT-B-32/laion2b_s34b_b79k"),
        ("ViT-B-23/openai", "unknown architecture 'ViT-B-23'; did you mean 'ViT-B-32'"),
        ("ViT-B-32/openia", "no weights with the tag 'openia'; did you mean 'openai'"),
        ("ViT-B-32", "does not say which weights"),
        ("stiched", "unknown model 'stiched'; did you mean 'stitched'"),
        ("random:nothing", "unknown architecture 'nothing'"),
        ("local-dir:/no/such/folder", "the folder '/no/such/folder' does not exist"),
        ("ViT-B-32//no/such.safetensors", "the weights file '/no/such.safetensors' does not exist"),
        ("hf-hub:name", "write hf-hub:ORGANISATION/NAME"),
        ("hf-hub:", "has nothing after 'hf-hub:'"),
        ("hf-hub:nobody/nothing", "HF_HUB_OFFLINE is set"),
        ("ViT-B-32-quickgelu/openai", "use 'stitched'"),
        ("openai/clip-vit-base-patch16", "'ViT-B-16-quickgelu/openai': cannot reach the hub"),
        ("random:ViT-B-16-SigLIP", "its tokenizer 'timm/ViT-B-16-SigLIP'"),
        ("stitched:large", "takes no argument, got 'large'"),
    ],
)
def test_message(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # without the weights of the user
    begun = time.monotonic()
    with pytest.raises(ClipAdaptError) as error:
        identify(name)
    assert message in str(error.value)
    assert time.monotonic() - begun < 10


def test_a_missing_network_is_reported_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(network, "PROBE_SECONDS", 1.0)
    begun = time.monotonic()
    for url in ("https://name.invalid/x", "http://127.0.0.1:9/x", "http://192.0.2.1/x"):
        with pytest.raises(ModelError, match="cannot be reached") as error:
            _sources.require_network(url, "org/name")
        assert "stitched" in error.value.hint
        assert "local-dir:PATH" in error.value.hint
    assert time.monotonic() - begun < 8


def test_precision_and_device() -> None:
    with pytest.raises(ModelError, match="unknown precision 'bf61'; did you mean 'bf16'"):
        identify("random:RN50", ModelOptions("bf61", "cpu"))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="unknown device 'tpu'"):
        identify("random:RN50", ModelOptions("fp32", "tpu"))


def test_names_contain_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tiny.write(tmp_path / "mine", "clip")
    assert identify("local-dir:~/mine").name == "local-dir:mine"
    assert (
        _names.parse("RN50/~/mine/open_clip_model.safetensors").shown
        == "RN50/open_clip_model.safetensors"
    )
    assert (
        identify(f"RN50/{folder}/open_clip_model.safetensors").name
        == "RN50/open_clip_model.safetensors"
    )


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "mine", "clip")
    weights = folder / "open_clip_model.safetensors"
    state = load_file(weights)
    provider = MODELS.resolve("local-dir:x", "clip").provider
    services = Services(FeatureCache(enabled=False))

    save_file({**state, "visual.proj": np.zeros((32, 7), np.float32)}, weights)
    with pytest.raises(ModelError, match=r"'visual.proj' has shape \(32, 7\), expected \(32, 24\)"):
        provider.load(f"local-dir:{folder}", OPTIONS, services)
    save_file({k: v for k, v in state.items() if k != "visual.proj"}, weights)
    with pytest.raises(ModelError, match=r"'visual.proj' of shape \(32, 24\) is missing"):
        provider.load(f"local-dir:{folder}", OPTIONS, services)
    weights.write_bytes(b"not a tensor in sight")
    with pytest.raises(ModelError, match="is not a safetensors file"):
        identify(f"local-dir:{folder}")
    weights.unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        identify(f"local-dir:{folder}")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}}))
    with pytest.raises(ModelError, match="model_cfg has no"):
        identify(f"local-dir:{folder}")
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(ModelError, match=r"holds no open_clip_config\.json"):
        identify(f"local-dir:{folder}")


def test_a_changed_file_is_another_identity(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "mine", "clip")
    weights = folder / "open_clip_model.safetensors"
    first = identify(f"local-dir:{folder}").weights_sha256
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    second = identify(f"local-dir:{folder}").weights_sha256
    assert second != first
    old = time.time() - 60
    os.utime(weights, (old, old))
    assert identify(f"local-dir:{folder}").weights_sha256 == second
    assert identify(f"local-dir:{folder}").weights_sha256 == second
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert identify(f"local-dir:{folder}").weights_sha256 == first
