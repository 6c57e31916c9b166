"""Compare every method on photos and sketches: one sweep of the quick recipes, one table.

    python scripts/adaptation.py DIR [--out runs/adaptation] [--readme docs/results.md]

DIR has ``photo`` and ``sketch``, each a dataset that ``folder:`` reads. Sixteen shots, seeds 1 to 3, whole test splits.
``--readme`` writes the table between the markers of that file. Complete runs are skipped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from _readme import insert

from clipadapt.core.api.errors import EXIT_USER_ERROR, ClipAdaptError
from clipadapt.core.cli.progress import on_stderr
from clipadapt.core.experiments.sweep import load_sweep
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.report import tables
from clipadapt.core.runs import sweep

DOMAINS = ("photo", "sketch")
SHOTS = 16


def main() -> None:
    """Run the sweep and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("runs/adaptation"))
    parser.add_argument("--readme", type=Path, default=None)
    arguments = parser.parse_args()
    names = ",".join(f'"folder:{arguments.directory / domain}"' for domain in DOMAINS)
    settings = [f"datasets=[{names}]", f"shots=[{SHOTS}]", "seeds=[1,2,3]"]
    try:
        experiments = load_sweep("adaptation-quick", settings)
        outcome = sweep.run_sweep(experiments, arguments.out, on_stderr())
        store = RunStore(arguments.out)
        table = tables.render(tables.build_table(outcome.records, store=store), "markdown")
    except ClipAdaptError as err:
        print(f"error: {err}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    print(table)
    for title, message in outcome.failures:
        print(f"failed: {title}: {message}", file=sys.stderr)
    if arguments.readme is not None and not outcome.failures:
        insert(arguments.readme, "adaptation table", table)


if __name__ == "__main__":
    main()
