"""torchvision datasets: small copies of their layouts, names, and errors."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from clipadapt.core.api.data import DatasetOptions
from clipadapt.core.api.errors import DataError, UnknownNameError
from clipadapt.core.api.registry import DATASETS
from clipadapt.core.files import network
from clipadapt.datasets.torchvision import KNOWN, open_torchvision

STRICT = DatasetOptions()
EUROSAT = [
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
]


def write(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path)


@pytest.fixture
def eurosat(tmp_path):
    for c, name in enumerate(EUROSAT):
        for i in range(12):
            write(tmp_path / "eurosat" / "2750" / name / f"{name}_{i}.jpg", (c, i, 0))
    return tmp_path


def test_dataset_without_splits_is_split_by_name(eurosat):
    data = open_torchvision(f"EuroSAT:{eurosat}", STRICT)
    assert data.name == "eurosat"
    assert data.classnames[0] == "Annual Crop Land"
    assert data.templates == ("a centered satellite photo of {}.",)
    assert data.splits == ("train", "val", "test")
    assert sum(len(data.split(s)) for s in data.splits) == 120
    assert data.flags == ("not_the_official_split",)
    first = data.split("train")
    assert first.inputs.ids[0].startswith("eurosat/2750/AnnualCrop/")
    assert first.inputs.examples[0].size == (4, 4)


def test_dataset_with_published_splits(tmp_path):
    root = tmp_path / "dtd" / "dtd"
    for c, name in enumerate(["banded", "polka-dotted"]):
        for i, split in enumerate(["train", "val", "test"]):
            write(root / "images" / name / f"{name}_{i}.jpg", (c, i, 0))
            (root / "labels").mkdir(exist_ok=True)
            with (root / "labels" / f"{split}1.txt").open("a") as file:
                file.write(f"{name}/{name}_{i}.jpg\n")
    data = open_torchvision(f"dtd:{tmp_path}", STRICT)
    assert data.classnames == ("banded", "polka-dotted")
    assert {s: data.split(s).labels.tolist() for s in data.splits} == {
        "train": [0, 1],
        "val": [0, 1],
        "test": [0, 1],
    }
    assert data.templates == ("{} texture.",)
    assert data.flags == ()

    (root / "images" / "banded" / "banded_2.jpg").write_text("text")
    with pytest.raises(DataError, match=r"banded_2\.jpg' is not an image"):
        open_torchvision(f"dtd:{tmp_path}", STRICT).split("test").inputs.examples[0]
    lenient = open_torchvision(f"dtd:{tmp_path}", DatasetOptions(on_bad_image="skip"))
    assert (lenient.skipped, lenient.split("test").labels.tolist()) == (1, [1])


def test_dataset_in_memory_holds_out_a_tenth_for_val(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    rng = np.random.default_rng(0)
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        rows = {
            "data": rng.integers(0, 256, (20, 3072), dtype=np.uint8),
            "labels": list(range(10)) * 2,
        }
        (base / name).write_bytes(pickle.dumps(rows))
    (base / "batches.meta").write_bytes(
        pickle.dumps({"label_names": [f"thing_{i}" for i in range(10)]})
    )
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)

    data = open_torchvision(f"cifar-10:{tmp_path}", STRICT)

    assert data.classnames[3] == "thing 3"
    assert len(data.split("train")) + len(data.split("val")) == 100
    assert 2 <= len(data.split("val")) <= 22
    assert len(data.split("test")) == 20
    assert data.split("test").inputs.examples[0].size == (32, 32)
    assert len(data.fingerprint) == 64


def test_every_known_dataset_exists_in_torchvision():
    import torchvision.datasets

    for known in KNOWN.values():
        assert hasattr(torchvision.datasets, known.kind)
        assert known.facts.template.count("{}") == 1
        assert known.facts.licence
        assert known.facts.citation


def test_names_without_a_scheme_are_torchvision_datasets():
    resolved = DATASETS.resolve("OxfordIIITPet", "clip")
    assert resolved.entry == "clip/torchvision"
    assert resolved.argument == "OxfordIIITPet"


def test_unknown_name_suggests_the_nearest_datasets(tmp_path):
    with pytest.raises(
        UnknownNameError,
        match=r"unknown dataset 'euroset'; did you mean 'eurosat'\?.*folder, .*synthetic",
    ):
        open_torchvision("euroset", STRICT)
    with pytest.raises(UnknownNameError, match=r"did you mean 'imagenette' or 'imagenet'"):
        open_torchvision("imagenett", STRICT)
    with pytest.raises(
        UnknownNameError, match=f"hint: for a folder of your own images write folder:{tmp_path}"
    ):
        open_torchvision(str(tmp_path), STRICT)


def test_folder_without_the_dataset(tmp_path):
    with pytest.raises(
        DataError, match=r"does not contain dtd in torchvision.s layout.*\n  hint: .*datasets\.DTD"
    ):
        open_torchvision(f"dtd:{tmp_path}", STRICT)


def test_missing_network_is_an_error_with_alternatives(monkeypatch):
    def refuse(*_, **__):
        raise network.urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(network.urllib.request, "urlopen", refuse)
    with pytest.raises(
        DataError,
        match=r"cannot download dtd from https://.*: Name or service not known\n.*openmoji:color",
    ):
        open_torchvision("dtd", STRICT)


def test_failed_download_leaves_nothing_behind(monkeypatch, cache):
    monkeypatch.setattr("clipadapt.datasets.torchvision.require_reachable", lambda *_, **__: None)

    def fail(*_, **__):
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr("torchvision.datasets.dtd.download_and_extract_archive", fail)
    with pytest.raises(DataError, match="the download of dtd failed: File not found or corrupted"):
        open_torchvision("dtd", STRICT)
    assert list((cache / "datasets" / "torchvision").iterdir()) == []
