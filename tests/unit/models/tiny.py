"""Tiny random checkpoints of every model family, as open_clip folders; no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, CLIPConfig, CLIPImageProcessor, CLIPModel

WORDS = (
    *(
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "photo",
        "of",
        "the",
        "dog",
        "cat",
        "horse",
    ),
    *("tench", "red", "blue", "square", "circle", ".", ",", "x"),
)
CLIP_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16}
CONV = {
    "timm_model_name": "test_efficientnet",
    "timm_pool": "avg",
    "timm_proj": "linear",
    "image_size": 32,
}
SIGLIP = {
    "timm_model_name": "test_vit",
    "timm_model_pretrained": False,
    "timm_pool": "map",
    "timm_proj": "none",
    "image_size": 160,
}
SIGLIP_TEXT = {
    "context_length": 16,
    "hf_tokenizer_name": "nobody/nothing",
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "width": 64,
    "heads": 2,
    "layers": 2,
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
}


SMALL_TEXT = {**CLIP_TEXT, "context_length": 32}
TIMM = {"timm_model_pretrained": False, "timm_proj": None}
MORE: dict[str, dict[str, Any]] = {
    "eva": {
        "vision_cfg": {**TIMM, "timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "image_size": 224},
        "text_cfg": CLIP_TEXT,
    },
    "mobileclip": {
        "vision_cfg": {**TIMM, "timm_model_name": "fastvit_t8", "timm_pool": "avg", "image_size": 256,
                       "timm_drop": 0.0, "timm_drop_path": 0.0},
        "text_cfg": {**CLIP_TEXT, "no_causal_mask": True},
    },
    "mobile": {
        "vision_cfg": {**TIMM, "timm_model_name": "test_efficientnet", "timm_pool": "avg", "image_size": 32},
        "text_cfg": {**CLIP_TEXT, "no_causal_mask": True},
    },
    "pe": {
        "vision_cfg": {**TIMM, "timm_model_name": "vit_pe_core_tiny_patch16_384", "timm_pool": "map",
                       "image_size": 384},
        "text_cfg": SMALL_TEXT,
    },
    "coca": {
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**CLIP_TEXT, "context_length": 76, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 76, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1,
                           "attn_pooler_heads": 2},
    },
    "metaclip": {"quick_gelu": True, "vision_cfg": VIT, "text_cfg": {**CLIP_TEXT, "pool_type": "eos", "eos_id": 49407}},
    "clipa": {
        "vision_cfg": {**VIT, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": {**CLIP_TEXT, "vocab_size": len(WORDS), "context_length": 16, "pool_type": "last",
                     "no_causal_mask": True, "hf_tokenizer_name": "nobody/nothing",
                     "tokenizer_kwargs": {"strip_sep_token": True}},
    },
}  # fmt: skip
"""Configs with the structure of EVA-CLIP, MobileCLIP (``mobile`` is a faster one), PE-Core, CoCa, MetaCLIP 2, CLIPA."""


def write(folder: Path, family: str) -> Path:
    """Write one checkpoint.

    Args:
        folder: Where to.
        family: ``clip`` (ViT and CLIP text), ``custom`` (ViT and CustomTextCLIP), ``hf`` (timm and BERT),
            ``siglip`` (timm's ViT with a pooling map, a text tower without mask and first token, a logit bias),
            ``siglip2`` (the same with a tokenizer that pads with a token of its own), or a key of ``MORE``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cfg: dict[str, Any] = {"embed_dim": 24, "vision_cfg": dict(VIT), "text_cfg": dict(CLIP_TEXT)}
    if family == "clip":
        cfg["quick_gelu"] = True
    if family == "custom":
        cfg["custom_text"] = True
    if family == "hf":
        cfg["vision_cfg"] = dict(CONV)
        _write_bert(folder)
        cfg["text_cfg"] = {
            "hf_model_name": str(folder),
            "hf_tokenizer_name": "nobody/nothing",
            "hf_model_pretrained": False,
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": None,
            "context_length": 16,
        }
    if family in {"siglip", "siglip2"}:
        _write_words(folder, pad="<pad>" if family == "siglip2" else "</s>")
        cfg |= {"embed_dim": 64, "vision_cfg": dict(SIGLIP), "init_logit_bias": -10}
        cfg["text_cfg"] = {**SIGLIP_TEXT, "vocab_size": len(WORDS)}
        cfg["custom_text"] = True
    if family == "siglip2":
        cfg["text_cfg"]["act_kwargs"] = {"approximate": "tanh"}
    if family in MORE:
        cfg |= json.loads(json.dumps(MORE[family])) | {"custom_text": True}
    if family == "metaclip":
        del cfg["custom_text"]
    if family == "clipa":
        _write_vocabulary(folder)
    torch.manual_seed(1)
    kinds = {k: v for k, v in cfg.items() if k != "custom_text"}
    kind = CustomTextCLIP if "custom_text" in cfg or family == "hf" else CLIP
    module = (CoCa if family == "coca" else kind)(**json.loads(json.dumps(kinds)))
    if family == "coca":  # open_clip leaves it uninitialised
        torch.nn.init.zeros_(module.text_decoder.text_projection)
    state = {k: v.contiguous().clone() for k, v in module.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    if family == "hf":
        cfg["text_cfg"]["hf_model_name"] = "nobody/nothing"
    config = {"model_cfg": cfg, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_transformers(folder: Path) -> tuple[CLIPModel, CLIPImageProcessor]:
    """Write a CLIP as transformers saves it."""
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}  # fmt: skip
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 49408, "eos_token_id": 49407},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    torch.manual_seed(5)
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    processor = CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})  # fmt: skip
    processor.save_pretrained(folder)
    return model, processor


def _write_bert(folder: Path) -> None:
    BertConfig(
        vocab_size=len(WORDS),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=32,
    ).save_pretrained(folder)
    _write_vocabulary(folder)


def _write_vocabulary(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}), encoding="utf-8"
    )


def _write_words(folder: Path, pad: str = "</s>") -> None:
    """Write a tokenizer without a start token."""
    words = {w: i for i, w in enumerate(("<unk>", "</s>", "<pad>", *WORDS[3:]))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", words["</s>"])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "eos_token": "</s>",
        "pad_token": pad,
        "padding_side": "right",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
