"""Compare every method on photos and sketches at 1, 4 and 16 shots: one sweep, two tables and what is significant.

    python scripts/field.py DIR [--out runs/field] [--readme README.md] [--results docs/results.md]

DIR has ``photo`` and ``sketch``, each a dataset that ``folder:`` reads. Quick recipes, seeds 1 to 3, whole test splits.
``--readme`` and ``--results`` write the tables between the markers of those files. Complete runs are skipped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from _readme import insert

from clipadapt.core.api.errors import EXIT_USER_ERROR, ClipAdaptError
from clipadapt.core.cli.progress import on_stderr
from clipadapt.core.experiments.sweep import load_sweep
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.report import tables
from clipadapt.core.report.formats import Column, format_interval, markdown_grid
from clipadapt.core.report.summary import build_summary
from clipadapt.core.runs import sweep
from clipadapt.core.scoring.statistics import holm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipadapt.core.records.schema import RunRecord
    from clipadapt.core.report.summary import Block, Summary

DOMAINS = ("photo", "sketch")
PROBE: Final = "linear_probe-quick"
ZERO_SHOT: Final = "zero_shot"
SIGNIFICANT: Final = 0.05


def main() -> None:
    """Run the sweep, print its tables, and write them into the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("runs/field"))
    parser.add_argument("--readme", type=Path, default=None)
    parser.add_argument("--results", type=Path, default=None)
    arguments = parser.parse_args()
    names = ",".join(f'"folder:{arguments.directory / domain}"' for domain in DOMAINS)
    try:
        experiments = load_sweep("field-quick", [f"datasets=[{names}]"])
        outcome = sweep.run_sweep(experiments, arguments.out, on_stderr())
        store = RunStore(arguments.out)
        whole = tables.render(tables.build_table(outcome.records, store=store), "markdown")
        short = compact(build_summary(store, records=outcome.records))
    except ClipAdaptError as err:
        print(f"error: {err}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    print(whole, short, sep="\n")
    for title, message in outcome.failures:
        print(f"failed: {title}: {message}", file=sys.stderr)
    if outcome.failures:
        sys.exit(1)
    if arguments.results is not None:
        insert(arguments.results, "field table", whole)
    if arguments.readme is not None:
        insert(arguments.readme, "field table", short)


def compact(summary: Summary) -> str:
    """Return a row per method, a column per dataset and shots, and which methods beat the probe and zero-shot."""
    blocks = list(summary.blocks)
    keys = sorted(
        {(b.dataset, b.shots) for b in blocks if b.shots is not None},
        key=lambda k: (k[0], k[1] or 0),
    )
    cells: dict[str, dict[tuple[str, int | None], str]] = {}
    settings: dict[str, str] = {}
    for block in blocks:
        for ranked in block.rows:
            recipe = _recipe(ranked.row.first)
            settings[recipe] = block.setting
            value = format_interval(ranked.row.measure("accuracy")[0])
            places = keys if block.shots is None else [(block.dataset, block.shots)]
            for place in places:
                if place[0] == block.dataset:
                    cells.setdefault(recipe, {})[place] = value
    columns = [Column("recipe", text=True), Column("setting", text=True)]
    columns += [
        Column(f"{d.removeprefix('folder:')}, {s} shot{'' if s == 1 else 's'}") for d, s in keys
    ]
    rows = [
        [recipe, settings[recipe], *(found.get(key, "-") for key in keys)]
        for recipe, found in sorted(cells.items())
    ]
    findings = [_finding(block) for block in blocks if block.shots == max(s or 0 for _, s in keys)]
    return markdown_grid(columns, rows) + "\n" + "\n".join(f for f in findings if f) + "\n"


def _finding(block: Block) -> str:
    """Return which methods of a block beat the probe, and which zero-shot.

    These comparisons were planned, so Holm's method adjusts over the methods compared with one rival, not over all
    pairs as in the summary.
    """
    recipes = {ranked.label: _recipe(ranked.row.first) for ranked in block.rows}
    parts = []
    for rival in (PROBE, ZERO_SHOT):
        pairs = [c for c in block.comparisons if rival in {recipes[c.first], recipes[c.second]}]
        adjusted = holm([c.p_value for c in pairs])
        wins = [
            (recipes[c.first], c.p_value, p)
            for c, p in zip(pairs, adjusted, strict=True)
            if recipes[c.second] == rival
        ]
        after = [name for name, _, p in wins if p < SIGNIFICANT]
        before = [name for name, p, _ in wins if p < SIGNIFICANT and name not in after]
        if pairs:
            more = f" (before Holm's adjustment also {_listed(before)})" if before else ""
            parts.append(f"significantly better than `{rival}`: {_listed(after)}{more}")
    return f"- {block.title}: {'; '.join(parts)}." if parts else ""


def _recipe(record: RunRecord) -> str:
    return record.method.recipe or record.method.name


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "none"


if __name__ == "__main__":
    main()
