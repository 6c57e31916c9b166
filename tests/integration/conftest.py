"""A small folder of generated pictures, as a user would have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipadapt.core.files.checksums import sealed

COLOURS = {"red_thing": (210, 40, 40), "blue_thing": (40, 60, 210), "green_thing": (50, 170, 60)}


def picture(path: Path, colour: tuple[int, int, int], seed: int) -> None:
    """Write one noisy picture of a colour."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 25, (40, 48, 3)) + np.array(colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(path)


def rewrite(folder: Path, change: Callable[[dict], object]) -> None:
    """Write the record of a run anew with ``change`` made to its fields, as if it had always been so."""
    path = folder / "record.json"
    fields = json.loads(path.read_text())
    del fields["sha256"]
    change(fields)
    path.write_bytes(sealed(json.dumps(fields)))


def as_version_1(folder: Path) -> None:
    """Rewrite the record of a run as schema version 1 had it: without checksums."""
    path = folder / "record.json"
    fields = _version_2(json.loads(path.read_text()))
    del fields["files"]
    path.write_text(json.dumps({**fields, "schema_version": 1}))


def as_version_2(folder: Path) -> None:
    """Rewrite the record of a run as schema version 2 had it."""
    path = folder / "record.json"
    path.write_bytes(sealed(json.dumps(_version_2(json.loads(path.read_text())))))


def _version_2(fields: dict) -> dict:
    del fields["sha256"], fields["method"]["uses_train"]
    old = {"trained": "learnt", "evaluated": "judged"}
    for overlap in (fields["leakage"] or {"overlaps": []})["overlaps"]:
        for new, name in old.items():
            overlap[name] = overlap.pop(new)
    flags = [f.replace("evaluated_on_", "judged_on_") for f in fields["flags"]]
    return {**fields, "schema_version": 2, "flags": flags}


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
