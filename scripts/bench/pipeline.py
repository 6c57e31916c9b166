"""Measure the zero-shot pipeline against its two limits: the image tower on tensors, and decoding on all cores.

    python scripts/bench/pipeline.py [--model random:ViT-B-32] [--images 1000]

The pipeline reads, decodes, encodes, caches and scores new images. No pipeline is faster than the slower of its
limits; because both use the same cores, they cannot be reached together.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import _common
import _device
import numpy as np
from _common import SHARE, Bench, class_names, figure, measured, ours, table, times, write_images

if TYPE_CHECKING:
    from collections.abc import Sequence

CHUNK: Final = 256
"""Number of images decoded per call and held in memory."""


def opened(settings: dict[str, Any], folder: str) -> Any:
    """Return zero-shot and its model."""
    given = [
        f"data.name={settings['data']}",
        f"model.name={settings['model']}",
        f"model.precision={settings['precision']}",
    ]
    return ours("zero_shot", settings, given, Path(folder))


def batch_of(it: Any) -> tuple[Any, int]:
    """Return a batch of pixels as the pipeline creates it, and its size."""
    from clipadapt.models._features import IMAGE_BATCH

    size = it.backbone.services.batch_size or IMAGE_BATCH
    inputs = it.open().examples(None).inputs
    return it.backbone.pixels(inputs, np.arange(size) % len(inputs)), size


def whole(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure the pipeline."""
    from clipadapt.core.api.data import Task

    with tempfile.TemporaryDirectory() as folder:
        it = opened(settings, folder)
        it.backbone.encode_image(batch_of(it)[0])

        def work() -> int:
            target = it.open()
            task = Task(target.classnames, target.templates)
            fitted = it.method.fit(it.backbone, task, it.context())
            return len(fitted.predict_scores(target.examples(None).inputs))

        n, seconds, memory = measured(work, settings["device"])
        found = {"seconds": seconds, "memory": memory, "rate": n / seconds}
        return found | images_flop(it, n, settings)


def tower(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure the image tower alone."""
    from clipadapt.tensor.batching import forward

    with tempfile.TemporaryDirectory() as folder:
        it = opened(settings, folder)
        pixels, size = batch_of(it)
        forward(it.backbone.encode_image, pixels, size)
        rounds = -(-settings["images"] // size)

        def work() -> None:
            for _ in range(rounds):
                forward(it.backbone.encode_image, pixels, size)

        _, seconds, memory = measured(work, settings["device"])
        found = {"seconds": seconds, "memory": memory, "rate": rounds * size / seconds}
        return found | images_flop(it, rounds * size, settings)


def images_flop(it: Any, n: int, settings: dict[str, Any]) -> dict[str, float]:
    """Return the operations of ``n`` images in the image tower, in the first repeat."""
    if settings.get("repeat"):
        return {}
    pixels, size = batch_of(it)
    return {"flop": n * _device.counted(lambda: it.backbone.encode_image(pixels)) / size}


def decode(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure reading, decoding and preprocessing alone, with one thread per core."""
    with tempfile.TemporaryDirectory() as folder:
        it = opened(settings, folder)
        inputs = it.open().examples(None).inputs
        it.backbone.pixels(inputs, np.arange(1))

        def work() -> None:
            for begin in range(0, len(inputs), CHUNK):
                it.backbone.pixels(inputs, np.arange(begin, min(begin + CHUNK, len(inputs))))

        _, seconds, memory = measured(work)
    return {"seconds": seconds, "memory": memory, "rate": len(inputs) / seconds}


MEASUREMENTS: Final = {"pipeline": whole, "tower alone": tower, "decode alone": decode}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    bench = Bench("pipeline", __doc__ or "", MEASUREMENTS)
    add = bench.parser.add_argument
    add("--model", default="random:ViT-B-32")
    add("--images", type=int, default=1000)
    add("--size", type=int, default=227, help="side of an image in pixels")
    add("--precisions", nargs="+", choices=["bf16", "fp32"], default=["bf16", "fp32"])
    o = bench.parse(argv, {"images": 40, "size": 40, "model": ""})
    with bench.scratch() as folder:
        write_images(folder / "data", "test", o.images, o.size, class_names(10))
        model = o.model or _common.tiny_model(folder / "model")
        settings = {"data": f"folder:{folder / 'data'}", "model": model, "images": o.images}
        rows = []
        for precision in o.precisions:
            own = settings | {"precision": precision}
            runs = bench.alternate({variant: (variant, own) for variant in MEASUREMENTS})
            limit = min(runs[variant].of("rate") for variant in ("tower alone", "decode alone"))
            rows += [
                [
                    precision,
                    variant,
                    figure(found.of("rate")),
                    found.span("rate"),
                    times(limit, found.of("rate")),
                    *found.share(bench.peak(precision)),
                    found.memory,
                ]
                for variant, found in runs.items()
            ]
    head = ["precision", "work", "images/s", "min to max", "slower limit / images/s", *SHARE]
    notes = [
        f"{o.images:,} JPEG files of {o.size} pixels, all different; the feature cache is on and empty.",
        "Memory of `decode alone` is that of the process, also on a GPU.",
        bench.peak_note(),
    ]
    bench.write(
        f"The zero-shot pipeline and its limits (`{o.model or 'a tiny model'}`)",
        table([*head, "peak memory, MiB"], rows),
        notes,
    )


if __name__ == "__main__":
    main()
