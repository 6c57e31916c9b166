"""Image datasets of the hub: columns, splits, and error messages."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipadapt.core.api.data import DatasetOptions
from clipadapt.core.api.errors import DataError
from clipadapt.core.api.registry import DATASETS
from clipadapt.core.files import hub_client
from tests.unit.conftest import cached_repo

COMMIT = "c" * 40


@pytest.fixture
def open_(hub_cache):
    def opener(name, on_bad_image="error"):
        found = DATASETS.resolve(name, "clip")
        return found.provider(found.argument, DatasetOptions(on_bad_image))

    return opener


@pytest.fixture
def files(hub_cache):
    return cached_repo(hub_cache, "org/pets", COMMIT)


def png(*colour):
    file = io.BytesIO()
    Image.new("RGB", (6, 6), colour).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": f"{'_'.join(map(str, colour))}.png"}


def write(files, split, labels, *, blue=0, image="image", label="label", names=None, **columns):
    """Write one split as Parquet; with ``names``, the label column declares the class names."""
    import datasets

    table = {image: [png(i, 0, blue) for i in range(len(labels))], label: labels, **columns}
    schema = None
    if names:
        features = {image: datasets.Image(), label: datasets.ClassLabel(names=names)}
        schema = datasets.Features(features).arrow_schema
    pq.write_table(pa.table(table, schema=schema), files / f"{split}-00000-of-00001.parquet")


def sizes(data):
    return {s: len(data.split(s)) for s in data.splits}


def test_declared_names_three_splits_and_lazy_images(open_, files):
    for blue, (split, labels) in enumerate(
        {"train": [0, 1, 1], "validation": [1, 0], "test": [0, 1]}.items()
    ):
        write(files, split, labels, blue=blue, names=["cat", "big_dog"])
    data = open_("hf:org/pets@" + COMMIT)

    assert data.name == "hf:org/pets@" + COMMIT
    assert data.classnames == ("cat", "big dog")
    assert sizes(data) == {"train": 3, "val": 2, "test": 2}
    train = data.split("train")
    assert train.labels.tolist() == [0, 1, 1]
    assert train.inputs.ids == ("train/000000", "train/000001", "train/000002")
    assert [i.getpixel((0, 0)) for i in train.inputs.examples[1:]] == [(1, 0, 0), (2, 0, 0)]
    assert data.split("val").inputs.examples[0].getpixel((0, 0)) == (0, 0, 1)
    assert (data.flags, data.notes) == ((), ())
    assert COMMIT in data.source
    assert len(set(map(bytes, train.inputs.digests()))) == 3


def test_images_are_the_same_in_another_process(open_, files):
    write(files, "test", [0, 1, 0], names=["cat", "dog"])
    images = open_("hf:org/pets@" + COMMIT).split("test").inputs.examples

    copy = pickle.loads(pickle.dumps(images))  # as Ray sends them to the workers of encode

    assert [copy.digest(i) for i in range(3)] == [images.digest(i) for i in range(3)]
    assert copy[1].tobytes() == images[1].tobytes()


def test_without_val_a_tenth_of_train_is_val(open_, files):
    write(files, "train", [i % 2 for i in range(100)], names=["a", "b"])
    write(files, "test", [0, 1], blue=9, names=["a", "b"])
    data = open_("hf:org/pets")
    assert data.splits == ("train", "val", "test")
    assert 3 <= len(data.split("val")) <= 20
    assert len(data.split("val")) + len(data.split("train")) == 100
    assert data.flags == ()


def test_without_test_the_published_val_is_test(open_, files):
    write(files, "train", [i % 2 for i in range(60)], names=["a", "b"])
    write(files, "valid", [0, 1], blue=9, names=["a", "b"])
    write(files, "test", [-1, -1], blue=8, names=["a", "b"])
    data = open_("hf:org/pets")
    assert data.split("test").inputs.ids == ("val/000000", "val/000001")
    assert len(data.split("val")) + len(data.split("train")) == 60
    assert data.flags == ("test_is_published_val",)
    assert any("'test' has no labels" in note for note in data.notes)


def test_single_split_is_split_by_content(open_, files):
    labels = [("cat", "dog")[i % 2] for i in range(120)]
    write(files, "train", labels)
    data = open_("hf:org/pets")
    assert data.classnames == ("cat", "dog")
    assert data.flags == ("split_by_hash",)
    assert sum(sizes(data).values()) == 120
    assert 50 <= len(data.split("train")) <= 95
    before = {s: set(data.split(s).inputs.ids) for s in data.splits}

    table = pq.read_table(files / "train-00000-of-00001.parquet")
    (files / "train-00000-of-00001.parquet").unlink()
    pq.write_table(pa.concat_tables([table, table]), files / "train-0.parquet")
    twice = open_("hf:org/pets")
    assert {s: len(twice.split(s)) for s in before} == {s: 2 * len(k) for s, k in before.items()}
    assert all(before[s] <= set(twice.split(s).inputs.ids) for s in before)
    assert "duplicates_across_splits" not in twice.flags


@pytest.mark.parametrize(("split", "served"), [("test", ("test",)), ("valid", ("val", "test"))])
def test_test_only_dataset_is_not_split(open_, files, split, served):
    write(files, split, [0, 1, 0, 1], names=["a", "b"])
    data = open_("hf:org/pets")
    assert data.splits == served
    assert all(len(data.split(s)) == 4 for s in served)
    assert "duplicates_across_splits" not in data.flags


def test_columns_by_name_and_by_type(open_, files):
    write(files, "train", [3, 11, 3, 11], image="scan", label="kind", names=list("abcdefghijkl"))
    data = open_("hf:org/pets")  # the only image column and the only declared labels
    assert len(data.classnames) == 12
    assert "empty_class" in data.flags

    write(files, "train", [10, 2] * 2, image="scan", label="kind", note=["x"] * 4)
    with pytest.raises(
        DataError, match=r"usual name for the image; its columns: scan, kind, note; .*\n.*\?image="
    ):
        open_("hf:org/pets")
    with pytest.raises(DataError, match=r"usual name for the label; its columns: scan, kind, note"):
        open_("hf:org/pets?image=scan")
    data = open_("hf:org/pets?image=scan&label=kind")
    assert data.classnames == ("2", "10")
    with pytest.raises(DataError, match="no column 'scam'; did you mean 'scan'"):
        open_("hf:org/pets?image=scam&label=kind")
    with pytest.raises(
        DataError, match="column 'note' contains string, not images; its columns: scan"
    ):
        open_("hf:org/pets?image=note&label=kind")
    with pytest.raises(DataError, match="column 'scan' contains dict, not one label per image"):
        open_("hf:org/pets?image=scan&label=scan")
    with pytest.raises(DataError, match="'imag=scan' in .* is not an option; did you mean 'image'"):
        open_("hf:org/pets?imag=scan")


def test_bytes_column_and_wordnet_ids(open_, files):
    table = {
        "image": [png(i, 0, 0)["bytes"] for i in range(4)],
        "label": ["n01440764", "n03888257"] * 2,
    }
    pq.write_table(pa.table(table), files / "test.parquet")
    data = open_("hf:org/pets")
    assert data.classnames == ("tench", "parachute")
    assert np.asarray(data.split("test").inputs.examples[3])[0, 0].tolist() == [3, 0, 0]


def test_image_files_in_folders(open_, files):
    for s, split in enumerate(("train", "test")):
        for c, name in enumerate(("cat", "dog")):
            (files / split / name).mkdir(parents=True)
            for i in range(20):
                (files / split / name / f"{i}.png").write_bytes(png(s, c, i)["bytes"])
    (files / "test" / "dog" / "3.png").write_text("text")
    data = open_("hf:org/pets")
    assert data.classnames == ("cat", "dog")
    assert len(data.split("test")) == 40
    bad = next(i for i in range(40) if _fails(data.split("test").inputs.examples, i))
    with pytest.raises(DataError, match=r"split test, row \d+ \(3\.png\)' is not an image"):
        data.split("test").inputs.examples[bad]
    assert sizes(open_("hf:org/pets", "skip"))["test"] == 39


def _fails(examples, index):
    try:
        examples[index]
    except DataError:
        return True
    return False


def test_rows_without_an_image_or_a_label(open_, files):
    images = [png(1, 0, 0), {"bytes": b"text", "path": "x.png"}, {"bytes": None, "path": None}]
    images += [png(2, 0, 0), png(3, 0, 0)]
    labels = ["a", "b", "a", None, "b"]
    pq.write_table(pa.table({"image": images, "label": labels}), files / "test.parquet")
    with pytest.raises(
        DataError, match=r"hf:org/pets, split test, row 4: there is no label \(cases: 1 of 5\)"
    ):
        open_("hf:org/pets")
    data = open_("hf:org/pets", "skip")
    assert data.skipped == 3
    assert data.split("test").inputs.ids == ("test/000000", "test/000004")

    blank = {"image": images[:1], "label": [" "]}
    pq.write_table(pa.table(blank), files / "test.parquet")
    with pytest.raises(DataError, match="has no labelled split"):
        open_("hf:org/pets")
    pq.write_table(pa.table({"image": images[:3], "label": labels[:3]}), files / "test.parquet")
    with pytest.raises(DataError, match="split test, row 3: there is no image in column 'image'"):
        open_("hf:org/pets")
    pq.write_table(pa.table({"image": images[:2], "label": labels[:2]}), files / "test.parquet")
    with pytest.raises(DataError, match=r"row 2 \(x\.png\)' is not an image: it starts like text"):
        open_("hf:org/pets").split("test").inputs.examples[1]


@pytest.mark.parametrize("to", ["{outside}", "../../../{outside}", "relative.png", "/dev/null"])
def test_files_outside_the_folder_of_the_table_are_refused(open_, files, tmp_path, to):
    outside = tmp_path / "secret.png"
    outside.write_bytes(png(9, 9, 9)["bytes"])
    own = files / "own.png"
    own.write_bytes(png(8, 8, 8)["bytes"])
    paths = [str(own), str(own), to.format(outside=outside)]
    images = [{"bytes": None, "path": path} for path in paths]
    pq.write_table(pa.table({"image": images, "label": ["a", "b", "b"]}), files / "test.parquet")
    with pytest.raises(
        DataError, match=r"split test, row 3: the file '.*' is outside the dataset's folder"
    ):
        open_("hf:org/pets")
    data = open_("hf:org/pets", "skip")
    assert (data.skipped, len(data.split("test"))) == (1, 2)


def test_label_column_without_classes(open_, files):
    write(files, "train", [f"id{i}" for i in range(30)])
    with pytest.raises(DataError, match="column 'label' has 30 distinct values in 30 rows"):
        open_("hf:org/pets")
    write(files, "train", ["a", "a", "a"])
    with pytest.raises(DataError, match="all 3 rows have the same label in column 'label', 'a'"):
        open_("hf:org/pets")


def test_several_configurations(open_, files):
    for name in ("a", "b"):
        (files / name).mkdir()
        write(files / name, "test", [0, 1], names=[f"{name} one", f"{name} two"])
    (files / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: a\n  data_files: a/*.parquet\n"
        "- config_name: b\n  data_files: b/*.parquet\n---\n"
    )
    with pytest.raises(DataError, match=r"(?s)has several configurations: a, b.*\?config=a"):
        open_("hf:org/pets")
    data = open_("hf:org/pets?config=b")
    assert data.name == "hf:org/pets?config=b"
    assert set(data.classnames) == {"b one", "b two"}


def test_identical_images_in_two_splits_are_reported(open_, files):
    for split in ("train", "validation", "test"):
        write(files, split, [0, 1], names=["a", "b"])
    data = open_("hf:org/pets")
    assert data.flags == ("duplicates_across_splits",)
    assert "(cases: 2): train/000000 = val/000000" in data.notes[-1]


def test_refusals(open_, files, monkeypatch):
    with pytest.raises(DataError, match="names no dataset"):
        open_("hf:")
    with pytest.raises(DataError, match="'a/b/c' is not a valid name of a hub dataset"):
        open_("hf:a/b/c")
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set.*no copy at revision v2") as caught:
        open_("hf:org/pets@v2")
    assert "folder:PATH" in caught.value.hint
    with pytest.raises(DataError, match="only a part of one"):
        open_("hf:org/pets")  # no files at all

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def ask(*_):
        raise ConnectionError("name not known")

    monkeypatch.setattr(hub_client, "list_files", ask)
    write(files, "test", [0, 1], names=["a", "b"])
    assert "name not known" in open_("hf:org/pets").notes[0]
