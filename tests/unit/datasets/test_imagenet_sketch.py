"""ImageNet-Sketch and ImageNette-Sketch: every layout of the folder, and the archive from the hub."""

from __future__ import annotations

import hashlib
import zipfile

import numpy as np
import pytest
from PIL import Image

from clipadapt.core.api.data import DatasetOptions
from clipadapt.core.api.errors import DataError
from clipadapt.core.api.registry import DATASETS
from clipadapt.datasets import imagenet_sketch, imagenette
from clipadapt.datasets._imagenet import CLASSNAMES
from clipadapt.datasets.imagenet_sketch import open_imagenet_sketch
from clipadapt.datasets.imagenette_sketch import open_imagenette_sketch
from tests.unit.conftest import cached_repo

STRICT = DatasetOptions()
OTHERS = ("n01443537", "n15075141")  # goldfish, toilet paper


def write(folder, wnids, n=2):
    for c, wnid in enumerate(wnids):
        (folder / wnid).mkdir(parents=True)
        for i in range(n):
            Image.new("L", (5, 5), 10 * c + i).save(folder / wnid / f"sketch_{i}.JPEG")


@pytest.fixture
def sketches(tmp_path):
    write(tmp_path / "sketch", (*imagenette.WNIDS, *OTHERS))
    return tmp_path


def test_all_thousand_classes_and_one_split(sketches):
    data = open_imagenet_sketch(str(sketches), STRICT)

    assert data.name == "imagenet-sketch"
    assert data.classnames == CLASSNAMES
    assert data.splits == ("test",)
    test = data.split("test")
    assert len(test) == 24
    assert test.inputs.ids[:2] == ("n01440764/sketch_0.JPEG", "n01440764/sketch_1.JPEG")
    assert [CLASSNAMES[i] for i in sorted(set(test.labels.tolist()))[:2]] == ["tench", "goldfish"]
    assert test.labels.tolist()[-1] == 999
    assert test.inputs.examples[0].mode == "RGB"
    assert data.flags == ("empty_class",)
    assert "and 983 more" in data.notes[0]
    assert "1905.13549" in data.citation
    with pytest.raises(DataError, match="no split 'train'; it has: test"):
        data.split("train")


def test_classes_equal_those_of_imagenette(sketches, tmp_path):
    data = open_imagenette_sketch(str(sketches), STRICT)
    write(tmp_path / "photos" / "val", imagenette.WNIDS, n=1)
    photos = imagenette.open_imagenette(str(tmp_path / "photos"), STRICT)

    assert data.name == "imagenette-sketch"
    assert data.classnames == photos.classnames
    assert data.templates == photos.templates
    assert data.split("test").labels.tolist() == [i for i in range(10) for _ in range(2)]
    assert (data.flags, data.notes) == ((), ())


def test_every_layout_gives_the_same_dataset(sketches, tmp_path):
    (tmp_path / "b").mkdir()
    first = open_imagenet_sketch(str(sketches), STRICT).fingerprint
    assert open_imagenet_sketch(str(sketches / "sketch"), STRICT).fingerprint == first
    (sketches / "sketch").rename(tmp_path / "b" / "images")
    assert open_imagenet_sketch(str(tmp_path / "b"), STRICT).fingerprint == first


def test_unreadable_image_is_reported_or_skipped(sketches):
    bad = sketches / "sketch" / imagenette.WNIDS[1] / "sketch_0.JPEG"
    bad.write_text("text")
    strict = open_imagenette_sketch(str(sketches), STRICT).split("test")
    with pytest.raises(DataError, match=r"n02102040/sketch_0\.JPEG' is not an image: it starts"):
        strict.inputs.examples[2]
    data = open_imagenette_sketch(str(sketches), DatasetOptions(on_bad_image="skip"))
    assert data.skipped == 1
    assert len(data.split("test")) == 19
    assert data.notes == ("imagenette-sketch: left out: 1 unreadable images",)


def test_other_folders_are_errors(sketches, tmp_path):
    with pytest.raises(DataError, match=r"no 'sketchs'; did you mean 'sketch'\?"):
        open_imagenet_sketch(str(sketches / "sketchs"), STRICT)
    (tmp_path / "empty" / "tench").mkdir(parents=True)
    with pytest.raises(
        DataError,
        match=r"contains no WordNet-id folders; expected.*empty/n01440764 .*\n  hint: imagenette-sketch:DIR",
    ):
        open_imagenette_sketch(str(tmp_path / "empty"), STRICT)
    (sketches / "sketch" / "n01440763").mkdir()
    with pytest.raises(DataError, match=r"not classes of ImageNet-1k: n01440763; did you mean"):
        open_imagenet_sketch(str(sketches), STRICT)
    write(tmp_path / "other", OTHERS)
    with pytest.raises(DataError, match="no readable image of the 10 classes of imagenette-sketch"):
        open_imagenette_sketch(str(tmp_path / "other"), STRICT)


# ---------------------------------------------------------------- hub


@pytest.fixture
def archive(hub_cache, tmp_path, monkeypatch):
    """A small archive in the hub cache, with the folder that macOS adds, and an empty cache folder."""
    write(tmp_path / "src" / "sketch", (*imagenette.WNIDS, *OTHERS), n=1)
    path = cached_repo(hub_cache, imagenet_sketch.REPO, "a" * 40) / imagenet_sketch.ARCHIVE
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("__MACOSX/sketch/._x", "junk")
        for file in sorted((tmp_path / "src").rglob("*.JPEG")):
            packed.write(file, file.relative_to(tmp_path / "src"))
    monkeypatch.setattr(
        imagenet_sketch, "ARCHIVE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest()
    )
    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path / "cache"))
    return path


def test_archive_is_unpacked_once_for_both_datasets(archive, tmp_path):
    data = DATASETS.resolve("imagenet-sketch", "clip").provider("", STRICT)
    assert len(data.split("test")) == 12
    unpacked = tmp_path / "cache" / "datasets" / "imagenet-sketch"
    assert [p.name for p in unpacked.iterdir()] == ["sketch"]

    archive.unlink()
    ten = DATASETS.resolve("imagenette_sketch", "clip").provider("", STRICT)
    assert len(ten.split("test")) == 10
    assert (
        ten.fingerprint
        == open_imagenette_sketch(str(tmp_path / "src" / "sketch"), STRICT).fingerprint
    )
    np.testing.assert_array_equal(ten.split("test").labels, np.arange(10))


def test_wrong_archive_is_an_error_and_leaves_nothing(archive, tmp_path):
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(DataError, match="has changed: its sha256 is"):
        open_imagenet_sketch("", STRICT)
    archive.unlink()
    with pytest.raises(DataError, match="only a part of one"):
        open_imagenet_sketch("", STRICT)
    assert not (tmp_path / "cache" / "datasets").exists()


@pytest.mark.parametrize("name", ["imagenet-sketch", "imagenette-sketch"])
def test_neither_network_nor_folder(hub_cache, monkeypatch, tmp_path, name):
    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set.*has no copy") as caught:
        DATASETS.resolve(name, "clip").provider("", STRICT)
    assert f"{name}:DIR" in caught.value.hint
    assert "openmoji:line" in caught.value.hint
