"""Sweeps end to end: both tracks in one table, evaluation protocols, forecasts, invalid inputs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from clipadapt.core.records.run_store import RunStore
from clipadapt.core.report.page import build_report
from tests.integration.conftest import picture

PROBE = {"recipe": "linear_probe-quick", "set": {"method.max_iter": 20}}


@pytest.fixture
def bench(cli, tmp_path):
    """Run a sweep given as plain data: ``bench(content, *words)``."""

    def call(content, *words, out="runs", program="clipadapt"):
        path = tmp_path / "mine.yaml"
        path.write_text(json.dumps(content))
        return cli("bench", path, "--out", tmp_path / out, *words, program=program)

    return call


@pytest.fixture
def reviews(tmp_path):
    """A small CSV of texts with two classes."""
    rng = np.random.default_rng(0)
    words = {"bad": ["dull", "weak", "slow"], "good": ["fine", "warm", "bright"]}
    rows = ["text,label,split"]
    for split, n in (("train", 12), ("val", 8), ("test", 20)):
        for label, own in words.items():
            rows += [
                f"a {own[rng.integers(3)]} film of {i} {split} parts,{label},{split}"
                for i in range(n)
            ]
    (tmp_path / "reviews.csv").write_text("\n".join(rows) + "\n")
    return f"csv:{tmp_path / 'reviews.csv'}"


@pytest.mark.parametrize("program", ["clipadapt", "textsent"])
def test_images_and_texts_go_into_one_table(bench, cli, tiny_clip, reviews, tmp_path, program):
    plan = {
        "shots": [2],
        "seeds": [1, 2],
        "parts": [
            {"datasets": ["synthetic:3x8"], "models": [tiny_clip], "methods": ["clip/linear_probe-quick"]},
            {"datasets": [reviews], "methods": ["text/tfidf_svm-quick"]},
        ],
    }  # fmt: skip

    done = bench(plan, program=program)
    table = cli("table", tmp_path / "runs", program=program)

    assert done.code == 0, done.err
    assert "## synthetic:3x8, test, 2 shots" in done.out
    assert "## csv:reviews" in done.out
    rows = [line for line in table.out.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert "protocol standard" in table.out
    assert 'template "a photo of a {}."' in table.out.replace("\\", "")


def test_base_to_new_is_two_evaluations_and_their_harmonic_mean(bench, cli, tiny_clip, tmp_path):
    plan = {
        "protocol": "base_to_new",
        "datasets": ["synthetic:5x8"],
        "models": [tiny_clip],
        "methods": ["zero_shot"],
        "shots": [2],
    }

    done = bench(plan)
    csv = cli("table", tmp_path / "runs", "--format", "csv").out

    assert done.code == 0, done.err
    store = RunStore(tmp_path / "runs")
    found = store.load_all()
    by = {(r.evaluation.classes, r.seed): r for r in found}
    assert set(by) == {(c, s) for c in ("base", "new") for s in (1, 2, 3)}
    base, new = by["base", 1], by["new", 1]
    assert base.fit_id == new.fit_id
    assert base.run_id != new.run_id
    assert base.evaluation.protocol == "base_to_new"
    assert (base.data.n_classes, base.data.n_train, base.data.n_val) == (3, 6, 6)
    assert base.per_class["classnames"] == ["red circle", "blue square", "green triangle"]
    assert new.per_class["classnames"] == ["yellow hexagon", "purple diamond"]
    kept = RunStore.load_predictions(store.run_dir(new))
    assert kept.scores.shape == (16, 2)
    assert set(kept.labels.tolist()) == {0, 1}
    assert all(i.startswith(("test/yellow", "test/purple")) for i in kept.ids)

    b, n = (
        np.mean([by[c, s].metrics["accuracy"].value for s in (1, 2, 3)]) for c in ("base", "new")
    )
    rows = [line.split(",") for line in csv.splitlines()]
    column = {name: i for i, name in enumerate(rows[0])}
    values = {r[column["classes"]]: float(r[column["value"]]) for r in rows[1:]}
    assert values["H"] == pytest.approx(stats.hmean([b, n]))
    assert values["base"] == pytest.approx(b)
    assert "## Base to new" in done.out
    assert f"{100 * values['H']:.1f}" in done.out.partition("## Base to new")[2]
    assert "protocol base\\_to\\_new" in done.out
    page = build_report(tmp_path / "runs")[0].partition('<section id="base-to-new">')[2]
    assert f">{100 * values['base']:.1f} [" in page
    assert f">{100 * values['H']:.1f}" in page.partition("</section>")[0]
    assert "base_to_new, new classes" in page


def test_a_closed_method_on_new_classes_is_recorded_as_failed(bench, tiny_clip, tmp_path):
    plan = {
        "protocol": "base_to_new",
        "datasets": ["synthetic:4x8"],
        "models": [tiny_clip],
        "methods": [PROBE, "zero_shot"],
        "shots": [2],
        "seeds": [1],
    }

    done = bench(plan)

    assert done.code == 1
    assert "has classes that were not trained" in done.err
    status = {
        (r.method.name, r.evaluation.classes): (r.status, r.flags)
        for r in RunStore(tmp_path / "runs").load_all()
    }
    assert status["clip/linear_probe", "base"][0] == "ok"
    assert status["clip/linear_probe", "new"] == ("failed", ("user_error",))
    assert status["clip/zero_shot", "new"][0] == "ok"


def test_a_model_is_loaded_once_and_features_are_computed_once(
    bench, tiny_models, tmp_path, monkeypatch
):
    from clipadapt.core.api.registry import MODELS

    loaded = []
    provider = MODELS.get("clip/openclip")
    load = type(provider).load
    monkeypatch.setattr(
        type(provider), "load", lambda self, name, *a: loaded.append(name) or load(self, name, *a)
    )
    plan = {
        "datasets": ["synthetic:3x8", "synthetic:3x4"],
        "models": [tiny_models["clip"], tiny_models["custom"]],
        "methods": ["zero_shot", PROBE],
        "shots": [2],
        "seeds": [1, 2],
        "settings": {
            "model.precision": "auto"
        },  # zero_shot's is fp32, which would be another model
    }

    done = bench(plan, "--json")

    assert done.code == 0, done.err
    assert len(loaded) == len(set(loaded)) == 2
    found = json.loads(done.out)["records"]
    order = [
        (r["evaluation"]["dataset"], r["model"]["name"], r["method"]["name"], r["seed"])
        for r in found
    ]
    assert len(order) == 16
    assert order[0][:2] == (
        "synthetic:3x8",
        "local-dir:clip",
    )  # the order of the axes, not of execution
    assert order[4][:2] == ("synthetic:3x8", "local-dir:custom")


def test_a_dry_run_reports_complete_runs_and_the_cost_of_the_others(bench, tiny_clip, tmp_path):
    plan = {
        "datasets": ["synthetic:3x8"],
        "models": [tiny_clip],
        "methods": [PROBE],
        "shots": [2],
        "seeds": [1],
    }

    first = json.loads(bench(plan, "--dry-run", "--json").out)
    assert first["experiments"][0]["expected"] is None
    assert first["total"]["runs_without_estimate"] == 1
    assert not (tmp_path / "runs").exists()

    bench(plan)
    (record,) = RunStore(tmp_path / "runs").load_all()
    more = {
        **plan,
        "shots": [2, 4],
        "seeds": [1, 2, 3],
        "datasets": ["synthetic:3x8", "synthetic:3x16"],
    }
    shown = bench(more, "--dry-run").out
    found = json.loads(bench(more, "--dry-run", "--json").out)

    same, other_shots, other_data, _ = found["experiments"]
    assert (same["runs"], same["complete"]) == (3, 1)
    assert same["expected"]["differs"] == []
    once = record.cost.fit_seconds + record.cost.predict_seconds
    assert same["expected"]["seconds"] == pytest.approx(2 * once)  # the features are cached
    assert same["expected"]["peak_memory_bytes"] == record.cost.peak_memory_bytes
    assert other_shots["expected"]["differs"] == ["shots"]
    assert other_data["expected"]["differs"] == ["dataset"]
    assert other_data["expected"]["seconds"] == pytest.approx(3 * once + record.cost.encode_seconds)
    assert "nearest: 1 run with other shots" in shown
    assert "in all 1 of 12 runs complete; 11 to do, about" in shown


# ---------------------------------------------------------------- invalid inputs


@pytest.fixture
def one(bench, tiny_clip, tmp_path):
    """A sweep of one run, which is complete."""
    plan = {
        "datasets": ["synthetic:3x8"],
        "models": [tiny_clip],
        "methods": ["zero_shot"],
        "shots": [2],
        "seeds": [1],
    }
    assert bench(plan).code == 0
    (folder,) = [p.parent for p in (tmp_path / "runs").rglob("record.json")]
    return plan, folder


def snapshot(root):
    return {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("command", ["bench", "dry-run", "table", "report"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "truncated or not a record"),
        (lambda text: text.replace('"seed": 1', '"seed": 2'), "its content has changed since it was written"),
        (lambda text: '{"metrics": {"loss": 0.3}, "params": {}}', "truncated or not a record"),
        (lambda text: "[]", "truncated or not a record"),
    ],
    ids=["truncated", "changed", "other", "list"],
)  # fmt: skip
def test_invalid_records_are_reported_and_left_out(
    bench, cli, one, tmp_path, command, damage, message
):
    plan, folder = one
    stray = tmp_path / "runs" / "other" / "method" / "0123456789abcdef" / "record.json"
    stray.parent.mkdir(parents=True)
    stray.write_text(damage((folder / "record.json").read_text()))
    before = stray.read_bytes()

    if command == "table":
        done = cli("table", tmp_path / "runs")
    elif command == "report":
        done = cli("report", tmp_path / "runs", "--output", tmp_path / "page.html")
    else:
        done = bench({**plan, "seeds": [1, 2]}, *(["--dry-run"] if command == "dry-run" else []))

    assert done.code == 0, done.err
    if command in {"table", "report"}:
        assert f"warning: left out: {stray} is" in done.text
        assert message in done.text
    if command != "report":
        assert "zero_shot" in done.out.replace("\\", "")
    assert "Traceback" not in done.err
    assert stray.read_bytes() == before


@pytest.mark.parametrize("name", ["record.json", "predictions.npz", "classifier/classifier.json"])
def test_a_damaged_run_is_reported_repeated_and_kept_aside(bench, cli, one, tmp_path, name):
    plan, folder = one
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-5])

    planned = bench(plan, "--dry-run")
    assert "in all 0 of 1 runs complete" in planned.out
    assert (folder / name).read_bytes() == whole[:-5]
    done = bench(plan)

    assert done.code == 0, done.err
    assert f"warning: {folder / name} is" in done.err
    assert (
        f"the run is repeated, and its damaged folder is kept beside it as .damaged-{folder.name}"
        in done.text
    )
    assert (folder.with_name(f".damaged-{folder.name}") / name).read_bytes() == whole[:-5]
    assert RunStore(tmp_path / "runs").damage(folder.name) == ""
    assert "skipped" in bench(plan).err


def test_runs_on_changed_data_do_not_replace_the_earlier_ones(
    bench, cli, tiny_clip, pictures, tmp_path
):
    plan = {
        "datasets": [f"folder:{pictures}"],
        "models": [tiny_clip],
        "methods": ["zero_shot"],
        "shots": [2],
        "seeds": [1],
    }
    assert bench(plan).code == 0
    picture(pictures / "train" / "red_thing" / "0.png", (200, 30, 30), 999)

    done = bench(plan)

    assert done.code == 0, done.err
    found = RunStore(tmp_path / "runs").load_all()
    assert len({r.data.sha256 for r in found}) == len(found) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sots": [1]}, "did you mean 'shots'"),
        ({"datasets": []}, "datasets: Tuple should have at least 1 item"),
        ({"exclude": [{"methods": "*"}]}, "has no runs"),
        ({"datasets": ["synthetic:3x8", "folder:/nowhere"]}, "there is no folder '/nowhere'"),
        ({"datasets": ["synthetic:3x8", "synthetic:1x8"]}, "is not synthetic:CLASSESxN"),
        ({"shots": [2, 64]}, "64"),
        ({"models": ["local-dir:/nowhere"]}, "nowhere"),
    ],
)  # fmt: skip
def test_an_invalid_axis_is_one_message_and_no_run_changes(bench, one, tmp_path, changes, message):
    plan, _ = one
    before = snapshot(tmp_path / "runs")

    done = bench({**plan, "seeds": [1, 2], **changes})

    assert done.code == 2
    assert message in done.text
    assert "Traceback" not in done.err
    assert done.err.count("error:") == 1
    assert snapshot(tmp_path / "runs") == before


def test_several_errors_are_reported_together(bench, one):
    plan, _ = one

    done = bench({**plan, "datasets": ["folder:/nowhere", "synthetic:3x8", "synthetic:1x1"]})

    assert done.code == 2
    assert "/nowhere" in done.text
    assert "synthetic:1x1" in done.text


def test_workers_need_ray(bench, one):
    plan, _ = one

    done = bench(plan, "--workers", 2)

    assert done.code == 2
    assert "--executor ray" in done.text
