"""Measure the table, the report and the bookkeeping of sweeps of a thousand and ten thousand runs.

    python scripts/bench/report.py [--records 1000 10000] [--lines 1000 10000] [--examples 500]

The records are generated (see ``_records.py``) with predictions on 500 examples of 10 to 100 classes and histories of
40 epochs. Bookkeeping is a sweep whose method does nothing, so that planning, claims and records are all that is left.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import _records
from _common import Bench, figure, measured, table
from _records import Sweep

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RECIPES: Final = (
    "coop-quick", "linear_probe-quick", "tip_adapter-quick", "clip_adapter-quick", "lora-quick", "taskres-quick",
    "cross_modal-quick", "gda-quick", "proker-quick", "prograd-quick", "kgcoop-quick", "lp_plus_plus-quick",
    "maple-quick",
)  # fmt: skip
MODELS: Final = ("ViT-B-32/openai", "ViT-B-16/openai", "RN50/openai")
SEEDS: Final = 5
NOTHING: Final = '''"""A method that does nothing."""

import json

import numpy as np

from clipadapt.core.api.method import MethodConfig


class Config(MethodConfig):
    pass


class Nothing:
    Config, version, requires, open_vocabulary = Config, 1, None, False

    def __init__(self, config):
        self.config = config

    def fit(self, backbone, task, ctx):
        return Fitted(task.classnames)

    def load(self, directory, backbone):
        return Fitted(tuple(json.loads((directory / "names.json").read_text())))


class Fitted:
    score_kind, n_trainable_params = "logit", 0

    def __init__(self, classnames):
        self.classnames = classnames

    def predict_scores(self, inputs):
        return np.eye(len(self.classnames), dtype=np.float32)[np.arange(len(inputs.ids)) % len(self.classnames)]

    def save(self, directory):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "names.json").write_text(json.dumps(self.classnames))


METHOD = Nothing
'''


def of_table(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure ``table``: reading all records, and building and formatting the table."""
    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.report.tables import build_table, render

    store = RunStore(Path(settings["runs"]))
    text, seconds, memory = measured(lambda: render(build_table(store.load_all(), store=store)))
    return {"seconds": seconds, "memory": memory, "bytes": len(text)}


def of_report(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure ``report``."""
    from clipadapt.core.report.page import write_report

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "report.html")
        page, seconds, memory = measured(lambda: write_report(Path(settings["runs"]), file))
        size = file.stat().st_size
    return {"seconds": seconds, "memory": memory, "bytes": size, "runs": len(page.records)}


def of_sweep(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure a sweep of fits that do nothing, and the same sweep when all of them are complete."""
    from clipadapt.core.experiments import config
    from clipadapt.core.runs.sweep import run_sweep

    n = settings["lines"]
    with tempfile.TemporaryDirectory() as folder, plugins(Path(folder, "plugins")):
        out = Path(folder, "runs")
        experiments = [
            config.build([("sweep", given)], source="the sweep") for given in lines_of(n // SEEDS)
        ]
        done, seconds, memory = measured(lambda: run_sweep(experiments, out))
        if len(done.records) != n or done.failures:
            raise RuntimeError(f"{len(done.records)} of {n} runs, {len(done.failures)} failed")
        _, again, _ = measured(lambda: run_sweep(experiments, out))
    return {"seconds": seconds, "memory": memory, "again": again}


def lines_of(n: int) -> Iterator[dict[str, Any]]:
    """Yield the settings of ``n`` experiments that differ in shots and seeds."""
    for i in range(n):
        yield {
            "data": {"name": "synthetic:2x8", "shots": 1 + i % 8},
            "method": {"name": "clip/nothing"},
            "seeds": [i // 8 * SEEDS + s for s in range(SEEDS)],
        }


@contextlib.contextmanager
def plugins(folder: Path) -> Iterator[None]:
    """Register the method that does nothing."""
    before = os.environ.get("CLIPADAPT_PLUGINS")
    folder.mkdir()
    (folder / "nothing.py").write_text(NOTHING, encoding="utf-8")
    os.environ["CLIPADAPT_PLUGINS"] = str(folder)
    try:
        yield
    finally:
        del os.environ["CLIPADAPT_PLUGINS"]
        if before is not None:
            os.environ["CLIPADAPT_PLUGINS"] = before


MEASUREMENTS: Final = {"table": of_table, "report": of_report, "sweep": of_sweep}


def sweep_of(n: int, o: Any) -> Sweep:
    """Return the smallest sweep of at least ``n`` records."""
    datasets = dict(list(_records.DATASETS.items())[: o.datasets])
    shots = _records.SHOTS[: o.shots]
    kinds = [(recipe, model) for model in MODELS for recipe in RECIPES]
    needed = -(-n // (len(datasets) * len(shots) * SEEDS))
    if needed > len(kinds):
        raise SystemExit(f"--records is at most {len(kinds) * n // needed} (got {n})")
    return Sweep(kinds[:needed], SEEDS, o.examples, datasets, shots)


def rows_of_records(bench: Bench, folder: Path) -> list[list[str]]:
    """Generate the records and measure what reads them."""
    rows = []
    for n in bench.o.records:
        sweep = sweep_of(n, bench.o)
        runs = folder / f"{n}" / "runs"
        if not runs.is_dir():
            _records.write_records(runs, folder / f"{n}" / "images", sweep)
        written = sum(1 for _ in runs.glob("*/*/*/record.json"))
        for part in ("table", "report"):
            found = bench.alternate({part: (part, {"runs": str(runs)})})[part]
            size = f"{found.first['bytes'] / 1e6:.1f}"
            rows.append([
                f"`{part}`", f"{written:,} records", figure(found.of()),
                figure(1e3 * found.of() / written), size, found.memory,
            ])  # fmt: skip
    return rows


def rows_of_sweeps(bench: Bench) -> list[list[str]]:
    """Measure the bookkeeping of sweeps."""
    rows = []
    for n in bench.o.lines:
        found = bench.alternate({"sweep": ("sweep", {"lines": n})})["sweep"]
        for what, name in (
            ("a sweep of fits that do nothing", "seconds"),
            ("the same again, complete", "again"),
        ):
            seconds = found.of(name)
            rows.append([
                what,
                f"{n:,} runs",
                figure(seconds),
                figure(1e3 * seconds / n),
                "-",
                found.memory,
            ])
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    bench = Bench("report", __doc__ or "", MEASUREMENTS)
    add = bench.parser.add_argument
    add("--records", type=int, nargs="*", default=[1000, 10_000], help="sizes of the report")
    add("--lines", type=int, nargs="*", default=[1000, 10_000], help="sizes of the sweep")
    add("--examples", type=int, default=500, help="test examples of each dataset")
    add("--folder", type=Path, help="where generated records are kept for the next time")
    add("--datasets", type=int, default=len(_records.DATASETS))
    add("--shots", type=int, default=len(_records.SHOTS), help="how many numbers of shots")
    quick = {"records": [20, 40], "lines": [10, 20], "examples": 40, "datasets": 2, "shots": 2}
    o = bench.parse(argv, quick)
    with bench.scratch() as folder:
        rows = rows_of_records(bench, o.folder or folder) + rows_of_sweeps(bench)
    head = ["work", "size", "seconds", "milliseconds each", "MB written", "peak memory, MiB"]
    notes = (
        []
        if not o.records
        else [
            f"Records: {o.datasets} datasets of {o.examples} test examples, {o.shots} numbers of shots, {SEEDS} seeds,",
            "and as many methods and models as the size needs. Files are read from the system's file cache.",
        ]
    )
    bench.write("Tables, reports and sweeps of thousands of runs", table(head, rows), notes)


if __name__ == "__main__":
    main()
