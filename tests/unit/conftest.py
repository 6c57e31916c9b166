"""A hub that is not asked: an empty cache, and data sets laid out in it."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache, and a hub that must not be asked."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return cache


def cached_repo(cache: Path, repo: str, revision: str, ref: str | None = "main") -> Path:
    """Lay out one data set as the hub's own client does; return the folder of its files."""
    root = cache / ("datasets--" + repo.replace("/", "--"))
    files = root / "snapshots" / revision
    files.mkdir(parents=True)
    if ref:
        (root / "refs").mkdir()
        (root / "refs" / ref).write_text(revision)
    return files
