"""Zero-shot classification of others: CLIP_benchmark reimplemented, its package, the pipeline of transformers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import ModuleType

LOGIT_SCALE: Final = 100.0
BATCH: Final = 64
WORKERS: Final = 4
"""Batch size and loader processes of CLIP_benchmark's command line."""
SPECIAL: Final = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
"""open_clip's names of the two special tokens, and those of transformers."""


# ---------------------------------------------------------------- CLIP_benchmark reimplemented


@torch.no_grad()
def classifier(
    clip: Any, tokenizer: Any, classnames: Sequence[str], templates: Sequence[str]
) -> torch.Tensor:
    """Return one column per class, shape ``(D, C)``: texts at full length, one class at a time.

    Args:
        clip: A network of open_clip.
        tokenizer: Its tokenizer.
        classnames: ``C`` names.
        templates: Templates with one ``{}`` each.
    """
    columns, device = [], clip.logit_scale.device
    for name in classnames:
        tokens = tokenizer([template.replace("{}", name) for template in templates]).to(device)
        mean = F.normalize(clip.encode_text(tokens), dim=-1).mean(dim=0)
        columns.append(mean / mean.norm())
    return torch.stack(columns, dim=1)


@torch.no_grad()
def scores(
    clip: Any, weights: torch.Tensor, batches: Iterable[tuple[torch.Tensor, Any]]
) -> torch.Tensor:
    """Return logits ``(n, C)`` of batches of pixels and labels."""
    found = []
    for pixels, _ in batches:
        images = F.normalize(clip.encode_image(pixels.to(weights.device)), dim=-1)
        found.append(LOGIT_SCALE * images @ weights)
    return torch.cat(found)


def loader(data: Any, *, batch: int = BATCH, workers: int = WORKERS) -> Any:
    """Return the loader that CLIP_benchmark's command line makes."""
    return torch.utils.data.DataLoader(data, batch, shuffle=False, num_workers=workers)


# ---------------------------------------------------------------- its package


def package() -> ModuleType:
    """Return ``clip_benchmark.metrics.zeroshot_classification``, fixed for numpy 2.4.

    Its ``accuracy`` converts an array with one entry to float, which numpy refuses since 2.4; the replacement counts
    the same.

    Raises:
        ModuleNotFoundError: If the package is not installed.
    """
    found = importlib.import_module("clip_benchmark.metrics.zeroshot_classification")

    def accuracy(
        output: torch.Tensor, target: torch.Tensor, topk: Sequence[int] = (1,)
    ) -> list[float]:
        best = output.topk(max(topk), 1, True, True).indices  # (n, k)
        right = best == target[:, None]
        return [float(right[:, :k].sum().item()) / len(target) for k in topk]

    vars(found)["accuracy"] = accuracy
    return found


def its_templates(templates: Sequence[str]) -> list[str]:
    """Return templates in the format of the package."""
    return [template.replace("{}", "{c}") for template in templates]


# ---------------------------------------------------------------- transformers


def pipeline_of(clip: Any, tokenizer: Any) -> Any:
    """Return ``pipeline("zero-shot-image-classification")`` over the weights of an open_clip ``CLIP``.

    Args:
        clip: open_clip's ``CLIP`` with a vision transformer.
        tokenizer: open_clip's ``SimpleTokenizer``.
    """
    from transformers import CLIPImageProcessor, CLIPTokenizer, pipeline

    model = transformers_model(clip)
    size = model.config.vision_config.image_size
    cfg = clip.visual.preprocess_cfg
    processor = CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=list(cfg["mean"]),
        image_std=list(cfg["std"]),
    )
    ids = {SPECIAL.get(piece, piece): number for piece, number in tokenizer.encoder.items()}
    words = CLIPTokenizer(vocab=ids, merges=list(tokenizer.bpe_ranks), model_max_length=77)
    return pipeline(
        "zero-shot-image-classification",
        model=model,
        tokenizer=words,
        image_processor=processor,
        device=clip.logit_scale.device,
    )


def transformers_model(clip: Any) -> Any:
    """Return the ``CLIPModel`` of transformers with the weights of an open_clip ``CLIP``."""
    from transformers import CLIPConfig, CLIPModel

    blocks = {"vision": clip.visual.transformer.resblocks, "text": clip.transformer.resblocks}
    quick = type(blocks["text"][0].mlp.gelu).__name__ == "QuickGELU"
    towers = {}
    for tower, found in blocks.items():
        towers[f"{tower}_config"] = {
            "hidden_size": found[0].attn.embed_dim,
            "intermediate_size": found[0].mlp.c_fc.out_features,
            "num_hidden_layers": len(found),
            "num_attention_heads": found[0].attn.num_heads,
            "hidden_act": "quick_gelu" if quick else "gelu",
        }
    towers["vision_config"] |= {
        "image_size": clip.visual.image_size[0],
        "patch_size": clip.visual.patch_size[0],
    }
    towers["text_config"] |= {
        "vocab_size": clip.vocab_size,
        "max_position_embeddings": clip.context_length,
        "eos_token_id": clip.vocab_size - 1,
        "bos_token_id": clip.vocab_size - 2,
    }
    config = CLIPConfig(**towers, projection_dim=clip.text_projection.shape[1])
    model = CLIPModel(config).float().eval()
    state = {k: v.detach().clone().contiguous() for k, v in _renamed(clip, blocks).items()}
    model.to(clip.logit_scale.device)
    lacking, left = model.load_state_dict(state, strict=False)
    unknown = [n for n in lacking if not n.endswith("position_ids")]
    if unknown or left:
        raise ValueError(f"transformers has other weight names: {unknown or left}")
    return model


def _renamed(clip: Any, blocks: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights under the names of transformers."""
    visual = clip.visual
    state = {
        "logit_scale": clip.logit_scale,
        "visual_projection.weight": visual.proj.T,
        "text_projection.weight": clip.text_projection.T,
        "vision_model.embeddings.class_embedding": visual.class_embedding,
        "vision_model.embeddings.patch_embedding.weight": visual.conv1.weight,
        "vision_model.embeddings.position_embedding.weight": visual.positional_embedding,
        "text_model.embeddings.token_embedding.weight": clip.token_embedding.weight,
        "text_model.embeddings.position_embedding.weight": clip.positional_embedding,
    }
    norms = {
        "vision_model.pre_layrnorm": visual.ln_pre,
        "vision_model.post_layernorm": visual.ln_post,
        "text_model.final_layer_norm": clip.ln_final,
    }
    for tower, found in blocks.items():
        for i, block in enumerate(found):
            to = f"{tower}_model.encoder.layers.{i}"
            weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
            for role, weight, bias in zip("qkv", weights, biases, strict=True):
                state[f"{to}.self_attn.{role}_proj.weight"] = weight
                state[f"{to}.self_attn.{role}_proj.bias"] = bias
            norms |= {
                f"{to}.self_attn.out_proj": block.attn.out_proj,
                f"{to}.layer_norm1": block.ln_1,
                f"{to}.layer_norm2": block.ln_2,
                f"{to}.mlp.fc1": block.mlp.c_fc,
                f"{to}.mlp.fc2": block.mlp.c_proj,
            }
    for name, layer in norms.items():
        state |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
    return state
