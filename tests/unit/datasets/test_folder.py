"""A folder of one's own images: both layouts, what is reported, and every error's words."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from clipadapt.core.errors import ConfigError, DataError
from clipadapt.core.protocols import DatasetOptions
from clipadapt.core.registry import DATASETS
from clipadapt.datasets.folder import open_folder

STRICT = DatasetOptions()
SKIP = DatasetOptions(on_bad_image="skip")


def write(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), colour).save(path)


def open_(path, options=STRICT):
    return open_folder(str(path), options)


@pytest.fixture
def split_folder(tmp_path):
    root = tmp_path / "pets"
    for s, split in enumerate(["train", "valid", "test"]):
        for c, name in enumerate(["cat", "big_dog"]):
            for i in range(3):
                write(root / split / name / f"{i}.png", (s, c, i))
    return root


@pytest.fixture
def class_folder(tmp_path):
    root = tmp_path / "things"
    for c, name in enumerate(["cup", "plate", "spoon"]):
        for i in range(40):
            write(root / name / f"{i:02d}.png", (c, i, 7))
    return root


def test_split_folders(split_folder):
    data = open_(split_folder)

    assert data.name == "folder:pets"
    assert data.classnames == ("big dog", "cat")
    assert data.splits == ("train", "val", "test")
    test = data.split("test")
    assert test.inputs.ids[0] == "test/big_dog/0.png"
    assert test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.asarray(test.inputs.examples[4])[0, 0].tolist() == [2, 0, 1]
    assert data.split("val").inputs.ids[0] == "valid/big_dog/0.png"
    assert (data.flags, data.notes, data.skipped) == ((), (), 0)
    assert data.templates == ("a photo of a {}.",)


def test_split_names_in_capitals(split_folder):
    (split_folder / "test").rename(split_folder / "Test")
    assert open_(split_folder).split("test").inputs.ids[0] == "Test/big_dog/0.png"


def test_a_class_may_be_called_like_a_split(tmp_path):
    write(tmp_path / "test" / "a.png", "red")
    write(tmp_path / "exam" / "b.png", "blue")
    assert open_(tmp_path).classnames == ("exam", "test")


def test_one_folder_of_classes_is_split_by_the_bytes(class_folder):
    data = open_(class_folder)

    sizes = {s: len(data.split(s)) for s in data.splits}
    assert sum(sizes.values()) == 120
    assert 55 <= sizes["train"] <= 90
    assert 12 <= sizes["val"] <= 36
    assert 12 <= sizes["test"] <= 36


def test_added_files_move_none_of_the_others(class_folder):
    before = {s: set(open_(class_folder).split(s).inputs.ids) for s in ("train", "val", "test")}
    for i in range(30):
        write(class_folder / "cup" / f"new{i}.png", (99, i, 1))
    write(class_folder / "fork" / "x.png", "red")

    after = {s: set(open_(class_folder).split(s).inputs.ids) for s in before}

    assert all(before[s] <= after[s] for s in before)


def test_equal_bytes_fall_into_one_split(class_folder):
    for i in range(40):
        shutil.copy(
            class_folder / "cup" / f"{i:02d}.png", class_folder / "cup" / f"copy{i:02d}.png"
        )
    data = open_(class_folder)
    assert "duplicates_across_splits" not in data.flags
    for split in data.splits:
        cups = {i.split("/")[1] for i in data.split(split).inputs.ids if i.startswith("cup/")}
        assert {c for c in cups if c.startswith("copy")} == {
            f"copy{c}" for c in cups if "copy" not in c
        }


def test_the_fingerprint_follows_bytes_names_and_splits(split_folder, tmp_path):
    first = open_(split_folder).fingerprint
    copy = tmp_path / "elsewhere"
    shutil.copytree(split_folder, copy)
    assert open_(copy).fingerprint == first

    write(copy / "test" / "cat" / "0.png", (1, 2, 3))
    changed = open_(copy).fingerprint
    assert changed != first
    (copy / "test" / "cat" / "0.png").rename(copy / "test" / "cat" / "9.png")
    assert open_(copy).fingerprint not in {first, changed}


def test_the_same_bytes_in_two_splits_are_reported(split_folder):
    shutil.copy(
        split_folder / "train" / "cat" / "0.png", split_folder / "test" / "cat" / "copy.png"
    )
    data = open_(split_folder)
    assert data.flags == ("duplicates_across_splits",)
    assert data.notes == (
        "folder:pets: the same bytes lie in two splits (cases: 1): test/cat/copy.png = train/cat/0.png",
    )


def test_the_same_bytes_in_two_classes_are_reported(split_folder):
    shutil.copy(
        split_folder / "train" / "cat" / "0.png", split_folder / "train" / "big_dog" / "copy.png"
    )
    assert open_(split_folder).flags == ("duplicates_across_classes",)


def test_a_class_that_train_lacks_and_an_empty_class_are_reported(split_folder):
    write(split_folder / "test" / "fox" / "0.png", (5, 5, 5))
    (split_folder / "train" / "wolf").mkdir()
    data = open_(split_folder)
    assert data.classnames == ("big dog", "cat", "fox", "wolf")
    assert data.flags == ("empty_class", "class_missing_in_train")
    assert "classes without a readable image: wolf" in data.notes[0]
    assert "classes with images in test but none in train: fox" in data.notes[1]


def test_other_files_are_ignored_and_counted(split_folder):
    (split_folder / "train" / "cat" / "Thumbs.db").touch()
    (split_folder / "train" / "cat" / ".DS_Store").touch()
    assert open_(split_folder).notes == (
        "folder:pets: files that are no images are ignored: 1 .db",
    )


def test_a_bad_image_is_an_error_when_loaded_and_left_out_on_request(split_folder):
    bad = split_folder / "test" / "cat" / "1.png"
    bad.write_bytes(bad.read_bytes()[:40])

    strict = open_(split_folder).split("test")
    assert len(strict) == 6
    with pytest.raises(DataError, match=r"cat/1\.png'"):
        strict.inputs.examples[4]

    lenient = open_(split_folder, SKIP)
    assert lenient.skipped == 1
    assert "test/cat/1.png" not in lenient.split("test").inputs.ids
    assert lenient.split("test").labels.tolist() == [0, 0, 0, 1, 1]
    assert lenient.notes == ("folder:pets: 1 unreadable images are left out",)


def test_nothing_readable_is_an_error(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_text("text")
    with pytest.raises(DataError, match=r"none of the 2 images in .* can be decoded"):
        open_(tmp_path, SKIP)


def test_a_missing_folder_offers_its_neighbours(split_folder):
    with pytest.raises(
        DataError, match=r"there is no folder '.*pest': .* has no 'pest'; did you mean 'pets'\?"
    ):
        open_(split_folder.parent / "pest")
    with pytest.raises(DataError, match=r"has no 'nowhere'; it holds: pets"):
        open_(split_folder.parent / "nowhere" / "deep" / "down")


def test_a_file_is_no_folder(split_folder):
    with pytest.raises(
        DataError, match=r"0\.png' is a file, not a folder\n  hint: try folder:.*/train/cat$"
    ):
        open_(split_folder / "train" / "cat" / "0.png")


def test_an_empty_folder_says_what_is_accepted(tmp_path):
    with pytest.raises(
        DataError, match=r"no images in .* \(0 class folders.*accepted extensions: \.jpg"
    ):
        open_(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.heic").touch()
    with pytest.raises(DataError, match=r"1 class folders, other files: 1 \.heic"):
        open_(tmp_path)


def test_images_without_class_folders_say_how_it_must_look(tmp_path):
    write(tmp_path / "x.png", "red")
    with pytest.raises(
        DataError,
        match=r"holds 1 images but no class folders: 'x\.png'\n  hint: lay them out as PATH/",
    ):
        open_(tmp_path)


def test_one_class_is_not_enough(tmp_path):
    write(tmp_path / "only" / "x.png", "red")
    with pytest.raises(DataError, match="holds one class only, 'only'; at least two"):
        open_(tmp_path)


def test_two_folders_for_one_split(split_folder):
    write(split_folder / "val" / "cat" / "0.png", "red")
    with pytest.raises(DataError, match="more than one folder for a split: val, valid"):
        open_(split_folder)


def test_a_split_that_is_not_there_names_those_there_are(split_folder):
    shutil.rmtree(split_folder / "test")
    with pytest.raises(
        DataError,
        match=r"folder:pets has no split 'test'; it has: train, val\n.*evaluation.split=val",
    ):
        open_(split_folder).split("test")


def test_no_path(tmp_path):
    with pytest.raises(DataError, match=r"'folder:' names no folder\n  hint: write folder:PATH"):
        open_folder("", STRICT)


def test_real_pictures(shared):
    resolved = DATASETS.resolve(f"folder:{shared}/data/pacs-mini/photo", "clip")
    data = resolved.provider(resolved.argument, STRICT)
    assert data.name == "folder:photo"
    assert data.classnames == ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    assert [len(data.split(s)) for s in data.splits] == [224, 112, 420]
    assert data.split("test").inputs.examples[0].mode == "RGB"
    assert data.flags == ()


def test_splits_without_class_folders_are_not_taken_for_classes(tmp_path):
    write(tmp_path / "train" / "a.png", "red")
    write(tmp_path / "test" / "b.png", "blue")
    with pytest.raises(DataError, match=r"holds test, train but no class folders in them"):
        open_(tmp_path)


def test_folders_beside_the_splits_are_named(split_folder):
    write(split_folder / "drafts" / "x.png", "red")
    assert open_(split_folder).notes == (
        "folder:pets: folders that are no split are not read: drafts",
    )


def test_names_in_any_script_and_one_that_is_no_text(split_folder):
    write(split_folder / "test" / "cat" / "köttur 🐈.png", "red")
    assert "test/cat/köttur 🐈.png" in open_(split_folder).split("test").inputs.ids
    assert open_(split_folder).fingerprint

    bad = os.fsencode(split_folder / "test" / "cat") + b"/\xff.png"
    try:
        shutil.copy(split_folder / "test" / "cat" / "0.png", bad)
    except OSError:
        pytest.skip("this file system holds UTF-8 names only")
    with pytest.raises(DataError, match="is not valid UTF-8"):
        open_(split_folder)


def test_a_name_that_is_too_long_for_a_folder():
    with pytest.raises(ConfigError, match=r"cannot use the path .*: File name too long"):
        open_folder("x" * 5000, STRICT)
