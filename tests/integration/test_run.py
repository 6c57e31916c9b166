"""Single runs end to end: records, resuming, and what makes a run a new one."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipadapt.core.api.errors import DivergedError
from clipadapt.core.api.registry import METHODS
from clipadapt.core.experiments import config
from clipadapt.core.files.atomic import files_below
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.runs.session import run_experiments
from tests import kills
from tests.integration.conftest import as_version_1, as_version_2, picture

SEEDS = ["--set", "seeds=[1,2]"]


@pytest.fixture
def probe(tiny_clip, pictures, tmp_path):
    """Command of a few-shot linear probe on the small folder."""
    return [
        "run", "linear_probe-quick", "--set", f"model.name={tiny_clip}", "--set",
        f"data.name=folder:{pictures}", "--set", "data.shots=2", *SEEDS, "--out", tmp_path / "runs",
    ]  # fmt: skip


def ids(found: list[dict]) -> list[str]:
    return [r["run_id"] for r in found]


def test_a_record_has_every_documented_field(cli, records, probe, tmp_path, pictures):
    first, second = records(cli(*probe, "--json"))

    assert (first["seed"], second["seed"]) == (1, 2)
    assert first["run_id"] != second["run_id"] != first["fit_id"]
    assert first["status"] == "ok"
    assert (first["schema_version"], first["attempt"]) == (3, 1)
    assert first["error"] is None
    assert first["data"] | {"sha256": "", "manifest_sha256": ""} == {
        "name": "folder:pictures", "sha256": "", "n_train": 6, "n_val": 6, "n_test": 12,
        "n_classes": 3, "shots": 2, "manifest_sha256": "", "skipped": 0,
        "n_found": 42, "n_read": 42, "left_out": {},
        "source": "the folder 'pictures'", "revision": None,
        "licence": "unknown (the user's own images)", "citation": "none (the user's own images)",
    }  # fmt: skip
    assert first["evaluation"]["split"] == "test"
    assert first["evaluation"]["templates"] == ["a photo of a {}."]
    assert first["method"]["name"] == "clip/linear_probe"
    assert first["method"]["recipe"] == "linear_probe-quick"
    assert "clipadapt's own solver" in first["method"]["deviations"][0]
    assert first["model"]["name"] == "local-dir:clip"
    assert first["selection"]["by"].startswith("val accuracy over C")
    assert first["calibration"]["temperature"] > 0
    assert first["n_trainable_params"] == 3 * (32 + 1)
    assert set(first["metrics"]) == {
        "accuracy", "mean_per_class_recall", "macro_f1", "weighted_f1", "weighted_precision", "weighted_recall",
        "nll", "brier", "ece", "ece_mass", "aurc", "nll_calibrated", "brier_calibrated", "ece_calibrated",
        "ece_mass_calibrated", "aurc_calibrated",
    }  # fmt: skip
    accuracy = first["metrics"]["accuracy"]
    assert accuracy["low"] < accuracy["value"] <= accuracy["high"]
    assert accuracy["n"] == 12
    assert first["cost"]["cold_seconds"] >= first["cost"]["fit_seconds"]
    assert first["cost"]["saved_bytes"] > 0
    assert {"torch", "open-clip-torch", "numpy"} <= set(first["environment"]["packages"])
    assert str(tmp_path) not in json.dumps({**first, "config": None})

    (folder,) = [
        p.parent for p in (tmp_path / "runs").rglob("record.json") if first["run_id"] in str(p)
    ]
    assert folder.parent.parent.parent == tmp_path / "runs"
    saved = RunStore.load_predictions(folder)
    hits = saved.scores.argmax(axis=1) == saved.labels
    assert hits.mean() == pytest.approx(accuracy["value"])
    assert len(saved.ids) == 12
    manifest = json.loads((folder / "manifest.json").read_text())
    assert len(manifest["train"]) == len(manifest["val"]) == 6
    assert manifest["sha256"] == first["data"]["manifest_sha256"]
    assert all((pictures / i).is_file() for i in manifest["train"])
    assert (folder / "history.jsonl").is_file()
    assert (folder / "classifier").is_dir()


def test_an_identical_run_is_skipped_and_a_manifest_is_accepted(
    cli, records, probe, tmp_path, monkeypatch
):
    first = records(cli(*probe, "--json"))
    fits = []
    method = METHODS.get("clip/linear_probe")
    fit = method.fit
    monkeypatch.setattr(method, "fit", lambda self, *a: fits.append(1) or fit(self, *a))

    again = cli(*probe, "--json")

    assert fits == []
    assert records(again) == first
    assert "2 of 2 runs were complete already" in again.err

    (manifest,) = [
        p for p in (tmp_path / "runs").rglob("manifest.json") if first[0]["run_id"] in str(p)
    ]
    replay = [
        "--set",
        f"data.manifest={manifest}",
        "--set",
        "seeds=[2]",
        "--set",
        "data.shots=null",
    ]
    (record,) = records(cli(*probe, "--json", *replay))
    refused = cli(*probe, *replay, "--set", "data.shots=3")
    assert refused.code == 2
    assert "the manifest has 2 shots" in refused.text
    assert record["data"]["shots"] == 2
    assert record["data"]["manifest_sha256"] == first[0]["data"]["manifest_sha256"]
    assert record["run_id"] not in ids(first)


def test_what_changes_a_result_makes_a_new_run(
    cli, records, probe, pictures, tiny_models, tmp_path, monkeypatch
):
    known = set(ids(records(cli(*probe, "--json"))))

    def fresh(*more) -> set[str]:
        found = set(ids(records(cli(*probe, *more, "--json")))) - known
        known.update(found)
        return found

    assert fresh() == set()
    assert fresh("--set", "store=off") == set()
    assert fresh("--set", "workers=1") == set()
    assert len(fresh("--set", "method.layer=output")) == 2
    assert len(fresh("--set", f"model.name={tiny_models['custom']}")) == 2
    assert len(fresh("--set", "model.precision=fp32")) in {0, 2}  # 0 if auto is fp32
    picture(pictures / "train" / "red_thing" / "0.png", (200, 30, 30), 999)
    assert len(fresh()) == 2
    monkeypatch.setattr(METHODS.get("clip/linear_probe"), "version", 99)
    assert len(fresh()) == 2


def test_a_changed_weight_file_makes_a_new_run(cli, records, tmp_path, pictures):
    import torch
    from safetensors.torch import load_file, save_file

    from tests.unit.models import tiny

    folder = tiny.write(tmp_path / "model", "clip")
    command = ["zeroshot", "--model", f"local-dir:{folder}", "--dataset", f"folder:{pictures}"]
    where = ["--out", tmp_path / "runs", "--json"]
    (first,) = records(cli(*command, *where))
    weights = folder / "open_clip_model.safetensors"
    state = load_file(weights)
    state["visual.proj"] = torch.flip(state["visual.proj"], dims=[0]).contiguous()
    save_file(state, weights)

    (second,) = records(cli(*command, *where))

    assert second["run_id"] != first["run_id"]
    assert second["model"]["weights_sha256"] != first["model"]["weights_sha256"]


def test_a_moved_folder_and_other_paths_are_the_same_run(
    cli, records, tiny_clip, pictures, tmp_path
):
    where = ["--out", tmp_path / "runs", "--json"]
    (first,) = records(
        cli("zeroshot", "--model", tiny_clip, "--dataset", f"folder:{pictures}", *where)
    )
    moved = pictures.rename(tmp_path / "elsewhere").rename(tmp_path / "deeper")
    (tmp_path / "x").mkdir()
    moved = moved.rename(tmp_path / "x" / "pictures")

    (second,) = records(
        cli("zeroshot", "--model", tiny_clip, "--dataset", f"folder:{moved}", *where)
    )

    assert second["run_id"] == first["run_id"]


def test_zeroshot_over_models_and_data_limit_and_templates(
    cli, records, tiny_models, pictures, tmp_path
):
    (tmp_path / "names.txt").write_text("a cat\na dog\na horse\n")
    command = [
        "zeroshot", "--model", tiny_models["clip"], "--model", tiny_models["hf"], "--dataset",
        f"folder:{pictures}", "--dataset", "synthetic:3x4", "--out", tmp_path / "runs",
    ]  # fmt: skip

    plain = records(cli(*command, "--limit", "5", "--json"))
    seven = records(cli(*command, "--limit", "5", "--templates", "7", "--json"))
    named = records(cli(*command, "--limit", "5", "--classnames", tmp_path / "names.txt", "--json"))

    assert [(r["model"]["name"], r["data"]["name"]) for r in plain] == [
        (m, d)
        for m in ("local-dir:clip", "local-dir:hf")
        for d in ("folder:pictures", "synthetic:3x4")
    ]
    assert {r["data"]["n_test"] for r in plain} == {5}
    assert {len(r["evaluation"]["templates"]) for r in seven} == {7}
    hashes = [{r["evaluation"]["classnames_sha256"] for r in found} for found in (plain, named)]
    assert len(hashes[0]) == 2
    assert len(hashes[1]) == 1
    table = cli("table", tmp_path / "runs", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(table.out)))
    assert len(rows) == 12
    assert {r["dataset"] for r in rows} == {"folder:pictures", "synthetic:3x4"}
    assert {"templates=7", "templates=a photo of a {}."} <= {
        s for r in rows for s in r["settings"].split(";")
    }


@pytest.mark.parametrize("form", ["markdown", "csv", "latex", "html"])
@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_tables(cli, probe, tmp_path, form, metric):
    cli(*probe)

    done = cli("table", tmp_path / "runs", "--format", form, "--metric", metric)

    assert done.code == 0
    assert "linear" in done.out
    assert metric in done.out.lower()


def test_duplicate_class_names_give_a_warning(cli, records, tiny_clip, pictures, tmp_path):
    (tmp_path / "names.txt").write_text("Red thing\nred  thing\nblue thing\n")

    done = cli(
        "zeroshot", "--model", tiny_clip, "--dataset", f"folder:{pictures}", "--classnames",
        tmp_path / "names.txt", "--out", tmp_path / "runs", "--json",
    )  # fmt: skip

    (record,) = records(done)
    assert "'Red thing' and 'red  thing'" in done.err
    assert "duplicate_classnames" in record["flags"]


def test_class_names_with_equal_or_unknown_tokens_give_a_warning(
    cli, records, tiny_models, pictures, tmp_path
):
    (tmp_path / "names.txt").write_text("red\n蓝色圆圈\n黄色圆圈\n", encoding="utf-8")

    done = cli(
        "zeroshot", "--model", tiny_models["hf"], "--dataset", f"folder:{pictures}", "--classnames",
        tmp_path / "names.txt", "--out", tmp_path / "runs", "--json",
    )  # fmt: skip

    (record,) = records(done)
    assert {"duplicate_classnames", "unknown_tokens"} <= set(record["flags"])
    assert (
        "the same tokens: '蓝色圆圈' = '黄色圆圈'; no prompt can distinguish these classes"
        in done.err
    )
    assert "class names by position: blue_thing -> red, green_thing -> 蓝色圆圈" in done.err


def test_a_class_without_a_training_image_is_flagged(cli, records, tiny_clip, pictures, tmp_path):
    shutil.rmtree(pictures / "train" / "red_thing")

    done = cli(
        "run", "linear_probe-quick", "--set", f"model.name={tiny_clip}", "--set", f"data.name=folder:{pictures}",
        "--set", "seeds=[1]", "--out", tmp_path / "runs", "--json",
    )  # fmt: skip

    (record,) = records(done)
    assert "class_missing_in_train" in record["flags"]
    assert "none in train: red_thing" in done.err
    assert record["data"]["n_read"] == 36


def test_the_files_read_are_reported_and_recorded_once(cli, records, tiny_clip, pictures, tmp_path):
    (pictures / "test" / "red_thing" / "a.heic").write_bytes(b"?")
    (pictures / "test" / "red_thing" / "gone.png").symlink_to("nowhere")
    command = ["zeroshot", "--model", tiny_clip, "--dataset", f"folder:{pictures}", "--json"]
    command += ["--out", str(pictures / "test" / "red_thing" / "runs")]

    refused = cli(*command)
    done = cli(*command, "--on-bad-image", "skip")
    again = cli(*command, "--on-bad-image", "skip")

    assert refused.code == 2
    assert "gone.png" in refused.text
    assert "--on-bad-image skip" in refused.text
    (record,) = records(done)
    reasons = {"images in an unsupported format (.heic)": 1, "unreadable images": 1}
    assert record["data"]["left_out"] == reasons
    assert (record["data"]["n_found"], record["data"]["n_read"]) == (44, 42)
    assert done.err.count("42 read of 44 found in 3 classes (train 18, val 12, test 12)") == 1
    assert (
        records(again)[0]["run_id"] == record["run_id"]
    )  # although the records are among the images


def test_per_class(cli, tiny_clip, pictures, tmp_path):
    done = cli(
        "zeroshot", "--model", tiny_clip, "--dataset", f"folder:{pictures}", "--per-class", "--out", tmp_path / "r"
    )  # fmt: skip

    assert "| class | n | recall, % | most often predicted as |" in done.out
    assert "| blue thing | 4 |" in done.out


def test_an_unexpected_error_is_recorded_and_the_run_is_tried_again(
    tiny_clip, pictures, tmp_path, monkeypatch
):
    whole = {
        "data": {"name": f"folder:{pictures}"},
        "model": {"name": tiny_clip},
        "method": {"name": "clip/zero_shot"},
    }
    experiment = config.build([("test", whole)], source="test")
    method = METHODS.get("clip/zero_shot")
    fit = method.fit

    def broken(*_):
        raise RuntimeError("simulated: out of memory")

    monkeypatch.setattr(method, "fit", broken)
    with pytest.raises(RuntimeError):
        run_experiments([experiment], tmp_path / "runs")
    (failed,) = RunStore(tmp_path / "runs").load_all()
    monkeypatch.setattr(method, "fit", fit)

    (record,) = run_experiments([experiment], tmp_path / "runs")

    assert (failed.status, failed.attempt) == ("failed", 1)
    assert "out of memory" in failed.error
    assert (record.status, record.attempt) == ("ok", 2)
    assert list((tmp_path / "runs").rglob("attempt-1.json"))


def test_scores_that_are_not_finite_fail_the_run(tiny_clip, pictures, tmp_path, monkeypatch):
    from clipadapt.methods.zero_shot import ZeroShotClassifier

    whole = {
        "data": {"name": f"folder:{pictures}"},
        "model": {"name": tiny_clip},
        "method": {"name": "clip/zero_shot"},
    }
    monkeypatch.setattr(
        ZeroShotClassifier,
        "predict_scores",
        lambda self, x: np.full((len(x), 3), np.nan, np.float32),
    )
    with pytest.raises(DivergedError):
        run_experiments([config.build([("test", whole)], source="test")], tmp_path / "runs")

    (failed,) = RunStore(tmp_path / "runs").load_all()
    assert failed.flags == ("nan",)
    assert failed.metrics == {}


@pytest.mark.slow
def test_after_a_kill_the_same_command_completes(cli, records, tiny_clip, tmp_path, monkeypatch):
    """kill -9 while images are encoded leaves no partial record and no partial cache entry."""
    out, cache = tmp_path / "runs", tmp_path / "cache"
    monkeypatch.setenv("CLIPADAPT_CACHE", str(cache))
    command = ["zeroshot", "--model", tiny_clip, "--dataset", "synthetic:20x20", "--out", str(out)]
    # A file of features for every 50 images, of 400.
    program = (
        "from clipadapt.core.features import space; space.SEGMENT_BYTES = 50 * 24 * 4\n"
        "from tests import kills; kills.arm(); from clipadapt.cli import main; main()"
    )
    kept = []
    for operation in (5, 3):
        at = kills.killed_at(cache / "features", operation, after=".safetensors")
        killed = subprocess.run(
            [sys.executable, "-c", program, *command],
            env=os.environ | at,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL
        assert not list(out.rglob("record.json"))
        kept.append(sum(p.suffix == ".safetensors" for p in files_below(cache / "features")))

    (record,) = records(cli(*command, "--json"))

    assert 0 < kept[0] < kept[1]
    assert record["status"] == "ok"
    assert record["data"]["n_test"] == 400
    verified = cli("cache", "verify", "--json")
    assert json.loads(verified.out)["damaged"] in (0, [])


def test_a_flipped_byte_in_the_feature_cache_is_detected(
    cli, records, tiny_clip, pictures, tmp_path, cache
):
    command = ["zeroshot", "--model", tiny_clip, "--dataset", f"folder:{pictures}", "--json"]
    (first,) = records(cli(*command, "--out", tmp_path / "a"))
    flipped = 0
    for segment in (cache / "features").rglob("*.safetensors"):
        raw = bytearray(segment.read_bytes())
        raw[-5] ^= 0xFF
        segment.write_bytes(raw)
        flipped += 1

    (second,) = records(cli(*command, "--out", tmp_path / "b"))

    assert flipped > 0
    assert second["predictions_sha256"] == first["predictions_sha256"]


def test_the_feature_cache_can_be_turned_off(cli, records, tiny_clip, pictures, tmp_path, cache):
    def size() -> int:
        return sum(p.stat().st_size for p in (cache / "features").rglob("*") if p.is_file())

    command = ["zeroshot", "--model", tiny_clip, "--dataset", f"folder:{pictures}", "--json"]
    (stored,) = records(cli(*command, "--out", tmp_path / "a"))
    before = size()
    picture(pictures / "test" / "red_thing" / "0.png", (190, 10, 10), 4321)
    (plain,) = records(cli(*command, "--out", tmp_path / "b", "--set", "store=off"))

    assert size() == before
    assert plain["run_id"] != stored["run_id"]
    assert plain["cost"]["encode_seconds"] > 0


def test_validate_reports_the_origin_of_each_value(cli, tmp_path):
    (tmp_path / "mine.yaml").write_text("method: {max_iter: 7}\nseeds: [4]\n")

    done = cli(
        "validate", "linear_probe", tmp_path / "mine.yaml", "--set", "data.name=synthetic", "--json"
    )

    document = json.loads(done.out)
    assert document["config"]["method"]["max_iter"] == 7
    assert document["origins"]["method.max_iter"] == str(tmp_path / "mine.yaml")
    assert document["origins"]["data.name"] == "--set"
    assert document["origins"]["method.solver"] == "linear_probe"
    assert document["origins"]["method.epochs"] == "default"


@pytest.mark.parametrize("program", ["clipadapt", "textsent"])
@pytest.mark.parametrize("kind", ["methods", "datasets", "models", "configs"])
def test_ls(cli, program, kind):
    listed = json.loads(cli("ls", kind, "--json", program=program).out)[kind]

    assert listed == sorted(listed)
    assert kind == "models" or listed


def test_doctor(cli):
    good = cli("doctor", "--dataset", "synthetic", "--json")
    bad = cli("doctor", "--dataset", "folder:/nowhere")

    assert good.code == 0
    checks = {c["name"]: c for c in json.loads(good.out)["checks"]}
    assert checks["dataset synthetic"]["ok"]
    assert bad.code == 2
    assert "MISSING dataset folder:/nowhere" in bad.out


def test_cache_commands(cli, tiny_clip, pictures, tmp_path):
    cli(
        "zeroshot", "--model", tiny_clip, "--dataset", f"folder:{pictures}", "--out", tmp_path / "a"
    )

    listed = json.loads(cli("cache", "ls", "--json").out)
    verified = cli("cache", "verify", "--json")
    pruned = cli("cache", "prune", "--all", "--json")

    assert listed["spaces"]
    assert verified.code == pruned.code == 0
    assert json.loads(cli("cache", "ls", "--json").out)["spaces"] == []


def test_every_command_has_help_with_an_example(cli):
    from typer.main import get_command

    from clipadapt.cli import app as clip
    from textsent.cli import app as text

    for program, app in (("clipadapt", clip), ("textsent", text)):
        for name, command in get_command(app).commands.items():
            parts = (
                [[name, sub] for sub in command.commands]
                if hasattr(command, "commands")
                else [[name]]
            )
            for words in parts:
                shown = cli(*words, "--help", program=program)
                assert shown.code == 0
                assert f"Example: {program} {' '.join(words)}" in " ".join(shown.out.split())


def test_a_text_method_runs_with_both_programs(cli, records, tmp_path):
    path = tmp_path / "reviews.csv"
    rows = [f"a {w} plot {i},{y}" for i in range(40) for y, w in (("neg", "dull"), ("pos", "fine"))]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    where = ["--set", f"data.name=csv:{path}", "--out", tmp_path / "runs", "--json"]

    (text,) = records(cli("run", "tfidf_svm", *where, program="textsent"))
    (clip,) = records(cli("run", Path("configs/methods/text/tfidf_svm.yaml").absolute(), *where))

    assert text["metrics"]["accuracy"]["value"] == 1.0
    assert clip["run_id"] == text["run_id"]
    assert text["model"] is None


def test_the_evaluation_split_is_not_trained_on_under_another_name(
    cli, records, tiny_clip, tmp_path
):
    """A published val split used as test is not used as val: no temperature may be fitted on it."""
    for wnid in ("n01440764", "n02102040"):
        for i in range(3):
            picture(tmp_path / "set" / "val" / wnid / f"{i}.png", (40 * i, 90, 200), i)
    command = [
        "run",
        "zero_shot",
        "--set",
        f"model.name={tiny_clip}",
        "--out",
        tmp_path / "runs",
        "--json",
    ]

    for split in ("val", "test"):
        where = [
            "--set",
            f"data.name=imagenette:{tmp_path / 'set'}",
            "--set",
            f"evaluation.split={split}",
        ]
        (record,) = records(cli(*command, *where))
        assert record["data"]["n_val"] == 0
        assert record["calibration"]["temperature"] is None


def test_runs_of_earlier_schema_versions_are_shown_and_skipped(cli, records, probe, tmp_path):
    made = records(cli(*probe, "--json"))
    folders = sorted(p.parent for p in (tmp_path / "runs").glob("*/*/*/record.json"))
    as_version_1(folders[0])
    as_version_2(folders[1])
    before = {f: (f / "record.json").read_bytes() for f in folders}

    again = cli(*probe, "--json")
    table = cli("table", tmp_path / "runs", "--format", "csv")

    assert records(again) == [
        {**r, "files": a["files"]} for r, a in zip(made, records(again), strict=True)
    ]
    assert {f: (f / "record.json").read_bytes() for f in folders} == before
    (row,) = csv.DictReader(io.StringIO(table.out))
    assert row["seeds"] == "2", table.out


def test_one_fit_is_evaluated_on_several_targets(cli, records, probe, pictures, tmp_path):
    other = tmp_path / "sketches"
    for i, (name, colour) in enumerate((("blue_thing", (0, 0, 99)), ("red_thing", (99, 0, 0)))):
        for k in range(3):
            picture(other / "test" / name / f"{k}.png", colour, 10 * i + k)
    also = f"evaluation.also=[{{split: val}}, {{dataset: 'folder:{other}'}}]"

    found = records(cli(*probe, "--set", "seeds=[1]", "--set", also, "--json"))

    assert [(r["evaluation"]["dataset"], r["evaluation"]["split"]) for r in found] == [
        ("folder:pictures", "test"), ("folder:pictures", "val"), ("folder:sketches", "test"),
    ]  # fmt: skip
    assert len({r["fit_id"] for r in found}) == 1
    assert len({r["run_id"] for r in found}) == 3
    assert "evaluated_on_val" in found[1]["flags"]
    assert [r["data"]["n_test"] for r in found] == [12, 12, 6]
    assert len(list((tmp_path / "runs").rglob("classifier"))) == 1
    assert not (tmp_path / "runs" / ".work").exists()


def test_classes_that_were_not_trained_are_refused(cli, probe, tmp_path):
    picture(tmp_path / "other" / "test" / "yellow_thing" / "0.png", (99, 99, 0), 1)
    picture(tmp_path / "other" / "test" / "red_thing" / "0.png", (99, 0, 0), 2)

    done = cli(*probe, "--set", f"evaluation.also=[{{dataset: 'folder:{tmp_path / 'other'}'}}]")

    assert done.code == 2
    assert "classes that were not trained on folder:pictures: yellow thing" in done.text


def test_other_seeds_go_on_when_one_diverges(tiny_clip, pictures, tmp_path, monkeypatch):
    from clipadapt.methods.linear_probe import LinearProbe, LinearProbeClassifier

    whole = {
        "data": {"name": f"folder:{pictures}", "shots": 2},
        "model": {"name": tiny_clip},
        "method": {"name": "linear_probe", "max_iter": 20},
        "seeds": [1, 2],
    }
    fit = LinearProbe.fit

    def first_diverges(self, backbone, task, ctx):
        fitted = fit(self, backbone, task, ctx)
        if ctx.seed == 1:
            fitted.linear.weight[:] = np.nan
        return fitted

    monkeypatch.setattr(LinearProbe, "fit", first_diverges)
    for attempt in (1, 2):
        with pytest.raises(DivergedError, match="seed 1"):
            run_experiments([config.build([("test", whole)], source="test")], tmp_path / "runs")
        found = {r.seed: r for r in RunStore(tmp_path / "runs").load_all()}
        assert (found[1].status, found[1].attempt) == ("failed", attempt)
        assert found[2].status == "ok"
    third = run_experiments([config.build([("test", whole)], source="test")], tmp_path / "runs")
    assert [r.status for r in third] == ["failed", "ok"]
    assert LinearProbeClassifier


def test_two_folders_with_one_name_are_refused_before_the_first_fit(
    cli, tiny_clip, pictures, tmp_path
):
    picture(tmp_path / "b" / "pictures" / "test" / "red_thing" / "0.png", (99, 0, 0), 2)
    picture(tmp_path / "b" / "pictures" / "test" / "blue_thing" / "0.png", (0, 0, 99), 3)

    done = cli(
        "zeroshot", "--model", tiny_clip, "--dataset", f"folder:{pictures}", "--dataset",
        f"folder:{tmp_path / 'b' / 'pictures'}", "--out", tmp_path / "runs",
    )  # fmt: skip

    assert done.code == 2
    assert "two different datasets are named 'folder:pictures'" in done.text
    assert not (tmp_path / "runs").exists()


def test_threads_are_applied_and_recorded(cli, records, probe):
    import torch

    before = torch.get_num_threads()
    try:
        found = records(cli(*probe, "--set", "threads=1", "--json"))
        assert torch.get_num_threads() == 1
        assert {r["environment"]["threads"] for r in found} == {1}
    finally:
        torch.set_num_threads(before)


def test_duplicates_between_train_and_test_are_counted_and_flagged(cli, records, probe, pictures):
    (clean, _) = records(cli(*probe, "--json"))
    shutil.copy(pictures / "train/red_thing/1.png", pictures / "test/red_thing/copy.png")
    coarse = np.random.default_rng(0).integers(0, 256, size=(6, 6, 3), dtype=np.uint8)
    scene = Image.fromarray(coarse).resize((90, 90), Image.Resampling.BICUBIC)
    scene.save(pictures / "train/blue_thing/scene.png")
    scene.resize((60, 60)).save(pictures / "val/blue_thing/near.jpg", quality=60)

    done = cli(*probe, "--json")
    (found, other) = records(done)
    off, _ = records(
        cli(*probe, "--set", "evaluation.leakage=off", "--set", "data.shots=1", "--json")
    )

    assert clean["flags"] == []
    assert [o["exact"] for o in clean["leakage"]["overlaps"]] == [0, 0, 0]
    assert found["flags"] == ["duplicates_across_splits", "leakage", "duplicates_train_val"]
    assert found["leakage"] == other["leakage"] == {
        "overlaps": [
            {
                "trained": "train", "evaluated": "test", "exact": 1, "near": 0,
                "examples": [["train/red_thing/1.png", "test/red_thing/copy.png"]], "before": False,
            },
            {"trained": "val", "evaluated": "test", "exact": 0, "near": 0, "examples": [], "before": False},
            {
                "trained": "train", "evaluated": "val", "exact": 0, "near": 1,
                "examples": [["train/blue_thing/scene.png", "val/blue_thing/near.jpg"]], "before": True,
            },
        ],
        "near_by": "thumbnails",
        "shared_classes": None,
    }  # fmt: skip
    assert done.err.count("test has examples that are also in train: 1 with a copy: ") == 1
    assert off["leakage"] is None
    assert off["flags"] == ["duplicates_across_splits"]


@pytest.mark.parametrize(("protocol", "flagged"), [("base_to_new", True), ("standard", False)])
def test_new_classes_must_not_be_among_the_trained_ones(
    cli, records, pictures, tiny_clip, tmp_path, protocol, flagged
):
    for i, name in enumerate(("Red thing", "violet_thing")):
        picture(tmp_path / "other" / "test" / name / "0.png", (9 * i, 80, 200), 100 + i)

    home, other = records(
        cli(
            "run", "zero_shot", "--set", f"model.name={tiny_clip}", "--set",
            f"data.name=folder:{pictures}", "--set", f"evaluation.protocol={protocol}", "--set",
            f"evaluation.also=[{{dataset: 'folder:{tmp_path / 'other'}'}}]",
            "--out", tmp_path / "runs", "--json",
        )
    )  # fmt: skip

    assert home["leakage"]["shared_classes"] is None
    assert other["leakage"]["shared_classes"] == 1
    assert ("class_overlap" in other["flags"]) is flagged
