from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipadapt.core.api.errors import ConfigError, DataError
from clipadapt.core.data.sampling import (
    Manifest,
    apply,
    base_new_classes,
    draw,
    short_classes,
    val_shots,
)

IDS = [f"class{i % 3}/{i:03}.jpg" for i in range(60)]
LABELS = np.arange(60) % 3


@st.composite
def labelled_ids(d: st.DrawFn) -> tuple[list[str], list[int]]:
    """At least eight examples of each of one to four classes."""
    n_classes = d(st.integers(1, 4))
    extra = d(st.lists(st.integers(0, n_classes - 1), max_size=12))
    labels = [c for c in range(n_classes) for _ in range(8)] + extra
    n = len(labels)
    ids = d(st.lists(st.text(max_size=8), min_size=n, max_size=n, unique=True))
    return ids, labels


@given(labelled_ids(), st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 8))
def test_draws_nest_and_balance(
    case: tuple[list[str], list[int]], seed: int, one: int, other: int
) -> None:
    ids, labels = case[0], np.array(case[1])
    fewer, more = sorted((one, other))

    small, large = draw(ids, labels, fewer, seed), draw(ids, labels, more, seed)

    assert set(small) <= set(large)
    assert len(set(large)) == len(large)
    assert np.bincount(labels[large]).tolist() == [more] * (labels.max() + 1)


@given(labelled_ids(), st.integers(0, 2**32), st.integers(1, 8), st.randoms())
def test_draws_do_not_depend_on_the_order_of_the_files(
    case: tuple[list[str], list[int]], seed: int, shots: int, random: Any
) -> None:
    ids, labels = case
    pairs = list(zip(ids, labels, strict=True))
    random.shuffle(pairs)
    shuffled, shuffled_labels = [p[0] for p in pairs], np.array([p[1] for p in pairs])

    expected = [ids[i] for i in draw(ids, np.array(labels), shots, seed)]
    got = [shuffled[i] for i in draw(shuffled, shuffled_labels, shots, seed)]

    assert got == expected


def test_draws_never_change() -> None:
    got = [IDS[i] for i in draw(IDS, LABELS, 2, 1)]

    assert got == [
        "class0/012.jpg",
        "class0/051.jpg",
        "class1/052.jpg",
        "class1/010.jpg",
        "class2/059.jpg",
        "class2/056.jpg",
    ]


def test_an_added_file_changes_at_most_one_example_per_class() -> None:
    before = {IDS[i] for i in draw(IDS, LABELS, 8, 1)}
    after_ids = [*IDS, "class0/new.jpg"]
    after = {after_ids[i] for i in draw(after_ids, np.append(LABELS, 0), 8, 1)}

    assert len(before - after) <= 1


def test_seeds_and_roles_draw_differently() -> None:
    draws = [
        set(draw(IDS, LABELS, 8, seed, role=role)) for seed in (1, 2) for role in ("train", "val")
    ]

    assert all(a != b for i, a in enumerate(draws) for b in draws[:i])


def test_too_few_examples_lists_every_short_class_and_the_next_step() -> None:
    labels = np.array([0] * 5 + [1] * 2 + [2] * 4)
    ids = [str(i) for i in range(11)]
    names = ("cat", "dog", "owl", "eel")

    with pytest.raises(DataError) as caught:
        draw(ids, labels, 5, 1, classnames=names)

    message = str(caught.value)
    assert "too few examples for 5 shots: 'dog' has 2, 'owl' has 4, 'eel' has 0" in message
    assert "'cat'" not in message
    assert "data.allow_fewer=true" in message


def test_allow_fewer_takes_all_examples_and_reports_the_counts() -> None:
    labels = np.array([0] * 5 + [1] * 2)
    ids = [str(i) for i in range(7)]

    drawn = draw(ids, labels, 4, 1, allow_fewer=True, classnames=("a", "b"))

    assert np.bincount(labels[drawn]).tolist() == [4, 2]
    assert short_classes(labels, 4, ("a", "b")) == {"b": 2}
    assert short_classes(labels, 6, ("same", "same")) == {
        "same (class 0)": 5,
        "same (class 1)": 2,
    }
    assert draw([], np.zeros(0, dtype=np.int64), 1, 1, allow_fewer=True).tolist() == []


def test_wrong_arguments() -> None:
    with pytest.raises(ConfigError, match=r"data.shots must be at least 1 \(got 0\)"):
        draw(IDS, LABELS, 0, 1)
    with pytest.raises(ValueError, match="60 ids but labels of shape"):
        draw(IDS, LABELS[:5], 1, 1)


def test_odd_file_names_can_be_drawn_and_saved(tmp_path: Path) -> None:
    ids = ["bytes\udcff.jpg", "日本.jpg", "é.jpg", "e\u0301.jpg"]

    drawn = draw(ids, np.zeros(4, dtype=np.int64), 4, 1)
    manifest = make(train=[ids[i] for i in drawn])
    manifest.write(tmp_path / "m.json")

    assert apply(Manifest.read(tmp_path / "m.json"), ids).tolist() == drawn.tolist()


def test_val_shots_and_base_new() -> None:
    assert [val_shots(k) for k in (1, 2, 4, 8, 16)] == [1, 2, 4, 4, 4]
    for n_classes, size in ((2, 1), (5, 3), (10, 5), (1000, 500)):
        base, new = base_new_classes(n_classes)
        assert len(base) == size
        assert np.concatenate([base, new]).tolist() == list(range(n_classes))
    with pytest.raises(DataError, match="at least 2 classes"):
        base_new_classes(1)


def make(**changes: Any) -> Manifest:
    content: dict[str, Any] = {
        "dataset": "folder:pictures",
        "dataset_sha256": "ab" * 32,
        "seed": 1,
        "shots": 2,
        "train": IDS[:6],
        "val": IDS[6:9],
        "fewer": {"train": {}, "val": {"class2": 1}},
    }
    return Manifest.create(**(content | changes))


def test_manifest_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "manifest.json"
    manifest = make()

    manifest.write(path)

    assert Manifest.read(path) == manifest
    assert manifest.fewer == {"val": {"class2": 1}}
    assert [p.name for p in path.parent.iterdir()] == ["manifest.json"]
    assert make(seed=2).sha256 != manifest.sha256
    assert apply(manifest, IDS[::-1]).tolist() == [59, 58, 57, 56, 55, 54]
    assert apply(manifest, IDS, role="val").tolist() == [6, 7, 8]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "seed",
            2,
            "was changed after it was written: it states sha256 '.{16}', but its content has",
        ),
        ("train", ["other.jpg"], "was changed after it was written"),
        ("sha256", "", "was changed after it was written"),
        ("shots", 0, "shots: Input should be greater than 0"),
        ("shotz", 1, "shotz: Extra inputs are not permitted"),
        ("version", 2, "version: Input should be 1"),
    ],
)
def test_manifest_that_was_tampered_with(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    path = tmp_path / "manifest.json"
    make().write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    with pytest.raises(DataError, match=message) as caught:
        Manifest.read(path)

    assert str(path) in str(caught.value)
    assert "draw again" in caught.value.hint


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3"])
def test_a_file_that_is_not_a_manifest(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text)

    with pytest.raises(DataError, match="is not a valid manifest"):
        Manifest.read(path)


def test_manifest_missing_binary_or_with_a_repeated_id(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    with pytest.raises(DataError, match=r"cannot read the manifest .*No such file"):
        Manifest.read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not a valid manifest"):
        Manifest.read(path)
    make(val=["a", "b", "a"]).write(path)
    with pytest.raises(DataError, match="lists val id 'a' twice"):
        Manifest.read(path)


def test_manifest_of_another_dataset_names_three_missing_ids() -> None:
    with pytest.raises(DataError) as caught:
        apply(make(), IDS[4:])

    message = str(caught.value)
    assert "4 of 6 train ids of the manifest are not in the dataset" in message
    assert f"'{IDS[0]}', '{IDS[1]}', '{IDS[2]}', ..." in message
    assert IDS[3] not in message
    assert "folder:pictures" in caught.value.hint


def test_short_classes_of_many_classes_are_found_in_one_pass():
    names = [f"class {c % 29_999}" for c in range(30_000)]
    begun = time.perf_counter()
    short = short_classes(np.arange(30_000), 2, names)
    assert time.perf_counter() - begun < 5  # would be minutes if each name were counted separately
    assert len(short) == 30_000
    assert {"class 0 (class 0)", "class 0 (class 29999)"} <= set(short)
