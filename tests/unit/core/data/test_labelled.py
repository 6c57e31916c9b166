"""Names of splits and classes, and splits by hash."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from clipadapt.core.data.labelled import (
    class_key,
    is_number,
    many_left_out,
    match_splits,
    natural_key,
    split_evenly,
    split_named,
)

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


@pytest.mark.parametrize(
    ("split", "names"),
    [
        (
            "train",
            "train Train TRAIN training Training_Set train_data trainset train2017 trn train-images",
        ),
        ("val", "val Valid VALIDATION dev validation_set val2017"),
        ("test", "test Test testing TESTING test_set testset eval Evaluation tst"),
        (None, "cat 1 train_station unsupervised contest trains trainer set"),
    ],
)
def test_one_vocabulary_of_split_names(split, names):
    assert {name: split_named(name) for name in names.split()} == dict.fromkeys(
        names.split(), split
    )


def test_published_splits_are_matched_by_the_same_vocabulary():
    found, notes = match_splits("it", {"Training": True, "Testing": True, "extra": True})
    assert found == {"train": "Training", "test": "Testing"}
    assert notes == ["the split 'extra' is neither train, val nor test and is left out"]


def test_numbers_in_names_sort_by_value():
    names = ["10", "class 2", "2", "class 10", "1", "b", "a", "n02099601", "01", "n01440764"]
    assert sorted(names, key=natural_key) == [
        *("01", "1", "2", "10", "a", "b", "class 2", "class 10", "n01440764", "n02099601"),
    ]
    text = ["Zebra", "apple", "b_a", "b a", ""]
    assert sorted(text, key=natural_key) == sorted(text)
    assert sorted(["1" * 5000, "2"], key=natural_key) == ["2", "1" * 5000]


def test_labels_of_the_same_class_have_the_same_key():
    for same in (
        ["Big_Dog", "big dog ", " BIG  dog"],
        ["0", "0.0", "0."],
        ["caf\u00e9", "cafe\u0301"],
    ):
        assert len({class_key(name) for name in same}) == 1
    assert len({class_key(name) for name in ("1", "1.5", "10", "a", "b")}) == 5


def test_numbers_as_class_names():
    assert all(map(is_number, ("1", "-1", "0.0", "007", "class_3", "Class 3", "label-1", "c0")))
    assert not any(map(is_number, ("cat", "1 euro", "n01440764", "A4", "")))


def digest(text):
    return hashlib.sha256(str(text).encode()).hexdigest()


def test_a_split_by_hash_leaves_no_class_without_an_example():
    for size in (1, 2, 3, 4):
        for trial in range(50):
            contents = [digest((trial, i)) for i in range(size)]
            where = Counter(split_evenly(contents, [0] * size, SHARES))
            assert set(where) == set(("train", "test", "val")[:size])


def test_a_split_by_hash_ignores_order_and_keeps_equal_examples_together():
    contents = [digest(i % 7) for i in range(20)]
    labels = [i % 2 for i in range(20)]
    where = split_evenly(contents, labels, SHARES)
    assert where[::-1] == split_evenly(contents[::-1], labels[::-1], SHARES)
    assert all(
        len({w for c, w in zip(contents, where, strict=True) if c == one}) == 1 for one in contents
    )


def test_a_large_class_is_split_by_the_hash_alone():
    contents = [digest(i) for i in range(300)]
    first = split_evenly(contents[:200], [0] * 200, SHARES)
    assert split_evenly(contents, [0] * 300, SHARES)[:200] == first
    assert 90 < Counter(first)["train"] < 150


def test_many_left_out_is_flagged_above_a_share():
    assert many_left_out(95, 5) == ()
    assert many_left_out(94, 6) == ("many_left_out",)
    assert many_left_out(0, 0) == ()


@pytest.mark.parametrize(
    ("one", "other"),
    [("1", "+1"), ("1", "\uff11.0"), ("-1", "\u22121"), ("pos", "pos\u200b"), ("pos", "\ufeffPos")],
)
def test_labels_that_look_alike_are_one_class(one, other):
    assert class_key(one) == class_key(other)


def test_different_labels_stay_separate():
    assert (
        len({class_key(name) for name in ("1", "-1", "10", "1.5", "C++", "C", "a-1", "a 1")}) == 8
    )
