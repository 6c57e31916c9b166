"""ImageNet and its variants for distribution shift, on small folders in their layouts."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from clipadapt.core.api.data import DatasetOptions
from clipadapt.core.api.errors import DataError
from clipadapt.core.api.registry import DATASETS
from clipadapt.datasets._imagenet import CLASSNAMES, WNIDS
from clipadapt.datasets.imagenet import open_imagenet
from clipadapt.datasets.imagenet_a import DATASET as IMAGENET_A
from clipadapt.datasets.imagenet_r import DATASET as IMAGENET_R
from clipadapt.datasets.imagenet_v2 import open_imagenet_v2

STRICT = DatasetOptions()
SOME = (WNIDS[5], WNIDS[2], WNIDS[700])


def write(folder, names, n=2):
    for c, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (5, 5), (c, i, 7)).save(folder / name / f"{name}_{i}.JPEG")


@pytest.mark.parametrize("name", ["imagenet", "imagenet-v2", "imagenet-a", "imagenet-r"])
def test_without_a_folder_the_error_explains_what_to_do(name):
    with pytest.raises(
        DataError, match=rf"^{name} is not downloaded automatically.*\n  hint: .*{name}:DIR"
    ):
        DATASETS.resolve(name, "clip").provider("", STRICT)


@pytest.mark.parametrize("below", ["", "images"])
def test_imagenet_uses_val_as_test_and_a_tenth_of_train_as_val(below, tmp_path):
    write(tmp_path / below / "train", SOME, n=40)
    write(tmp_path / below / "val", SOME)

    data = open_imagenet(str(tmp_path), STRICT)

    assert data.classnames == CLASSNAMES
    assert "test_is_published_val" in data.flags
    sizes = {split: len(data.split(split)) for split in ("train", "val", "test")}
    assert sizes["train"] + sizes["val"] == 120
    assert 4 <= sizes["val"] <= 24
    assert sizes["test"] == 6
    # Classes are in ImageNet's order, whatever the order of the folders.
    assert data.split("test").labels.tolist() == [2, 2, 5, 5, 700, 700]
    assert data.split("test").inputs.ids[0] == f"val/{WNIDS[2]}/{WNIDS[2]}_0.JPEG"


def test_imagenet_with_only_val(tmp_path):
    write(tmp_path / "val", SOME)

    data = open_imagenet(str(tmp_path), STRICT)

    assert data.aliases == {"val": "test"}
    with pytest.raises(DataError, match="no split 'train'"):
        data.split("train")


def test_other_layout_of_imagenet_is_an_error(tmp_path):
    write(tmp_path, SOME)
    with pytest.raises(
        DataError, match=r"contains neither train/ nor val/\n  hint: imagenet:DIR takes"
    ):
        open_imagenet(str(tmp_path), STRICT)
    write(tmp_path / "val", ("tench",))
    with pytest.raises(DataError, match="contains no WordNet-id folders"):
        open_imagenet(str(tmp_path), STRICT)


@pytest.mark.parametrize(
    ("open_it", "name"), [(IMAGENET_A, "imagenet-a"), (IMAGENET_R, "imagenet-r")]
)
def test_a_and_r_have_the_classes_of_their_folders(open_it, name, tmp_path):
    write(tmp_path / name, SOME)

    data = open_it(str(tmp_path), STRICT)

    assert data.name == name
    assert data.classnames == tuple(CLASSNAMES[i] for i in (2, 5, 700))
    assert data.split("test").labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.flags == ("other_classes",)
    assert "3 classes here, 200 as published" in data.notes[0]
    assert open_it(str(tmp_path / name), STRICT).fingerprint == data.fingerprint


def test_all_two_hundred_classes_give_no_flag(tmp_path):
    write(tmp_path, WNIDS[:200], n=1)

    data = IMAGENET_R(str(tmp_path), STRICT)

    assert (data.flags, data.notes) == ((), ())
    assert data.classnames == CLASSNAMES[:200]


def test_v2_reads_labels_from_folder_names(tmp_path):
    write(tmp_path / "imagenetv2-matched-frequency-format-val", ("10", "9", "999"))

    data = open_imagenet_v2(str(tmp_path), STRICT)

    assert data.classnames == CLASSNAMES
    np.testing.assert_array_equal(data.split("test").labels, [9, 9, 10, 10, 999, 999])
    assert data.flags == ("empty_class",)
    (tmp_path / "imagenetv2-matched-frequency-format-val" / "1000").mkdir()
    with pytest.raises(DataError, match="not labels from 0 to 999: 1000"):
        open_imagenet_v2(str(tmp_path), STRICT)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="no folders named by ImageNet's labels"):
        open_imagenet_v2(str(tmp_path / "other"), STRICT)


def test_unreadable_images_are_skipped(tmp_path):
    write(tmp_path, SOME)
    (tmp_path / SOME[0] / f"{SOME[0]}_0.JPEG").write_text("text")

    data = IMAGENET_A(str(tmp_path), DatasetOptions(on_bad_image="skip"))

    assert (data.skipped, len(data.split("test"))) == (1, 5)
