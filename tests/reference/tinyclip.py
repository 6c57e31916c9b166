"""The tiny CLIP of the reference fixtures as an open_clip folder, loaded through the shipped adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from clipadapt.core.context import Services
from clipadapt.core.protocols import ModelOptions
from clipadapt.core.registry import MODELS
from clipadapt.core.store import FeatureStore
from clipadapt.models import ImageTextModel

from .parity import parity_dir


def write_folder(target: Path) -> Path:
    """Write the checkpoint, whole or compact, as an open_clip folder; return it."""
    source = parity_dir("clip")
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
        "preprocess_cfg": {},
    }
    target.mkdir(parents=True, exist_ok=True)
    (target / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(
        {k: np.ascontiguousarray(v.astype(np.float32)) for k, v in state.items()},
        target / "open_clip_model.safetensors",
    )
    return target


def load(target: Path) -> ImageTextModel:
    """Load the folder through the registry, in float32, without a store."""
    found = MODELS.resolve(f"local-dir:{target}", "clip")
    services = Services(FeatureStore(enabled=False))
    model = found.provider.load(found.argument, ModelOptions("fp32", "cpu"), services)
    assert isinstance(model, ImageTextModel)
    return model
