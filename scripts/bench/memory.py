"""Measure peak memory against the number of images: the same images under new names, feature cache off.

    python scripts/bench/memory.py [--model stitched] [--counts 1000 10000]

Each count runs in a new process; the figure is the peak resident memory in its record.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from clipadapt.core.files.atomic import write_text
from clipadapt.core.files.hardware import cpu_count, cpu_flags

RESULTS = Path(__file__).parent / "results" / "memory.md"
DISTINCT, CLASSES = 50, 10


def write_images(folder: Path) -> list[Path]:
    """Write distinct images, 500 x 375 pixels of noise, as JPEG."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(DISTINCT):
        path = folder / f"{i}.jpg"
        Image.fromarray(rng.integers(0, 256, (375, 500, 3), dtype=np.uint8)).save(path, quality=80)
        made.append(path)
    return made


def measure(model: str, count: int, source: list[Path], folder: Path) -> float:
    """Evaluate ``count`` images zero-shot; return the peak memory in MiB."""
    for i in range(count):
        place = folder / "data" / "test" / f"class {i % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        # A few bytes after the end of the image make each file different, so each one is encoded.
        (place / f"{i:06}.jpg").write_bytes(source[i % len(source)].read_bytes() + i.to_bytes(4))
    command = [
        str(Path(sys.executable).parent / "clipadapt"), "zeroshot", "--model", model, "--dataset",
        f"folder:{folder / 'data'}", "--out", str(folder / "runs"), "--set", "store=off", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    (record,) = json.loads(done.stdout)["records"]
    assert record["data"]["n_test"] == count
    return float(record["cost"]["peak_memory_bytes"]) / 2**20


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="stitched")
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10000])
    arguments = parser.parse_args()
    rows = []
    for count in arguments.counts:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "source").mkdir()
            source = write_images(Path(folder) / "source")
            rows.append((count, measure(arguments.model, count, source, Path(folder))))
    lines = [
        f"# Peak memory against the number of images (`{arguments.model}`, zero-shot, store off)",
        "",
        f"{cpu_count()} cores ({', '.join(cpu_flags())}); written by `scripts/bench/memory.py`.",
        "",
        "| images | peak memory, MiB | against the first |",
        "| ---: | ---: | ---: |",
        *(f"| {n:,} | {memory:.0f} | {memory / rows[0][1]:.3f} |" for n, memory in rows),
    ]
    write_text(RESULTS, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
