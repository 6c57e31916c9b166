"""What the benchmarks share: a process per measurement, ways that alternate, medians, and one table each.

A script names its measurements, functions from settings to figures. ``Bench.measure`` calls one in a process of its
own with a feature store of its own, ``Bench.alternate`` several in turn, and ``Bench.write`` puts the table and what
belongs to it into ``results``. ``--quick`` measures nothing worth keeping: a tiny model, one repeat, one process.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the first import of a hub library

import numpy as np

from clipadapt.core.files.atomic import write_text
from clipadapt.core.files.hardware import cpu_count, cpu_flags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Split, Task

    Measurement = Callable[[dict[str, Any]], dict[str, Any]]
    """From settings to figures, both plain data; ``seconds`` is what medians are taken of."""

RESULTS: Final = Path(__file__).parent / "results"
SEED: Final = 1
TEMPLATE: Final = "a photo of a {}."
FASTEST: Final = 1e-9
"""Seconds below which no clock tells anything."""
STORE: Final = "CLIPADAPT_CACHE"


# ---------------------------------------------------------------- the frame of a script


@dataclass(slots=True)
class Runs:
    """The repeats of one way.

    Attributes:
        results: What each gave.
    """

    results: list[dict[str, Any]] = field(default_factory=list)

    @property
    def first(self) -> dict[str, Any]:
        """What the first repeat gave."""
        return self.results[0]

    def of(self, name: str = "seconds") -> float:
        """Return the median of a figure."""
        return float(median(r[name] for r in self.results))

    def span(self, name: str = "seconds") -> str:
        """Return the least and the most of a figure."""
        values = [r[name] for r in self.results]
        return f"{figure(min(values))} to {figure(max(values))}"

    @property
    def memory(self) -> str:
        """The largest peak in MiB, as a cell."""
        peaks = [r.get("memory") for r in self.results]
        known = [p for p in peaks if p is not None]
        return f"{max(known) / 2**20:,.0f}" if known else "not measured"


class Bench:
    """One script: its options, its measurements and its table."""

    def __init__(self, name: str, doc: str, measurements: Mapping[str, Measurement]) -> None:
        """Begin a parser with the options of every script.

        Args:
            name: Name of the script and of its file of results.
            doc: The script's docstring.
            measurements: By name.
        """
        self.name, self.measurements = name, measurements
        self.script = str(Path(__file__).parent / f"{name}.py")
        self.parser = argparse.ArgumentParser(description=doc.splitlines()[0])
        add = self.parser.add_argument
        add("--repeats", type=int, default=3)
        add("--threads", type=int, default=0, help="0 takes the framework's own choice")
        add("--quick", action="store_true", help="a few seconds, only to see that it works")
        add("--isolate", action=argparse.BooleanOptionalAction, help="a process per measurement")
        add("--output", type=Path, default=RESULTS / f"{name}.md")
        add(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="setting of ours, as clipadapt takes it",
        )
        add("--worker", nargs=3, help=argparse.SUPPRESS)
        self.o = argparse.Namespace()
        self.folder = Path()

    def parse(
        self, argv: Sequence[str] | None = None, quick: Mapping[str, Any] | None = None
    ) -> argparse.Namespace:
        """Return the options; in the process of a measurement, measure and leave.

        Args:
            argv: Command line; None takes the process's own.
            quick: Defaults of ``--quick``.
        """
        given = list(sys.argv[1:] if argv is None else argv)
        self.parser.set_defaults(isolate=True)
        if "--quick" in given:
            self.parser.set_defaults(repeats=1, isolate=False, **(quick or {}))
        self.o = self.parser.parse_args(given)
        if self.o.repeats < 1:
            self.parser.error(f"--repeats must be at least 1 (got {self.o.repeats})")
        if self.o.worker:
            part, settings, target = self.o.worker
            result = self.measurements[part](json.loads(settings))
            Path(target).write_text(json.dumps(result), encoding="utf-8")
            sys.exit(0)
        return self.o

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Keep a folder for pictures, models and stores while the script runs."""
        with tempfile.TemporaryDirectory(prefix=f"bench-{self.name}-") as folder:
            self.folder = Path(folder)
            yield self.folder

    def measure(self, part: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Measure once, with an empty feature store unless the settings name one (``store``)."""
        given = settings | {"threads": self.o.threads, "set": list(self.o.set)}
        store = Path(given.get("store") or tempfile.mkdtemp(dir=self.folder))
        environment = {STORE: str(store)}
        if self.o.threads:
            environment["OMP_NUM_THREADS"] = str(self.o.threads)
        try:
            found = (self._in_process if self.o.isolate else self._here)(part, given, environment)
        finally:
            if "store" not in given:
                shutil.rmtree(store, ignore_errors=True)
        shown = f": {found['seconds']:.4g} s" if "seconds" in found else ""
        print(f"{self.name} {part}{shown}", file=sys.stderr)
        return found

    def alternate(self, ways: Mapping[str, tuple[str, dict[str, Any]]]) -> dict[str, Runs]:
        """Measure several ways in turn, every second time backwards.

        Args:
            ways: Name -> measurement and settings.
        """
        runs = {name: Runs() for name in ways}
        for i in range(self.o.repeats):
            for name in list(ways) if i % 2 == 0 else list(ways)[::-1]:
                runs[name].results.append(self.measure(*ways[name]))
        return runs

    def write(self, title: str, table: Sequence[str], notes: Sequence[str]) -> None:
        """Write and print the table."""
        how = (
            "each in a process of its own, ways alternating"
            if self.o.isolate
            else "all in one process"
        )
        head = [
            f"# {title}",
            "",
            f"{', '.join(machine(self.o.threads))}.",
            f"Written by `scripts/bench/{self.name}.py`; repeats: {self.o.repeats}, {how}; medians.",
            f"Settings of ours that were changed: {', '.join(self.o.set) or 'none'}.",
            *(["**A quick run: the figures say nothing.**"] * self.o.quick),
            "",
        ]
        text = "\n".join([*head, *table, "", *notes]).rstrip() + "\n"
        self.o.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.o.output, text)
        print(text, end="")

    def _in_process(
        self, part: str, settings: dict[str, Any], environment: dict[str, str]
    ) -> dict[str, Any]:
        target = self.folder / "result.json"
        command = [sys.executable, self.script, "--worker", part, json.dumps(settings), str(target)]
        done = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{self.name}, {part} failed:\n{done.stderr[-4000:]}")
        return dict(json.loads(target.read_text(encoding="utf-8")))

    def _here(
        self, part: str, settings: dict[str, Any], environment: dict[str, str]
    ) -> dict[str, Any]:
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        try:
            return dict(json.loads(json.dumps(self.measurements[part](settings))))
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def machine(threads: int = 0) -> list[str]:
    """Return what a reader must know of where the figures come from."""
    from clipadapt.core.records.environment import environment

    where = environment(threads=threads or None)
    packages = ("numpy", "torch", "open_clip_torch", "transformers", "peft", "scikit-learn")
    found = []
    for package in (*packages, "clip-benchmark"):
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return [
        f"{cpu_count()} cores ({', '.join(cpu_flags())})",
        f"threads: {where.threads}",
        platform.system(),
        f"Python {where.python}",
        *found,
        f"commit {where.git_commit or 'unknown'}{' with changes' if where.git_dirty else ''}",
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 2) -> list[str]:
    """Return a Markdown table; the first ``words`` columns hold words, the others figures.

    Raises:
        ValueError: If a row has another number of cells than the head.
    """
    wrong = [row for row in rows if len(row) != len(head)]
    if wrong:
        raise ValueError(f"rows with other than {len(head)} cells: {wrong}")
    marks = ["---"] * words + ["---:"] * (len(head) - words)
    return [f"| {' | '.join(cells)} |" for cells in (head, marks, *rows)]


def figure(value: float) -> str:
    """Return a figure of three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def times(slow: float, fast: float) -> str:
    """Return how many times as fast, as a cell."""
    return f"{slow / max(fast, FASTEST):.2f}"


def measured(work: Callable[[], Any]) -> tuple[Any, float, int | None]:
    """Return the result of ``work``, its seconds and its peak memory in bytes."""
    from clipadapt.core.records.environment import peak_memory, reset_peak_memory

    gc.collect()
    reset_peak_memory()
    begun = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begun, peak_memory()


def use_threads(settings: Mapping[str, Any]) -> None:
    """Give torch the threads of the settings."""
    if settings.get("threads"):
        import torch

        torch.set_num_threads(settings["threads"])


def precision_of(settings: Mapping[str, Any]) -> list[str]:
    """Return what sets a trained method's precision: of frozen features, and of what gradients run through."""
    chosen = settings["precision"]
    through = [] if chosen == "auto" else [f"method.precision={chosen}"]
    return [f"model.precision={chosen}", *through]


class Clock:
    """An observer of a fit that notes when each step's loss is known."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def __call__(self, name: str, _value: Any) -> None:
        """Note the time of a loss."""
        if name == "loss":
            self.at.append(time.perf_counter())

    def seconds(self, drop: int) -> list[float]:
        """Return the seconds between losses but for the first ``drop``."""
        return np.diff(self.at)[drop:].tolist()


# ---------------------------------------------------------------- what is measured


@dataclass(frozen=True, slots=True)
class Ours:
    """The shipped method with its backbone, as ``run_experiments`` makes them.

    Attributes:
        method: The method.
        backbone: The model, or None.
        open: Opens the data set anew.
        context: Returns a context of a fit.
    """

    method: Any
    backbone: Any
    open: Callable[[], Any]
    context: Callable[..., RunContext]


def ours(recipe: str, settings: Mapping[str, Any], given: Sequence[str], folder: Path) -> Ours:
    """Prepare a method as ``clipadapt run`` does, up to the fit.

    Args:
        recipe: Recipe.
        settings: Of the measurement: its threads, and what the command line sets.
        given: ``KEY=VALUE`` texts; the command line's stand over them.
        folder: Where records and checkpoints may go.
    """
    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.progress import Silent
    from clipadapt.core.data.targets import open_target
    from clipadapt.core.experiments import config
    from clipadapt.core.runs.models import ModelLoader
    from clipadapt.core.runs.plan import open_experiment

    use_threads(settings)
    threads = [f"threads={settings['threads']}"] if settings.get("threads") else []
    experiment = config.load([recipe], [*given, *threads, *settings.get("set", [])])
    opened = open_experiment(experiment, folder / "runs")
    loader = ModelLoader()
    loader.use_threads(opened)
    model = loader.load(opened)
    chosen = experiment.config

    def target() -> Any:
        return open_target(chosen.data.name, chosen.evaluation.split, chosen.data, "clip", Silent())

    def context(**more: Any) -> RunContext:
        work = Path(tempfile.mkdtemp(dir=folder))
        return RunContext(SEED, work, model.services, chosen.threads, **more)

    return Ours(opened.method(experiment.method), model.backbone, target, context)


class GivenFeatures:
    """A backbone whose image features are given; ids are row numbers."""

    def __init__(self, features: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        self.features = features

    def encode(self, inputs: Inputs[Any], *_: Any, **__: Any) -> np.ndarray[Any, Any]:
        """Return the rows of the inputs."""
        return self.features[np.array([int(i) for i in inputs.ids], dtype=np.int64)]


def given_split(rows: Sequence[int], labels: np.ndarray[Any, Any], n_classes: int) -> Split[Any]:
    """Return examples that stand for rows of :class:`GivenFeatures`."""
    from clipadapt.core.api.data import Inputs, Split

    ids = tuple(map(str, rows))
    return Split(Inputs(ids, ids), labels, class_names(n_classes))


def clusters(
    n: int, width: int, n_classes: int, seed: int = SEED
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Return made-up features of unit norm round one centre per class, and labels; a probe gets most right."""
    centres = np.random.default_rng(SEED).normal(size=(n_classes, width))
    rng = np.random.default_rng([seed, n])
    labels = np.arange(n) % n_classes
    x = centres[labels] + 4.0 * rng.normal(size=(n, width))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit.astype(np.float32), labels.astype(np.int64)


def class_names(n: int) -> tuple[str, ...]:
    """Return the first ``n`` class names of ImageNet that differ and may name a folder."""
    from clipadapt.datasets._imagenet import CLASSNAMES

    usable = dict.fromkeys(name for name in CLASSNAMES if "/" not in name)
    # Two names stand twice in the list; numbers fill the rest.
    extra = (f"thing {i}" for i in range(n))
    return tuple([*usable, *extra][:n])


def train_task(dataset: Any, n: int, n_classes: int) -> Task[Any]:
    """Return a task of ``n`` pictures of a data set with drawn labels of ``n_classes`` classes."""
    from clipadapt.core.api.data import Split, Task

    inputs = dataset.split("train").inputs.take(np.arange(n))
    labels = np.random.default_rng(SEED).integers(n_classes, size=n)
    names = class_names(n_classes)
    return Task(names, (TEMPLATE,), Split(inputs, labels.astype(np.int64), names))


def pictures(
    folder: Path,
    split: str,
    n: int,
    size: int,
    classnames: Sequence[str],
    *,
    distinct: int | None = None,
) -> None:
    """Write ``n`` different JPEGs as ``folder/split/CLASS/NUMBER.jpg``: coarse shapes with some grain.

    Args:
        folder: Where to.
        split: Split; another one gets other pictures.
        n: Files.
        size: Side in pixels.
        classnames: Names of the classes, which take turns.
        distinct: So many pictures only; the files then differ in a few bytes behind the picture's end.
    """
    rng = np.random.default_rng([SEED, *split.encode()])
    drawn = [_jpeg(rng, size) for _ in range(min(n, distinct or n))]
    for i in range(n):
        place = folder / split / classnames[i % len(classnames)]
        place.mkdir(parents=True, exist_ok=True)
        tail = b"" if i < len(drawn) else i.to_bytes(4)
        (place / f"{i:06}.jpg").write_bytes(drawn[i % len(drawn)] + tail)


def _jpeg(rng: np.random.Generator, size: int) -> bytes:
    from PIL import Image

    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    shapes = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    whole = np.clip(shapes + rng.integers(-8, 9, shapes.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(whole).save(file, "JPEG", quality=90)
    return file.getvalue()


def tiny_model(folder: Path) -> str:
    """Write a tiny CLIP with random weights; return its name."""
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    vision = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    torch.manual_seed(SEED)
    module = CLIP(16, dict(vision), dict(text))
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous().clone() for name, tensor in module.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    config = {
        "model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return f"local-dir:{folder}"


def steps_of(it: Ours, settings: Mapping[str, Any], drop: int) -> dict[str, Any]:
    """Fit a shipped method and return the median seconds of a step after the first ``drop``, and what went before."""
    from clipadapt.core.records.environment import peak_memory, reset_peak_memory

    task = train_task(it.open().dataset, settings["n"], settings["classes"])
    clock = Clock()
    reset_peak_memory()
    begun = time.perf_counter()
    it.method.fit(it.backbone, task, it.context(observe=clock))
    memory = peak_memory()
    seconds = median(clock.seconds(drop))
    return {"seconds": seconds, "memory": memory, "set_up": clock.at[0] - begun}
