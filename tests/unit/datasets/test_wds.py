"""``wds:PATH``: CLIP_benchmark's webdataset layout."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from clipadapt.core.api.data import DatasetOptions
from clipadapt.core.api.errors import DataError
from clipadapt.datasets.wds import open_wds

STRICT = DatasetOptions()
SKIP = DatasetOptions(on_bad_image="skip")


def encoded(label, i, form):
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (90 * label, i, 7)).save(
        file, {"jpg": "JPEG"}.get(form, form), lossless=True
    )
    return file.getvalue()


def write_tar(path, members):
    """Write ``(name, content)`` in order, in the format of webdataset's writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def members(numbers, form, n_classes=3):
    for i in numbers:
        yield f"s{i:07d}.cls", str(i % n_classes).encode()
        yield f"s{i:07d}.{form}", encoded(i % n_classes, i, form)


@pytest.fixture
def place(tmp_path):
    root = tmp_path / "wds_pets"
    write_tar(root / "test" / "0.tar", members(range(4), "webp"))
    write_tar(root / "test" / "1.tar", members(range(4, 7), "webp"))
    (root / "test" / "nshards.txt").write_text("2\n")
    write_tar(root / "train" / "0.tar", members(range(30), "png"))
    (root / "train" / "nshards.txt").write_text("1\n")
    (root / "classnames.txt").write_text("cat\ndog\nsea lion\n")
    (root / "zeroshot_classification_templates.txt").write_text(
        "a photo of a {c}, a type of pet.\na picture of the {c}.\n"
    )
    (root / "dataset_type.txt").write_text("classification\n")
    return root


def test_layout_of_clip_benchmark(place):
    data = open_wds(str(place), STRICT)

    assert data.name == "wds:wds_pets"
    assert data.classnames == ("cat", "dog", "sea lion")
    assert data.templates == ("a photo of a {}, a type of pet.",)
    assert data.template_sets["clip"][1] == "a picture of the {}."
    assert data.splits == ("train", "val", "test")
    test = data.split("test")
    assert test.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert test.inputs.ids[3:5] == ("test/0/s0000003", "test/1/s0000004")
    assert len(data.split("train")) + len(data.split("val")) == 30
    assert set(data.split("val").labels.tolist()) == {0, 1, 2}
    for i, label in enumerate(test.labels):
        pixel = np.asarray(test.inputs.examples[i])[0, 0].tolist()
        assert pixel == [90 * label, i, 7]
    assert test.inputs.examples[2:4][1].size == (5, 4)
    assert data.flags == ()


def test_images_are_read_by_offset_from_threads_and_other_processes(place):
    images = open_wds(str(place), STRICT).split("test").inputs.examples
    there = pickle.loads(pickle.dumps(images))
    with ThreadPoolExecutor(4) as pool:
        pixels = list(pool.map(lambda i: np.asarray(there[i])[0, 0, 1], range(7)))
    assert pixels == list(range(7))
    assert images.content(0) == hashlib.sha256(encoded(0, 0, "webp")).hexdigest()
    assert open_wds(str(place), STRICT).fingerprint == open_wds(str(place), STRICT).fingerprint


def test_no_image_is_read_before_it_is_used(place, monkeypatch):
    monkeypatch.setattr("clipadapt.datasets._shards.load_rgb", None)
    monkeypatch.setattr("clipadapt.datasets._shards.ShardImages._raw", None)
    assert len(open_wds(str(place), STRICT).split("test")) == 7


def test_a_changed_label_or_image_changes_the_fingerprint(place):
    before = open_wds(str(place), STRICT).fingerprint
    rows = list(members(range(4), "webp"))
    for at, content in ((0, b"1"), (1, encoded(0, 200, "webp"))):
        changed = [(n, content if i == at else c) for i, (n, c) in enumerate(rows)]
        write_tar(place / "test" / "0.tar", changed)
        assert open_wds(str(place), STRICT).fingerprint != before


def test_folders_without_a_count_and_with_other_members(place):
    (place / "test" / "nshards.txt").unlink()
    rows = [*members(range(2), "jpg"), ("s0000000.json", b"{}"), ("sub/a.b.txt", b"x")]
    write_tar(place / "test" / "10.tar", rows)
    ids = open_wds(str(place), STRICT).split("test").inputs.ids
    assert ids[-3:] == ("test/1/s0000006", "test/10/s0000000", "test/10/s0000001")


def test_test_alone_needs_no_train(place):
    for file in (place / "train").iterdir():
        file.unlink()
    (place / "zeroshot_classification_templates.txt").unlink()
    data = open_wds(str(place), STRICT)
    assert data.splits == ("test",)
    assert data.templates == ("a photo of a {}.",)
    assert "no zeroshot_classification_templates.txt" in data.notes[0]


@pytest.mark.parametrize("kept", [0, 100, 600, 1500, -512, -1024])
def test_a_truncated_tar_is_refused(place, kept):
    path = place / "test" / "1.tar"
    whole = path.read_bytes()
    used = len(whole.rstrip(b"\0"))
    end = -(-used // 512) * 512  # where the two blocks of zeros begin
    path.write_bytes(whole[: kept if kept >= 0 else end + kept + 512])
    with pytest.raises(DataError, match=r"1\.tar' is not a complete tar file: .*\n  hint: copy or"):
        open_wds(str(place), STRICT)


def test_a_tar_that_shrinks_while_it_is_open(place):
    images = open_wds(str(place), STRICT).split("test").inputs.examples
    path = place / "test" / "0.tar"
    path.write_bytes(path.read_bytes()[:1600])
    with pytest.raises(DataError, match=r"0\.tar, member s0000003\.webp' is incomplete"):
        images[3]


def test_images_without_a_label(place):
    rows = [m for m in members(range(6), "webp") if m[0] not in {"s0000002.cls", "s0000004.cls"}]
    write_tar(place / "test" / "0.tar", rows)
    message = r"2 of the 6 images in '.*0\.tar' have no label \(\.cls\): 's0000002\.webp', 's0000004\.webp'"
    with pytest.raises(DataError, match=message):
        open_wds(str(place), STRICT)
    data = open_wds(str(place), SKIP)
    assert len(data.split("test")) == 4 + 3
    assert data.left_out["images without a label"] == 2


@pytest.mark.parametrize("label", ["3", "-1", "cat", "", "1.0"])
def test_a_label_that_is_not_a_class(place, label):
    rows = [("s0000000.cls", label.encode()), ("s0000000.webp", encoded(0, 0, "webp"))]
    write_tar(place / "test" / "0.tar", rows)
    with pytest.raises(DataError, match=r"label of 's0000000' in .*; accepted: 0 to 2, because"):
        open_wds(str(place), STRICT)


def test_unreadable_images_can_be_skipped(place):
    rows = [("a.cls", b"1"), ("a.png", b"text"), ("b.cls", b"2"), ("b.png", encoded(2, 0, "png"))]
    write_tar(place / "test" / "0.tar", rows)
    with pytest.raises(DataError, match=r"member a\.png' is not an image: it starts like text"):
        open_wds(str(place), STRICT).split("test").inputs.examples[0]
    data = open_wds(str(place), SKIP)
    assert (data.skipped, data.split("test").labels.tolist()) == (1, [2, 1, 2, 0])


def replaced(name, text):
    return lambda root: (root / name).write_text(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "classnames.txt").unlink(), "has no classnames.txt"),
        (replaced("classnames.txt", "cat\n\ndog\n"), "line 2 of .* is empty"),
        (replaced("dataset_type.txt", "retrieval\n"), "of the type 'retrieval'; accepted: class"),
        (
            replaced("test/nshards.txt", "4"),
            r"2 of the 4 tar files .* not there: '2\.tar', '3\.tar'",
        ),
        (replaced("test/nshards.txt", "999999999"), "999999997 of the 999999999 tar files"),
        (replaced("test/nshards.txt", "two"), "contains 'two', not a number"),
        (
            replaced("zeroshot_classification_templates.txt", "a photo\n"),
            r"needs exactly one '\{c\}'",
        ),
        (
            lambda root: (root / "train").rename(root / "test_set"),
            "more than one folder for the spl",
        ),
        (
            lambda root: write_tar(root / "test" / "0.tar", [("a.cls", b"0")]),
            "a label but no image",
        ),
        (
            lambda root: write_tar(root / "test" / "0.tar", [("a.png", b"1"), ("a.jpg", b"2")]),
            "two images of the key 'a'",
        ),
    ],
)
def test_wrong_layouts_are_one_message(place, change, message):
    change(place)
    with pytest.raises(DataError, match=message):
        open_wds(str(place), STRICT)


def test_a_folder_without_tar_files_and_an_address(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(
        DataError, match="no folder train, val or test with tar files; its folders: images"
    ):
        open_wds(str(tmp_path), STRICT)
    with pytest.raises(DataError, match="reads a folder, not an address"):
        open_wds("https://huggingface.co/datasets/clip-benchmark/wds_cars", STRICT)


def test_wrong_input_exits_2(cli, place):
    (place / "classnames.txt").unlink()
    done = cli("doctor", "--dataset", f"wds:{place}")
    assert done.code == 2
    assert re.search("MISSING dataset wds:.*has no classnames.txt", done.out)
