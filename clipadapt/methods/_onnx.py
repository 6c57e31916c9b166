"""Export of a classifier as ONNX: pixels in, probabilities out.

The head is the formula that the other formats have (see :mod:`clipadapt.methods._formula`), run on tensors.
Imports torch: import it where work begins.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from clipadapt.core.api.method import Exported
from clipadapt.core.files.atomic import write_json
from clipadapt.models import _pixels
from clipadapt.tensor import onnx

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from clipadapt.methods._formula import Head
    from clipadapt.models import ImageTextModel

    Encoder = Callable[[ImageTextModel, torch.Tensor], torch.Tensor]

FACTS: Final = "onnx.json"
EXAMPLES: Final = 3
"""Random images that torch and onnxruntime are compared on."""
SNIPPET: Final = f"""import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FOLDER = "."  # this folder
IMAGES = ["photo.jpg"]

with open(f"{{FOLDER}}/{FACTS}", encoding="utf-8") as file:
    everything = json.load(file)
classnames, facts = everything["classnames"], everything["preprocessing"]


{_pixels.UPRIGHT}


{_pixels.CODE}


session = onnxruntime.InferenceSession(f"{{FOLDER}}/{onnx.FILE}", providers=["CPUExecutionProvider"])
pixels = np.stack([pixels_of(upright(Image.open(f))) for f in IMAGES])  # (n, 3, H, W)
(probabilities,) = session.run(None, {{"pixels": pixels}})
for image, row in zip(IMAGES, probabilities):
    print(image, classnames[row.argmax()], f"{{row.max():.4f}}")
"""


class _Linalg:
    """``np.linalg`` of a formula."""

    @staticmethod
    def norm(x: torch.Tensor, axis: int, *, keepdims: bool) -> torch.Tensor:
        out: torch.Tensor = torch.linalg.vector_norm(x, dim=axis, keepdim=keepdims)
        return out


class _Numpy:
    """The functions of numpy that formulas use, on tensors."""

    linalg = _Linalg

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @staticmethod
    def exp(x: torch.Tensor) -> torch.Tensor:
        return torch.exp(x)

    @staticmethod
    def max(x: torch.Tensor, axis: int) -> torch.Tensor:
        return x.amax(dim=axis)

    @staticmethod
    def maximum(x: torch.Tensor, least: float) -> torch.Tensor:
        return torch.clamp_min(x, least)

    def eye(self, n: int) -> torch.Tensor:
        return torch.eye(n, device=self.device)


class Network(torch.nn.Module):
    """Image tower, head and probabilities.

    Attributes:
        tower: The network of the model; registered so that its weights are in the file.
    """

    def __init__(self, model: ImageTextModel, encode: Encoder, head: Head) -> None:
        super().__init__()
        self.tower = model.module
        self._model, self._encode, self._head = model, encode, head
        for name, array in head.arrays.items():
            exact = np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32
            self.register_buffer(f"head_{name}", torch.from_numpy(array.astype(exact)))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return probabilities ``(n, C)`` of preprocessed images ``(n, 3, H, W)``."""
        head = self._head
        arrays = {name: getattr(self, f"head_{name}") for name in head.arrays}
        x = self._encode(self._model, pixels)  # (n, D)
        scaled: torch.Tensor = head.run(x, arrays, _Numpy(x.device)) / (head.temperature or 1.0)
        return scaled.sigmoid() if head.sigmoid else scaled.softmax(dim=1)


def export(
    path: Path,
    model: ImageTextModel,
    head: Head,
    encode: Encoder | None = None,
    notes: tuple[str, ...] = (),
) -> Exported:
    """Write ``model.onnx`` and ``onnx.json``, with class names and preprocessing.

    Args:
        path: The folder.
        model: The network that computes the features, in float32.
        head: From features to probabilities.
        encode: From a model and preprocessed images to features; None for those of the head's layer.
        notes: Notes for the user.

    Raises:
        ClipAdaptError: If a library is missing.
        ModelError: If the network cannot be written, or the file gives other probabilities.
    """
    onnx.require()
    encode = encode or (lambda model, pixels: model.encode_image(pixels, head.layer))
    steps = _pixels.facts_of(model.preprocess(), model.name)
    height, width = steps["crop"]
    pixels = torch.randn(EXAMPLES, 3, height, width, generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(model.device)
    with torch.no_grad():
        expected = head.probabilities(encode(model, pixels).cpu().numpy())
    # The shortcuts of the fast pass fix the batch size in the graph.
    whole = model.with_services(replace(model.services, fast=False))
    network = Network(whole, encode, head).to(model.device).eval()
    path.mkdir(parents=True, exist_ok=True)
    found = onnx.write(path, network, {"pixels": pixels}, expected)
    names = list(head.classnames)
    write_json(path / FACTS, {"classnames": names, "preprocessing": steps})
    return _described(path, model, head, steps, found, notes)


def _described(
    path: Path,
    model: ImageTextModel,
    head: Head,
    steps: Mapping[str, Any],
    difference: float,
    notes: tuple[str, ...],
) -> Exported:
    height, width = steps["crop"]
    how = "one sigmoid per class" if head.sigmoid else "a softmax over the classes"
    lines = {
        "Input": f"`pixels`, float32 of shape (n, 3, {height}, {width}), with any n",
        "Output": f"`probabilities`, shape (n, {len(head.classnames)}): {how}, temperature included",
        "Preprocessing": f"in {FACTS}, with the class names",
        "Checked": f"onnxruntime differs from torch by at most {difference:.3g} in a probability",
    }
    metadata = {
        "clipadapt_version": version("clipadapt"),
        "base_model": model.name,
        "classnames": json.dumps(list(head.classnames), ensure_ascii=False),
        "temperature": json.dumps(head.temperature),
        "max_difference_from_torch": f"{difference:.3g}",
        "preprocessing": json.dumps(steps),
    }
    return Exported(SNIPPET, notes, lines, onnx.stamp(path, metadata))
