"""The datasets of torchvision that CoOp's papers do not use, and torchvision's copies of three that they do."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest

from clipadapt.core.api.data import DatasetOptions
from clipadapt.core.api.errors import DataError
from clipadapt.datasets import DEFAULT_NAMES
from clipadapt.datasets._clip_names import COUNTRIES, TRAFFIC_SIGNS
from clipadapt.datasets._known import KNOWN
from clipadapt.datasets.torchvision import open_torchvision
from tests.unit.datasets.torchvision_layout import LAYOUTS, stand_in_for_h5py

STRICT = DatasetOptions()
# Class names in label order, the single template, whether the splits are published, and the labels of test.
WANTED = {
    "caltech101": (
        ("face", "centered face", "airplane", "car side"), "a photo of a {}.", False, None,
    ),
    "country211": (
        ("Andorra", "Cote d'Ivoire", "Kosovo"), "a photo i took in {}.", True, [0, 1, 2],
    ),
    "fer2013": (
        ("angry", "disgusted", "fearful", "happy", "sad", "surprised", "neutral"),
        "a photo of a {} looking face.", True, [*range(7), *range(7)],
    ),
    "gtsrb": (TRAFFIC_SIGNS, 'a zoomed in photo of a "{}" traffic sign.', True, [16, 1, 42]),
    "mnist": (tuple("0123456789"), 'a photo of the number: "{}".', True, [*range(10)]),
    "pcam": (
        ("lymph node", "lymph node containing metastatic tumor tissue"),
        "this is a photo of {}", True, [0, 1, 0, 1, 0, 1],
    ),
    "rendered_sst2": (("negative", "positive"), "a {} review of a movie.", True, [0, 1]),
    "stanford_cars": (
        ("2000 AM General Hummer SUV", "2012 Ram C/V Cargo Van Minivan"),
        "a photo of a {}.", True, [0, 1] * 15,
    ),
    "sun397": (("abbey", "outdoor church"), "a photo of a {}.", False, None),
}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Write the copy of a dataset; the checks of the real files' sums are off."""
    monkeypatch.setattr("torchvision.datasets.fer2013.check_integrity", lambda *_, **__: True)
    monkeypatch.setitem(sys.modules, "h5py", stand_in_for_h5py())

    def write(name):
        LAYOUTS[name](tmp_path)
        return tmp_path

    return write


@pytest.mark.parametrize("name", WANTED)
def test_layout_of_torchvision(place, name):
    names, template, published, labels = WANTED[name]
    data = open_torchvision(f"{name}:{place(name)}", STRICT)

    assert (data.name, data.classnames, data.templates) == (name, names, (template,))
    assert data.template_sets["clip"][0].count("{}") == 1
    assert data.splits == ("train", "val", "test")
    assert data.flags == (() if published else ("not_the_official_split",))
    if labels is not None:
        assert data.split("test").labels.tolist() == labels
    ids = [key for split in data.splits for key in data.split(split).inputs.ids]
    assert len(set(ids)) == len(ids)
    for split in data.splits:
        assert data.split(split).inputs.examples[0].mode == "RGB"
    assert len(data.fingerprint) == 64


def test_rows_do_not_depend_on_the_order_of_the_disk(place):
    data = open_torchvision(f"sun397:{place('sun397')}", STRICT)
    for split in data.splits:
        ids = list(data.split(split).inputs.ids)
        assert ids == sorted(ids)


def test_the_label_of_an_image_is_that_of_its_folder(place):
    data = open_torchvision(f"caltech101:{place('caltech101')}", STRICT)
    for split in data.splits:
        part = data.split(split)
        folders = [data.keys[label] for label in part.labels]
        assert [key.split("/")[2] for key in part.inputs.ids] == folders
    gtsrb = open_torchvision(f"gtsrb:{place('gtsrb')}", STRICT)
    train = gtsrb.split("train")
    assert [int(k.split("/")[3]) for k in train.inputs.ids] == train.labels.tolist()


@pytest.mark.parametrize("name", WANTED)
def test_an_incomplete_copy_names_what_is_missing(place, name):
    root = place(name)
    wanted = KNOWN[name].layout[0].partition("|")[0]
    if (root / wanted).is_dir():
        shutil.rmtree(root / wanted)
    else:
        (root / wanted).unlink()
    before = sorted(root.rglob("*"))

    with pytest.raises(
        DataError, match=f"does not contain {name} in torchvision's layout"
    ) as caught:
        open_torchvision(f"{name}:{root}", STRICT)

    assert wanted in str(caught.value)
    assert sorted(root.rglob("*")) == before


def test_damaged_files_are_one_message(place):
    root = place("stanford_cars")
    for content in (b"", b"no matrix", bytes(200)):
        (root / "stanford_cars" / "devkit" / "cars_meta.mat").write_bytes(content)
        with pytest.raises(
            DataError, match=r"does not contain stanford_cars in torchvision.s layout"
        ):
            open_torchvision(f"stanford_cars:{root}", STRICT)
    place("mnist")
    labels = root / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"does not contain mnist in torchvision.s layout"):
        open_torchvision(f"mnist:{root}", STRICT)


def test_a_label_that_is_not_a_class_is_refused(place):
    root = place("gtsrb")
    table = root / "gtsrb" / "GT-final_test.csv"
    table.write_text(table.read_text().replace(";42\n", ";43\n"))
    with pytest.raises(DataError, match="gtsrb has 43 classes, but labels from 1 to 43 in test"):
        open_torchvision(f"gtsrb:{root}", STRICT)


def test_splits_of_different_classes_are_refused(place):
    root = place("country211")
    shutil.rmtree(root / "country211" / "test" / "CI")
    with pytest.raises(DataError, match=r"different classes: 3 in train, 2 in test; .* has CI"):
        open_torchvision(f"country211:{root}", STRICT)


@pytest.mark.parametrize("name", ["stanford_cars", "fer2013"])
def test_a_dataset_without_a_download_says_what_to_provide(name):
    with pytest.raises(
        DataError, match=f"{name} needs a folder: torchvision cannot download it"
    ) as err:
        open_torchvision(name, STRICT)
    assert f"write {name}:DIR, where DIR contains {name}/" in str(err.value)


def test_pcam_names_the_missing_package(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"pcam needs the package h5py.*\n  hint: pip install h5py"):
        open_torchvision(f"pcam:{tmp_path}", STRICT)


def test_the_split_file_of_coop_is_used_where_it_is(place):
    root = place("stanford_cars")

    def rows(folder, numbers):
        names = ("2000 A B", "2012 C D")
        return [[f"cars_{folder}/{i:05d}.jpg", i % 2, names[i % 2]] for i in numbers]

    split = {
        "train": rows("train", range(20)),
        "val": rows("train", range(20, 30)),
        "test": rows("test", range(30)),
    }
    (root / "stanford_cars" / "split_zhou_StanfordCars.json").write_text(json.dumps(split))
    assert open_torchvision(f"stanford_cars:{root}", STRICT).name == "stanford_cars:coop"


def test_class_names_of_the_clip_paper():
    assert (len(COUNTRIES), len(TRAFFIC_SIGNS)) == (211, 43)
    assert list(COUNTRIES) == sorted(
        COUNTRIES
    )  # the order of the folders, which is that of the labels
    assert len(set(COUNTRIES.values())) == 211
    assert TRAFFIC_SIGNS[14] == "stop"
    for known in KNOWN.values():
        assert all(t.count("{}") == 1 for t in known.facts.ensemble)


def test_ls_lists_the_names_and_not_their_file(cli):
    listed = json.loads(cli("ls", "datasets", "--json").out)["datasets"]
    assert tuple(sorted(KNOWN)) == DEFAULT_NAMES
    assert {*KNOWN, "coop", "folder"} <= {*listed}
    assert "torchvision" not in listed
    assert listed == sorted(set(listed))


def test_arrays_are_read_in_order(place):
    data = open_torchvision(f"pcam:{place('pcam')}", STRICT)
    assert {s: int(np.asarray(data.split(s).inputs.examples[1]).mean()) for s in data.splits} == {
        "train": 0,
        "val": 40,
        "test": 80,
    }
