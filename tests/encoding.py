"""``encode`` in a process that is killed or interrupted, and what a feature cache then holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from clipadapt.core.features.segment import load_segment, segments_in

SHARD = 8
"""Images of each shard of :func:`encode_until`, which are written at once."""
DRIVER = f"""
import os, sys
from importlib import import_module
from clipadapt.core.runs import extraction, shards

number, place, name, call, *words = sys.argv[1:]
shards.FIRST = shards.MOST = {SHARD}
extraction.SEGMENT_BYTES = 1
owner = import_module(place)
plain, calls = getattr(owner, name), []

def with_signal(*given, **more):
    calls.append(None)
    if len(calls) == int(call):
        os.kill(os.getpid(), int(number))
    return plain(*given, **more)

setattr(owner, name, with_signal)
import clipadapt.cli
from clipadapt.core.cli.streams import run_app
run_app(clipadapt.cli.app, words)
"""


def encode_until(
    sent: int, where: tuple[str, str, int], words: tuple[str, ...], **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a command that sends itself a signal.

    Args:
        sent: The signal.
        where: Module, function and number of the call before which it is sent.
        words: The command.
        environ: Changed environment variables.
    """
    return subprocess.run(
        [sys.executable, "-c", DRIVER, str(int(sent)), *map(str, where), *words],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        check=False,
    )


def rows_of(root: Path) -> dict[str, dict[bytes, bytes]]:
    """Return every stored row by space and key; equal keys must have equal rows."""
    found: dict[str, dict[bytes, bytes]] = {}
    for folder in (root / "features").glob("*/*"):
        own = found.setdefault(folder.name, {})
        for entry in segments_in(folder):
            segment = load_segment(Path(entry.path))
            for key, row in zip(segment.keys, segment.read_all(), strict=True):
                assert own.setdefault(key.tobytes(), row.tobytes()) == row.tobytes()
    return found


def stored_rows(root: Path) -> int:
    """Return the number of rows of all spaces, each counted as often as it is stored."""
    folders = (root / "features").glob("*/*")
    return sum(load_segment(Path(e.path)).header.n_rows for f in folders for e in segments_in(f))
