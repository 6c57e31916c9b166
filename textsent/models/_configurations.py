"""Configurations known without a network, and the names of parts of the architectures.

The values are those of ``config.json`` in the hub repositories, without the keys that only describe the file.
"""

from __future__ import annotations

from typing import Any, Final

_BERT_BASE: Final = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
KNOWN: Final[dict[str, dict[str, Any]]] = {
    "distilbert-base-uncased": {
        "model_type": "distilbert",
        "vocab_size": 30522,
        "dim": 768,
        "n_layers": 6,
        "n_heads": 12,
        "hidden_dim": 3072,
        "activation": "gelu",
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "seq_classif_dropout": 0.2,
        "qa_dropout": 0.1,
        "max_position_embeddings": 512,
        "sinusoidal_pos_embds": False,
        "initializer_range": 0.02,
        "pad_token_id": 0,
    },
    "bert-base-uncased": {"model_type": "bert", **_BERT_BASE},
    "roberta-base": {
        "model_type": "roberta",
        **_BERT_BASE,
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
}
ORGANISATIONS: Final = {
    "distilbert-base-uncased": "distilbert/distilbert-base-uncased",
    "bert-base-uncased": "google-bert/bert-base-uncased",
    "roberta-base": "FacebookAI/roberta-base",
}
"""These models have two names on the hub; a cache may use either."""
UNCASED: Final = frozenset({"distilbert-base-uncased", "bert-base-uncased"})
"""Models with BERT's uncased vocabulary, which is also that of ``minilm``."""

LORA_TARGETS: Final = {
    "distilbert": ("q_lin", "v_lin"),
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "xlm-roberta": ("query", "value"),
    "camembert": ("query", "value"),
    "electra": ("query", "value"),
    "albert": ("query", "value"),
    "deberta-v2": ("query_proj", "value_proj"),
    "mpnet": ("q", "v"),
}
"""Query and value projections, adapted as in E. Hu et al., "LoRA", ICLR 2022, section 4.2."""
LAYER_LISTS: Final = ("encoder.layer", "transformer.layer", "layers", "encoder.layers")
"""Names of the list of layers in the known architectures."""
