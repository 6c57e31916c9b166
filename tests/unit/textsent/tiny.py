"""A tiny random text encoder with a vocabulary of a few words, and texts that are easy to classify; no network."""

from __future__ import annotations

import copy
import hashlib

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLNetConfig,
)

from clipadapt.core.api.data import Inputs, Split, Task
from clipadapt.core.api.errors import ModelError

FILLER = [f"word{i}" for i in range(12)]
TELLING = {0: ["bad", "dull", "awful"], 1: ["good", "fine", "great"], 2: ["odd", "weird", "queer"]}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, *FILLER, *(w for words in TELLING.values() for w in words)]
SIZES = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "initializer_range": 0.1}
BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
CONFIGS = {
    "distilbert": lambda: DistilBertConfig(
        **SIZES, dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=40
    ),
    "bert": lambda: BertConfig(**SIZES, **BERT, max_position_embeddings=40),
    "roberta": lambda: RobertaConfig(**SIZES, **BERT, max_position_embeddings=42),
    "xlnet": lambda: XLNetConfig(**SIZES, d_model=32, n_layer=2, n_head=2, d_inner=48),
}
TARGETS = {
    "distilbert": ("q_lin", "v_lin"),
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({w: i for i, w in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_input_names=["input_ids", "attention_mask"],
        **dict(zip(names, SPECIAL, strict=True)),
    )


class TinyEncoder:
    """The part of a text encoder that methods use; encodings are counted."""

    device, dtype, name = "cpu", "fp32", "tiny"
    services = None
    width, n_layers, max_length = 32, 2, 40

    def __init__(self, architecture: str = "distilbert", *, pooler: bool = True) -> None:
        self.architecture = architecture
        self.pooler = pooler  # False: like a checkpoint without a pooler, so each classifier initializes its own
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.module = AutoModel.from_config(CONFIGS[architecture]()).eval()
        self.tokenizer = tiny_tokenizer()
        self.encoded = self.tokenized = 0

    @property
    def n_params(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    @property
    def weights_sha256(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in self.module.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
        return digest.hexdigest()

    def tokenize(self, texts, max_length=None):
        if max_length is not None and max_length > self.max_length:
            raise ModelError(f"tiny reads at most 40 tokens, got max_length {max_length}")
        self.tokenized += len(texts)
        length = max_length or self.max_length
        return [self.tokenizer(t, truncation=True, max_length=length)["input_ids"] for t in texts]

    def encode(self, inputs, layer=-1, pooling="cls", max_length=None):
        ids = self.tokenize(list(inputs.examples), max_length)
        self.encoded += len(ids)
        rows = []
        for row in ids:
            with torch.inference_mode():
                out = self.module(torch.tensor([row]), output_hidden_states=True)
            states = out.hidden_states[layer][0]
            rows.append(states[0] if pooling == "cls" else states.mean(0))
        return torch.stack(rows).numpy() if rows else np.zeros((0, self.width), np.float32)

    def classifier(self, classnames, seed):
        config = copy.deepcopy(self.module.config)
        config.id2label = dict(enumerate(classnames))
        config.label2id = {name: i for i, name in enumerate(classnames)}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForSequenceClassification.from_config(config)
        state = self.module.state_dict()
        if not self.pooler:
            state = {k: v for k, v in state.items() if not k.startswith("pooler.")}
        model.base_model.load_state_dict(state, strict=False)
        return model

    def lora_targets(self):
        if self.architecture not in TARGETS:
            raise ModelError(
                f"no LoRA targets are known for the architecture '{self.architecture}'"
            )
        return TARGETS[self.architecture]

    def with_services(self, services):
        other = copy.copy(self)
        other.services = services
        return other

    def clone(self):
        return copy.deepcopy(self)


def make_split(n: int, seed: int, n_classes: int = 2, present: list[int] | None = None) -> Split:
    rng = np.random.default_rng(seed)
    labels = rng.choice(present or n_classes, size=n).astype(np.int64)
    texts = [
        " ".join([*rng.choice(FILLER, rng.integers(1, 9)), *rng.choice(TELLING[int(y)], 2)])
        for y in labels
    ]
    ids = tuple(f"{seed}/{i}" for i in range(n))
    return Split(Inputs(tuple(texts), ids), labels, tuple(f"class {c}" for c in range(n_classes)))


def make_task(n: int = 40, n_classes: int = 2, *, val: bool = True) -> Task:
    train = make_split(n, 0, n_classes)
    return Task(train.classnames, (), train, make_split(21, 1, n_classes) if val else None)
