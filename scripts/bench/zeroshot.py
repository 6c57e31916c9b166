"""Compare zero-shot classification of JPEG files: ours, the clip-benchmark package, the pipeline of transformers.

    python scripts/bench/zeroshot.py [--model random:ViT-B-32] [--images 1000] [--classes 10 100]

The time covers everything from a folder of images to their scores, class names included, but not imports, loading the
weights and a warm-up of one batch. "Again" encodes the same images in the same process, from the feature cache. All
variants have the same weights. Predictions are compared on real images with a pretrained model.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import _common
import _device
import numpy as np
from _common import (
    SHARE,
    TEMPLATE,
    Bench,
    class_names,
    figure,
    measured,
    ours,
    table,
    times,
    write_images,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

WARM_UP: Final = 32
MADE_UP: Final = "synthetic images"
MISSING: Final = (
    "**clip-benchmark is not installed (`pip install 'clipadapt[bench]'`):",
    "its row is a reimplementation.**",
)


def opened(settings: dict[str, Any], folder: str, precision: str, *, store: str = "on") -> Any:
    """Return zero-shot and its model at a precision."""
    given = [
        f"data.name={settings['data']}",
        f"model.name={settings['model']}",
        f"model.precision={precision}",
        f"store={store}",
    ]
    return ours("zero_shot", settings, given, Path(folder))


def blank(backbone: Any) -> Any:
    """Return a batch of pixels, shape ``(32, 3, H, W)``."""
    import torch

    size = backbone.module.visual.image_size
    side = size if isinstance(size, int) else size[0]
    return torch.zeros(WARM_UP, 3, side, side)


def warm(backbone: Any) -> None:
    """Run both towers once."""
    backbone.encode_image(blank(backbone))
    backbone.encode_text(backbone.tokenize(["warm up"] * 2))


def by_ours(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure ours: first time, and encoding again."""
    from clipadapt.core.api.data import Task

    with tempfile.TemporaryDirectory() as folder:
        it = opened(settings, folder, settings["precision"])
        warm(it.backbone)

        def work() -> Any:
            target = it.open()
            fitted = it.method.fit(
                it.backbone, Task(target.classnames, target.templates), it.context()
            )
            return fitted.predict_scores(target.examples(None).inputs)

        scores, seconds, memory = measured(work, settings["device"])
        inputs = (
            it.open().examples(None).inputs
        )  # opened again, so nothing of the first pass is kept
        begun = time.perf_counter()
        it.backbone.encode(inputs, "image")
        again = time.perf_counter() - begun
        flop = {} if settings["repeat"] else {"flop": flop_of_ours(settings, len(scores))}
    return flop | {
        "seconds": seconds,
        "memory": memory,
        "n": len(scores),
        "again": again,
        "rate": len(scores) / seconds,
        "rate_again": len(scores) / again,
    }


def flop_of_ours(settings: dict[str, Any], n: int) -> float:
    """Return the operations of ``n`` images and of the texts, without the feature cache."""
    from clipadapt.core.api.data import Task

    with tempfile.TemporaryDirectory() as folder:
        it = opened(settings, folder, settings["precision"], store="off")
        target = it.open()
        task = Task(target.classnames, target.templates)
        texts = _device.counted(lambda: it.method.fit(it.backbone, task, it.context()))
        batch = blank(it.backbone)
        images = _device.counted(lambda: it.backbone.encode_image(batch))
    return texts + n * images / len(batch)


def by_package(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure clip-benchmark as its command line runs it, with ``--no_amp`` unless the precision is fp16."""
    from baselines import zero_shot
    from torchvision.datasets import ImageFolder

    device = settings["device"]
    with tempfile.TemporaryDirectory() as folder:
        backbone = opened(settings, folder, "fp32").backbone
        evaluate = zero_shot.package().evaluate if installed() else reference_evaluate
        warm(backbone)
        root = Path(settings["data"].removeprefix("folder:"), "test")

        def work() -> int:
            data = ImageFolder(str(root), transform=backbone.preprocess())
            evaluate(
                backbone.module,
                zero_shot.loader(data, workers=settings["workers"]),
                backbone.tokenizer.inner,
                data.classes,
                zero_shot.its_templates([TEMPLATE]),
                device,
                amp=settings["precision"] == "fp16",
            )
            return len(data)

        n, seconds, memory = measured(work, device)
        flop = {} if settings["repeat"] else {"flop": flop_of_package(backbone, root, n)}
    return flop | {"seconds": seconds, "memory": memory, "n": n, "rate": n / seconds}


def flop_of_package(backbone: Any, root: Path, n: int) -> float:
    """Return the operations of ``n`` images and of one whole text for each class."""
    from baselines import zero_shot

    names, batch = sorted(p.name for p in root.iterdir()), blank(backbone)
    tower, tokenizer = backbone.module, backbone.tokenizer.inner
    texts = _device.counted(lambda: zero_shot.classifier(tower, tokenizer, names[:1], [TEMPLATE]))
    pixels = batch.to(tower.logit_scale.device)
    images = _device.counted(lambda: tower.encode_image(pixels))
    return texts * len(names) + n * images / len(batch)


def installed() -> bool:
    """Return whether clip-benchmark is installed."""
    return importlib.util.find_spec("clip_benchmark") is not None


def reference_evaluate(
    module: Any,
    loader: Any,
    tokenizer: Any,
    names: Any,
    templates: Any,
    device: str,
    *,
    amp: bool,
) -> None:
    """Do what clip-benchmark's ``evaluate`` does, if it is not installed."""
    import torch
    from baselines import zero_shot

    reference = [template.replace("{c}", "{}") for template in templates]
    with torch.autocast(device.partition(":")[0], torch.float16, enabled=amp):
        zero_shot.scores(module, zero_shot.classifier(module, tokenizer, names, reference), loader)


def by_pipeline(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure the pipeline on the first images; it encodes all class names again for each."""
    from baselines import zero_shot

    with tempfile.TemporaryDirectory() as folder:
        backbone = opened(settings, folder, "fp32").backbone
        root = Path(settings["data"].removeprefix("folder:"), "test")
        files = sorted(str(p) for p in root.glob("*/*.jpg"))[: settings["pipeline_images"]]
        names = sorted(p.name for p in root.iterdir())
        pipe = zero_shot.pipeline_of(backbone.module, backbone.tokenizer.inner)

        def work(files: list[str]) -> Any:
            return pipe(files, candidate_labels=names, hypothesis_template=TEMPLATE)

        work(files[:1])
        _, seconds, memory = measured(lambda: work(files), settings["device"])
        flop = {}
        if not settings["repeat"]:
            flop = {"flop": len(files) * _device.counted(lambda: work(files[:1]))}
    rate = len(files) / seconds
    return flop | {"seconds": seconds, "memory": memory, "n": len(files), "rate": rate}


def decisions(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the predicted class of each test image, by ours at a precision or by the reference."""
    from clipadapt.core.api.data import Task

    with tempfile.TemporaryDirectory() as folder:
        reference = settings["precision"] == "reference"
        it = opened(settings, folder, "fp32" if reference else settings["precision"])
        target = it.open()
        split = target.examples(None)
        if reference:
            scores = reference_scores(it.backbone, target, split)
        else:
            fitted = it.method.fit(
                it.backbone, Task(target.classnames, target.templates), it.context()
            )
            scores = fitted.predict_scores(split.inputs)
    chosen = np.asarray(scores).argmax(1)
    right = float((chosen == split.labels).mean())
    return {"chosen": chosen.tolist(), "accuracy": right, "classes": len(target.classnames)}


def reference_scores(backbone: Any, target: Any, split: Any) -> Any:
    """Score as CLIP_benchmark does: whole texts, fixed batches, float32."""
    import torch
    from baselines import zero_shot

    weights = zero_shot.classifier(
        backbone.module, backbone.tokenizer.inner, target.classnames, target.templates
    )
    transform, size = backbone.preprocess(), zero_shot.BATCH
    parts = [split.inputs.examples[i : i + size] for i in range(0, len(split), size)]
    batches = ((torch.stack([transform(image) for image in part]), None) for part in parts)
    return zero_shot.scores(backbone.module, weights, batches).cpu()


VARIANTS: Final = {
    "ours, bf16": ("ours", "bf16"),
    "ours, fp32": ("ours", "fp32"),
    "clip-benchmark --no_amp": ("package", ""),
    "pipeline of transformers": ("pipeline", ""),
}
AMP: Final = "clip-benchmark --amp"


def variants(device: str) -> tuple[dict[str, tuple[str, str]], str]:
    """Return the variants, measurement and precision each, and the one that the others are compared with.

    On a GPU that is clip-benchmark in float16 autocast, its default.
    """
    if device == _device.CPU:
        return VARIANTS, "clip-benchmark --no_amp"
    return {**VARIANTS, AMP: ("package", "fp16")}, AMP


MEASUREMENTS: Final = {
    "ours": by_ours,
    "package": by_package,
    "pipeline": by_pipeline,
    "decisions": decisions,
}


def rows_of(n_classes: int, runs: dict[str, _common.Runs], bench: Bench) -> list[list[str]]:
    """Return the rows for one number of classes."""
    compared, base_of = variants(bench.device)
    base, rows = runs[base_of].of("rate"), []
    for variant, found in runs.items():
        again = found.of("rate_again") if "again" in found.first else None
        rows.append([
            f"{n_classes} classes, {found.first['n']:,} images",
            variant,
            figure(found.of("rate")),
            found.span("rate"),
            times(found.of("rate"), base),
            "" if again is None else figure(again),
            "" if again is None else times(again, base),
            *found.share(bench.peak(compared[variant][1] or "fp32")),
            found.memory,
        ])
    return rows


def agreement(bench: Bench, data: str, name: str) -> list[str]:
    """Return the sentences that compare predictions on real images."""
    model = bench.o.judge or "a tiny model"
    found = {
        p: bench.measure("decisions", {"data": data, "model": name, "precision": p})
        for p in ("reference", "fp32", "bf16")
    }
    n = len(found["reference"]["chosen"])
    title = f"Predictions of {model} on {n:,} test images of {bench.o.real}, {found['reference']['classes']} classes;"
    lines = [title, "the reference is CLIP_benchmark reimplemented in float32:", ""]
    for precision, got in found.items():
        same = np.mean(np.array(got["chosen"]) == np.array(found["reference"]["chosen"]))
        lines.append(
            f"- {precision}: accuracy {got['accuracy']:.2%}, {got['accuracy'] - found['reference']['accuracy']:+.2%} "
            f"against the reference; {same:.2%} of the predictions are equal."
        )
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    bench = Bench("zeroshot", __doc__ or "", MEASUREMENTS)
    add = bench.parser.add_argument
    add("--model", default="random:ViT-B-32")
    add("--images", type=int, default=1000)
    add("--size", type=int, default=227, help="side of an image in pixels")
    add("--classes", type=int, nargs="+", default=[10, 100])
    add(
        "--pipeline-images",
        type=int,
        default=40,
        help="the pipeline's time per image is constant",
    )
    add(
        "--workers",
        type=int,
        default=4,
        help="loader processes of clip-benchmark; 4 is its default",
    )
    add("--judge", default="stitched", help="model whose predictions are compared")
    add("--real", default="openmoji:color", help="dataset for this comparison")
    quick = {"images": 24, "size": 40, "classes": [3], "pipeline_images": 2, "workers": 0}
    o = bench.parse(argv, {**quick, "model": "", "judge": "", "real": MADE_UP})
    with bench.scratch() as folder:
        model = o.model or _common.tiny_model(folder / "model")
        rows, data = [], ""
        for n in o.classes:
            write_images(folder / f"{n}", "test", o.images, o.size, class_names(n))
            data = f"folder:{folder / f'{n}'}"
            settings = {
                "data": data,
                "model": model,
                "pipeline_images": o.pipeline_images,
                "workers": o.workers,
            }
            runs = bench.alternate({
                variant: (part, settings | {"precision": precision})
                for variant, (part, precision) in variants(bench.device)[0].items()
            })
            rows += rows_of(n, runs, bench)
        real = data if o.real == MADE_UP else o.real
        notes = agreement(bench, real, o.judge or model)
    head = ["task", "variant", "images/s", "min to max", "times clip-benchmark"]
    head += ["images/s again", "times clip-benchmark", *SHARE, "peak memory, MiB"]
    notes = [
        f"Images are JPEG files of {o.size} pixels, all different. Memory is that of the main process, or of the GPU.",
        bench.peak_note(),
        f"clip-benchmark runs with its own batch size and {o.workers} loader processes; its `accuracy`, which fails",
        "under numpy 2.4, is replaced by an equivalent one.",
        *([] if installed() else MISSING),
        "",
        *notes,
    ]
    bench.write(
        f"Zero-shot classification (`{o.model or 'a tiny model'}`)", table(head, rows), notes
    )


if __name__ == "__main__":
    main()
