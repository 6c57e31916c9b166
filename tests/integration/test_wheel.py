"""The built wheel works away from the checkout, recipes included."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def test_a_recipe_runs_from_the_wheel(tiny_clip, pictures, tmp_path):
    def run(*command: object, **more) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, command)], capture_output=True, text=True, check=False, cwd=tmp_path, **more
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    place = tmp_path / "site"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", place, wheel)
    environment = os.environ | {"PYTHONPATH": str(place)}
    call = "import sys, clipadapt; assert clipadapt.__file__.startswith(sys.argv.pop(1)), clipadapt.__file__\n"
    call += "from clipadapt.cli import main; main()"

    out = run(
        "-c", call, place, "run", "linear_probe-quick", "--set", f"model.name={tiny_clip}", "--set",
        f"data.name=folder:{pictures}", "--set", "data.shots=2", "--json", env=environment,
    )  # fmt: skip

    assert len(json.loads(out)["records"]) == 3
    assert (place / "clipadapt" / "_configs" / "methods" / "clip" / "zero_shot.yaml").is_file()
    assert list((tmp_path / "runs").rglob("record.json"))
