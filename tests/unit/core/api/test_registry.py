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
