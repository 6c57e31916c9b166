"""Every reader of image folders reports what it found and what it left out."""

from __future__ import annotations

import pytest
from PIL import Image

from clipadapt.core.api.data import DatasetOptions
from clipadapt.core.api.registry import DATASETS

SKIP = DatasetOptions(on_bad_image="skip")
WNIDS = ("n01440764", "n02102040")


@pytest.mark.parametrize(
    ("name", "below", "folders"),
    [
        ("folder", "test", WNIDS),
        ("imagenet", "val", WNIDS),
        ("imagenette", "val", WNIDS),
        ("imagenet-a", "", WNIDS),
        ("imagenet-sketch", "sketch", WNIDS),
        ("imagenet-v2", "", ("0", "217")),
    ],
)
def test_files_left_out_are_counted_recorded_and_flagged(tmp_path, name, below, folders):
    for c, folder in enumerate(folders):
        place = tmp_path / below / folder
        place.mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (6, 6), (c, i, 0)).save(place / f"{i}.png")
    (place / "bad.jpg").write_bytes(b"?")
    (place / "photo.heic").write_bytes(b"?")
    (place / "notes.txt").write_text("x")
    argument = DATASETS.resolve(f"{name}:{tmp_path}", "clip")

    data = argument.provider(argument.argument, SKIP)

    assert (data.n_read, data.found, data.skipped) == (6, 9, 1)
    assert {reason: n for reason, n in data.left_out.items() if n} == {
        "images in an unsupported format (.heic)": 1,
        "other files (.txt)": 1,
        "unreadable images": 1,
    }
    assert "many_left_out" in data.flags
    assert "6 read of 9 found in" in data.inventory
    assert any("left out: 1 images in an unsupported format (.heic)" in n for n in data.notes)
