"""Run what README.md and docs/results.md show and rewrite their tables; complete runs are skipped.

    python scripts/reproduce.py [--data DIR] [--out runs]

Without ``--data``, only the table whose images come from Python packages is written; the other takes 40 minutes. DIR
has ``photo`` and ``sketch``, see scripts/field.py. scripts/bench/*.py write the tables of speed and memory, on an idle
machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
RESULTS = HERE.parent / "docs" / "results.md"


def main() -> None:
    """Run each script that writes a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=None, metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    out = arguments.out
    commands = [["demo.py", "--out", str(out / "demo"), "--readme", str(README)]]
    if arguments.data is None:
        print("without --data, the table of all methods is not updated", file=sys.stderr)
    else:
        own = ["--out", str(out / "field"), "--readme", str(README), "--results", str(RESULTS)]
        commands.append(["field.py", str(arguments.data), *own])
    for script, *rest in commands:
        done = subprocess.run([sys.executable, str(HERE / script), *rest], check=False)
        if done.returncode:
            sys.exit(done.returncode)


if __name__ == "__main__":
    main()
