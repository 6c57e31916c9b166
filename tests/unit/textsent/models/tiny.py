"""Tiny random encoders of the three families as Hugging Face folders, with small vocabularies; no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
)

FAMILIES = ("distilbert", "bert", "roberta")
WIDTH, LAYERS, POSITIONS = 32, 3, 40
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    *("a", "the", "film", "story", "is", "was", "fine", "dull", "warm", "empty", "and", "not"),
    *("very", "it", "good", "bad", "un", "##ness", "##ly", "##s", ".", ",", "!", "'"),
)


def write(folder: Path, family: str = "distilbert", *, form: str = "safetensors") -> Path:
    """Write one model folder.

    Args:
        folder: Where to.
        family: One of :data:`FAMILIES`.
        form: Weights as ``safetensors`` in one file, ``sharded`` safetensors, or ``bin`` (torch.save).
    """
    folder.mkdir(parents=True, exist_ok=True)
    n_tokens = _byte_tokens(folder) if family == "roberta" else _word_tokens(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = _model(family, n_tokens)
    if form == "sharded":
        model.save_pretrained(folder, max_shard_size="20KB")
    else:
        model.save_pretrained(folder)
    if form == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def write_to_cache(
    cache: Path, repo: str, family: str = "distilbert", revision: str = "c" * 40
) -> Path:
    """Write a model to the hub cache as the hub client does; return the folder of its files."""
    root = cache / ("models--" + repo.replace("/", "--"))
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(revision)
    return write(root / "snapshots" / revision, family)


def _model(family: str, n_tokens: int) -> Any:
    bert = {
        "vocab_size": n_tokens,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "initializer_range": 0.2,
    }
    if family == "bert":
        return BertModel(BertConfig(**bert, max_position_embeddings=POSITIONS))
    if family == "roberta":
        # Positions start after the padding index.
        return RobertaModel(RobertaConfig(**bert, max_position_embeddings=POSITIONS + 2))
    config = DistilBertConfig(
        vocab_size=n_tokens,
        dim=WIDTH,
        n_layers=LAYERS,
        n_heads=2,
        hidden_dim=64,
        max_position_embeddings=POSITIONS,
        initializer_range=0.2,
    )
    return DistilBertModel(config)


def _word_tokens(folder: Path) -> int:
    tokens = (*SPECIAL, *WORDS)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}), encoding="utf-8"
    )
    return len(tokens)


def _byte_tokens(folder: Path) -> int:
    """Write a byte-level vocabulary: every byte, two merges."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "fi", "fil", "<mask>"]
    (folder / "vocab.json").write_text(
        json.dumps({t: i for i, t in enumerate(tokens)}), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\nf i\nfi l\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "RobertaTokenizer"}), encoding="utf-8"
    )
    return len(tokens)
