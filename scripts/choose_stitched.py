"""Choose the templates and the ridge of ``stitched`` on the train splits of pacs-mini alone.

usage: python scripts/choose_stitched.py [DATA]     DATA holds photo/train and sketch/train

One line per candidate: top-1 in percent on photo and on sketch, each with the prompts "{}", "a photo of a {}." and the
7-template ensemble. ``form`` is ``image`` for P = Tᵀ(WWᵀ + ridge I)⁻¹W and ``text`` for P = (TᵀT + ridge I)⁻¹TᵀW.
Rule: among the candidates that reach 70 on photo with every prompt, take the best mean of the six. val and test are
not read.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from clipadapt.datasets._imagenet import TEMPLATES_7
from clipadapt.models import _stitching
from clipadapt.models.stitched import IMAGE_WEIGHTS, TEXT_WEIGHTS, ingredient

CANDIDATES = {
    "name": ("{}",),
    "photo": ("a photo of a {}.",),
    "name+photo": ("{}", "a photo of a {}."),
    "seven": tuple(TEMPLATES_7),
    "kinds": tuple(
        f"a {kind} of a {{}}." for kind in ("photo", "picture", "drawing", "sketch", "painting")
    ),
}
PROMPTS = (("{}",), ("a photo of a {}.",), tuple(TEMPLATES_7))
RIDGES = (3.0, 10.0, 30.0, 100.0, 300.0)
FLOOR = 70.0


def features(tower: torch.nn.Module, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return pooled features ``(n, 1280)`` and class names ``(n,)`` of a folder of classes."""
    transform = transforms.Compose([
        transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize([127 / 255] * 3, [128 / 255] * 3),
    ])
    files = sorted(p for p in folder.glob("*/*") if p.is_file())
    rows = []
    with torch.inference_mode():
        for begin in range(0, len(files), 32):
            some = files[begin : begin + 32]
            pixels = torch.stack([transform(Image.open(p).convert("RGB")) for p in some])
            rows.append(tower(pixels.contiguous(memory_format=torch.channels_last)).numpy())
    return np.concatenate(rows), np.array([p.parent.name for p in files])


def unit(x: np.ndarray) -> np.ndarray:
    """Return the rows with unit norm."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def main() -> None:
    """Print the table and the choice."""
    default = Path(__file__).parents[2] / "shared" / "data" / "pacs-mini"
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    image_path, text_path = ingredient(IMAGE_WEIGHTS), ingredient(TEXT_WEIGHTS)
    tower = _stitching.image_tower(image_path)
    W = tower.get_parameter("classifier.weight").detach().double().numpy()
    tower.reset_classifier(0)
    tower = tower.to(memory_format=torch.channels_last)
    domains = [features(tower, data / d / "train") for d in ("photo", "sketch")]
    classes = sorted(set(domains[0][1]))
    heads = []
    for prompts in PROMPTS:
        embedded = _stitching.embed(text_path, [p.format(c) for p in prompts for c in classes])
        heads.append(unit(embedded.reshape(len(prompts), len(classes), -1).mean(axis=0)))

    found = []
    print(f"{'templates':12s} {'form':6s} {'ridge':>6s}   photo {'':12s} sketch {'':10s} mean")
    for name, templates in CANDIDATES.items():
        T = _stitching.text_targets(text_path, templates)
        for form in ("image", "text"):
            for ridge in RIDGES:
                if form == "image":
                    P = _stitching.projection(W, T, ridge)
                else:
                    P = np.linalg.solve(T.T @ T + ridge * np.eye(384), T.T @ (W - W.mean(axis=0)))
                scores = [
                    100 * float((np.array(classes)[(x @ P.T @ h.T).argmax(axis=1)] == y).mean())
                    for x, y in domains
                    for h in heads
                ]
                shown = " ".join(f"{s:5.1f}" for s in scores)
                mean = float(np.mean(scores))
                print(f"{name:12s} {form:6s} {ridge:6g}   {shown}   {mean:5.1f}", flush=True)
                if min(scores[:3]) >= FLOOR:
                    found.append((mean, name, form, ridge))
    print("chosen:", max(found))


if __name__ == "__main__":
    main()
