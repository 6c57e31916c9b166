from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from clipadapt.core.api.errors import ClipAdaptError, DataError
from clipadapt.core.data.duplicates import comparisons, near_duplicates
from clipadapt.core.data.labelled import LabelledSet, make_split
from textsent.datasets import _repeated
from textsent.datasets._explore import (
    REQUIRED_COLUMNS,
    check_columns,
    explore,
    text_lengths,
)
from textsent.datasets._explore_output import histogram_png, render
from textsent.datasets._repeated import duplicates

CLASSES = ("bad", "good")
TRAIN = [
    ("a fine film", 1),
    ("a dull film", 0),
    ("a fine film", 1),
    ("one two three four five six seven eight nine ten", 1),
]
VAL = [("a fine film", 0), ("nothing like the rest", 0)]
TEST = [("One, two three four five six seven eight nine eleven!", 0), ("another", 1)]


def text_set(**parts) -> LabelledSet[str]:
    made = {}
    for name, rows in parts.items():
        texts, labels = zip(*rows, strict=True) if rows else ((), ())
        made[name] = make_split(texts, [f"{name}/{i}" for i in range(len(rows))], labels, CLASSES)
    return LabelledSet("few", CLASSES, "CC0", "nobody, never", "made here", made, flags=("tiny",))


@pytest.fixture
def few() -> LabelledSet[str]:
    return text_set(train=TRAIN, val=VAL, test=TEST)


def tokenize(texts, max_length):
    """Return one token per word between two special tokens."""
    most = 1000 if max_length is None else max_length - 2
    rows = [[1, *range(10, 10 + len(t.split()[:most])), 2] for t in texts]
    return {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}


def test_sizes_balance_and_examples(few):
    found = explore(few)

    assert {name: facts["size"] for name, facts in found["splits"].items()} == {
        "train": 4, "val": 2, "test": 2,
    }  # fmt: skip
    assert found["splits"]["train"]["classes"] == {
        "bad": {"count": 1, "share": 0.25},
        "good": {"count": 3, "share": 0.75},
    }
    assert found["splits"]["val"]["classes"]["good"] == {"count": 0, "share": 0.0}
    assert found["splits"]["train"]["examples"][1] == {
        "id": "train/1", "text": "a dull film", "label": "bad",
    }  # fmt: skip
    assert found["flags"] == ["tiny"]
    assert (found["licence"], found["citation"], found["source"]) == (
        "CC0", "nobody, never", "made here",
    )  # fmt: skip
    assert found["features"] == {
        "id": "string",
        "text": "string",
        "label": "class label (0 bad, 1 good)",
    }
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_lengths_agree_with_numpy(few):
    lengths = text_lengths(few, tokenize)
    found = explore(few, tokenize=tokenize)["splits"]["train"]["lengths"]

    characters = [len(t) for t, _ in TRAIN]
    assert lengths["train"]["characters"].tolist() == characters
    assert lengths["train"]["words"].tolist() == [3, 3, 3, 10]
    assert lengths["train"]["tokens"].tolist() == [5, 5, 5, 12]
    assert found["characters"] == {
        "min": min(characters),
        "mean": np.mean(characters),
        "median": np.median(characters),
        "p90": pytest.approx(np.quantile(characters, 0.9)),
        "p95": pytest.approx(np.quantile(characters, 0.95)),
        "p99": pytest.approx(np.quantile(characters, 0.99)),
        "max": max(characters),
    }
    assert "tokens" not in explore(few)["splits"]["train"]["lengths"]


@pytest.mark.parametrize(("max_length", "cut"), [(4, 4), (5, 1), (11, 1), (12, 0)])
def test_truncation_counts_texts_that_lose_a_token(few, max_length, cut):
    facts = explore(few, tokenize=tokenize, max_length=max_length)["splits"]["train"]

    assert facts["truncation"] == {"max_length": max_length, "count": cut, "share": cut / 4}
    assert facts["lengths"]["tokens"]["max"] == 12  # measured before truncation


def test_a_tokenized_split_holds_what_a_model_needs(few):
    found = explore(few, tokenize=tokenize, max_length=8)

    assert set(REQUIRED_COLUMNS) <= set(found["splits"]["val"]["columns"])
    assert found["features"]["input_ids"] == "list of int"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"input_ids": [[1, 2], [3]]}, "has no attention_mask"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1, 1]]}, "differ in length"),
        ({"input_ids": [[1, 2], [3]], "attention_mask": [[1, 1], [1, 1]]}, "row 2: 1 tokens"),
        ({"input_ids": [[1], []], "attention_mask": [[1], []]}, "row 2: 0 tokens"),
    ],
)
def test_a_tokenized_split_that_is_not_ready(columns, message):
    with pytest.raises(DataError, match=message):
        check_columns({"text": ["a", "b"], "label": [0, 1], **columns}, "few, split val")


def test_duplicates_within_and_across_splits_with_their_conflicts(few):
    found = duplicates(few)
    exact = {tuple(row["splits"]): (row["count"], row["conflicts"]) for row in found["exact"]}
    near = {tuple(row["splits"]): (row["count"], row["conflicts"]) for row in found["near"]}

    # "a fine film" stands twice in train as good and once in val as bad.
    assert exact == {
        ("train",): (1, 0), ("train", "val"): (1, 1), ("train", "test"): (0, 0),
        ("val",): (0, 0), ("val", "test"): (0, 0), ("test",): (0, 0),
    }  # fmt: skip
    # Nine of eleven different words are shared, in another case and with other punctuation.
    assert near == {r: (1, 1) if r == ("train", "test") else (0, 0) for r in exact}
    equal, alike = found["examples"]
    assert (equal["kind"], equal["overlap"], equal["conflict"]) == ("exact", 1.0, True)
    assert (equal["a"]["label"], equal["b"]["label"]) == ("good", "bad")
    assert alike["overlap"] == pytest.approx(9 / 11)
    assert {alike["a"]["id"], alike["b"]["id"]} == {"train/3", "test/0"}


def test_a_text_with_many_copies_is_counted_once_and_fast():
    found = duplicates(text_set(train=[("good", 1)] * 20_000 + [("Good!", 0)]))

    assert found["exact"][0] == {"splits": ["train"], "count": 1, "conflicts": 0}
    assert found["near"][0] == {"splits": ["train"], "count": 1, "conflicts": 1}


@pytest.mark.slow
def test_a_search_that_would_take_too_long_is_reported_with_its_cost():
    words = [f"w{i}" for i in range(40)]
    rows = [
        (f"{a} {b} {c} {d}", 0) for a in words for b in words for c in words[:10] for d in words[:5]
    ]

    found = duplicates(text_set(train=[*rows, ("w1 w1 w1 w1", 1)], val=VAL))

    assert found["near"] is None
    assert found["comparisons"] > _repeated.MAX_COMPARISONS
    assert found["exact"][0] == {"splits": ["train"], "count": 1, "conflicts": 1}
    assert "not searched" in render(explore(text_set(train=rows[:40_000], val=VAL)))


def test_the_cost_bounds_the_pairs_compared():
    texts = [f"{a} {b} c d e f g" for a in "abcdefgh" for b in "xyz"]
    assert comparisons(texts) >= len(list(near_duplicates(texts))) > 0
    assert comparisons(["one text", "another one"]) <= 1


def test_an_empty_split_is_reported():
    with pytest.raises(DataError, match="the split 'val' of few is empty"):
        explore(text_set(train=TRAIN, val=[]))


def test_the_rendered_text_contains_the_figures(few):
    text = render(explore(few, tokenize=tokenize, max_length=5))
    lines = [line.split() for line in text.splitlines()]

    assert ["train", "4", "1", "(25.0%)", "3", "(75.0%)"] in lines
    assert ["tokens", "train", "5", "6.8", "5", "9.9", "10.9", "11.8", "12"] in lines
    assert "truncated in train  1 (25.0%) longer than 5 tokens" in text
    assert "columns of test     text, label, input_ids, attention_mask" in text


@pytest.mark.parametrize("longest", [12, 5000])
def test_the_histogram_is_a_picture_with_named_axes(few, tmp_path, monkeypatch, longest):
    figures = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")
    made = []
    save = figures.Figure.savefig
    monkeypatch.setattr(
        figures.Figure, "savefig", lambda self, *a, **k: (made.append(self), save(self, *a, **k))
    )
    lengths = {s: dict(units) for s, units in text_lengths(few, tokenize).items()}
    lengths["train"]["tokens"] = np.array([5] * 400 + [longest])

    histogram_png(tmp_path / "new" / "l.png", lengths, title="few", max_length=6)

    assert (tmp_path / "new" / "l.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["l.png"]
    axes = made[0].axes
    assert [ax.get_xlabel().split(";")[0] for ax in axes] == [
        "length in characters", "length in words", "length in tokens, special tokens included",
    ]  # fmt: skip
    assert all("%" in ax.get_ylabel() for ax in axes)
    shown = [t.get_text() for t in axes[2].get_legend().get_texts()]
    assert shown == ["train (n = 401)", "val (n = 2)", "test (n = 2)", "max length 6 (2 truncated)"]
    assert ("the last bin holds" in axes[2].get_xlabel()) == (longest == 5000)
    for patch, n in zip(axes[2].patches, (401, 2, 2), strict=True):
        values, *_ = patch.get_data()
        assert values.sum() == pytest.approx(100), n


def test_without_matplotlib_the_hint_is_to_install_it(few, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    with pytest.raises(ClipAdaptError, match=r"clipadapt\[report\]"):
        histogram_png(tmp_path / "l.png", text_lengths(few), title="few")
