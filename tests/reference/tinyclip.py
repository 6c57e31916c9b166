"""The tiny CLIP of the reference fixtures as an open_clip folder, loaded with the shipped adapter."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.api.data import Inputs, Split
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import MODELS
from clipadapt.core.features.cache import FeatureCache
from clipadapt.models import ImageTextModel

from .parity import parity_dir


def write_folder(target: Path, fixture: str = "clip") -> Path:
    """Write the checkpoint beside a fixture as an open_clip folder; return it.

    The compact one in the checkout has only the token embeddings that the fixtures beside it need.
    """
    source = parity_dir(fixture).parent / "clip"
    given: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    state = {k: np.asarray(v) for k, v in load_file(source / "model.safetensors").items()}
    if "token_embedding.rows" in state:
        rows, values = state.pop("token_embedding.rows"), state.pop("token_embedding.values")
        whole = np.zeros((given["vocab_size"], values.shape[1]), dtype=values.dtype)
        whole[rows] = values
        state["token_embedding.weight"] = whole
    head = given["vision_width"] // given["vision_heads"]
    config = {
        "model_cfg": {
            "embed_dim": given["embed_dim"],
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": given["image_resolution"],
                "layers": given["vision_layers"],
                "width": given["vision_width"],
                "patch_size": given["vision_patch_size"],
                "head_width": head,
            },
            "text_cfg": {
                "context_length": given["context_length"],
                "vocab_size": given["vocab_size"],
                "width": given["transformer_width"],
                "heads": given["transformer_heads"],
                "layers": given["transformer_layers"],
            },
        },
        # The fixtures' images are already preprocessed, so tensors are returned unchanged.
        "preprocess_cfg": {"mean": [0.0] * 3, "std": [1.0] * 3},
    }
    target.mkdir(parents=True, exist_ok=True)
    (target / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(
        {k: np.ascontiguousarray(v.astype(np.float32)) for k, v in state.items()},
        target / "open_clip_model.safetensors",
    )
    return target


class Pixels(Sequence[torch.Tensor]):
    """Preprocessed images as examples."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = torch.from_numpy(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        return self.images[index]

    def digest(self, index: int) -> bytes:
        return hashlib.sha256(self.images[index].numpy().tobytes()).digest()


def split_of(images: np.ndarray, labels: np.ndarray, classnames: Sequence[str]) -> Split[Any]:
    """Return labelled preprocessed images; ids are row numbers."""
    ids = tuple(str(i) for i in range(len(images)))
    return Split(Inputs(Pixels(images), ids), labels, tuple(classnames))


def rows_of(labels: np.ndarray, part: str, classnames: Sequence[str]) -> Split[Any]:
    """Return a split whose examples and ids are ``part/row``, for a backbone with given features."""
    ids = tuple(f"{part}/{i}" for i in range(len(labels)))
    return Split(Inputs(ids, ids), labels, tuple(classnames))


def in_order(stream: str, n: int, size: int, epoch: int) -> list[np.ndarray]:
    """Replace the order of batches by the order of the rows."""
    return [np.arange(i, min(i + size, n)) for i in range(0, n, size)]


class Seen:
    """Observer that collects the values compared by a test."""

    def __init__(self) -> None:
        self.values: dict[str, list[Any]] = {}

    def __call__(self, name: str, value: Any) -> None:
        self.values.setdefault(name, []).append(value)


def context(folder: Path, **given: Any) -> RunContext:
    """Return a context whose batches are in the order of the rows."""
    given.setdefault("order", in_order)
    return RunContext(0, folder, Services(FeatureCache(enabled=False)), **given)


def load(target: Path) -> ImageTextModel:
    """Load the folder through the registry in float32, without a feature cache."""
    found = MODELS.resolve(f"local-dir:{target}", "clip")
    services = Services(FeatureCache(enabled=False))
    model = found.provider.load(found.argument, ModelOptions("fp32", "cpu"), services)
    assert isinstance(model, ImageTextModel)
    return model
