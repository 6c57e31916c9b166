"""Tiny random encoders of the three families as Hugging Face folders, with tokenizers of a few pieces; no network."""

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
    n_pieces = _byte_pieces(folder) if family == "roberta" else _word_pieces(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = _model(family, n_pieces)
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
    """Lay a model out as the hub's own client does; return the folder of its files."""
    root = cache / ("models--" + repo.replace("/", "--"))
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(revision)
    return write(root / "snapshots" / revision, family)


def _model(family: str, n_pieces: int) -> Any:
    bert = {
        "vocab_size": n_pieces,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "initializer_range": 0.2,
    }
    if family == "bert":
        return BertModel(BertConfig(**bert, max_position_embeddings=POSITIONS))
    if family == "roberta":
        # Positions begin behind the padding index.
        return RobertaModel(RobertaConfig(**bert, max_position_embeddings=POSITIONS + 2))
    config = DistilBertConfig(
        vocab_size=n_pieces,
        dim=WIDTH,
        n_layers=LAYERS,
        n_heads=2,
        hidden_dim=64,
        max_position_embeddings=POSITIONS,
        initializer_range=0.2,
    )
    return DistilBertModel(config)


def _word_pieces(folder: Path) -> int:
    pieces = (*SPECIAL, *WORDS)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}), encoding="utf-8"
    )
    return len(pieces)


def _byte_pieces(folder: Path) -> int:
    """Write a byte-level vocabulary: every byte, two merges."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "fi", "fil", "<mask>"]
    (folder / "vocab.json").write_text(
        json.dumps({p: i for i, p in enumerate(pieces)}), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\nf i\nfi l\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "RobertaTokenizer"}), encoding="utf-8"
    )
    return len(pieces)
