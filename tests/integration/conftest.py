"""A small folder of generated pictures, as a user would have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = {"red_thing": (210, 40, 40), "blue_thing": (40, 60, 210), "green_thing": (50, 170, 60)}


def picture(path: Path, colour: tuple[int, int, int], seed: int) -> None:
    """Write one noisy picture of a colour."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 25, (40, 48, 3)) + np.array(colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """``train``, ``val`` and ``test`` with three classes of six, three and four pictures."""
    seed = 0
    for split, n in (("train", 6), ("val", 4), ("test", 4)):
        for name, colour in COLOURS.items():
            for i in range(n):
                seed += 1
                picture(tmp_path / "pictures" / split / name / f"{i}.png", colour, seed)
    return tmp_path / "pictures"


@pytest.fixture
def records() -> Callable[..., list[dict]]:
    """Parse what ``--json`` printed: exactly one document."""

    def parse(result) -> list[dict]:
        assert result.code == 0, result.err
        return json.loads(result.out)["records"]

    return parse
