"""Generated images are deterministic, distinguishable by class, and of the requested number."""

from __future__ import annotations

import numpy as np
import pytest

from clipadapt.core.api.data import DatasetOptions
from clipadapt.core.api.errors import DataError
from clipadapt.datasets.synthetic import CLASSNAMES, open_synthetic

STRICT = DatasetOptions()


@pytest.mark.parametrize(
    ("argument", "classes", "images"), [("", 5, 16), ("3", 3, 16), ("x2", 5, 2), ("8x4", 8, 4)]
)
def test_sizes(argument, classes, images):
    data = open_synthetic(argument, STRICT)
    assert data.name == f"synthetic:{classes}x{images}"
    assert len(data.classnames) == classes
    for split in ("train", "val", "test"):
        assert np.bincount(data.split(split).labels).tolist() == [images] * classes


def test_images_are_deterministic_and_differ_between_splits():
    first, second = open_synthetic("3x2", STRICT), open_synthetic("3x2", STRICT)
    assert first.fingerprint == second.fingerprint
    images = {s: first.split(s).inputs.examples[0].tobytes() for s in first.splits}
    assert len(set(images.values())) == 3
    assert images["val"] == second.split("val").inputs.examples[0].tobytes()


def test_larger_dataset_contains_the_smaller_one():
    few, many = (
        open_synthetic("3x2", STRICT).split("train"),
        open_synthetic("4x5", STRICT).split("train"),
    )
    row = many.inputs.ids.index("train/green triangle/1")
    assert few.inputs.ids[5] == "train/green triangle/1"
    assert few.inputs.examples[5].tobytes() == many.inputs.examples[row].tobytes()


def test_classes_are_distinguishable_by_colour():
    part = open_synthetic("5x8", STRICT).split("train")
    means = np.stack([
        np.asarray(image, dtype=float).reshape(-1, 3).mean(0) for image in part.inputs.examples
    ])
    centres = np.stack([means[part.labels == c].mean(0) for c in range(5)])
    nearest = ((means[:, None] - centres) ** 2).sum(-1).argmin(1)
    assert (nearest == part.labels).mean() > 0.7


def test_forty_different_classes():
    assert len(set(CLASSNAMES)) == 40
    assert len(open_synthetic("40x1", STRICT).split("test")) == 40


@pytest.mark.parametrize("argument", ["1", "41", "3x0", "many", "3x", "-2"])
def test_invalid_argument(argument):
    with pytest.raises(DataError, match="is not synthetic:CLASSESxN with 2 to 40 classes"):
        open_synthetic(argument, STRICT)
