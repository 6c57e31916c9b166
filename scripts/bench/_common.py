"""Shared code of the benchmarks: one process per measurement, alternating variants, medians, and one table each.

A script defines measurements, functions from settings to figures. ``Bench.measure`` calls one in a new process with
an empty feature cache, ``Bench.alternate`` calls several in turn, and ``Bench.write`` writes the table and its notes
to ``results``. ``--quick`` only checks that the script works: a tiny model, one repeat, one process.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the first import of a hub library

import _device
import numpy as np

from clipadapt.core.api.errors import ClipAdaptError
from clipadapt.core.files.atomic import write_text
from clipadapt.core.files.hardware import cpu_count, cpu_flags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Split, Task
    from clipadapt.core.api.progress import Progress

    Measurement = Callable[[dict[str, Any]], dict[str, Any]]
    """From settings to figures, both reference data; medians are taken over ``seconds``."""

RESULTS: Final = Path(__file__).parent / "results"
SEED: Final = 1
TEMPLATE: Final = "a photo of a {}."
FASTEST: Final = 1e-9
"""Seconds below which a measurement is meaningless."""
STORE: Final = "CLIPADAPT_CACHE"
SHARE: Final = ("GFLOP/s", "of the peak")
"""Columns of :meth:`Runs.share`."""


# ---------------------------------------------------------------- structure of a script


@dataclass(slots=True)
class Runs:
    """The repeats of one variant.

    Attributes:
        results: Result of each repeat.
    """

    results: list[dict[str, Any]] = field(default_factory=list)

    @property
    def first(self) -> dict[str, Any]:
        """Result of the first repeat."""
        return self.results[0]

    def of(self, name: str = "seconds") -> float:
        """Return the median of a figure."""
        return float(median(r[name] for r in self.results))

    def span(self, name: str = "seconds") -> str:
        """Return the minimum and maximum of a figure."""
        values = [r[name] for r in self.results]
        return f"{figure(min(values))} to {figure(max(values))}"

    @property
    def memory(self) -> str:
        """The largest peak in MiB, as a cell; on a GPU with the memory that torch has reserved."""
        used, reserved = self._largest("memory"), self._largest("reserved")
        return f"{used} ({reserved} reserved)" if reserved else used or "not measured"

    def _largest(self, name: str) -> str:
        # 0 was measured in a process without a card.
        known = [r[name] for r in self.results if r.get(name)]
        return f"{max(known) / 2**20:,.0f}" if known else ""

    def share(self, peak: float) -> list[str]:
        """Return the cells of :data:`SHARE`, empty if the operations of this variant were not counted.

        Args:
            peak: Operations per second of a matrix product, see :meth:`Bench.peak`.
        """
        flop = self.first.get("flop")
        if not flop:
            return ["", ""]
        reached = flop / max(self.of(), FASTEST)
        return [figure(reached / 1e9), f"{reached / peak:.0%}"]


class Bench:
    """One script: its options, its measurements and its table."""

    def __init__(self, name: str, doc: str, measurements: Mapping[str, Measurement]) -> None:
        """Create the parser with the options that every script has.

        Args:
            name: Name of the script and of its file of results.
            doc: The script's docstring.
            measurements: By name.
        """
        self.name, self.measurements = name, {"peak": _device.peak, **measurements}
        self.device = _device.CPU
        self._peaks: dict[str, float] = {}
        self.script = str(Path(__file__).parent / f"{name}.py")
        self.parser = argparse.ArgumentParser(description=doc.splitlines()[0])
        add = self.parser.add_argument
        add("--repeats", type=int, default=3)
        add("--threads", type=int, default=0, help="0 leaves the choice to the framework")
        add(
            "--quick",
            action="store_true",
            help="takes a few seconds, only to check that the script works",
        )
        add(
            "--device",
            default="auto",
            help="device of both sides: auto (a GPU if there is one), cpu, cuda or cuda:INDEX",
        )
        add("--isolate", action=argparse.BooleanOptionalAction, help="a process per measurement")
        add("--output", type=Path, default=RESULTS / f"{name}.md")
        add(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="setting for clipadapt, as on its command line",
        )
        add("--worker", nargs=3, help=argparse.SUPPRESS)
        self.o = argparse.Namespace()
        self.folder = Path()

    def parse(
        self, argv: Sequence[str] | None = None, quick: Mapping[str, Any] | None = None
    ) -> argparse.Namespace:
        """Return the options; in the process of a measurement, measure and exit.

        Args:
            argv: Command line; None uses ``sys.argv``.
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
            result = self._run(part, json.loads(settings))
            Path(target).write_text(json.dumps(result), encoding="utf-8")
            sys.exit(0)
        try:
            self.device = _device.resolved(self.o.device)
        except ClipAdaptError as err:
            self.parser.error(f"--device: {err}")
        return self.o

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Keep a folder for images, models and feature caches while the script runs."""
        with tempfile.TemporaryDirectory(prefix=f"bench-{self.name}-") as folder:
            self.folder = Path(folder)
            yield self.folder

    def measure(self, part: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Measure once, with an empty feature cache unless the settings name one (``store``)."""
        given = {"repeat": 0} | settings | {"threads": self.o.threads, "device": self.device}
        # First, so that a setting of the command line has the last word.
        given |= {"set": [f"model.device={self.device}", *self.o.set], "quick": self.o.quick}
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

    def alternate(self, variants: Mapping[str, tuple[str, dict[str, Any]]]) -> dict[str, Runs]:
        """Measure several variants in turn, reversing the order every second time.

        Args:
            variants: Name -> measurement and settings.
        """
        runs = {name: Runs() for name in variants}
        for i in range(self.o.repeats):
            for name in list(variants) if i % 2 == 0 else list(variants)[::-1]:
                part, settings = variants[name]
                runs[name].results.append(self.measure(part, settings | {"repeat": i}))
        return runs

    def peak(self, precision: str, device: str | None = None) -> float:
        """Return the floating-point operations per second of a large matrix product, measured once.

        Args:
            precision: ``fp32``, ``bf16`` or ``fp16``.
            device: Where it is measured; None is the device of the benchmark.
        """
        on = device or self.device
        key = precision if on == self.device else f"{precision} on the {on.upper()}"
        if key not in self._peaks:
            self._peaks[key] = self.measure("peak", {"precision": precision, "on": on})["rate"]
        return self._peaks[key]

    def peak_note(self) -> str:
        """Return the sentence about the column of the peak, after the table's rows are made."""
        rates = ", ".join(f"{p} {figure(rate / 1e9)}" for p, rate in sorted(self._peaks.items()))
        return (
            f"GFLOP/s are those of matrix products and convolutions; the peak is a large matrix product of the same "
            f"precision, measured here: {rates} GFLOP/s."
        )

    def _run(self, part: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Measure in this process; on a GPU with the memory that torch has reserved."""
        result = self.measurements[part](settings)
        device = result.get("device", settings["device"])
        reserved = _device.reserved(device) if "memory" in result else None
        return result if reserved is None else result | {"reserved": reserved}

    def write(self, title: str, table: Sequence[str], notes: Sequence[str]) -> None:
        """Write and print the table."""
        how = (
            "each in a new process, variants alternating"
            if self.o.isolate
            else "all in one process"
        )
        head = [
            f"# {title}",
            "",
            f"{', '.join(machine(self.o.threads, self.device))}.",
            f"Written by `scripts/bench/{self.name}.py`; repeats: {self.o.repeats}, {how}; medians.",
            f"Changed settings of clipadapt: {', '.join(self.o.set) or 'none'}.",
            *(["**A quick run: these figures mean nothing.**"] * self.o.quick),
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
            return dict(json.loads(json.dumps(self._run(part, settings))))
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def machine(threads: int = 0, device: str = _device.CPU) -> list[str]:
    """Return the machine and the versions behind the figures."""
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
        *([] if device == _device.CPU else [f"device: {_device.card(device)} ({device})"]),
        platform.system(),
        f"Python {where.python}",
        *found,
        f"commit {where.git_commit or 'unknown'}{' with changes' if where.git_dirty else ''}",
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 2) -> list[str]:
    """Return a Markdown table; the first ``words`` columns are text, the others figures.

    Raises:
        ValueError: If a row and the header differ in their number of cells.
    """
    wrong = [row for row in rows if len(row) != len(head)]
    if wrong:
        raise ValueError(f"rows without {len(head)} cells: {wrong}")
    marks = ["---"] * words + ["---:"] * (len(head) - words)
    return [f"| {' | '.join(cells)} |" for cells in (head, marks, *rows)]


def figure(value: float) -> str:
    """Return a figure with three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def times(slow: float, fast: float) -> str:
    """Return the speed-up, as a cell."""
    return f"{slow / max(fast, FASTEST):.2f}"


def measured(work: Callable[[], Any], device: str = _device.CPU) -> tuple[Any, float, int | None]:
    """Return the result of ``work``, its seconds and its peak memory in bytes.

    Args:
        work: What is measured.
        device: The end of its work on a GPU is waited for, and the memory is that of the GPU.
    """
    from clipadapt.core.records.environment import peak_memory, reset_peak_memory

    gc.collect()
    _device.wait_for(device)
    reset_peak_memory(device)
    begun = time.perf_counter()
    result = work()
    _device.wait_for(device)
    return result, time.perf_counter() - begun, peak_memory(device)


def use_threads(settings: Mapping[str, Any]) -> None:
    """Set the number of threads of torch."""
    if settings.get("threads"):
        import torch

        torch.set_num_threads(settings["threads"])


def precision_of(settings: Mapping[str, Any]) -> list[str]:
    """Return the settings for the precision of frozen features and of layers with gradients."""
    chosen = settings["precision"]
    through = [] if chosen == "auto" else [f"method.precision={chosen}"]
    return [f"model.precision={chosen}", *through]


def made_up_digests(n: int) -> NDArray[np.uint8]:
    """Return digests of ``n`` examples that do not exist."""
    whole = b"".join(hashlib.sha256(i.to_bytes(8)).digest() for i in range(n))
    return np.frombuffer(whole, dtype=np.uint8).reshape(n, 32)


# ---------------------------------------------------------------- what is measured


@dataclass(frozen=True, slots=True)
class Ours:
    """The shipped method with its backbone, as ``clipadapt run`` creates them.

    Attributes:
        method: The method.
        backbone: The model, or None.
        open: Opens the dataset again.
        context: Returns the context of a fit.
    """

    method: Any
    backbone: Any
    open: Callable[[], Any]
    context: Callable[..., RunContext]


def ours(
    recipe: str,
    settings: Mapping[str, Any],
    given: Sequence[str],
    folder: Path,
    track: str = "clip",
) -> Ours:
    """Prepare a method as ``clipadapt run`` does, up to the fit.

    Args:
        recipe: Recipe.
        settings: Settings of the measurement: threads and those of the command line.
        given: ``KEY=VALUE`` texts; those of the command line override them.
        folder: Folder for records and checkpoints.
        track: ``clip`` or ``text``.
    """
    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.progress import Silent
    from clipadapt.core.data.targets import open_target
    from clipadapt.core.experiments import config
    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.runs.models import ModelLoader
    from clipadapt.core.runs.plan import open_experiment

    use_threads(settings)
    threads = [f"threads={settings['threads']}"] if settings.get("threads") else []
    experiment = config.load([recipe], [*given, *threads, *settings.get("set", [])], track=track)
    opened = open_experiment(experiment, RunStore(folder / "runs"))
    loader = ModelLoader()
    loader.use_threads(opened)
    model = loader.load(opened)
    chosen = experiment.config

    def target() -> Any:
        return open_target(chosen.data.name, chosen.evaluation.split, chosen.data, track, Silent())

    def context(progress: Progress | None = None, **more: Any) -> RunContext:
        work = Path(tempfile.mkdtemp(dir=folder))
        services = replace(model.services, progress=progress or Silent())
        return RunContext(SEED, work, services, chosen.threads, **more)

    return Ours(opened.method(experiment.method), model.backbone, target, context)


class GivenFeatures:
    """A backbone with given image features; ids are row numbers."""

    def __init__(self, features: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        self.features = features

    def encode(self, inputs: Inputs[Any], *_: Any, **__: Any) -> np.ndarray[Any, Any]:
        """Return the rows of the inputs."""
        return self.features[np.array([int(i) for i in inputs.ids], dtype=np.int64)]


def given_split(rows: Sequence[int], labels: np.ndarray[Any, Any], n_classes: int) -> Split[Any]:
    """Return inputs that refer to rows of :class:`GivenFeatures`."""
    from clipadapt.core.api.data import Inputs, Split

    ids = tuple(map(str, rows))
    return Split(Inputs(ids, ids), labels, class_names(n_classes))


def clusters(
    n: int, width: int, n_classes: int, seed: int = SEED
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Return synthetic unit-norm features around one centre per class, and labels; a probe gets most of them right."""
    centres = np.random.default_rng(SEED).normal(size=(n_classes, width))
    rng = np.random.default_rng([seed, n])
    labels = np.arange(n) % n_classes
    x = centres[labels] + 4.0 * rng.normal(size=(n, width))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit.astype(np.float32), labels.astype(np.int64)


def class_names(n: int) -> tuple[str, ...]:
    """Return the first ``n`` distinct class names of ImageNet that can be folder names."""
    from clipadapt.datasets._imagenet import CLASSNAMES

    usable = dict.fromkeys(name for name in CLASSNAMES if "/" not in name)
    # Two names occur twice in the list; numbers fill the rest.
    extra = (f"thing {i}" for i in range(n))
    return tuple([*usable, *extra][:n])


def train_task(dataset: Any, n: int, n_classes: int) -> Task[Any]:
    """Return a task of ``n`` images of a dataset with random labels of ``n_classes`` classes."""
    from clipadapt.core.api.data import Split, Task

    inputs = dataset.split("train").inputs.take(np.arange(n))
    labels = np.random.default_rng(SEED).integers(n_classes, size=n)
    names = class_names(n_classes)
    return Task(names, (TEMPLATE,), Split(inputs, labels.astype(np.int64), names))


def write_images(
    folder: Path,
    split: str,
    n: int,
    size: int,
    classnames: Sequence[str],
    *,
    distinct: int | None = None,
) -> None:
    """Write ``n`` different JPEGs as ``folder/split/CLASS/NUMBER.jpg``: coarse shapes with noise.

    Args:
        folder: Folder to write to.
        split: Name of the split; each split gets different images.
        n: Files.
        size: Side in pixels.
        classnames: Class names, used in turn.
        distinct: Number of different images; the files then differ only in a few bytes after the end of the image.
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
    """Fit a shipped method; return the median seconds of a step after the first ``drop``, and those before.

    In the first repeat the floating-point operations of a step are counted in another fit.
    """
    from clipadapt.core.records.environment import peak_memory, reset_peak_memory

    device = settings["device"]
    task = train_task(it.open().dataset, settings["n"], settings["classes"])
    clock = _device.Clock(device)
    reset_peak_memory(device)
    begun = time.perf_counter()
    it.method.fit(it.backbone, task, it.context(clock))
    seconds = median(clock.seconds(drop))
    found = {"seconds": seconds, "memory": peak_memory(device), "set_up": clock.first - begun}
    if not settings["repeat"]:
        found["flop"] = _device.counted_step(
            lambda clock: it.method.fit(it.backbone, task, it.context(clock))
        )
    return found


def reference_steps(steps: Iterator[Any], settings: Mapping[str, Any], drop: int) -> dict[str, Any]:
    """Take the steps of a baseline, which reads each loss; return the same as :func:`steps_of`.

    Args:
        steps: The training; one step more than is measured.
        settings: ``steps``, ``device`` and ``repeat``.
        drop: Warm-up steps.
    """
    from clipadapt.core.records.environment import peak_memory, reset_peak_memory

    device = settings["device"]
    reset_peak_memory(device)
    begun = time.perf_counter()
    at = [time.perf_counter() for _ in islice(steps, settings["steps"] + drop + 1)]
    found = {
        "seconds": median(np.diff(at)[drop:].tolist()),
        "memory": peak_memory(device),
        "set_up": at[0] - begun,
    }
    if not settings["repeat"]:
        found["flop"] = _device.counted(lambda: next(steps))
    return found
