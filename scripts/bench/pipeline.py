"""The whole zero-shot pipeline against its two limits: the image tower on ready tensors, and decoding on all cores.

    python scripts/bench/pipeline.py [--model random:ViT-B-32] [--images 1000]

The pipeline reads, decodes, encodes, stores and scores pictures that it has never seen. No pipeline is faster than
the slower of its limits; two that share the same cores cannot both be reached at once.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import _common
import numpy as np
from _common import Bench, class_names, figure, measured, ours, pictures, table, times

if TYPE_CHECKING:
    from collections.abc import Sequence

CHUNK: Final = 256
"""Pictures decoded for one call; only so many are held."""


def opened(settings: dict[str, Any], folder: str) -> Any:
    """Return zero-shot and its model."""
    given = [
        f"data.name={settings['data']}",
        f"model.name={settings['model']}",
        f"model.precision={settings['precision']}",
    ]
    return ours("zero_shot", settings, given, Path(folder))


def batch_of(it: Any) -> tuple[Any, int]:
    """Return a batch of pixels as the pipeline makes it."""
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

        n, seconds, memory = measured(work)
    return {"seconds": seconds, "memory": memory, "rate": n / seconds}


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

        _, seconds, memory = measured(work)
    return {"seconds": seconds, "memory": memory, "rate": rounds * size / seconds}


def decode(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure reading, decoding and preprocessing alone, in as many threads as there are cores."""
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
    add("--size", type=int, default=227, help="side of a picture in pixels")
    add("--precisions", nargs="+", choices=["bf16", "fp32"], default=["bf16", "fp32"])
    o = bench.parse(argv, {"images": 40, "size": 40, "model": ""})
    with bench.scratch() as folder:
        pictures(folder / "data", "test", o.images, o.size, class_names(10))
        model = o.model or _common.tiny_model(folder / "model")
        settings = {"data": f"folder:{folder / 'data'}", "model": model, "images": o.images}
        rows = []
        for precision in o.precisions:
            own = settings | {"precision": precision}
            runs = bench.alternate({way: (way, own) for way in MEASUREMENTS})
            limit = min(runs[way].of("rate") for way in ("tower alone", "decode alone"))
            rows += [
                [
                    precision,
                    way,
                    figure(found.of("rate")),
                    found.span("rate"),
                    times(limit, found.of("rate")),
                    found.memory,
                ]
                for way, found in runs.items()
            ]
    head = ["precision", "work", "images/s", "least to most", "slower limit / images/s"]
    notes = [
        f"{o.images:,} JPEG files of {o.size} pixels, all different; the store is on and empty."
    ]
    bench.write(
        f"The zero-shot pipeline and its limits (`{o.model or 'a tiny model'}`)",
        table([*head, "peak memory, MiB"], rows),
        notes,
    )


if __name__ == "__main__":
    main()
