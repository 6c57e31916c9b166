"""Sweeps end to end: planning, running, resuming, and errors."""

from __future__ import annotations

import json

import pytest

from clipadapt.core.api.registry import METHODS
from clipadapt.core.experiments import shipped, sweep
from clipadapt.core.report.results import Results


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
    results = Results.model_validate_json((out / "results.json").read_text())
    assert results.sweep == "mine"
    assert sorted(i for row in results.rows for i in row.run_ids) == sorted(
        r["run_id"] for r in records
    )


def test_one_failure_does_not_stop_the_rest(cli, plan, tmp_path, monkeypatch):
    method = METHODS.get("clip/zero_shot")
    fit = method.fit

    def broken(self, backbone, task, ctx):
        if ctx.seed == 1:
            raise RuntimeError("simulated: out of memory")
        return fit(self, backbone, task, ctx)

    monkeypatch.setattr(method, "fit", broken)

    done = cli("bench", plan, "--out", tmp_path / "r", "--json")

    found = json.loads(done.out)["records"]
    assert done.code == 1
    assert [r["status"] for r in found].count(
        "failed"
    ) == 4  # two fits, each evaluated on test and on val
    assert [r["status"] for r in found].count("ok") == 12
    message = "failed: zero_shot on synthetic:3x8, 2 shots, seed 1: RuntimeError: simulated: out of memory"
    assert done.err.count(message) == 1
    assert done.err.endswith("2 fits failed; the messages are above\n")


def test_a_missing_dataset_stops_the_sweep_before_the_first_fit(cli, plan, tmp_path):
    cli("bench", plan, "--set", "datasets=[synthetic:3x8]", "--out", tmp_path / "r")
    before = {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()}

    done = cli(
        "bench",
        plan,
        "--set",
        "datasets=[synthetic:3x4, 'folder:/nowhere']",
        "--out",
        tmp_path / "r",
    )

    assert done.code == 2
    assert "there is no folder '/nowhere'" in done.text
    assert done.err.count("error:") == 1
    assert {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"datasets": ["synthetic"], "methods": []}, "methods: Tuple should have at least 1 item"),
        ({"datasets": ["synthetic"], "methods": ["zero_shot"], "modles": ["x"]}, "did you mean 'models'?"),
        ({"datasets": ["synthetic"], "methods": ["zero_shto"]}, "did you mean 'zero_shot'"),
    ],
)  # fmt: skip
def test_an_invalid_sweep_is_one_error(cli, tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_text(json.dumps(content))

    done = cli("bench", path, "--out", tmp_path / "r")

    assert done.code == 2
    assert message in done.text
    assert not (tmp_path / "r").exists()


def test_an_unknown_sweep_suggests_a_known_one(cli):
    done = cli("bench", "openmojy")

    assert done.code == 2
    assert "did you mean 'openmoji'" in done.text


@pytest.mark.parametrize("name", sorted(shipped.sweep_names("clip") | shipped.sweep_names("text")))
def test_every_shipped_sweep_is_valid(name):
    track = "text" if name.startswith("sentiment") else "clip"

    assert sweep.load_sweep(name, track=track)


def test_lines_by_shots_and_dataset_are_shown_before_a_run(cli, tiny_clip, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "method: {name: clip/linear_probe, max_iter: 5}\n"
        "by_shots: {1: {method: {max_iter: 10}}, 2: {method: {max_iter: 20}}}\n"
        "by_dataset: {synthetic: {by_shots: {2: {method: {max_iter: 22}}}}}\n"
    )
    plan = {
        "datasets": ["synthetic:3x8"], "models": [tiny_clip], "methods": [str(tmp_path / "mine.yaml")],
        "shots": [1, 2, None],
    }  # fmt: skip
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))

    shown = json.loads(cli("bench", tmp_path / "plan.yaml", "--dry-run", "--json").out)["experiments"]  # fmt: skip
    words = cli("bench", tmp_path / "plan.yaml", "--dry-run").out
    one = cli("validate", "coop", "--set", "data.name=dtd", "--set", "data.shots=3")
    bad = cli("validate", "coop", "--set", "data.name=dtd", "--set", "by_shots={1: {method: {epoch: 1}}}")  # fmt: skip

    assert [e["lines"] for e in shown] == [["by_shots 1"], ["by_dataset synthetic, by_shots 2"], []]
    assert "shots 2, settings of by_dataset synthetic, by_shots 2, evaluated on" in words
    assert "100 " in one.out
    assert "(coop, by_shots 2; affects result)" in one.out
    assert (bad.code, bad.err.count("by_shots.1.method.epoch: Extra inputs")) == (2, 1)
