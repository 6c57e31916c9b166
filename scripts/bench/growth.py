"""Measure how time and memory of clipadapt grow with images, classes and shots.

    python scripts/bench/growth.py [--images 1000 10000 100000] [--classes 10 100 1000] [--shots 1 2 4 8 16]

Growth with images uses a tiny tower, so that the rest dominates: reading, decoding, caching and scoring small files,
then reading features back, then a probe on them. Growth with classes is measured on a step of CoOp and on the text
classifier; growth with shots on the whole search of a probe and of Tip-Adapter.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import _common
import _device
import coop
import numpy as np
import pipeline
import probe
from _common import (
    Bench,
    GivenFeatures,
    class_names,
    clusters,
    figure,
    given_split,
    made_up_digests,
    measured,
    ours,
    table,
    use_threads,
    write_images,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

CHUNK: Final = 4096
DISTINCT: Final = 200
N_CLASSES: Final = 10
PENALTIES: Final = (0.01, 1.0, 100.0)


def stored(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure reading ``n`` cached features."""
    from clipadapt.core.api.features import Space
    from clipadapt.core.features.cache import FeatureCache

    n, width = settings["n"], settings["width"]
    digests = made_up_digests(n)
    space = Space("made up", "gelu", "output", "none", "fp32", 0, "image")

    def compute(rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        rng = np.random.default_rng(0)
        for begin in range(0, len(rows), CHUNK):
            part = rows[begin : begin + CHUNK]
            yield part, rng.normal(size=(len(part), width)).astype(np.float32)

    FeatureCache().get_or_compute(space, digests, compute)
    got, seconds, memory = measured(lambda: FeatureCache().get_or_compute(space, digests, compute))
    if got.computed:
        raise RuntimeError(f"{got.computed} of {n} features were recomputed")
    return {"seconds": seconds, "memory": memory}


def at_scale(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure reading ``n`` float16 features back from the cache and fitting probes on them."""
    from clipadapt.core.api.features import Space
    from clipadapt.core.features.cache import FeatureCache
    from clipadapt.methods.linear_probe import Batched

    use_threads(settings)
    n, width = settings["n"], settings["width"]
    digests = made_up_digests(n)
    labels = np.arange(n) % N_CLASSES
    centres, _ = clusters(N_CLASSES, width, N_CLASSES)
    space = Space("made up", "gelu", "output", "none", "fp16", 0, "image")

    def compute(rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        rng = np.random.default_rng(0)
        for begin in range(0, len(rows), CHUNK):
            part = rows[begin : begin + CHUNK]
            noise = rng.normal(size=(len(part), width)).astype(np.float32)
            yield part, (centres[labels[part]] + noise / 8).astype(np.float16)

    FeatureCache().get_or_compute(space, digests, compute)

    def work() -> int:
        got = FeatureCache().get_or_compute(space, digests, compute)
        if got.computed:
            raise RuntimeError(f"{got.computed} of {n} features were recomputed")
        rows = got.rows
        Batched([rows], labels, N_CLASSES)(PENALTIES)
        return int(rows.nbytes)

    with _device.AnonymousMemory() as own:
        bytes_, seconds, memory = measured(work)
    return {"seconds": seconds, "memory": memory, "own": own.growth, "features": bytes_}


def fit_probe(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure the batched solver with a few penalties on ``n`` features."""
    from clipadapt.methods.linear_probe import Batched

    use_threads(settings)
    x, y = clusters(settings["n"], settings["width"], N_CLASSES)
    Batched([x[:200]], y[:200], N_CLASSES)(PENALTIES)
    _, seconds, memory = measured(lambda: Batched([x], y, N_CLASSES)(PENALTIES))
    return {"seconds": seconds, "memory": memory}


def text_classifier(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure the text classifier of ``classes`` names, without the cache."""
    from clipadapt.core.api.data import Task

    with tempfile.TemporaryDirectory() as folder:
        given = [
            f"data.name={settings['data']}",
            f"model.name={settings['model']}",
            f"model.precision={settings['precision']}",
        ]
        it = ours("zero_shot", settings, given, Path(folder))
        it.backbone.encode_text(it.backbone.tokenize(["warm up"] * 2))
        task = Task(class_names(settings["classes"]), (_common.TEMPLATE,))
        _, seconds, memory = measured(
            lambda: it.method.fit(it.backbone, task, it.context()), settings["device"]
        )
    return {"seconds": seconds, "memory": memory}


def search_probe(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure the shipped probe with its search and refit on synthetic features."""
    from clipadapt.core.api.context import RunContext, Services
    from clipadapt.core.api.data import Task
    from clipadapt.core.features.cache import FeatureCache
    from clipadapt.methods.linear_probe import LinearProbe, LinearProbeConfig

    use_threads(settings)
    shots, width = settings["shots"], settings["width"]
    x, y = clusters(shots * N_CLASSES, width, N_CLASSES)
    xv, yv = clusters(min(shots, 4) * N_CLASSES, width, N_CLASSES, seed=2)
    backbone: Any = GivenFeatures(np.concatenate([x, xv]))
    train = given_split(range(len(x)), y, N_CLASSES)
    val = given_split(range(len(x), len(x) + len(xv)), yv, N_CLASSES)
    task: Task[Any] = Task(class_names(N_CLASSES), (), train, val)
    method = LinearProbe(LinearProbeConfig(solver="batched"))

    def work() -> Any:
        ctx = RunContext(1, Path(), Services(FeatureCache(enabled=False)))
        return method.fit(backbone, task, ctx)

    work()
    _, seconds, memory = measured(work)
    return {"seconds": seconds, "memory": memory}


MEASUREMENTS: Final = {
    "images": pipeline.whole,
    "stored": stored,
    "probe": fit_probe,
    "at scale": at_scale,
    "step": coop.by_ours,
    "text": text_classifier,
    "search of the probe": search_probe,
    "search of the cache": probe.search,
}


def rows_of(
    bench: Bench, work: str, unit: str, part: str, sizes: dict[int, dict[str, Any]]
) -> list[list[str]]:
    """Measure one task at all sizes and return its rows."""
    runs = bench.alternate({str(n): (part, settings) for n, settings in sizes.items()})
    first = next(iter(sizes))
    base = runs[str(first)].of()
    return [
        [
            work,
            f"{n:,} {unit}",
            figure(runs[str(n)].of()),
            figure(1e6 * runs[str(n)].of() / n),
            f"{n / first:.4g}",
            f"{runs[str(n)].of() / base:.3g}",
            runs[str(n)].memory,
        ]
        for n in sizes
    ]


def growth_with_images(bench: Bench, folder: Path) -> list[list[str]]:
    """Return the rows of growth with images."""
    o = bench.o
    tiny = _common.tiny_model(folder / "tiny")
    files = {}
    for n in o.images:
        write_images(folder / f"{n}", "test", n, 64, class_names(N_CLASSES), distinct=DISTINCT)
        data = f"folder:{folder / f'{n}'}"
        files[n] = {"data": data, "model": tiny, "images": n, "precision": "fp32"}
    features = {n: {"n": n, "width": o.width} for n in o.images}
    return [
        *rows_of(bench, "zero-shot from files, a tiny tower", "images", "images", files),
        *rows_of(
            bench, f"reading cached features of width {o.width}", "images", "stored", features
        ),
        *rows_of(
            bench, f"a probe of {len(PENALTIES)} penalties on them", "images", "probe", features
        ),
    ]


def growth_with_classes(bench: Bench, folder: Path) -> list[list[str]]:
    """Return the rows of growth with classes."""
    o = bench.o
    data, batch = folder / "classes", min(32, o.n)
    for split in ("train", "test"):
        write_images(data, split, o.n if split == "train" else 2, 227, class_names(2))
    common = {
        "data": f"folder:{data}",
        "model": o.model or _common.tiny_model(folder / "tiny"),
        "precision": o.precision,
    }
    step = {"n": o.n, "n_ctx": 16, "batch_size": batch, "steps": 3, "augment": "none"}
    steps = {n: common | step | {"classes": n} for n in o.classes}
    texts = {n: common | {"classes": n} for n in o.classes}
    return [
        *rows_of(bench, "a step of CoOp", "classes", "step", steps),
        *rows_of(bench, "text classifier", "classes", "text", texts),
    ]


def growth_with_shots(bench: Bench) -> list[list[str]]:
    """Return the rows of growth with shots."""
    o = bench.o
    common = {"width": o.width, "classes": N_CLASSES, "variant": "ours", "val": 40}
    grid = {"betas": o.betas, "alphas": o.alphas}
    shots = {n: {**common, **grid, "shots": n} for n in o.shots}
    return [
        *rows_of(bench, "a probe's search and refit", "shots", "search of the probe", shots),
        *rows_of(bench, "Tip-Adapter's search", "shots", "search of the cache", shots),
    ]


def at_scale_notes(bench: Bench) -> list[str]:
    """Return the cost of a probe on very many cached features."""
    o = bench.o
    found = bench.measure("at scale", {"n": o.scale, "width": o.width})
    # The cache maps large results, see SCRATCH_BYTES; smaller ones are part of the growth.
    mib = {name: f"{found[name] / 2**20:,.0f} MiB" for name in ("features", "own")}
    return [
        "",
        f"{o.scale:,} x {o.width} float16 features, read from the cache and fitted with {len(PENALTIES)} penalties,",
        f"once: {figure(found['seconds'])} s. The features are {mib['features']}, mapped from a file; the memory of",
        f"the process itself grew by {mib['own']} at the most.",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    bench = Bench("growth", __doc__ or "", MEASUREMENTS)
    add = bench.parser.add_argument
    add("--model", default="random:ViT-B-32", help="model whose texts are read")
    add("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    add("--images", type=int, nargs="*", default=[1000, 10_000, 100_000])
    add("--classes", type=int, nargs="*", default=[10, 100, 1000])
    add("--shots", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    add(
        "--scale",
        type=int,
        default=1_000_000,
        help="float16 features of one more probe; 0 for none",
    )
    add("--width", type=int, default=512)
    add("--n", type=int, default=64, help="training images of CoOp")
    add("--betas", type=int, default=200)
    add("--alphas", type=int, default=20)
    quick = {
        "images": [20, 40],
        "classes": [2, 3],
        "shots": [1, 2],
        "width": 16,
        "n": 8,
        "scale": 50,
    }
    o = bench.parse(argv, {**quick, "betas": 5, "alphas": 4, "model": ""})
    rows: list[list[str]] = []
    with bench.scratch() as folder:
        if o.images:
            rows += growth_with_images(bench, folder)
        if o.classes:
            rows += growth_with_classes(bench, folder)
        if o.shots:
            rows += growth_with_shots(bench)
        scale = at_scale_notes(bench) if o.scale else []
    head = ["work", "size", "seconds", "microseconds each", "size, times the first"]
    head += ["seconds, times the first", "peak memory, MiB"]
    notes = [
        f"Files are JPEGs of 64 pixels; probes and searches have {N_CLASSES} classes.",
        f"CoOp has 16 vectors and batches of {min(32, o.n)}.",
        "Memory includes what the process had loaded before, such as imports.",
        *scale,
    ]
    bench.write(
        f"Growth of time and memory (`{o.model or 'a tiny model'}`)", table(head, rows), notes
    )


if __name__ == "__main__":
    main()
