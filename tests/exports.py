"""Run the code of exports' READMEs where neither of our packages can be imported and no network is asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DRIVER = """
import importlib.abc, json, os, re, sys

class Refused(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"clipadapt", "textsent"}:
            raise ImportError(f"{name} is not for exports")

sys.meta_path.insert(0, Refused())
results = []
for folder in json.loads(sys.argv[1]):
    os.chdir(folder)
    text = open("README.md", encoding="utf-8").read()
    (code,) = re.findall(r"```python\\n(.*?)```", text, flags=re.S)
    space = {"__name__": "snippet"}
    exec(compile(code, folder, "exec"), space)
    found = {k: space[k] for k in ("scores", "probabilities", "found") if k in space}
    results.append({k: v.tolist() if hasattr(v, "tolist") else v for k, v in found.items()})
print("RESULTS" + json.dumps(results))
"""


def run_readmes(folders: Sequence[Path], tmp_path: Path) -> list[dict[str, Any]]:
    """Return ``scores`` and ``probabilities`` (or ``found``) that the code of each README leaves, in one process."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHONPATH"))}
    env |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "blank"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps([str(f) for f in folders])],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.findall(r"^RESULTS(.*)$", done.stdout, flags=re.MULTILINE)
    results: list[dict[str, Any]] = json.loads(found[-1])
    return results
