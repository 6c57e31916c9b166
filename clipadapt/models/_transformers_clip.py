"""Convert a CLIP that transformers saved to open_clip: the same tensors under other names."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import ModelError
from clipadapt.core.files import hub

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

CONFIG: Final = "config.json"
PREPROCESSORS: Final = ("processor_config.json", "preprocessor_config.json")
"""The first that exists is read, as transformers does; it nests the content of the second."""
WEIGHTS: Final = ("model.safetensors", "pytorch_model.bin")
MARK: Final = "vision_model.embeddings.class_embedding"
OPENAI_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD: Final = (0.26862954, 0.26130258, 0.27577711)
VOCABULARY: Final = 49408
"""Tokens of open_clip's own tokenizer, which is OpenAI's."""
STEPS: Final = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
"""Preprocessing steps that open_clip always does."""
ACTIVATIONS: Final = {"quick_gelu": True, "gelu": False}
# Keys of CLIPVisionConfig and CLIPTextConfig that are not saved if they have their default value.
VISION_DEFAULTS: Final = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
}
TEXT_DEFAULTS: Final = {
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "max_position_embeddings": 77,
    "vocab_size": VOCABULARY,
    "hidden_act": "quick_gelu",
}
RENAMED: Final = (
    (r"^text_model\.embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),  # transformers' spelling
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)


def is_folder(folder: Path) -> bool:
    """Return whether a folder is a CLIP of transformers."""
    return _model_type(folder) == "clip"


def what_else(folder: Path) -> str:
    """Return a clause that names another model of transformers in a folder, or an empty string."""
    kind = _model_type(folder)
    return f", but a '{kind}' of transformers, of which only CLIP is read" if kind else ""


def files_of(folder: Path) -> list[Path]:
    """Return the files that identify the model: config, weights, preprocessor.

    Raises:
        ModelError: If there are no weights, or they are split into several files.
    """
    there = [folder / CONFIG, folder / weights_name(folder)]
    return there + [p for p in [_preprocessor(folder)] if p is not None]


def _preprocessor(folder: Path) -> Path | None:
    return next((folder / n for n in PREPROCESSORS if (folder / n).is_file()), None)


def _model_type(folder: Path) -> str:
    try:
        content: Any = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(content.get("model_type", "")) if isinstance(content, dict) else ""


def weights_name(folder: Path) -> str:
    """Return the name of the weights file in a folder.

    Raises:
        ModelError: If there is none, or the weights are split into several files.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return name
    parts = any(folder.glob("*.index.json"))
    raise ModelError(
        f"the folder '{folder}' is a CLIP of transformers "
        + ("whose weights are in several files" if parts else "without weights"),
        hint="save it in one file: model.save_pretrained(FOLDER, max_shard_size='100GB')",
    )


def configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return open_clip's ``model_cfg`` and ``preprocess_cfg`` of a CLIP of transformers.

    Raises:
        ModelError: If open_clip cannot compute this configuration, or it is not that of a CLIP.
    """
    try:
        return _configs(folder)
    except (ValueError, TypeError, KeyError, ZeroDivisionError) as err:
        hub.refuse_damaged(folder / CONFIG)
        raise ModelError(
            f"'{folder / CONFIG}' is not the configuration of a CLIP: {type(err).__name__}: {err}",
            hint="save it again with model.save_pretrained(folder)",
        ) from None


def _configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    whole = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    vision = VISION_DEFAULTS | {**(whole.get("vision_config") or {})}
    text = TEXT_DEFAULTS | {**(whole.get("text_config") or {})}
    quick = {ACTIVATIONS.get(vision["hidden_act"]), ACTIVATIONS.get(text["hidden_act"])}
    if len(quick) != 1 or None in quick:
        raise _refused(
            folder, f"its activations are {vision['hidden_act']} and {text['hidden_act']}"
        )
    if text["vocab_size"] != VOCABULARY:
        raise _refused(folder, f"its vocabulary has {text['vocab_size']} tokens, not {VOCABULARY}")
    for part in (vision, text):
        if part.get("layer_norm_eps", 1e-5) != 1e-5:
            raise _refused(folder, f"its layer_norm_eps is {part['layer_norm_eps']}, not 1e-05")
    model = {
        "embed_dim": whole.get("projection_dim", 512),
        "quick_gelu": quick.pop(),
        "vision_cfg": {
            "image_size": vision["image_size"],
            "layers": vision["num_hidden_layers"],
            "width": vision["hidden_size"],
            "patch_size": vision["patch_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "layers": text["num_hidden_layers"],
            "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
        },
    }
    return model, _preprocess(folder, vision["image_size"])


def _preprocess(folder: Path, image_size: int) -> dict[str, Any]:
    """Return mean, standard deviation and resizing; those of OpenAI if the folder has no preprocessor."""
    path = _preprocessor(folder)
    given: dict[str, Any] = {}
    if path is not None:
        try:
            given = dict(json.loads(path.read_text(encoding="utf-8")))
            given = dict(given.get("image_processor", given))
        except (OSError, ValueError, TypeError) as err:
            hub.refuse_damaged(path)
            raise ModelError(
                f"'{path}' is not the configuration of a preprocessor: {err}",
                hint="save it again with processor.save_pretrained(folder)",
            ) from None
    without = [step for step in STEPS if not given.get(step, True)]
    if without:
        raise _refused(folder, f"its preprocessor has {without[0]}=false")
    chosen: dict[str, Any] = {
        "mean": list(given.get("image_mean", OPENAI_MEAN)),
        "std": list(given.get("image_std", OPENAI_STD)),
        "interpolation": {2: "bilinear", 3: "bicubic"}.get(given.get("resample", 3), ""),
        "resize_mode": "shortest",
    }
    if not chosen["interpolation"]:
        raise _refused(folder, f"its preprocessor resamples with method {given['resample']}")
    size, crop = given.get("size", image_size), given.get("crop_size", image_size)
    shortest = size.get("shortest_edge") if isinstance(size, dict) else size
    cropped = crop.get("height") if isinstance(crop, dict) else crop
    if shortest is None or cropped != image_size:
        raise _refused(folder, f"its preprocessor resizes to {size} and crops to {crop}")
    if shortest != image_size:
        chosen["resize_size"] = shortest
    return chosen


def _refused(folder: Path, why: str) -> ModelError:
    return ModelError(
        f"the CLIP of transformers in '{folder}' cannot be computed by open_clip: {why}",
        hint="use a folder that open_clip saved, or a name such as ViT-B-32-quickgelu/openai",
    )


def is_state(state: Mapping[str, Any]) -> bool:
    """Return whether tensors have the names of transformers."""
    return MARK in state


def convert(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the tensors of transformers' ``CLIPModel`` to open_clip's names."""
    import torch

    found: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name.endswith("position_ids"):
            continue
        if name in {"visual_projection.weight", "text_projection.weight"}:
            place = "visual.proj" if name.startswith("visual") else "text_projection"
            found[place] = tensor.T.contiguous()
            continue
        if ".self_attn." in name and ".out_proj." not in name:
            if ".q_proj." in name:
                parts = [state[name.replace(".q_proj.", f".{role}_proj.")] for role in "qkv"]
                fused = name.replace(".self_attn.q_proj.", ".attn.in_proj_")
                found[_renamed(fused)] = torch.cat(parts)
            continue
        found[_renamed(name)] = tensor
    return found


def _renamed(name: str) -> str:
    for pattern, place in RENAMED:
        name = re.sub(pattern, place, name)
    return name
