"""Build ``stitched``: two pretrained towers joined by one matrix in closed form."""

from __future__ import annotations

import math
import shutil
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from clipadapt.core.files.atomic import atomic_directory, write_json
from clipadapt.core.files.checksums import checksums
from clipadapt.datasets._imagenet import CLASSNAMES
from clipadapt.models import _names

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

ARCH: Final = "tf_efficientnet_lite0"
WIDTH: Final = 384
CONTEXT: Final = 77
TEXT_FILES: Final = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


def image_tower(path: Path) -> torch.nn.Module:
    """Return EfficientNet-Lite0 with its classifier; the tensors of the checkpoint are in timm's order."""
    import timm

    tower: torch.nn.Module = timm.create_model(ARCH, pretrained=False)
    given = torch.load(path, map_location="cpu", weights_only=True)
    own = tower.state_dict()
    assert [v.shape for v in given.values()] == [v.shape for v in own.values()]
    tower.load_state_dict(dict(zip(own, given.values(), strict=True)))
    return tower.eval()


def text_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of MiniLM that the text tower uses."""
    from safetensors.torch import load_file

    return {
        k: v
        for k, v in load_file(path).items()
        if not k.startswith("pooler.") and not k.endswith("position_ids")
    }


def embed(path: Path, texts: Sequence[str], batch: int = 125) -> NDArray[np.float64]:
    """Embed texts with all-MiniLM-L6-v2: mean over tokens, unit norm; shape ``(n, 384)``.

    Computed in float64, so that the result rounded to float32 does not depend on the number of threads.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), local_files_only=True)
    config = AutoConfig.from_pretrained(str(path.parent), local_files_only=True)
    tower = AutoModel.from_config(config, add_pooling_layer=False)
    tower.load_state_dict(text_weights(path))
    tower = tower.double().eval()
    rows = []
    # Sorted by length, for less padding.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    with torch.inference_mode():
        for begin in range(0, len(texts), batch):
            some = [texts[i] for i in order[begin : begin + batch]]
            tokens = tokenizer(some, padding=True, return_tensors="pt")
            hidden = tower(**tokens).last_hidden_state  # (b, L, 384)
            mask = tokens["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            rows.append(torch.nn.functional.normalize(mean, dim=-1).numpy())
    out = np.empty((len(texts), WIDTH))
    out[order] = np.concatenate(rows)
    return out


def text_targets(path: Path, templates: Sequence[str]) -> NDArray[np.float64]:
    """Return one centred embedding per ImageNet class, shape ``(1000, 384)``."""
    texts = [t.format(name) for t in templates for name in CLASSNAMES]
    mean = embed(path, texts).reshape(len(templates), len(CLASSNAMES), WIDTH).mean(axis=0)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    return np.asarray(mean - mean.mean(axis=0))


def projection(
    classifier: NDArray[np.float64], targets: NDArray[np.float64], ridge: float
) -> NDArray[np.float64]:
    """Return the linear image projection, shape ``(384, 1280)``.

    ``P = Tᵀ (W Wᵀ + ridge I)⁻¹ W`` is the ridge regression from each class's weight vector, the direction of its
    images, to the embedding of its name.

    Args:
        classifier: Weights of the image tower's classifier, shape ``(1000, 1280)``.
        targets: Centred name embeddings ``T``, shape ``(1000, 384)``.
        ridge: Strength of the penalty.
    """
    W = classifier - classifier.mean(axis=0)
    gram = W @ W.T + ridge * np.eye(len(W))
    return np.asarray(targets.T @ np.linalg.solve(gram, W))


def write(
    folder: Path, image_path: Path, text_path: Path, templates: Sequence[str], ridge: float
) -> None:
    """Build the model and save it as an open_clip checkpoint folder, atomically.

    Args:
        folder: Folder of the checkpoint.
        image_path: Weights of EfficientNet-Lite0.
        text_path: Weights of MiniLM, in its folder.
        templates: Templates whose embeddings are averaged for each class name.
        ridge: See :func:`projection`.
    """
    from safetensors.torch import save_file

    trunk = image_tower(image_path)
    W = trunk.get_parameter("classifier.weight").detach().double().numpy()
    P = projection(W, text_targets(text_path, templates), ridge)
    # Scales the largest entry to 1; normalising the features removes the scale.
    P /= np.abs(P).max()

    state = {
        f"visual.trunk.{k}": v
        for k, v in trunk.state_dict().items()
        if not k.startswith("classifier.")
    }
    state["visual.head.proj.weight"] = torch.from_numpy(P).float()
    state |= {f"text.transformer.{k}": v for k, v in text_weights(text_path).items()}
    state["logit_scale"] = torch.tensor(math.log(100.0))
    with atomic_directory(folder) as new:
        weights = new / _names.CHECKPOINT_NAMES[0]
        save_file({k: v.contiguous() for k, v in state.items()}, weights)
        write_json(new / _names.CONFIG_NAME, config())
        for file in TEXT_FILES:
            shutil.copyfile(text_path.parent / file, new / file)
        write_json(
            new / _names.META_NAME,
            {"sha256": checksums(new), "templates": list(templates), "ridge": ridge},
        )


def config() -> dict[str, Any]:
    """Return the checkpoint's open_clip config.

    ``resize_size`` (resize to 256, then crop 224) is read by this package; open_clip alone resizes to 224. The text
    tower has its hub name: this package reads its config from the folder instead, also after the folder was moved.
    """
    hub_name = "sentence-transformers/all-MiniLM-L6-v2"
    return {
        "model_cfg": {
            "embed_dim": WIDTH,
            "vision_cfg": {
                "timm_model_name": ARCH,
                "timm_model_pretrained": False,
                "timm_pool": "avg",
                "timm_proj": "linear",
                "image_size": 224,
            },
            "text_cfg": {
                "hf_model_name": hub_name,
                "hf_tokenizer_name": hub_name,
                "hf_model_pretrained": False,
                "hf_pooler_type": "mean_pooler",
                "hf_proj_type": None,
                "context_length": CONTEXT,
            },
        },
        "preprocess_cfg": {
            "size": 224,
            "resize_size": 256,
            "mean": [127 / 255] * 3,
            "std": [128 / 255] * 3,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }
