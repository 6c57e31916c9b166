"""Runs what README shows and writes every table of it anew; what is complete is not run again.

    python scripts/reproduce.py [--data DIR] [--out runs]

Without ``--data`` the tables that need no pictures but those in packages; DIR holds ``photo`` and ``sketch``, see
scripts/adaptation.py. The tables of speed and memory are written by scripts/bench/*.py, on an idle machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parent / "README.md"


def main() -> None:
    """Run each script that writes into README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=None, metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    out = arguments.out
    commands = [["demo.py", "--out", str(out / "demo"), "--readme", str(README)]]
    if arguments.data is None:
        print("without --data the adaptation table stays as it is", file=sys.stderr)
    else:
        own = ["--out", str(out / "adaptation"), "--readme", str(README)]
        commands.append(["adaptation.py", str(arguments.data), *own])
    for script, *rest in commands:
        done = subprocess.run([sys.executable, str(HERE / script), *rest], check=False)
        if done.returncode:
            sys.exit(done.returncode)


if __name__ == "__main__":
    main()
