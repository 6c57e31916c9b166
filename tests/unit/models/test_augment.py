"""The training transform: one fixed crop and flip per view, distributed as in torchvision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from clipadapt.models._augment import RATIO, CropFlip, view_seed

MEAN, STD = (0.5,) * 3, (0.25,) * 3
PLAIN = CropFlip((32, 32), 0.08, MEAN, STD)


def boxes(crop: CropFlip, height: int, width: int, n: int = 2000) -> np.ndarray:
    return np.array([
        crop._box(height, width, np.random.Generator(np.random.PCG64(s))) for s in range(n)
    ])


def ramp(width: int = 96, height: int = 64) -> Image.Image:
    """An image that gets brighter from left to right."""
    row = np.linspace(0, 255, width).astype(np.uint8)
    return Image.fromarray(np.repeat(np.tile(row, (height, 1))[..., None], 3, axis=2))


def test_a_view_is_the_same_at_every_call_and_others_differ():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))  # fmt: skip
    digests = [bytes([i]) * 32 for i in range(3)]
    seeds = [view_seed(v, d) for v in range(1, 30) for d in digests]

    assert len(set(seeds)) == len(seeds)
    first = [PLAIN(picture, s) for s in seeds]
    torch.manual_seed(5)  # no global state matters
    again = [PLAIN(picture, s) for s in reversed(seeds)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({t.numpy().tobytes() for t in first}) == len(seeds)
    assert first[0].shape == (3, 32, 32)
    assert first[0].dtype == torch.float32


@pytest.mark.parametrize("smallest", [0.08, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("height", "width"), [(100, 100), (60, 200), (300, 40), (7, 5), (1, 1)])
def test_crops_are_inside_the_image(smallest, height, width):
    top, left, h, w = boxes(CropFlip((32, 32), smallest, MEAN, STD), height, width, 300).T

    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()


@pytest.mark.parametrize("smallest", [0.08, 0.5, 0.9])
def test_area_and_ratio_of_crops_are_within_bounds(smallest):
    _, _, h, w = boxes(CropFlip((32, 32), smallest, MEAN, STD), 400, 400).T
    share, ratio = h * w / 400**2, w / h

    assert share.min() >= smallest - 0.005
    assert share.max() <= 1.0
    assert ratio.min() >= RATIO[0] * 0.99
    assert ratio.max() <= RATIO[1] * 1.01


@pytest.mark.parametrize("smallest", [0.08, 0.5])
@pytest.mark.parametrize(("height", "width"), [(400, 400), (300, 500)])
def test_crops_have_the_distribution_of_torchvision(smallest, height, width):
    from scipy.stats import ks_2samp

    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    share = [smallest, 1.0]
    theirs = np.array([
        RandomResizedCrop.get_params(image, share, list(RATIO)) for _ in range(2000)
    ])
    ours = boxes(CropFlip((32, 32), smallest, MEAN, STD), height, width)

    def facts(found):
        top, left, h, w = found.T
        return {"area": h * w, "ratio": w / h, "top": top, "left": left}

    for name, values in facts(ours).items():
        assert ks_2samp(values, facts(theirs)[name]).pvalue > 0.001, name


def test_an_image_too_long_for_any_box_is_cropped_in_the_centre():
    crop = CropFlip((32, 32), 1.0, MEAN, STD)

    assert set(map(tuple, boxes(crop, 100, 1000, 20).tolist())) == {(0, 433, 100, 133)}
    assert set(map(tuple, boxes(crop, 1000, 90, 20).tolist())) == {(440, 0, 120, 90)}


def test_half_of_the_views_are_flipped():
    views = torch.stack([PLAIN(ramp(), view_seed(v, b"x" * 32)) for v in range(1, 601)])
    slope = views[..., -1].mean(dim=(1, 2)) - views[..., 0].mean(dim=(1, 2))
    flipped = (slope < 0).float().mean().item()

    assert (slope.abs() > 0.1).all()
    assert abs(flipped - 0.5) < 4 * math.sqrt(0.25 / 600)


def test_colours_are_normalised_and_other_modes_converted_to_rgb():
    grey = Image.new("L", (40, 40), 128)

    out = PLAIN(grey, 3)

    torch.testing.assert_close(out, torch.full((3, 32, 32), (128 / 255 - 0.5) / 0.25))


def test_a_crop_of_the_whole_image_is_a_resize():
    crop = CropFlip((32, 32), 1.0, MEAN, STD)
    square = ramp(64, 64)
    whole = np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC), np.float32) / 255

    # The central box of a square is the square; no other ratio than 1 fits.
    view = crop(square, view_seed(1, b"y" * 32)) * 0.25 + 0.5

    expected = whole.transpose(2, 0, 1)
    near = min(np.abs(view.numpy() - e).max() for e in (expected, expected[..., ::-1]))
    assert near < 0.02


def test_the_training_transform_of_a_model_draws_from_torch(tiny_clip):
    from tests.unit.models.test_tuning import load

    transform = load(tiny_clip).preprocess(True)
    torch.manual_seed(3)
    first = [transform(ramp()) for _ in range(3)]
    torch.manual_seed(3)

    assert all(torch.equal(transform(ramp()), t) for t in first)
    assert not torch.equal(first[0], first[1])
