"""Measure peak memory against the number of images: the same images under new names, feature cache off.

    python scripts/bench/memory.py [--model stitched] [--counts 1000 10000]

Each count runs in a new process; the figure is the peak memory in its record: resident memory, or that of the GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import _common
from _common import Bench, class_names, table, write_images

if TYPE_CHECKING:
    from collections.abc import Sequence

DISTINCT: Final = 50


def zeroshot(settings: dict[str, Any]) -> dict[str, Any]:
    """Evaluate the images zero-shot by the command line; return the seconds and the peak memory of the run."""
    given = [x for setting in settings["set"] for x in ("--set", setting)]
    threads = ["--set", f"threads={settings['threads']}"] if settings["threads"] else []
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(
                str(Path(sys.executable).parent / "clipadapt"),
                "zeroshot",
                "--model",
                settings["model"],
            ),
            *("--dataset", settings["data"], "--out", folder, "--set", "store=off", "--json"),
        ]
        done = subprocess.run(
            [*command, *given, *threads],
            capture_output=True,
            text=True,
            env=os.environ,
            check=False,
        )
    if done.returncode:
        sys.exit(f"zeroshot failed:\n{done.stderr[-4000:]}")
    (record,) = json.loads(done.stdout)["records"]
    if record["data"]["n_test"] != settings["images"]:
        sys.exit(f"{record['data']['n_test']} of {settings['images']} images were evaluated")
    cost = record["cost"]
    return {"seconds": cost["predict_seconds"], "memory": cost["peak_memory_bytes"]}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    bench = Bench("memory", __doc__ or "", {"zeroshot": zeroshot})
    add = bench.parser.add_argument
    add("--model", default="stitched")
    add("--counts", type=int, nargs="+", default=[1000, 10000])
    bench.parser.set_defaults(repeats=1)
    o = bench.parse(argv, {"counts": [4, 8], "model": ""})
    rows: list[list[str]] = []
    with bench.scratch() as folder:
        settings = {"model": o.model or _common.tiny_model(folder / "model")}
        peaks = []
        for n in o.counts:
            data = folder / f"{n}"
            write_images(data, "test", n, 375, class_names(min(10, n)), distinct=DISTINCT)
            own = settings | {"data": f"folder:{data}", "images": n}
            found = bench.alternate({"": ("zeroshot", own)})[""]
            peaks.append(found.of("memory"))
            rows.append([f"{n:,}", found.memory, f"{peaks[-1] / peaks[0]:.3f}"])
    notes = ["JPEG files of 375 pixels; each run has a process of its own."]
    bench.write(
        f"Peak memory against the number of images (`{o.model or 'a tiny model'}`, zero-shot, store off)",
        table(["images", "peak memory, MiB", "against the first"], rows, words=0),
        notes,
    )


if __name__ == "__main__":
    main()
