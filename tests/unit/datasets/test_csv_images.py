"""``csv:PATH``: images listed in a table."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from clipadapt.core.api.data import DatasetOptions
from clipadapt.core.api.errors import ClipAdaptError, DataError
from clipadapt.core.api.registry import DATASETS
from clipadapt.datasets.csv import open_csv
from clipadapt.datasets.folder import open_folder

STRICT = DatasetOptions()
SKIP = DatasetOptions(on_bad_image="skip")


def write_image(path, *colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path)


@pytest.fixture
def rows(tmp_path):
    """Write 24 images of two classes and return ``(path, label)`` of each."""
    found = []
    for i in range(24):
        name = f"images/{'ab'[i % 2]}{i}.png"
        write_image(tmp_path / name, 100 * (i % 2), 9 * i, 0)
        found.append((name, ("sea_lion", "cat")[i % 2]))
    return found


def write(path, rows, header="path,label", encoding="utf-8"):
    lines = [header, *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def test_a_table_with_a_split_column(tmp_path, rows):
    splits = ["train"] * 12 + ["validation"] * 4 + ["test"] * 8
    table = [(*row, split) for row, split in zip(rows, splits, strict=True)]
    data = open_csv(str(write(tmp_path / "all.csv", table, "path,label,split")), STRICT)

    assert data.name == "csv:all.csv"
    assert (data.classnames, data.keys) == (("cat", "sea lion"), ("cat", "sea_lion"))
    assert data.templates == ("a photo of a {}.",)
    assert {s: len(data.split(s)) for s in data.splits} == {"train": 12, "val": 4, "test": 8}
    test = data.split("test")
    assert test.labels.tolist() == [1, 0] * 4
    assert test.inputs.ids[:2] == ("images/a16.png", "images/b17.png")
    assert np.asarray(test.inputs.examples[1])[0, 0].tolist() == [100, 153, 0]
    assert data.flags == ()
    assert len(data.fingerprint) == 64


def test_a_folder_of_tables(tmp_path, rows):
    write(tmp_path / "train.csv", rows[:16])
    write(tmp_path / "test.csv", rows[16:])
    data = open_csv(str(tmp_path), STRICT)
    assert {s: len(data.split(s)) for s in data.splits} == {"train": 16, "test": 8}


def test_without_splits_it_is_split_as_a_folder_is(tmp_path):
    table = []
    for c in ("class_2", "class_10", "class_1"):
        for i in range(10):
            write_image(tmp_path / "photos" / c / f"{i}.png", len(c), i, ord(c[-1]))
            table.append((f"photos/{c}/{i}.png", c))
    data = open_csv(str(write(tmp_path / "all.csv", table)), STRICT)
    folder = open_folder(str(tmp_path / "photos"), STRICT)

    assert data.flags == ("split_by_hash",)
    assert data.classnames == folder.classnames == ("class 1", "class 2", "class 10")
    for split in ("train", "val", "test"):
        ours = dict(zip(data.split(split).inputs.ids, data.split(split).labels, strict=True))
        part = folder.split(split)
        assert ours == {f"photos/{k}": v for k, v in zip(part.inputs.ids, part.labels, strict=True)}


@pytest.mark.parametrize(
    ("header", "name", "encoding", "separator"),
    [
        ("path,label", "all.csv", "utf-8-sig", ","),
        ("File_Name;Class", "all.csv", "utf-8", ";"),
        ("image\tcategory", "all.tsv", "utf-8", "\t"),
        ("img_path,y", "all.csv?encoding=utf-16", "utf-16", ","),
        ("kind,photo no.", "all.csv?image=kind&label=photo no.", "utf-8", ","),
    ],
)
def test_headers_encodings_and_separators(tmp_path, rows, header, name, encoding, separator):
    lines = [header, *(separator.join((f'"{path}"', label)) for path, label in rows)]
    file = tmp_path / name.partition("?")[0]
    file.write_text("\n".join(lines) + "\n", encoding=encoding)
    data = open_csv(str(tmp_path / name), STRICT)
    assert data.n_read == 24


def test_quoted_names_windows_paths_and_paths_elsewhere(tmp_path):
    here = tmp_path / "tables"
    here.mkdir()
    write_image(here / 'a, "b".png', 1, 0, 0)
    write_image(here / "sub" / "c.png", 2, 0, 0)
    write_image(tmp_path / "other" / "d.png", 3, 0, 0)
    write_image(tmp_path / "other" / "e.png", 4, 0, 0)
    table = [
        ('"a, ""b"".png"', "x", "train"),
        ("sub\\c.png", "y", "train"),
        ("../other/d.png", "x", "test"),
        (str(tmp_path / "other" / "e.png"), "y", "test"),
    ]
    data = open_csv(str(write(here / "all.csv", table, "path,label,split")), STRICT)
    assert data.split("train").inputs.ids == ('tables/a, "b".png', "tables/sub/c.png")
    assert data.split("test").inputs.ids == ("other/d.png", "other/e.png")


def test_numbers_are_classes_in_their_order(tmp_path, rows):
    numbers = [(path, str(11 - i % 3)) for i, (path, _) in enumerate(rows)]
    data = open_csv(str(write(tmp_path / "all.csv", numbers)), STRICT)
    assert data.classnames == ("9", "10", "11")


def test_one_image_per_class_is_a_dataset(tmp_path, rows):
    table = [(path, f"class {i}", "train") for i, (path, _) in enumerate(rows)]
    data = open_csv(str(write(tmp_path / "one.csv", table, "path,label,split")), STRICT)
    assert len(data.classnames) == 24


def test_missing_images_are_counted_and_named(tmp_path, rows):
    gone = [(f"images/gone{i}.png", "cat") for i in range(5)]
    path = write(tmp_path / "all.csv", [*rows, *gone])
    message = (
        r"5 of the 29 images in 'all\.csv' do not exist: 'images/gone0\.png', 'images/gone1\.png', "
        r"'images/gone2\.png', \.\.\. \(the first: all\.csv, row 25\)\n  hint: paths are relative to"
    )
    with pytest.raises(DataError, match=message):
        open_csv(str(path), STRICT)
    data = open_csv(str(path), SKIP)
    assert (data.n_read, data.left_out["missing images"]) == (24, 5)
    assert "many_left_out" in data.flags
    with pytest.raises(DataError, match="5 of the 5 images"):
        open_csv(str(write(tmp_path / "gone.csv", [*gone[:4], ("images/gone4.png", "x")])), SKIP)


def test_unreadable_images_can_be_skipped(tmp_path, rows):
    (tmp_path / rows[3][0]).write_text("text")
    path = str(write(tmp_path / "all.csv", rows))
    assert open_csv(path, STRICT).n_read == 24
    data = open_csv(path, SKIP)
    assert (data.n_read, data.skipped) == (23, 1)


@pytest.mark.parametrize(
    ("change", "header", "message"),
    [
        (
            lambda r: [(r[0][0], ""), *r[1:]],
            "path,label",
            "row 1: the label in column 'label' is mi",
        ),
        (
            lambda r: [("", "cat"), *r[1:]],
            "path,label",
            "row 1: the image in column 'path' is empty",
        ),
        (
            lambda r: [*r, r[2]],
            "path,label",
            r"'images/a2\.png' is listed twice: all\.csv, row 3, and",
        ),
        (
            lambda r: [(p, "cat") for p, _ in r],
            "path,label",
            "have the label 'cat'; at least two cl",
        ),
        (
            lambda r: r,
            "path,kind",
            "no column with a usual name for the label; its columns: path, kind",
        ),
        (lambda r: r, "where,label", r"(?s)usual name for the image;.*\?image=COLUMN&label=COLUMN"),
        (lambda _: [], "path,label", "all.csv has no rows"),
        (
            lambda r: [(*r[0], "dev"), *((*x, "tr") for x in r[1:])],
            "path,label,split",
            "'tr' in colum",
        ),
    ],
)
def test_wrong_tables_are_one_message(tmp_path, rows, change, header, message):
    with pytest.raises(DataError, match=message):
        open_csv(str(write(tmp_path / "all.csv", change(rows), header)), STRICT)


def test_wrong_arguments(tmp_path, rows):
    write(tmp_path / "all.csv", rows)
    for argument, message in (
        ("", "csv: has no path"),
        (str(tmp_path / "al.csv"), "no such file or folder"),
        (f"{tmp_path / 'all.csv'}?text=path", "'text=path' in .* is not an option"),
        (f"{tmp_path / 'all.csv'}?image=label", "cannot be both image and label"),
        (str(tmp_path / "images"), "contains no train, val or test table"),
    ):
        with pytest.raises(ClipAdaptError, match=message):
            open_csv(argument, STRICT)


def test_rows_without_a_label_can_be_skipped(tmp_path, rows):
    data = open_csv(str(write(tmp_path / "all.csv", [(rows[0][0], ""), *rows[1:]])), SKIP)
    assert data.left_out["rows without an image or label"] == 1


def test_equal_images_are_reported(tmp_path, rows):
    write_image(tmp_path / "copy.png", 0, 0, 0)  # equal to the first
    table = [
        (*rows[0], "train"),
        *((*row, "test") for row in rows[1:]),
        ("copy.png", "cat", "test"),
    ]
    table.append(("images/z.png", "cat", "train"))
    write_image(tmp_path / "images" / "z.png", 1, 2, 3)
    data = open_csv(str(write(tmp_path / "all.csv", table, "path,label,split")), STRICT)
    assert set(data.flags) == {"duplicates_across_splits", "duplicates_across_classes"}


def test_run_and_exit_code(cli, tmp_path, rows, tiny_clip):
    table = write(tmp_path / "all.csv", rows)
    assert DATASETS.resolve(f"csv:{table}", "clip").entry == "clip/csv"
    done = cli(
        "run", "zero_shot", "--set", f"model.name={tiny_clip}", "--set", f"data.name=csv:{table}",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 0, done.err
    record = json.loads(next((tmp_path / "out").rglob("record.json")).read_text())
    assert record["data"]["name"] == "csv:all.csv"
    assert str(tmp_path) not in json.dumps(record["data"])

    (tmp_path / rows[0][0]).unlink()
    done = cli("doctor", "--dataset", f"csv:{table}")
    assert done.code == 2
    assert re.search(r"1 of the 24 images in 'all\.csv' do not exist", done.out)
