"""A folder of images: both layouts, notes and flags, and error messages."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket

import numpy as np
import pytest
from PIL import Image

from clipadapt.core.api.data import DatasetOptions
from clipadapt.core.api.errors import ConfigError, DataError
from clipadapt.core.api.registry import DATASETS
from clipadapt.datasets.folder import open_folder

STRICT = DatasetOptions()
SKIP = DatasetOptions(on_bad_image="skip")
NOTHING = {"images outside the class folders": 0, "unreadable images": 0}


def write(path, colour, size=6):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)


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


def test_class_may_be_named_like_a_split(tmp_path):
    write(tmp_path / "test" / "a.png", "red")
    write(tmp_path / "exam" / "b.png", "blue")
    assert open_(tmp_path).classnames == ("exam", "test")


def test_class_folders_without_splits_are_split_by_content(class_folder):
    data = open_(class_folder)

    sizes = {s: len(data.split(s)) for s in data.splits}
    assert sum(sizes.values()) == 120
    assert 55 <= sizes["train"] <= 90
    assert 12 <= sizes["val"] <= 36
    assert 12 <= sizes["test"] <= 36


def test_adding_files_does_not_move_others(class_folder):
    before = {s: set(open_(class_folder).split(s).inputs.ids) for s in ("train", "val", "test")}
    for i in range(30):
        write(class_folder / "cup" / f"new{i}.png", (99, i, 1))
    write(class_folder / "fork" / "x.png", "red")

    after = {s: set(open_(class_folder).split(s).inputs.ids) for s in before}

    assert all(before[s] <= after[s] for s in before)


def test_identical_files_are_in_the_same_split(class_folder):
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


def test_fingerprint_depends_on_bytes_names_and_splits(split_folder, tmp_path):
    first = open_(split_folder).fingerprint
    copy = tmp_path / "elsewhere"
    shutil.copytree(split_folder, copy)
    assert open_(copy).fingerprint == first

    write(copy / "test" / "cat" / "0.png", (1, 2, 3))
    changed = open_(copy).fingerprint
    assert changed != first
    (copy / "test" / "cat" / "0.png").rename(copy / "test" / "cat" / "9.png")
    assert open_(copy).fingerprint not in {first, changed}


def test_identical_files_in_two_splits_are_reported(split_folder):
    shutil.copy(
        split_folder / "train" / "cat" / "0.png", split_folder / "test" / "cat" / "copy.png"
    )
    data = open_(split_folder)
    assert data.flags == ("duplicates_across_splits",)
    assert data.notes == (
        "folder:pets: identical images are in two splits (cases: 1): test/cat/copy.png = train/cat/0.png",
    )


def test_identical_files_in_two_classes_are_reported(split_folder):
    shutil.copy(
        split_folder / "train" / "cat" / "0.png", split_folder / "train" / "big_dog" / "copy.png"
    )
    assert open_(split_folder).flags == ("duplicates_across_classes",)


def test_class_missing_in_train_and_empty_class_are_reported(split_folder):
    write(split_folder / "test" / "fox" / "0.png", (5, 5, 5))
    (split_folder / "train" / "wolf").mkdir()
    data = open_(split_folder)
    assert data.classnames == ("big dog", "cat", "fox")
    assert data.flags == ("class_missing_in_train",)
    assert data.notes[0].endswith("folders without a readable image are not classes: wolf")
    assert "classes with images in test but none in train: fox" in data.notes[1]


def test_other_files_are_ignored_and_counted(split_folder):
    cats = split_folder / "train" / "cat"
    for name in ("Thumbs.db", ".DS_Store", "labels.txt", "more.TXT", "README"):
        (cats / name).touch()
    for name in ("__MACOSX", ".ipynb_checkpoints"):
        write(split_folder / "train" / name / "x.png", "red")
        write(cats / name / "x.png", "red")
    data = open_(split_folder)
    assert (data.notes, data.flags) == ((), ())
    assert (data.n_read, data.found) == (18, 21)
    assert data.left_out == {"other files (no extension)": 1, "other files (.txt)": 2, **NOTHING}
    assert data.inventory == (
        "18 read of 21 found in 2 classes (train 6, val 6, test 6); "
        "left out: 1 other files (no extension), 2 other files (.txt)"
    )


def test_unreadable_image_is_an_error_or_skipped(split_folder):
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
    assert lenient.notes == ("folder:pets: left out: 1 unreadable images",)
    assert lenient.flags == ("many_left_out",)  # 1 of 18
    assert lenient.inventory.startswith("17 read of 18 found in 2 classes")


def test_no_readable_image_is_an_error(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_text("text")
    with pytest.raises(DataError, match=r"none of the 2 images in .* can be decoded"):
        open_(tmp_path, SKIP)


def test_missing_folder_suggests_similar_names(split_folder):
    with pytest.raises(
        DataError, match=r"there is no folder '.*pest': .* has no 'pest'; did you mean 'pets'\?"
    ):
        open_(split_folder.parent / "pest")
    with pytest.raises(DataError, match=r"has no 'nowhere'; it contains: pets"):
        open_(split_folder.parent / "nowhere" / "deep" / "down")


def test_file_is_not_a_folder(split_folder):
    with pytest.raises(
        DataError, match=r"0\.png' is a file, not a folder\n  hint: try folder:.*/train/cat$"
    ):
        open_(split_folder / "train" / "cat" / "0.png")


def test_archive_is_not_a_folder(tmp_path):
    (tmp_path / "pets.zip").touch()
    with pytest.raises(DataError, match=r"is an archive, not a folder\n.*unpack it"):
        open_(tmp_path / "pets.zip")


def test_empty_folder_lists_supported_formats(tmp_path):
    with pytest.raises(
        DataError,
        match=r"no images in .*: it contains 0 class folders; in them: nothing\n.*supported formats: JPEG",
    ):
        open_(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.heic").touch()
    with pytest.raises(DataError, match=r"in them: 1 images in an unsupported format \(\.heic\)"):
        open_(tmp_path)


def test_images_without_class_folders_are_an_error_with_the_layout(tmp_path):
    write(tmp_path / "x.png", "red")
    with pytest.raises(
        DataError,
        match=r"contains 1 images but no class folders: 'x\.png'\n  hint: arrange the images as PATH/",
    ):
        open_(tmp_path)


def test_one_class_is_not_enough(tmp_path):
    write(tmp_path / "only" / "x.png", "red")
    with pytest.raises(DataError, match="contains only one class, 'only'; at least two"):
        open_(tmp_path)


def test_two_folders_for_one_split(split_folder):
    write(split_folder / "val" / "cat" / "0.png", "red")
    with pytest.raises(DataError, match="more than one folder for the split 'val': val, valid"):
        open_(split_folder)


def test_missing_split_lists_the_available_ones(split_folder):
    shutil.rmtree(split_folder / "test")
    with pytest.raises(
        DataError,
        match=r"folder:pets has no split 'test'; it has: train, val\n.*evaluation.split=val",
    ):
        open_(split_folder).split("test")


def test_no_path(tmp_path):
    with pytest.raises(DataError, match=r"'folder:' names no folder\n  hint: write folder:PATH"):
        open_folder("", STRICT)


def test_real_images(shared):
    resolved = DATASETS.resolve(f"folder:{shared}/data/pacs-mini/photo", "clip")
    data = resolved.provider(resolved.argument, STRICT)
    assert data.name == "folder:photo"
    assert data.classnames == ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    assert [len(data.split(s)) for s in data.splits] == [224, 112, 420]
    assert data.split("test").inputs.examples[0].mode == "RGB"
    assert data.flags == ()


def test_splits_without_class_folders_are_not_read_as_classes(tmp_path):
    write(tmp_path / "train" / "a.png", "red")
    write(tmp_path / "test" / "b.png", "blue")
    with pytest.raises(DataError, match=r"contains test, train but no class folders in them"):
        open_(tmp_path)


def test_folders_next_to_the_splits_are_reported(split_folder):
    write(split_folder / "drafts" / "x.png", "red")
    data = open_(split_folder)
    assert data.notes == (
        "folder:pets: folders next to test, train, valid that are not splits are not read: drafts",
        "folder:pets: left out: 1 images outside the class folders",
    )
    assert data.flags == ("many_left_out",)


def test_names_in_any_script_and_invalid_utf8(split_folder):
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


def test_folder_name_too_long():
    with pytest.raises(ConfigError, match=r"cannot use the path .*: File name too long"):
        open_folder("x" * 5000, STRICT)


def classes_of(data, split):
    part = data.split(split)
    return {
        key: data.classnames[label] for key, label in zip(part.inputs.ids, part.labels, strict=True)
    }


@pytest.mark.parametrize(
    "names", [("Training", "Testing"), ("TRAIN", "Test"), ("training_set", "eval")]
)
def test_common_variants_of_split_names(tmp_path, names):
    for split, name in zip(("train", "test"), names, strict=True):
        for c in ("cat", "dog"):
            write(tmp_path / name / c / "x.png", {"cat": 1, "dog": 2}[c] + len(split))
    data = open_(tmp_path)
    assert (data.splits, data.classnames) == (("train", "test"), ("cat", "dog"))
    assert data.split("test").inputs.ids == (f"{names[1]}/cat/x.png", f"{names[1]}/dog/x.png")


def test_split_without_class_folders_is_counted_and_reported(tmp_path):
    for i in range(4):
        write(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", (i, 0, 0))
        write(tmp_path / "test" / f"{i}.png", (0, i, 0))
    data = open_(tmp_path)
    assert data.splits == ("train",)
    assert "not read: test" in data.notes[0]
    assert data.left_out["images outside the class folders"] == 4
    assert data.flags == ("many_left_out",)


def test_numbered_classes_are_in_natural_order(tmp_path):
    for i, name in enumerate(("1", "2", "10", "b2", "b10")):
        write(tmp_path / "test" / name / "x.png", (i, i, i))
    data = open_(tmp_path)
    assert data.classnames == ("1", "2", "10", "b2", "b10")
    assert classes_of(data, "test") == {f"test/{c}/x.png": c for c in data.classnames}
    assert data.split("test").inputs.ids[1] == "test/10/x.png"  # ids keep their order


def test_wordnet_ids_become_class_names(tmp_path):
    for i, name in enumerate(("n01440764", "n02099601", "n03445777")):
        write(tmp_path / "wnid" / "val" / name / "x.png", (i, i, i))
        write(tmp_path / "dogs" / "val" / f"{name}-Some_{i}_dog" / "x.png", (i, i, i))
        write(tmp_path / "mixed" / "val" / (name if i else "cat") / "x.png", (i, i, i))
    data = open_(tmp_path / "wnid")
    assert data.classnames == ("tench", "Golden Retriever", "golf ball")
    assert data.keys == ("n01440764", "n02099601", "n03445777")
    assert open_(tmp_path / "dogs").classnames == ("Some 0 dog", "Some 1 dog", "Some 2 dog")
    assert open_(tmp_path / "mixed").classnames == ("cat", "n02099601", "n03445777")


def test_folders_of_two_splits_that_differ_in_case_are_one_class(tmp_path):
    for name in ("train/Cat", "test/cat", "train/big_dog", "test/Big dog ", "test/0.0", "train/0"):
        write(tmp_path / name / "x.png", len(name))
    data = open_(tmp_path)
    assert len(data.classnames) == 3
    assert set(classes_of(data, "train").values()) == set(classes_of(data, "test").values())
    assert sum("are read as one class" in note for note in data.notes) == 3


def test_folders_of_one_split_that_differ_in_case_are_two_classes(tmp_path):
    for i, name in enumerate(("test/Cat", "test/cat", "test/dog")):
        write(tmp_path / name / "x.png", i)
    assert open_(tmp_path).classnames == (
        "Cat",
        "cat",
        "dog",
    )  # and are reported: duplicate_classnames


def test_linked_folders_are_followed_without_loops(class_folder, tmp_path):
    shutil.move(class_folder / "cup", tmp_path / "cups")
    (class_folder / "cup").symlink_to(tmp_path / "cups")
    shutil.move(class_folder / "plate", tmp_path / "plates")
    (class_folder / "plate").mkdir()
    (class_folder / "plate" / "more").symlink_to(tmp_path / "plates")
    (class_folder / "spoon" / "up").symlink_to(class_folder)
    (class_folder / "spoon" / "here").symlink_to(".")
    (class_folder / "loop").symlink_to("loop")
    (class_folder / "round").symlink_to(class_folder)

    data = open_(class_folder)

    assert data.classnames == ("cup", "plate", "spoon")
    counts = np.bincount(np.concatenate([data.split(s).labels for s in data.splits]))
    assert counts.tolist() == [40, 40, 40]
    assert "plate/more/00.png" in {i for s in data.splits for i in data.split(s).inputs.ids}


def test_every_supported_format_is_found(tmp_path):
    endings = ["jpg", "JPEG", "jpe", "jfif", "png", "gif", "bmp", "tif", "tiff", "webp"]
    endings += ["ppm", "pgm", "pbm", "avif", "jp2", "tga", "ico", "dib", "pcx"]
    for i, ending in enumerate(endings):
        write(
            tmp_path / "test" / "a" / f"x.{ending}", (i, 0, 0), size=16
        )  # Pillow 12's smallest icon
    write(tmp_path / "test" / "b" / "x.png", "red")
    shutil.copy(tmp_path / "test" / "b" / "x.png", tmp_path / "test" / "b" / "without ending")
    (tmp_path / "test" / "b" / "raw.heic").write_bytes(b"?")

    data = open_(tmp_path)

    assert np.bincount(data.split("test").labels).tolist() == [len(endings), 2]
    assert all(data.split("test").inputs.examples[i].mode == "RGB" for i in range(len(endings)))
    assert data.notes == (
        f"folder:{tmp_path.name}: left out: 1 images in an unsupported format (.heic)",
    )


def make_unreadable(folder):
    """Create files that cannot be read, each for another reason."""
    (folder / "gone.png").symlink_to("/nonexistent/x.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "fifo.png")
    with contextlib.chdir(folder):  # a socket's path must be short
        socket.socket(socket.AF_UNIX).bind("s.png")
    return 5


def test_unreadable_files_are_skipped_and_counted_without_blocking(split_folder):
    n = make_unreadable(split_folder / "test" / "cat")
    with pytest.raises(
        DataError,
        match=r"cannot read the file .*cat/fifo\.png': it is a FIFO.*\n.*--on-bad-image skip",
    ):
        open_(split_folder)

    data = open_(split_folder, SKIP)

    assert (data.skipped, len(data.split("test"))) == (n, 6)
    assert data.flags == ("many_left_out",)
    assert data.fingerprint


def test_a_file_without_permission(split_folder):
    secret = split_folder / "test" / "cat" / "0.png"
    secret.chmod(0)
    if os.access(secret, os.R_OK):
        pytest.skip("this user reads every file")
    with pytest.raises(DataError, match=r"cannot read the file .*Permission denied"):
        open_(split_folder)
    assert open_(split_folder, SKIP).skipped == 1


def test_run_folders_below_the_images_are_not_classes(class_folder):
    before = open_(class_folder)
    for out in (class_folder / "runs", class_folder / "cup" / "runs"):
        run = out / "folder-things" / "zero_shot" / "abc"
        write(run / "sheet" / "x.png", "red")
        (run / "record.json").write_text("{}")
    after = open_(class_folder)
    assert after.classnames == before.classnames
    assert after.fingerprint == before.fingerprint


def test_small_classes_have_an_image_in_train_then_test_then_val(tmp_path):
    for size in (1, 2, 3):
        for i in range(size):
            write(tmp_path / f"c{size}" / f"{i}.png", (size, i, 0))
    data = open_(tmp_path)
    counts = {s: np.bincount(data.split(s).labels, minlength=3).tolist() for s in data.splits}
    assert counts == {"train": [1, 1, 1], "val": [0, 0, 1], "test": [0, 1, 1]}
    assert data.flags == ("class_missing_in_test",)


def test_too_few_images_for_val_are_reported(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "1.png", name == "a")
        write(tmp_path / name / "2.png", (7, name == "a", 0))
    data = open_(tmp_path)
    assert data.splits == ("train", "test")
    assert "too few images for a 'val' split" in data.notes[0]


def test_inner_folder_of_classes_is_suggested(tmp_path):
    for name in ("cat", "dog"):
        write(tmp_path / "archive" / name / "x.png", len(name))
    with pytest.raises(DataError, match=r"only one class, 'archive'.*\n.*try folder:.*/archive$"):
        open_(tmp_path)


def test_split_names_with_additional_words(tmp_path):
    for split in ("seg_train", "seg_test"):
        for colour in ("red", "blue"):
            write(tmp_path / split / colour / "1.png", colour)
    data = open_(tmp_path)
    assert data.splits == ("train", "test")
    assert data.classnames == ("blue", "red")


def test_a_folder_of_datasets_names_them_instead_of_taking_them_for_classes(tmp_path):
    for domain in ("photo", "sketch"):
        for split in ("train", "val", "test"):
            for i, colour in enumerate(("red", "blue")):
                write(tmp_path / domain / split / colour / "1.png", (i, len(split), len(domain)))

    with pytest.raises(DataError, match="no classes but 2 datasets, .*: photo, sketch") as caught:
        open_(tmp_path)

    assert f"folder:{tmp_path.as_posix()}/photo or folder:" in caught.value.hint
    assert open_(tmp_path / "photo").splits == ("train", "val", "test")


def test_outer_folders_with_the_same_subfolders_are_reported(tmp_path):
    for outer in ("fold1", "fold2"):
        for i, colour in enumerate(("red", "blue")):
            write(tmp_path / outer / colour / "1.png", (i, len(outer), int(outer[-1])))
    data = open_(tmp_path)
    assert data.classnames == ("fold1", "fold2")
    assert any("contain folders with the same names: fold1, fold2" in note for note in data.notes)


@pytest.mark.parametrize("name", ["new\nline", "esc\x1b[31m"])
def test_class_folder_with_a_control_character(tmp_path, name):
    write(tmp_path / name / "1.png", "red")
    write(tmp_path / "blue" / "1.png", "blue")
    with pytest.raises(DataError, match="contains a control character") as caught:
        open_(tmp_path)
    assert repr(name) in str(caught.value)


def test_nested_single_folders_are_reported(tmp_path):
    for split in ("seg_train", "seg_test"):
        for i, colour in enumerate(("red", "blue")):
            write(tmp_path / split / split / colour / "1.png", (i, len(split), 0))
    data = open_(tmp_path)
    assert any("each contains one folder of folders: seg_test, seg_train" in n for n in data.notes)
