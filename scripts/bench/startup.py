"""Measure where the seconds of ``clipadapt zeroshot`` on ten images go: wall time and imports.

    python scripts/bench/startup.py [--model stitched] [--images 10]

Each call is a new process. Cold is the first one on this machine: the cache is empty, nothing of the model is known.
Warm is the next one on the same images: their features are stored, and what else the command asks of the model is
remembered, so nothing is built. With new images the class names are known and the network is built. The profile is
Python's own (``-X importtime``), by the time of each package's own modules; everything is a little slower with it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import _common
from _common import Bench, class_names, figure, table, write_images

if TYPE_CHECKING:
    from collections.abc import Sequence

CLI: Final = "from clipadapt.cli import main; main()"
LINE: Final = re.compile(r"^import time:\s+(\d+) \|\s+(\d+) \|\s*(\S+)$", re.MULTILINE)
SHOWN: Final = 12
"""Packages in the table."""


def run(settings: dict[str, Any]) -> dict[str, Any]:
    """Time one call of the command line, or the imports that a call cannot do without."""
    command = [sys.executable, *settings["python"], "-c", settings["code"]]
    with tempfile.TemporaryDirectory() as out:
        command += settings["arguments"]
        if "images" in settings:
            data = str(Path(out, "data"))
            copy_as_new(Path(settings["images"]), Path(data))
            command = [word.replace(settings["images"], data) for word in command]
        if {"zeroshot", "run"} & set(settings["arguments"][:1]):
            command += [x for setting in settings["set"] for x in ("--set", setting)]
            command += ["--out", settings.get("out", out)]
        begun = time.perf_counter()
        env = os.environ | settings.get("environment", {})
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        seconds = time.perf_counter() - begun
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return {"seconds": seconds, "imports": profile(done.stderr)}


def copy_as_new(source: Path, target: Path) -> None:
    """Copy images with some bytes added after their end, so that no feature of them is stored."""
    shutil.copytree(source, target)
    for path in target.rglob("*.jpg"):
        with path.open("ab") as file:
            file.write(os.urandom(8))


def profile(text: str) -> dict[str, float]:
    """Return the seconds that each package's own modules took, from what ``-X importtime`` printed."""
    own: Counter[str] = Counter()
    for microseconds, _, name in LINE.findall(text):
        own[name.partition(".")[0]] += int(microseconds) / 1e6
    return dict(own)


def coop(model: str, data: str) -> list[str]:
    """Return the command that trains a short CoOp."""
    given = [f"model.name={model}", f"data.name={data}", "data.shots=1", "seeds=[1]"]
    given += ["method.epochs=1", "method.warmup_epochs=0", "method.n_ctx=4"]
    return ["run", "coop-quick", *(x for setting in given for x in ("--set", setting))]


def by_package(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the median seconds of each package over some runs."""
    packages = {name for p in found for name in p["imports"]}
    return {n: median(p["imports"].get(n, 0.0) for p in found) for n in packages}


MEASUREMENTS: Final = {"run": run}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    bench = Bench("startup", __doc__ or "", MEASUREMENTS)
    add = bench.parser.add_argument
    add("--model", default="stitched")
    add("--images", type=int, default=10)
    o = bench.parse(argv, {"model": "", "images": 3})
    with bench.scratch() as folder:
        for split in ("train", "test"):
            write_images(folder / "data", split, o.images, 227, class_names(min(5, o.images)))
        model = o.model or _common.tiny_model(folder / "model")
        data = f"folder:{folder / 'data'}"
        zero_shot = ["zeroshot", "--model", model, "--dataset", data]
        whole = {"code": CLI, "arguments": zero_shot, "python": []}
        warm = whole | {"store": str(folder / "store")}
        new = {"images": str(folder / "data")}
        runs = folder / "runs"
        bench.measure("run", warm | {"arguments": coop(model, data), "out": str(runs)})
        (record,) = runs.rglob("record.json")
        predict = warm | {"arguments": ["predict", str(record.parent), str(folder / "data")]}
        works = {
            "zeroshot, cold": whole,
            "zeroshot, warm": warm,
            "zeroshot, new images": warm | new,
            "predict with a CoOp run, warm": predict,
            "predict with a CoOp run, new images": predict | new,
            "`--help`": {"code": CLI, "arguments": ["--help"], "python": []},
            "import torch": {"code": "import torch", "arguments": [], "python": []},
            "python itself": {"code": "", "arguments": [], "python": []},
        }
        bench.measure("run", works["zeroshot, warm"])  # fills the store
        bench.measure("run", predict)
        timed = bench.alternate({name: ("run", settings) for name, settings in works.items()})
        profiled = [
            bench.measure("run", warm | {"python": ["-X", "importtime"]}) for _ in range(o.repeats)
        ]
    total = timed["zeroshot, warm"].of()
    rows = [
        [name, figure(found.of()), found.span(), f"{found.of() / total:.0%}"]
        for name, found in timed.items()
    ]
    own = by_package(profiled)
    most = sorted(own, key=lambda name: -own[name])[:SHOWN]
    listed = [[f"`{name}`", figure(own[name])] for name in most]
    rest = sum(seconds for name, seconds in own.items() if name not in most)
    listed.append(["all others", figure(rest)])
    listed.append(["imports", figure(sum(own.values()))])
    seconds = median(found["seconds"] for found in profiled)
    listed.append(["whole run under the profiler", figure(seconds)])
    notes = [
        "Warm: the features of the images and of the class names are stored; remembered are the keys of the features,",
        "the scale of the logits, the number of parameters, the hash of the weights and the tokens of the class names.",
        "They belong to the bytes of the model's files, its settings, the versions of the libraries and this code.",
        "",
        "Seconds of imports by package in a warm `zeroshot`:",
        "",
        *table(["package", "seconds"], listed, words=1),
    ]
    head = ["work", "seconds", "min to max", "of a warm run"]
    bench.write(
        f"Start-up: `clipadapt zeroshot` on {o.images} images (`{o.model or 'a tiny model'}`)",
        table(head, rows, words=1),
        notes,
    )


if __name__ == "__main__":
    main()
