"""Sweeps as a user runs them: planned, run, skipped, failing in one place only."""

from __future__ import annotations

import json

import pytest

from clipadapt.core import config, sweep


@pytest.fixture
def plan(tmp_path, tiny_clip, pictures):
    path = tmp_path / "mine.yaml"
    axes = {
        "datasets": [f"folder:{pictures}", "synthetic:3x8"],
        "models": [tiny_clip],
        "methods": ["zero_shot", {"recipe": "linear_probe-quick", "set": {"method.max_iter": 20}}],
        "shots": [2],
        "seeds": [1, 2],
        "settings": {"evaluation.also": [{"split": "val"}]},
    }
    path.write_text(json.dumps(axes))  # JSON is YAML
    return path


def test_a_sweep_is_the_product_of_its_axes_and_resumes(cli, plan, tmp_path):
    out = tmp_path / "runs"

    before = json.loads(cli("bench", plan, "--dry-run", "--out", out, "--json").out)["experiments"]
    done = cli("bench", plan, "--out", out, "--json")
    after = json.loads(cli("bench", plan, "--dry-run", "--out", out, "--json").out)["experiments"]
    again = cli("bench", plan, "--out", out)

    assert [(p["recipe"], p["runs"], p["complete"]) for p in before] == [
        ("zero_shot", 2, 0), ("linear_probe-quick", 2, 0), ("zero_shot", 2, 0), ("linear_probe-quick", 2, 0),
    ]  # fmt: skip
    records = json.loads(done.out)["records"]
    assert len(records) == 16
    assert {r["evaluation"]["split"] for r in records} == {"test", "val"}
    assert {r["config"]["method"].get("max_iter") for r in records} == {None, 20}
    assert all(p["complete"] == p["runs"] for p in after)
    assert again.code == 0
    assert "## folder:pictures, test, 2 shots" in again.out
    assert (out / "summary.md").read_text() in again.out
    assert "skipped" in again.err


def test_one_failure_does_not_stop_the_rest(cli, plan, tmp_path):
    done = cli(
        "bench",
        plan,
        "--set",
        "datasets=[synthetic:3x8, 'folder:/nowhere']",
        "--out",
        tmp_path / "r",
        "--json",
    )

    assert done.code == 1
    assert len(json.loads(done.out)["records"]) == 8
    assert "failed: zero_shot on folder:/nowhere" in done.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"datasets": ["synthetic"], "methods": []}, "methods: Tuple should have at least 1 item"),
        ({"datasets": ["synthetic"], "methods": ["zero_shot"], "modles": ["x"]}, "did you mean 'models'?"),
        ({"datasets": ["synthetic"], "methods": ["zero_shto"]}, "did you mean 'zero_shot'"),
    ],
)  # fmt: skip
def test_a_bad_sweep_is_told_at_once(cli, tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_text(json.dumps(content))

    done = cli("bench", path, "--out", tmp_path / "r")

    assert done.code == 2
    assert message in done.text
    assert not (tmp_path / "r").exists()


def test_an_unknown_sweep_names_those_there_are(cli):
    done = cli("bench", "openmojy")

    assert done.code == 2
    assert "did you mean 'openmoji'" in done.text


@pytest.mark.parametrize("name", sorted(config.sweep_names()))
def test_every_shipped_sweep_is_valid(name):
    track = "text" if name.startswith("sentiment") else "clip"

    assert sweep.load_sweep(name, track=track)
