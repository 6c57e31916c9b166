"""Measure which share of a fit's time its checkpoints take.

    python scripts/bench/checkpoints.py [--seconds 70]

Each fit trains for some seconds and is stopped. The share is from counters inside the fit: the seconds of its writes
(tensors to bytes, checksums, the disk) and those of the whole. A fit writes its first checkpoint when that takes 2 % of
the time so far, by an assumed speed of the disk; so a short fit, or one with many parameters, writes none.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import _common
from _common import SEED, Bench, class_names, figure, ours, table, train_task, write_images

from clipadapt.core.api.context import Meter
from clipadapt.core.api.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from clipadapt.core.api.data import Task

ENDLESS: Final = 100_000
"""Epochs; the fit is stopped before."""


class _Enough(Exception):  # noqa: N818
    """The fit has trained long enough."""


class Deadline(Silent):
    """Progress that stops a fit; the clock starts with its first bar."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.begun = 0.0
        self.steps = 0

    def track(self, description: str, total: int | None, unit: str = "", /) -> Any:
        """Start the clock with the bar of the steps."""
        if unit != "steps":
            return super().track(description, total, unit)
        self.begun = self.begun or time.perf_counter()
        return self

    def advance(self, n: int = 1, /, **info: float) -> None:  # noqa: ARG002
        """Count the steps.

        Raises:
            _Enough: If the time is over.
        """
        self.steps += n
        if time.perf_counter() - self.begun > self.seconds:
            raise _Enough

    def __enter__(self) -> Self:
        """Return the bar."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the clock running."""


class Counter(Meter):
    """Counts the checkpoints too.

    Attributes:
        count: Checkpoints.
    """

    count = 0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a block, and count it."""
        self.count += name == "checkpoints"
        with super().stage(name):
            yield


def task_of(dataset: Any, settings: dict[str, Any]) -> Task[Any]:
    """Return images with random labels, or the texts of a dataset."""
    if settings["track"] == "clip":
        return train_task(dataset, settings["n"], settings["classes"])
    import numpy as np

    from clipadapt.core.api.data import Task

    train = dataset.split("train")
    rows = np.random.default_rng(SEED).permutation(len(train))[: settings["n"]]
    return Task(train.classnames, (), train.take(rows))


def fit(settings: dict[str, Any]) -> dict[str, Any]:
    """Train for some seconds; return them, those of the checkpoints, and how many there were."""
    deadline, meter = Deadline(settings["stop"]), Counter()
    with tempfile.TemporaryDirectory() as folder:
        given = [*settings["given"], f"method.epochs={ENDLESS}"]
        it = ours(settings["recipe"], settings, given, Path(folder), settings["track"])
        task = task_of(it.open().dataset, settings)
        ctx = it.context()
        ctx.services.progress, ctx.services.meter = deadline, meter
        with contextlib.suppress(_Enough):
            it.method.fit(it.backbone, task, ctx)
        seconds = time.perf_counter() - deadline.begun
    return {
        "seconds": seconds,
        "steps": deadline.steps,
        "spent": meter.stages.get("checkpoints", 0.0),
        "count": meter.count,
    }


MEASUREMENTS: Final = {"fit": fit}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    bench = Bench("checkpoints", __doc__ or "", MEASUREMENTS)
    add = bench.parser.add_argument
    add("--model", default="random:ViT-B-32", help="of CLIP-LoRA")
    add("--small", default="stitched", help="of full fine-tuning of images")
    add("--texts", default="minilm", help="of full fine-tuning of texts")
    add("--dataset", default="rotten_tomatoes:offline", help="of the texts")
    add("--n", type=int, default=160, help="training images")
    add("--size", type=int, default=227, help="side of an image in pixels")
    add("--seconds", type=float, default=70.0, help="of each fit")
    bench.parser.set_defaults(repeats=1)
    quick = {"model": "", "small": "", "n": 8, "size": 40, "seconds": 0.5}
    o = bench.parse(argv, quick)
    with bench.scratch() as folder:
        write_images(folder / "data", "train", o.n, o.size, class_names(2))
        write_images(folder / "data", "test", 2, o.size, class_names(2))
        tiny = "" if o.model and o.small else _common.tiny_model(folder / "model")
        images = [f"data.name=folder:{folder / 'data'}", "method.augment=none"]
        own = {"track": "clip", "n": o.n, "classes": min(10, o.n)}
        lora = [*images, f"model.name={o.model or tiny}", "method.steps_per_shot=null"]
        full = [*images, f"model.name={o.small or tiny}", "method.warmup_steps=0"]
        texts = [f"data.name={o.dataset}", f"model.name={o.texts}", "method.warmup_steps=0"]
        fits = {
            f"CLIP-LoRA, `{o.model or 'a tiny model'}`": {**own, "recipe": "lora", "given": lora},
            f"full fine-tuning of images, `{o.small or 'a tiny model'}`": {
                **own,
                "recipe": "full_finetune",
                "given": full,
            },
            f"full fine-tuning of texts, `{o.texts}`": {
                "track": "text",
                "n": 512,
                "recipe": "full_finetune",
                "given": texts,
            },
        }
        runs = bench.alternate({
            name: ("fit", {**settings, "stop": o.seconds}) for name, settings in fits.items()
        })
    rows = []
    for name, found in runs.items():
        count, spent, seconds = found.of("count"), found.of("spent"), found.of()
        each = figure(1000 * spent / count) if count else "none"
        cells = (figure(seconds), figure(found.of("steps")), figure(count), each)
        rows.append([name, *cells, f"{spent / seconds:.2%}"])
    notes = [
        "Checkpoints of images are written after a step, those of texts after an epoch (512 texts), if one is due: at",
        "least 10 seconds after the last, and as long as all of them take at most 2 % of the time. They hold the",
        "parameters, the state of the optimizer and, where the epoch is selected on val, the best parameters.",
    ]
    head = ["fit", "seconds", "steps", "checkpoints", "ms each", "share of the time"]
    bench.write("What checkpoints cost a fit", table(head, rows, words=1), notes)


if __name__ == "__main__":
    main()
