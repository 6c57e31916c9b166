"""Tiny ImageNet: the layout of the original archive, the hub's copy with misnamed classes, and errors."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipadapt.core.api.data import DatasetOptions
from clipadapt.core.api.errors import DataError
from clipadapt.datasets import tiny_imagenet
from clipadapt.datasets._imagenet import wnid_index
from clipadapt.datasets.tiny_imagenet import MISNAMED, open_tiny_imagenet
from tests.unit.conftest import cached_repo

STRICT = DatasetOptions()
SKIP = DatasetOptions(on_bad_image="skip")
LISTED = ("n02124075", "n04067472", "n01443537")  # as in the archive, in no order
NAMES = ("goldfish", "Egyptian Mau", "fishing casting reel")


def image(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), colour).save(path)


@pytest.fixture
def original(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for c, wnid in enumerate(LISTED):
        for i in range(30):
            image(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", (c, i, 0))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("x")
    for i in range(6):
        image(root / "val" / "images" / f"val_{i}.JPEG", (0, i, 9))
    image(root / "test" / "images" / "test_0.JPEG", "red")
    lines = [f"val_{i}.JPEG\t{LISTED[i % 3]}\t0\t32\t44\t62\n" for i in range(6)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(LISTED))
    (root / "words.txt").write_text("n02124075\tEgyptian cat\n")
    return root


def test_the_original_layout(original):
    data = open_tiny_imagenet(str(original), STRICT)

    assert data.name == "tiny-imagenet"
    assert data.classnames == NAMES
    assert data.splits == ("train", "val", "test")
    assert len(data.split("train")) + len(data.split("val")) == 90
    assert 2 <= len(data.split("val")) <= 20
    assert set(data.split("train").inputs.ids).isdisjoint(data.split("val").inputs.ids)
    assert data.split("train").inputs.ids[0] == "train/n01443537/n01443537_0.JPEG"
    assert data.split("test").inputs.ids == tuple(f"val/val_{i}.JPEG" for i in range(6))
    assert data.split("test").labels.tolist() == [1, 2, 0, 1, 2, 0]
    assert data.split("test").inputs.examples[4].getpixel((0, 0))[2] > 0
    assert data.flags == ("test_is_published_val",)
    assert data.notes == ()
    assert open_tiny_imagenet(str(original.parent), STRICT).fingerprint == data.fingerprint


def test_only_val(original):
    (original / "train").rename(original.parent / "away")
    data = open_tiny_imagenet(str(original), STRICT)
    assert data.splits == ("val", "test")
    assert data.aliases == {"val": "test"}


def test_unreadable_image_is_reported_or_skipped(original):
    (original / "val" / "images" / "val_2.JPEG").write_bytes(b"")
    with pytest.raises(DataError, match=r"val_2\.JPEG' is not an image: the file is empty"):
        open_tiny_imagenet(str(original), STRICT).split("test").inputs.examples[2]
    data = open_tiny_imagenet(str(original), SKIP)
    assert data.skipped == 1
    assert data.split("test").labels.tolist() == [1, 2, 1, 2, 0]


def test_missing_or_wrong_files_are_reported(original):
    annotations = original / "val" / "val_annotations.txt"
    good = annotations.read_text()

    def refused(match):
        with pytest.raises(DataError, match=match) as caught:
            open_tiny_imagenet(str(original), STRICT)
        assert caught.value.hint

    annotations.write_text(good + "val_6.JPEG\tn02124075\t0\t0\t1\t1\n")
    refused(r"lists 'val_6\.JPEG', which is not in val/images \(cases: 1 of 7\)")
    annotations.write_text(good.replace("n04067472", "n04067473"))
    refused(r"val_annotations\.txt, line 2: 'n04067473' is not a class of wnids\.txt")
    annotations.write_text(good.replace("\t", " "))
    refused(r"line 1: '' is not a class of wnids\.txt \(the line is 'val_0\.JPEG n02124075")
    annotations.unlink()
    refused(r"val' contains no val_annotations\.txt")
    (original / "wnids.txt").write_text("n02124075\nn99999999\n")
    refused(r"wnids\.txt, line 2: 'n99999999' is not a WordNet id of ImageNet-1k")
    (original / "wnids.txt").unlink()
    refused(r"tiny-imagenet-200' contains no wnids\.txt")
    with pytest.raises(DataError, match=r"did you mean 'tiny-imagenet-200'\?"):
        open_tiny_imagenet(str(original.parent / "tiny-imagenet-20"), STRICT)


# ---------------------------------------------------------------- hub


def png(colour):
    file = io.BytesIO()
    Image.new("RGB", (6, 6), colour).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def hub_copy(cache, names, revision=tiny_imagenet.REVISION, ref=None):
    """Write Parquet files as on the hub, with the class names declared in their metadata."""
    import datasets

    files = cached_repo(cache, tiny_imagenet.REPO, revision, ref=ref)
    (files / "data").mkdir()
    features = datasets.Features({
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(names)),
    })
    for split, n in (("train", 40), ("valid", 4)):
        rows = {
            "image": [png((i, n, 0)) for i in range(n)],
            "label": [i % len(names) for i in range(n)],
        }
        table = pa.table(rows, schema=features.arrow_schema)
        pq.write_table(table, files / "data" / f"{split}-00000-of-00001-abc.parquet")
    return files


def test_pinned_hub_copy_with_misnamed_classes(hub_cache):
    """The hub's column declares the dance reel and the state of Chihuahua."""
    hub_copy(hub_cache, ("n01443537", "n02124075", "n07056680", "n08742578"))
    data = open_tiny_imagenet("", STRICT)

    assert data.classnames == ("goldfish", "Chihuahua", "Egyptian Mau", "fishing casting reel")
    assert data.splits == ("train", "val", "test")
    assert data.split("test").labels.tolist() == [0, 2, 3, 1]
    assert data.split("test").inputs.ids[1] == "valid/000001"
    assert data.split("test").inputs.examples[1].getpixel((0, 0)) == (1, 4, 0)
    assert len(data.split("train")) + len(data.split("val")) == 40
    assert tiny_imagenet.REVISION in data.source
    assert data.notes == ()


def test_every_misnamed_class_maps_to_an_imagenet_class():
    assert set(MISNAMED.values()) <= set(wnid_index())
    assert set(MISNAMED).isdisjoint(wnid_index())
    assert len(set(MISNAMED.values())) == 18


def test_another_cached_revision_is_used_and_reported(hub_cache):
    hub_copy(hub_cache, LISTED, revision="b" * 40, ref="main")
    data = open_tiny_imagenet("", STRICT)
    assert "read from the hub cache, commit " + "b" * 40 in data.notes[0]


def test_hub_copy_with_other_classes_is_an_error(hub_cache):
    hub_copy(hub_cache, ("cat", "dog"))
    with pytest.raises(DataError, match="is not as expected: the class 'cat'"):
        open_tiny_imagenet("", STRICT)


def test_neither_network_nor_folder(hub_cache):
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set.*has no copy") as caught:
        open_tiny_imagenet("", STRICT)
    assert "tiny-imagenet:DIR" in caught.value.hint
    assert "openmoji:color" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["../../secret.png", "/etc/passwd", "a/../b.JPEG", "..", "sub\\x.JPEG"]
)
def test_annotations_outside_the_folder_are_an_error(original, name):
    image(original.parent / "secret.png", "red")
    table = original / "val" / "val_annotations.txt"
    table.write_text(f"{name}\t{LISTED[0]}\t0\t0\t1\t1\n" + table.read_text())
    with pytest.raises(DataError, match=r"line 1: .* is not the name of a file in val/images"):
        open_tiny_imagenet(str(original), STRICT)
