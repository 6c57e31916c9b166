"""The main job on real input, without a hub: zero-shot and a probe on pictures, an SVM on reviews, one table.

    python scripts/demo.py [--out runs/demo] [--readme README.md]

``--readme`` writes the table between the markers of that file.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from _readme import insert

from clipadapt.core import config, runner, tables
from clipadapt.core.errors import EXIT_USER_ERROR, ClipAdaptError
from clipadapt.core.progress import on_stderr

PICTURES = ("openmoji:color", "openmoji:line")
REVIEWS = "rotten_tomatoes:offline"


def experiments() -> list[config.Experiment]:
    """Return the demo's experiments: two methods on two sets of pictures, one on reviews."""
    found = []
    for recipe in ("zero_shot", "linear_probe-quick"):
        # The whole train split: nothing is drawn at random, so one seed says it all.
        settings = [["model.name=stitched", f"data.name={name}", "seeds=[1]"] for name in PICTURES]
        found.extend(config.load([recipe], setting, track="clip") for setting in settings)
    found.append(config.load(["tfidf_svm"], [f"data.name={REVIEWS}"], track="text"))
    return found


def main() -> None:
    """Run the demo and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--readme", type=Path, default=None)
    arguments = parser.parse_args()
    begun = time.perf_counter()
    try:
        records = runner.run(experiments(), arguments.out, on_stderr())
        table = tables.render(tables.build_table(records), "markdown")
    except ClipAdaptError as err:
        print(f"error: {err}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    print(table)
    print(f"records: {arguments.out} ({len(records)} runs, {time.perf_counter() - begun:.0f} s)")
    if arguments.readme is not None:
        insert(arguments.readme, "demo table", table)


if __name__ == "__main__":
    main()
