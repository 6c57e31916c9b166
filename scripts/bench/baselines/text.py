"""Reference implementation of what textsent does, with transformers and PEFT as their guides show.

float32, every text padded to the longest of its split, no feature cache, no sorting by length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

BATCH: Final = 64
LORA_TARGETS: Final = {
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
}


def extractor(model: str, device: str = "cpu") -> Callable[[Sequence[str]], NDArray[np.float32]]:
    """Return a pipeline that computes the first hidden state of the last layer of each text, shape ``(n, D)``."""
    import torch
    from transformers import pipeline

    made = pipeline("feature-extraction", model=model, dtype=torch.float32, device=device)

    def extract(texts: Sequence[str]) -> NDArray[np.float32]:
        # Tensors, not the nested lists of the default, which would slow the pipeline down.
        states = made(
            list(texts),
            batch_size=BATCH,
            return_tensors=True,
            tokenize_kwargs={"truncation": True},
        )
        return np.stack([state[0, 0].cpu().numpy() for state in states])  # each (1, L, D)

    return extract


def trainer(
    model: str, n_classes: int, settings: dict[str, Any], folder: Path, *, lora: bool
) -> tuple[Callable[..., None], Callable[[Sequence[str]], NDArray[np.float32]]]:
    """Load a classifier and return functions that train and apply it.

    Args:
        model: Hugging Face id or folder.
        n_classes: ``C``.
        settings: ``learning_rate``, ``batch_size``, ``weight_decay``, ``warmup_steps``, ``max_length``, ``seed``,
            ``device``, ``bf16`` for autocast, and for LoRA ``r``, ``lora_alpha``, ``lora_dropout``.
        folder: Folder for the Trainer.
        lora: Train low-rank updates instead of every weight.

    Returns:
        ``train(texts, labels)``: one epoch, including tokenization; ``scores(texts)``: logits, shape ``(n, C)``.
    """
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(settings["seed"])
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=n_classes, dtype=torch.float32
    )
    if lora:
        from peft import LoraConfig, TaskType, get_peft_model

        config = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=settings["r"],
            lora_alpha=settings["lora_alpha"],
            lora_dropout=settings["lora_dropout"],
            target_modules=LORA_TARGETS[network.config.model_type],
            bias="none",
        )
        network = get_peft_model(network, config)

    def train(texts: Sequence[str], labels: Sequence[int]) -> None:
        cut = settings["max_length"]  # None: the tokenizer's own limit
        rows = dict(tokenizer(list(texts), truncation=True, max_length=cut, padding="longest"))
        arguments = TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=1,
            per_device_train_batch_size=settings["batch_size"],
            learning_rate=settings["learning_rate"],
            weight_decay=settings["weight_decay"],
            warmup_steps=settings["warmup_steps"],
            seed=settings["seed"],
            eval_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=settings.get("device", "cpu") == "cpu",
            bf16=settings.get("bf16", False),
        )
        data = Dataset.from_dict({**rows, "labels": list(labels)})
        Trainer(model=network, args=arguments, train_dataset=data).train()

    def scores(texts: Sequence[str]) -> NDArray[np.float32]:
        network.eval()
        found = []
        with torch.inference_mode():
            for i in range(0, len(texts), BATCH):
                batch = tokenizer(
                    list(texts[i : i + BATCH]),
                    truncation=True,
                    max_length=settings["max_length"],
                    padding=True,
                    return_tensors="pt",
                )
                found.append(network(**batch.to(network.device)).logits.cpu().numpy())
        return np.concatenate(found)

    return train, scores
