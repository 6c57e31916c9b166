"""Measure the bookkeeping of sweeps: the time of each run of a method that does nothing, by the number of runs.

    python scripts/bench/bookkeeping.py [--runs 250 500 1000 2000]

Planning, claims and records are all that is left of such a sweep. The exponent is that of the seconds by the number of
runs, from a line through the logarithms: 1 is linear, 2 is quadratic.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from _common import Bench, figure, measured, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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


def of_sweep(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure a sweep of fits that do nothing, the same when all are complete, and ``--dry-run`` of it."""
    from clipadapt.core.experiments import config
    from clipadapt.core.runs.forecast import forecast
    from clipadapt.core.runs.sweep import plan_sweep, run_sweep

    n = settings["runs"]
    with tempfile.TemporaryDirectory() as folder, plugins(Path(folder, "plugins")):
        out = Path(folder, "runs")
        experiments = [
            config.build([("sweep", given)], source="the sweep") for given in lines_of(n // SEEDS)
        ]
        done, seconds, memory = measured(lambda: run_sweep(experiments, out))
        if len(done.records) != n or done.failures:
            raise RuntimeError(f"{len(done.records)} of {n} runs, {len(done.failures)} failed")
        _, again, memory_again = measured(lambda: run_sweep(experiments, out))
        _, plan, memory_plan = measured(lambda: forecast(plan_sweep(experiments, out)[1], []))
    return {
        "seconds": seconds, "again": again, "plan": plan, "memory": memory, "memory_again": memory_again,
        "memory_plan": memory_plan,
    }  # fmt: skip


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


MEASUREMENTS: Final = {"sweep": of_sweep}
PARTS: Final = (
    ("a sweep of fits that do nothing", "seconds", "memory"),
    ("the same again, complete", "again", "memory_again"),
    ("`--dry-run` of it, complete", "plan", "memory_plan"),
)


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the exponent of growth: the slope of a line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    bench = Bench("bookkeeping", __doc__ or "", MEASUREMENTS)
    add = bench.parser.add_argument
    add("--runs", type=int, nargs="+", default=[250, 500, 1000, 2000], help="sizes of the sweep")
    bench.parser.set_defaults(repeats=1)
    o = bench.parse(argv, {"runs": [10, 20]})
    if any(n <= 0 or n % SEEDS for n in o.runs):
        bench.parser.error(
            f"--runs: each size must be a multiple of {SEEDS}; use, for example, 250"
        )
    with bench.scratch():
        found = {n: bench.alternate({"sweep": ("sweep", {"runs": n})})["sweep"] for n in o.runs}
    rows = []
    for what, seconds, memory in PARTS:
        for n, runs in found.items():
            peak = (runs.first[memory] or 0) / 2**20
            each = 1e3 * runs.of(seconds) / n
            rows.append([
                what,
                f"{n:,} runs",
                figure(runs.of(seconds)),
                figure(each),
                f"{peak:,.0f}",
            ])
    grown = [
        f"{what}: {exponent(o.runs, [runs.of(name) for runs in found.values()]):.2f}"
        for what, name, _ in PARTS
        if len(o.runs) > 1
    ]
    head = ["work", "size", "seconds", "milliseconds each", "peak memory, MiB"]
    notes = [f"Exponent of growth (1 is linear): {'; '.join(grown)}."] if grown else []
    bench.write("Bookkeeping of sweeps", table(head, rows), notes)


if __name__ == "__main__":
    main()
