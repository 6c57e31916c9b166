"""Time a training step of CoOp: the shipped method against a reference implementation of the official code.

    python scripts/bench/coop.py [--model random:ViT-B-32] [--classes 10 100] [--large]

Ours is ``clip/coop``'s ``fit``. The seconds between the losses of successive steps are measured without the first
ones, so reading the features is set-up. The reference runs the image tower and 77 positions at every step. Without
augmentation it gets prepared pixels; with it, both decode, crop and flip, the reference with one process per core.
The reference computes in float32; on a GPU also in float16 autocast, which is the official option ``PREC=amp`` (its
default converts the weights to float16).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import _common
import _device
import numpy as np
from _common import (
    FASTEST,
    SEED,
    SHARE,
    Bench,
    class_names,
    figure,
    ours,
    precision_of,
    reference_steps,
    steps_of,
    table,
    times,
    train_task,
    write_images,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DROP: Final = 2
"""Warm-up steps, not measured."""


def opened(settings: dict[str, Any], folder: str, given: Sequence[str]) -> Any:
    """Return CoOp and its model, with enough epochs for the steps."""
    n, size = settings["n"], settings["batch_size"]
    epochs = -(-(settings["steps"] + DROP + 1) // max(n // size, 1))
    whole = [
        f"data.name={settings['data']}",
        f"model.name={settings['model']}",
        f"method.n_ctx={settings['n_ctx']}",
        f"method.batch_size={size}",
        f"method.augment={settings['augment']}",
        f"method.epochs={epochs}",
        *given,
    ]
    return ours("coop", settings, whole, Path(folder))


def by_ours(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure the shipped method's steps, and their bound."""
    from _products import bound

    with tempfile.TemporaryDirectory() as folder:
        it = opened(settings, folder, precision_of(settings))
        found = steps_of(it, settings, DROP)
        return found | {"bound": bound(it, settings)}


def by_reference(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure the baseline's steps."""
    import torch
    from baselines import coop

    torch.manual_seed(SEED)
    with tempfile.TemporaryDirectory() as folder:
        it = opened(settings, folder, ["model.precision=fp32"])
        task = train_task(it.open().dataset, settings["n"], settings["classes"])
        clip, tokenizer = it.backbone.module, it.backbone.tokenizer.inner
        learner = coop.PromptLearner(clip, tokenizer, task.classnames, settings["n_ctx"])
        batches = reference_batches(it.backbone, task, settings)
        # One step more, whose operations are counted; an epoch has one step at least.
        epochs = settings["steps"] + DROP + 2
        steps = coop.CoOp(clip, learner).train(
            batches, epochs=epochs, half=settings["precision"] == "fp16"
        )
        return reference_steps(steps, settings, DROP)


def reference_batches(backbone: Any, task: Any, settings: dict[str, Any]) -> Callable[[int], Any]:
    """Return the epochs of the reference: prepared pixels, or images that a loader crops and flips.

    Args:
        backbone: Defines size and normalisation.
        task: Images and labels.
        settings: ``batch_size``, ``augment`` and ``workers``.
    """
    import torch
    from torchvision import transforms

    split, size = task.train, settings["batch_size"]
    if settings["augment"] == "none":
        pixels = backbone.pixels(split.inputs, np.arange(len(split)))
        labels = torch.from_numpy(split.labels)
        whole = len(split) // size * size or len(split)
        pairs = list(zip(pixels[:whole].split(size), labels[:whole].split(size), strict=True))
        return lambda _epoch: pairs
    cfg = backbone.module.visual.preprocess_cfg
    side = cfg["size"] if isinstance(cfg["size"], int) else cfg["size"][0]
    transform = transforms.Compose([
        transforms.RandomResizedCrop(
            side, (0.08, 1), interpolation=transforms.InterpolationMode.BICUBIC
        ),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(cfg["mean"], cfg["std"]),
    ])
    data = [(split.inputs.examples, i, int(split.labels[i])) for i in range(len(split))]
    loader = torch.utils.data.DataLoader(
        Images(data, transform),
        size,
        shuffle=True,
        drop_last=len(split) >= size,
        num_workers=settings["workers"],
        persistent_workers=settings["workers"] > 0,
    )
    return lambda _epoch: loader


class Images:
    """Transformed images with labels."""

    def __init__(self, data: list[tuple[Any, int, int]], transform: Any) -> None:
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        examples, row, label = self.data[index]
        return self.transform(examples[row]), label


MEASUREMENTS: Final = {"ours": by_ours, "reference": by_reference}
VARIANTS: Final = {
    "reference, fp32": ("reference", "fp32"),
    "ours, fp32": ("ours", "fp32"),
    "ours, bf16": ("ours", "bf16"),
}
OFFICIAL: Final = "reference, autocast fp16"
"""CoOp's option ``PREC=amp``, and what CLIP-LoRA's official code always does."""


def variants(device: str) -> tuple[dict[str, tuple[str, str]], str]:
    """Return the variants, measurement and precision each, and the one that the others are compared with."""
    if device == _device.CPU:
        return VARIANTS, "reference, fp32"
    return {OFFICIAL: ("reference", "fp16"), **VARIANTS}, OFFICIAL


def rows_of(work: str, runs: dict[str, _common.Runs], base: str, bench: Bench) -> list[list[str]]:
    """Return the rows of one case: seconds of a step, against the reference; a precision ends a variant's name."""
    return [
        [
            work,
            variant,
            figure(found.of()),
            found.span(),
            times(runs[base].of(), found.of()),
            figure(min(bench.o.batch_size, bench.o.n) / found.of()),
            *found.share(bench.peak(variant.rpartition(" ")[2])),
            figure(found.of("set_up")),
            found.memory,
            *bound_of(found),
        ]
        for variant, found in runs.items()
    ]


def bound_of(found: _common.Runs) -> list[str]:
    """Return the cells of :data:`BOUND`, empty for the reference."""
    if "bound" not in found.first:
        return ["", ""]
    return [figure(found.of("bound")), f"{found.of('bound') / max(found.of(), FASTEST):.0%}"]


HEAD: Final = ["task", "variant", "seconds a step", "min to max", "speed-up"]
HEAD_COST: Final = ["images/s", *SHARE, "seconds to the first step", "peak memory, MiB"]
BOUND: Final = ["bound, seconds", "share of the bound"]
BOUND_NOTE: Final = "The bound is the time of a step's matrix products alone, measured with their shapes and precision."


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    bench = Bench("coop", __doc__ or "", MEASUREMENTS)
    add = bench.parser.add_argument
    add("--model", default="random:ViT-B-32")
    add("--classes", type=int, nargs="+", default=[10, 100])
    add("--large", action="store_true", help="1,000 classes too")
    add("--augment", nargs="+", choices=["none", "crop_flip"], default=["none", "crop_flip"])
    add("--n", type=int, default=160, help="training images")
    add("--size", type=int, default=227, help="side of an image in pixels")
    add("--n-ctx", type=int, default=16)
    add("--batch-size", type=int, default=32)
    add("--steps", type=int, help="steps measured; 6 on a CPU, 24 on a GPU")
    add(
        "--workers", type=int, default=_common.cpu_count(), help="loader processes of the reference"
    )
    quick = {
        "classes": [3],
        "n": 8,
        "size": 40,
        "n_ctx": 4,
        "batch_size": 4,
        "steps": 2,
        "workers": 0,
    }
    o = bench.parse(argv, {**quick, "model": ""})
    # On a GPU enough for a graph, as in a real fit.
    o.steps = o.steps or (6 if bench.device == _device.CPU else 24)
    names = ("n", "n_ctx", "batch_size", "steps", "workers")
    with bench.scratch() as folder:
        write_images(folder / "data", "train", o.n, o.size, class_names(2))
        write_images(folder / "data", "test", 2, o.size, class_names(2))
        settings = {name: getattr(o, name) for name in names} | {
            "data": f"folder:{folder / 'data'}",
            "model": o.model or _common.tiny_model(folder / "model"),
        }
        rows, (compared, base) = [], variants(bench.device)
        for augment in o.augment:
            for n in [*o.classes, *([1000] if o.large else [])]:
                runs = bench.alternate({
                    variant: (part, settings | {"augment": augment, "classes": n, "precision": p})
                    for variant, (part, p) in compared.items()
                })
                work = f"{n} classes, augmentation {'off' if augment == 'none' else 'on'}"
                rows += rows_of(work, runs, base, bench)
    notes = [
        f"{o.n_ctx} vectors, batch {o.batch_size}, {o.steps} steps after {DROP} of warm-up.",
        "In bf16, ours also uses bf16 in layers with gradients (`method.precision`).",
        "Memory is that of the main process, on a GPU that of the GPU.",
        bench.peak_note(),
        BOUND_NOTE,
    ]
    title = f"A training step of CoOp (`{o.model or 'a tiny model'}`)"
    bench.write(title, table([*HEAD, *HEAD_COST, *BOUND], rows), notes)


if __name__ == "__main__":
    main()
