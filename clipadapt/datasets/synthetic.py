"""``synthetic[:CLASSES[xN]]``: generated coloured shapes on noise, for tests and first experiments.

``synthetic:8x32`` has 8 classes with 32 images each in train, val and test; ``synthetic`` is ``5x16``. The images
depend only on split, class and index.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image, ImageDraw

from clipadapt.core.api.data import SPLITS
from clipadapt.core.api.errors import DataError
from clipadapt.core.data.labelled import LabelledSet, make_split
from clipadapt.datasets._imagenet import PHOTO_TEMPLATES

if TYPE_CHECKING:
    from clipadapt.core.api.data import DatasetOptions, SplitName

SIZE: Final = 64
COLOURS: Final = {
    "red": (220, 40, 40),
    "blue": (40, 70, 220),
    "green": (40, 160, 60),
    "yellow": (240, 220, 50),
    "purple": (140, 50, 170),
    "black": (20, 20, 20),
    "orange": (245, 140, 30),
    "brown": (120, 75, 40),
}
# Number of corners and rotation in degrees; None for the circle.
SHAPES: Final = {
    "circle": None,
    "square": (4, 0),
    "triangle": (3, 0),
    "hexagon": (6, 0),
    "diamond": (4, 45),
}
# Colour and shape advance together, so the first classes differ in both; 8 and 5 have no common factor.
CLASSNAMES: Final = tuple(
    f"{list(COLOURS)[i % len(COLOURS)]} {list(SHAPES)[i % len(SHAPES)]}"
    for i in range(len(COLOURS) * len(SHAPES))
)
DEFAULT_CLASSES: Final = 5
DEFAULT_IMAGES: Final = 16


class SyntheticImages(Sequence[Image.Image]):
    """Lazily drawn images: ``n`` of each of ``n_classes`` classes, in the order of the classes."""

    def __init__(self, split: SplitName, n_classes: int, n: int) -> None:
        self.split = split
        self.n_classes = n_classes
        self.n = n

    def __len__(self) -> int:
        return self.n_classes * self.n

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        label, row = divmod(index % len(self), self.n)
        return draw(self.split, label, row)


def draw(split: SplitName, label: int, row: int) -> Image.Image:
    """Draw one image of class ``label``, ``SIZE`` pixels wide and high."""
    seed = hashlib.sha256(f"{split}:{label}:{row}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(seed[:16], "little")))
    noise = rng.integers(150, 256, size=(SIZE, SIZE, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    colour, shape = CLASSNAMES[label].split()
    radius = float(rng.uniform(0.2, 0.4)) * SIZE
    x, y = (float(v) for v in rng.uniform(radius, SIZE - radius, size=2))
    pen = ImageDraw.Draw(image)
    corners = SHAPES[shape]
    if corners is None:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLOURS[colour])
    else:
        pen.regular_polygon((x, y, radius), corners[0], rotation=corners[1], fill=COLOURS[colour])
    return image


def open_synthetic(argument: str, options: DatasetOptions, /) -> LabelledSet[Image.Image]:  # noqa: ARG001
    """Generate the dataset.

    Args:
        argument: Number of classes, and of images per class and split, as in ``8x32``; either may be omitted.
        options: Not used; all images are readable.

    Raises:
        DataError: If the argument has another form or is out of range.
    """
    given = re.fullmatch(r"(\d*)(?:x(\d+))?", argument.strip())
    n_classes = int((given and given[1]) or DEFAULT_CLASSES)
    n = int((given and given[2]) or DEFAULT_IMAGES)
    if given is None or not 2 <= n_classes <= len(CLASSNAMES) or n < 1:
        raise DataError(
            f"'synthetic:{argument}' is not synthetic:CLASSESxN with 2 to {len(CLASSNAMES)} classes "
            f"and at least 1 image per class and split",
            hint=f"for example synthetic:{DEFAULT_CLASSES}x{DEFAULT_IMAGES}",
        )
    classnames = CLASSNAMES[:n_classes]
    parts = {}
    for split in SPLITS:
        ids = [f"{split}/{c}/{row}" for c in classnames for row in range(n)]
        labels = np.repeat(np.arange(n_classes, dtype=np.int64), n)
        parts[split] = make_split(SyntheticImages(split, n_classes, n), ids, labels, classnames)
    return LabelledSet(
        name=f"synthetic:{n_classes}x{n}",
        classnames=classnames,
        templates=PHOTO_TEMPLATES,
        licence="CC0 1.0",
        citation="none (made by clipadapt)",
        source="clipadapt/datasets/synthetic.py",
        parts=parts,
    )


DATASET = open_synthetic
