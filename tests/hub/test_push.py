"""A run pushed to a local hub with the hub's own client, and read back from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from clipadapt.core.api.data import Inputs
from clipadapt.core.api.errors import RecordError
from clipadapt.core.experiments import config
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.runs.inference import inspect_run, load_run
from clipadapt.core.runs.session import run_experiments
from tests.hub.writable import WritableHub
from tests.integration.conftest import COLOURS, picture, rewrite

PHOTO = Image.new("RGB", (32, 32), (200, 40, 40))
IMAGES = Inputs([PHOTO, Image.new("RGB", (32, 32), (40, 60, 200))], ("1", "2"))
TEXTS = Inputs(["a fine film", "a dull story", "neither"], ("1", "2", "3"))


@pytest.fixture
def hub(made, tmp_path, monkeypatch):
    """A hub on which alice may write to ``org``; her token is set."""
    root = Path(shutil.copytree(made, tmp_path / "root"))
    members = {"org": ("alice",)}
    with WritableHub(root, tokens={"hf_alice": "alice", "hf_bob": "bob"}, members=members) as hub:
        for name, value in hub.constants(tmp_path / "cache").items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setattr("time.sleep", lambda _: None)
        monkeypatch.setenv("HF_TOKEN", "hf_alice")
        yield hub


@pytest.fixture
def pictures(tmp_path):
    root = tmp_path / "my pictures"
    for s, (split, n) in enumerate((("train", 4), ("val", 3), ("test", 3))):
        for c, (name, colour) in enumerate(COLOURS.items()):
            for i in range(n):
                picture(root / split / name / f"{i}.png", colour, 100 * s + 10 * c + i)
    return root


@pytest.fixture
def images(hub, pictures, tmp_path):
    """A linear probe on a model of the hub and a folder of images."""
    return fitted(
        "linear_probe-quick", tmp_path, "clip", model="hf-hub:org/clip", data=f"folder:{pictures}"
    )


@pytest.fixture
def texts(tmp_path):
    """A TF-IDF SVM, which uses no model."""
    folder = tmp_path / "reviews"
    folder.mkdir()
    for n, split in enumerate(("train", "val", "test"), start=1):
        rows = [f"{'fine' if i % 2 else 'dull'} film number {n}{i},{i % 2}" for i in range(12)]
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return fitted("tfidf_svm", tmp_path, "text", data=f"csv:{folder}")


def fitted(recipe, tmp_path, track, *, data, model=None):
    share = "data.calibration_share=0.5"  # examples for prediction sets
    settings = [
        f"data.name={data}",
        "seeds=[1]",
        *([share] if track == "clip" else []),
        *([f"model.name={model}"] if model else []),
    ]
    experiment = config.load([recipe], settings, track=track)
    (record,) = run_experiments([experiment], tmp_path / "runs")
    return RunStore(tmp_path / "runs").run_dir(record)


def on_another_machine(monkeypatch, tmp_path):
    """Another folder, an empty hub cache, and none of the files of the run."""
    for name in ("runs", "my pictures", "reviews"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "other cache"))
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "elsewhere")


def files_of(hub, name="org/probe"):
    main = hub.root / "models" / name / "main"
    return {p.relative_to(main).as_posix(): p.read_bytes() for p in main.rglob("*") if p.is_file()}


def pushed(cli, run_dir, *more, program="clipadapt", name="org/probe"):
    done = cli("push", run_dir, name, *more, program=program)
    assert done.code == 0, done.err
    return done


# ---------------------------------------------------------------- works


def test_a_pushed_run_of_images_predicts_equal_scores_elsewhere_and_offline(
    cli, hub, images, tmp_path, monkeypatch
):
    here = load_run(images)
    want = here.classifier.predict_scores(IMAGES)

    done = pushed(cli, images)

    assert done.out.strip() == f"{hub.url}/org/probe"
    assert len(hub.commits) == 1
    on_another_machine(monkeypatch, tmp_path)
    there = load_run("hf:org/probe")
    np.testing.assert_array_equal(there.classifier.predict_scores(IMAGES), want)
    assert there.temperature == here.temperature
    assert there.record.run_id == here.record.run_id
    assert not hub.asked(r"resolve.*README\.md")
    PHOTO.save("photo.png")
    n = len(hub.log)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = cli("predict", "hf:org/probe", "photo.png", "--json")
    assert found.code == 0, found.err
    (one,) = json.loads(found.out)["predictions"]
    assert one["label"] == there.predict(IMAGES)[0]["label"]
    assert inspect_run("hf:org/probe")["run"]["run_id"] == here.record.run_id
    assert cli("inspect", "hf:org/probe").code == 0
    found = cli("predict", "hf:org/probe", "photo.png", "--coverage", "0.5", "--json")
    assert found.code == 0, found.err
    assert "set" in json.loads(found.out)["predictions"][0]
    exported = cli("export", "hf:org/probe", "--format", "openclip", "--output", "out")
    assert exported.code == 0, exported.err
    assert len(hub.log) == n


def test_a_pushed_run_of_texts_predicts_equal_scores(cli, hub, texts, tmp_path, monkeypatch):
    want = load_run(texts).classifier.predict_scores(TEXTS)
    pushed(cli, texts, program="textsent")
    on_another_machine(monkeypatch, tmp_path)

    np.testing.assert_array_equal(load_run("hf:org/probe").classifier.predict_scores(TEXTS), want)

    found = cli("predict", "hf:org/probe", "a fine film", program="textsent")
    assert found.code == 0, found.err
    card = ModelCard(files_of(hub)["README.md"].decode())
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.base_model is None


def test_only_record_classifier_class_names_and_card_without_local_paths(
    cli, hub, images, tmp_path
):
    names = {p.name for p in (images / "classifier").iterdir()}
    pushed(cli, images)

    files = files_of(hub)

    assert set(files) == {
        "README.md",
        "record.json",
        "classnames.json",
        "calibration.npz",
        *(f"classifier/{n}" for n in names),
    }
    assert json.loads(files["classnames.json"]) == ["blue thing", "green thing", "red thing"]
    for name, content in files.items():
        for path in (str(tmp_path), str(Path.home()) + "/", str(Path.cwd())):
            assert path.encode() not in content, name
    record = json.loads(files["record.json"])
    assert record["config"]["data"]["name"] == "folder:my pictures"
    assert record["environment"]["folder"] is None
    assert "predictions.npz" not in record["files"]


def test_the_card_is_in_the_hubs_format(cli, hub, images):
    record = RunStore.load(images)
    pushed(cli, images, "--license", "mit")

    card = ModelCard(files_of(hub)["README.md"].decode())

    assert card.data.license == "mit"
    assert card.data.library_name == "clipadapt"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.base_model == "org/clip"
    assert "linear_probe" in card.data.tags
    results = {r.metric_type: r for r in card.data.eval_results}
    assert set(results) == set(record.metrics)
    accuracy = record.metrics["accuracy"]
    assert results["accuracy"].metric_value == accuracy.value
    assert results["accuracy"].dataset_split == "test"
    assert f"{accuracy.low:.4f} to {accuracy.high:.4f}" in results["accuracy"].metric_name
    for part in (
        "hf:org/probe",
        *record.flags,
        record.model.weights_sha256,
        record.data.licence[:7],
    ):
        assert part in card.text
    for deviation in record.method.deviations:
        assert deviation.split()[0] in card.text


def test_the_python_lines_of_the_card_work(cli, hub, images, tmp_path, monkeypatch, capsys):
    pushed(cli, images)
    on_another_machine(monkeypatch, tmp_path)
    PHOTO.save("photo.jpg")
    text = files_of(hub)["README.md"].decode()
    code = text.split("```python\n")[1].split("```")[0]

    exec(code, {})

    assert "thing" in capsys.readouterr().out


def test_a_second_push_replaces_the_classifier_and_the_first_can_be_named(
    cli, hub, images, texts, tmp_path, monkeypatch
):
    pushed(cli, images)
    first = hub.commits[0]["commit"]
    pushed(cli, texts, program="textsent")

    files = files_of(hub)

    assert {p.name for p in (texts / "classifier").iterdir()} == {
        n.removeprefix("classifier/") for n in files if n.startswith("classifier/")
    }
    on_another_machine(monkeypatch, tmp_path)
    assert load_run(f"hf:org/probe@{first}").record.method.name == "clip/linear_probe"
    assert load_run("hf:org/probe").record.method.name == "text/tfidf_svm"


def test_a_private_repository_needs_a_token_to_read(cli, hub, texts, tmp_path, monkeypatch):
    done = cli("push", texts, "org/probe", "--private", "--json", program="textsent")
    assert json.loads(done.out)["private"] is True
    on_another_machine(monkeypatch, tmp_path)

    with pytest.raises(RecordError, match="no public model 'org/probe'"):
        load_run("hf:org/probe")

    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    assert load_run("hf:org/probe").record.status == "ok"


def test_a_dry_run_prints_the_card_and_needs_no_hub(cli, hub, images, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    done = cli("push", images, "org/probe", "--dry-run")

    assert done.code == 0
    assert ModelCard(done.out).data.library_name == "clipadapt"
    assert not hub.asked("repos/create|commit")
    document = json.loads(cli("push", images, "org/probe", "--dry-run", "--json").out)
    assert document["card"] == done.out
    assert "record.json" in document["files"]

    unnamed = cli("push", images, "probe", "--dry-run")
    assert unnamed.code == 2
    assert "write ORG/NAME" in unnamed.err
    assert unnamed.out == ""


# ---------------------------------------------------------------- refused


def refused(cli, hub, *arguments, program="clipadapt"):
    before = list(hub.commits)
    done = cli("push", *arguments, program=program)
    assert done.code == 2, done.err
    assert hub.commits == before
    return done.text


def test_who_may_not_push(cli, hub, texts, monkeypatch):
    command = (texts, "org/probe")
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token" in refused(cli, hub, *command, program="textsent")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "rejects the token" in refused(cli, hub, *command, program="textsent")
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    text = refused(cli, hub, *command, program="textsent")
    assert "may not write there (HTTP 403)" in text
    assert "write access to 'org'" in text
    assert not (hub.root / "models/org/probe").exists()
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    assert 'namespace "nobody"' in refused(cli, hub, texts, "nobody/probe", program="textsent")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(cli, hub, *command, program="textsent")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("probe", "is not the name of a model repository"),
        ("a/b/c", "is not the name of a model repository"),
        ("org/pro be", "not a valid name"),
        ("org/-x", "not a valid name"),
    ],
)
def test_names_that_are_no_repository(cli, hub, texts, name, expected):
    assert expected in refused(cli, hub, texts, name, program="textsent")


def test_wrong_licences(cli, hub, texts):
    run = (texts, "org/probe", "--license")
    assert "hub's name of a licence" in refused(cli, hub, *run, "No Licence", program="textsent")
    assert '"license" must be' in refused(cli, hub, *run, "no-such", program="textsent")


def test_runs_that_are_not_pushed(cli, hub, images, texts, pictures, tiny_clip, tmp_path):
    assert "use the same command of 'textsent'" in refused(cli, hub, texts, "org/x")
    assert "not the folder of a run" in refused(cli, hub, tmp_path, "org/x")
    shutil.copytree(texts, tmp_path / "failed")
    rewrite(tmp_path / "failed", lambda r: r.update(status="failed", error="boom", metrics={}))
    assert "failed and has no classifier" in refused(
        cli, hub, tmp_path / "failed", "org/x", program="textsent"
    )
    shutil.copytree(texts, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare/classifier")
    assert "no saved classifier" in refused(
        cli, hub, tmp_path / "bare", "org/x", program="textsent"
    )
    shutil.copytree(texts, tmp_path / "changed")
    next((tmp_path / "changed/classifier").iterdir()).write_bytes(b"x")
    assert "sha256 differs" in refused(cli, hub, tmp_path / "changed", "org/x", program="textsent")
    local = fitted("zero_shot", tmp_path / "2", "clip", model=tiny_clip, data=f"folder:{pictures}")
    assert "is on this machine alone" in refused(cli, hub, local, "org/x")
    assert not hub.asked("repos/create")


def test_a_pickle_is_not_pushed(cli, hub, texts):
    path = next((texts / "classifier").glob("*.safetensors"))
    path.rename(path.with_suffix(".pkl"))
    digest = {}

    def change(record):
        digest.update(record["files"])
        old = f"classifier/{path.name}"
        record["files"] = {k.replace(".safetensors", ".pkl"): v for k, v in digest.items()}
        assert old in digest

    rewrite(texts, change)
    assert "may be a pickle" in refused(cli, hub, texts, "org/x", program="textsent")


def test_private_is_refused_for_a_public_repository(cli, hub, texts):
    pushed(cli, texts, program="textsent")
    assert "exists and is public" in refused(
        cli, hub, texts, "org/probe", "--private", program="textsent"
    )


@pytest.mark.parametrize("where", ["preupload", "/commit/", "lfs/objects/batch", "lfs-upload"])
def test_an_upload_that_fails_leaves_no_file(cli, hub, texts, where):
    hub.fault(where, times=None, status=500)
    text = refused(cli, hub, texts, "org/probe", program="textsent")
    assert "were not pushed to 'org/probe'; the new repository is empty" in text
    assert files_of(hub) == {}
    hub.faults.clear()
    pushed(cli, texts, program="textsent")


# ---------------------------------------------------------------- damage


def test_a_repository_that_was_changed_or_is_no_run(cli, hub, texts, tmp_path, monkeypatch):
    pushed(cli, texts, program="textsent")
    (hub.root / "models/org/probe/main/classnames.json").write_text('["a", "b"]')
    on_another_machine(monkeypatch, tmp_path)
    done = cli("predict", "hf:org/probe", "a film", program="textsent")
    assert done.code == 2
    assert "is not as it was pushed" in done.text
    done = cli("predict", "hf:org/bert", "a film", program="textsent")
    assert (done.code, "it has no record.json" in done.text) == (2, True)
    done = cli("predict", "hf:org/missing", "a film", program="textsent")
    assert (done.code, "no public model 'org/missing'" in done.text) == (2, True)


def test_damage_in_the_cache_is_found(cli, hub, texts, tmp_path, monkeypatch):
    pushed(cli, texts, program="textsent")
    on_another_machine(monkeypatch, tmp_path)
    load_run("hf:org/probe")
    blob = next((tmp_path / "other cache").rglob("classifier/*.safetensors")).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"\x00x")

    done = cli("predict", "hf:org/probe", "a film", program="textsent")

    assert (done.code, "damaged" in done.text, "rm '" in done.text) == (2, True, True)
