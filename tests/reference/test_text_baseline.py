"""Frozen features and parameter counts of a tiny DistilBERT with the shipped encoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from clipadapt.core.api.context import Services
from clipadapt.core.api.data import Inputs
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import MODELS
from clipadapt.core.features.cache import FeatureCache
from textsent.models import TextEncoder
from textsent.models._inspect import describe

from .parity import Fixture, fixture


@pytest.fixture(scope="module")
def baseline() -> Fixture:
    return fixture("text_baseline")


@pytest.fixture(scope="module")
def encoder(baseline: Fixture, tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    """The fixture's model as a folder; its tokenizer has one word per id, such as ``w7`` for 7."""
    folder = tmp_path_factory.mktemp("models") / "distilbert"
    folder.mkdir()
    config = {"model_type": "distilbert", **baseline.spec["config"]}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {
            k.removeprefix("weights."): v
            for k, v in baseline.inputs.items()
            if k.startswith("weights.")
        },
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    _write_tokenizer(folder, config["vocab_size"])
    found = MODELS.resolve(str(folder), "text")
    services = Services(FeatureCache(enabled=False))
    return found.provider.load(found.argument, ModelOptions("fp32", "cpu"), services)


def _write_tokenizer(folder: Path, size: int) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(size)}, unk_token="w100"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0").save_pretrained(folder)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_features(encoder: TextEncoder, baseline: Fixture, pooling: str) -> None:
    ids, mask = baseline.inputs["input_ids"], baseline.inputs["attention_mask"]
    texts = [" ".join(f"w{i}" for i in row[used == 1]) for row, used in zip(ids, mask, strict=True)]
    for text, row, used in zip(encoder.tokenize(texts), ids, mask, strict=True):
        np.testing.assert_array_equal(text, row[used == 1])

    got = encoder.encode(Inputs(texts, tuple(map(str, range(len(texts))))), -1, pooling)

    baseline.assert_close(f"{pooling}_features", got)


def test_parameter_counts_from_the_configuration_alone(baseline: Fixture) -> None:
    parameters = describe("distilbert-base-uncased", (), random=True)["parameters"]

    got = (parameters["total"], parameters["trainable"]["lora"], parameters["total_with_lora"])

    baseline.assert_close("parameter_counts", np.array(got))
    counts = baseline.spec["counts"]
    assert parameters["trainable"]["head"] == counts["original_module_copies_frozen"]
    assert got[1] == counts["lora_only"] + parameters["trainable"]["head"]
