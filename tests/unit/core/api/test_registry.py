"""Tracks come from the packages that declare them; other packages may add methods to a track."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint, entry_points

import pytest

from clipadapt.core.api import registry


@pytest.fixture
def another_package(monkeypatch):
    """Install a package that adds methods to the track ``clip`` without being a track."""
    package = types.ModuleType("acme_methods")
    monkeypatch.setitem(sys.modules, "acme_methods", package)
    point = EntryPoint("clip", "acme_methods", "clipadapt.methods")
    known = tuple(entry_points(group="clipadapt.methods"))
    monkeypatch.setattr(registry, "entry_points", lambda group: (*known, point))
    registry.tracks.cache_clear()
    yield package
    registry.tracks.cache_clear()


@pytest.mark.usefixtures("another_package")
def test_a_package_without_a_track_adds_to_one():
    assert set(registry.tracks()) == {"clip", "text"}
    assert registry.program("text") == "textsent"


def test_the_first_package_of_a_track_keeps_it(another_package):
    another_package.TRACK = registry.tracks()["text"]
    registry.tracks.cache_clear()

    assert registry.tracks()["clip"].program == "clipadapt"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("imagenet-v2:/data", "imagenet_v2"),
        ("oxford-iiit-pet", "oxford_pets"),
        ("OxfordIIITPet:/data", "oxford_pets"),
        ("coop:oxford_pets:/data", "oxford_pets"),
        ("coop:OxfordFlowers:/data?split=/a/b.json", "flowers102"),
        ("coop:/data/dtd/split_zhou_DescribableTextures.json", "dtd"),
        ("coop:imagenet:/data", "imagenet"),
        ("coop:caltech-101:/data", "caltech101"),
        ("caltech101", "caltech101"),
        ("FGVCAircraft", "fgvc_aircraft"),
        ("folder:/coop/dtd", "folder"),
    ],
)
def test_every_name_of_a_dataset_has_one_key(name, key):
    assert registry.dataset_key(name, "clip") == key
