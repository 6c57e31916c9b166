"""Run a small sweep over images and reviews without the hub; write one table, one report page, and what was gained.

    python scripts/demo.py [--out runs/demo] [--readme README.md]

The sweep is configs/sweeps/demo-small.yaml. ``--readme`` writes the table between the markers of that file.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from _readme import insert

from clipadapt.core.api.errors import EXIT_USER_ERROR, ClipAdaptError
from clipadapt.core.cli.progress import on_stderr
from clipadapt.core.experiments.sweep import load_sweep
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.report import page, tables
from clipadapt.core.report.gains import gains
from clipadapt.core.runs import sweep

SWEEP = "demo-small"


def main() -> None:
    """Run the demo, print its table and the path of its page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--readme", type=Path, default=None)
    arguments = parser.parse_args()
    begun = time.perf_counter()
    report = arguments.out / "report.html"
    try:
        outcome = sweep.run_sweep(load_sweep(SWEEP), arguments.out, on_stderr())
        store = RunStore(arguments.out)
        table = tables.render(tables.build_table(outcome.records, store=store), "markdown")
        shown = page.write_report(arguments.out, report)
        gained = gains(shown.summary, "clip/zero_shot")
    except ClipAdaptError as err:
        print(f"error: {err}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    print(table)
    for title, message in outcome.failures:
        print(f"failed: {title}: {message}", file=sys.stderr)
    seconds = time.perf_counter() - begun
    print(f"records: {arguments.out} ({len(outcome.records)} runs, {seconds:.0f} s)\n")
    print("What a few examples per class change, with 95 % intervals:", *gained, sep="\n  ")
    print(f"\nAll figures, pictures and mistakes are on one page: open {report}")
    command = Path(sys.executable).with_name("clipadapt")
    if command.is_relative_to(Path.cwd()):
        command = command.relative_to(Path.cwd())
    print("\nNow your own pictures, one folder per class (PATH/cat/1.jpg, PATH/dog/2.jpg, ...):")
    print(f"  {command} zeroshot --model stitched --dataset folder:PATH")
    if outcome.failures:
        sys.exit(1)
    if arguments.readme is not None:
        insert(arguments.readme, "demo table", table)


if __name__ == "__main__":
    main()
