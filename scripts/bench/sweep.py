"""Compare a whole sweep with and without the fast paths: seconds, memory, and whether the tables are equal.

    python scripts/bench/sweep.py [--model stitched] [--dataset openmoji:color] [--seeds 1 2 3] [--off KEY=VALUE]

Both are ``clipadapt bench`` on the same sweep, in a new process with an empty feature cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import _common
import yaml
from _common import Bench, class_names, figure, table, times, write_images

if TYPE_CHECKING:
    from collections.abc import Sequence

OFF: Final = ("store=off", "fast=off")
"""Settings that disable a fast path for every method."""
OFF_BY_RECIPE: Final[dict[str, dict[str, Any]]] = {"linear_probe-quick": {"method.span": False}}
"""Settings for one recipe."""
METHODS: Final = (
    "zero_shot",
    "linear_probe-quick",
    "tip_adapter-quick",
    "clip_adapter-quick",
    "coop-quick",
    "lora-quick",
)
"""Recipes."""
CLI: Final = "from clipadapt.cli import main; main()"
SAME: Final = 1e-9
"""Largest difference at which two accuracies count as equal."""


def axes_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the sweep as in its file."""
    methods = []
    for recipe in settings["methods"]:
        off = {} if settings["fast"] else OFF_BY_RECIPE.get(recipe, {})
        methods.append({"recipe": recipe, "set": off})
    return {
        "datasets": [settings["data"]],
        "models": [settings["model"]],
        "methods": methods,
        "shots": settings["shots"],
        "seeds": settings["seeds"],
    }


def run(settings: dict[str, Any]) -> dict[str, Any]:
    """Run the sweep once in an empty folder."""
    over = [*settings["set"], *([] if settings["fast"] else settings["off"])]
    if settings.get("threads"):
        over.append(f"threads={settings['threads']}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "axes.yaml")
        path.write_text(yaml.safe_dump(axes_of(settings)), encoding="utf-8")
        given = [x for setting in over for x in ("--set", setting)]
        command = ["bench", str(path), *given, "--out", str(Path(folder, "runs")), "--json"]
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", CLI, *command],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ,
        )
        seconds = time.perf_counter() - begun
        if done.returncode:
            sys.exit(f"clipadapt bench failed:\n{done.stderr[-4000:]}")
    records = json.loads(done.stdout)["records"]
    peaks = [r["cost"]["peak_memory_bytes"] for r in records]
    return {
        "seconds": seconds,
        "memory": max((p for p in peaks if p is not None), default=None),
        "runs": len(records),
        "failed": sum(r["status"] != "ok" for r in records),
        "accuracy": {cell(r): r["metrics"]["accuracy"]["value"] for r in records if r["metrics"]},
    }


def cell(record: dict[str, Any]) -> str:
    """Return the cell of the table that a record belongs to."""
    return f"{record['method']['name']} {record['data']['shots']} {record['seed']}"


MEASUREMENTS: Final = {"fast": run, "off": run}


def compared(fast: dict[str, Any], off: dict[str, Any]) -> str:
    """Report whether both tables are equal."""
    ours, theirs = fast["accuracy"], off["accuracy"]
    if ours.keys() != theirs.keys():
        return f"The tables hold DIFFERENT runs: {sorted(ours.keys() ^ theirs.keys())[:5]}."
    gaps = {name: abs(ours[name] - theirs[name]) for name in ours}
    worst = max(gaps, key=gaps.__getitem__)
    differ = sum(gap > SAME for gap in gaps.values())
    if not differ:
        return f"The tables are equal: all {len(gaps)} accuracies agree."
    return f"{differ} of {len(gaps)} accuracies DIFFER, by at most {gaps[worst]:.2%} ({worst})."


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    bench = Bench("sweep", __doc__ or "", MEASUREMENTS)
    add = bench.parser.add_argument
    add("--model", default="stitched")
    add("--dataset", default="openmoji:color")
    add("--methods", nargs="+", default=list(METHODS), help="recipes")
    add("--shots", type=int, nargs="+", default=[1, 2, 4])
    add("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    add(
        "--off",
        action="append",
        metavar="KEY=VALUE",
        help=f"settings that disable all; {' '.join(OFF)}",
    )
    methods = ["zero_shot", "linear_probe-quick"]
    o = bench.parse(
        argv, {"model": "", "dataset": "", "methods": methods, "shots": [2], "seeds": [1]}
    )
    off = list(o.off or OFF)
    with bench.scratch() as folder:
        data = o.dataset
        if not data:
            for split in ("train", "val", "test"):
                write_images(folder / "data", split, 9, 40, class_names(3))
            data = f"folder:{folder / 'data'}"
        settings = {
            "data": data,
            "model": o.model or _common.tiny_model(folder / "model"),
            "methods": o.methods,
            "shots": o.shots,
            "seeds": o.seeds,
            "off": off,
        }
        runs = bench.alternate({
            "every fast path": ("fast", settings | {"fast": True}),
            "all off": ("off", settings | {"fast": False}),
        })
    base = runs["every fast path"].of()
    rows = [
        [
            f"{found.first['runs']} runs, {found.first['failed']} failed",
            variant,
            figure(found.of()),
            found.span(),
            times(found.of(), base),
            found.memory,
        ]
        for variant, found in runs.items()
    ]
    by_recipe = [f"{r}: {k}={v}" for r, own in OFF_BY_RECIPE.items() for k, v in own.items()]
    notes = [
        compared(runs["every fast path"].first, runs["all off"].first),
        "",
        f"Off: {', '.join([*off, *by_recipe])}. Recipes: {', '.join(o.methods)}; shots {o.shots}; seeds {o.seeds}.",
    ]
    head = ["task", "variant", "seconds", "min to max", "times as long", "peak memory, MiB"]
    shown = f"`{o.model or 'a tiny model'}`, `{o.dataset or 'synthetic images'}`"
    bench.write(f"A sweep with and without the fast paths ({shown})", table(head, rows), notes)


if __name__ == "__main__":
    main()
