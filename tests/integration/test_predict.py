"""What a saved run does as a user types it: predict pictures, say what it is, export; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipadapt.core.runs.inference import load_run
from clipadapt.core.scoring.scores import softmax
from tests.integration.conftest import COLOURS, as_version_1, picture, rewrite


def only_run(root: Path) -> Path:
    (path,) = root.rglob("record.json")
    return path.parent


@pytest.fixture(scope="module")
def module_pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained") / "pictures"
    for s, (split, n) in enumerate((("train", 6), ("val", 4), ("test", 4))):
        for c, (name, colour) in enumerate(COLOURS.items()):
            for i in range(n):
                picture(root / split / name / f"{i}.png", colour, 100 * s + 10 * c + i)
    return root


@pytest.fixture(scope="module")
def fitted(module_pictures, tiny_clip, tmp_path_factory):
    """The folder of one probe on a small model."""
    from clipadapt.core.experiments import config
    from clipadapt.core.runs.session import run_experiments

    out = tmp_path_factory.mktemp("probe")
    settings = [
        f"model.name={tiny_clip}",
        f"data.name=folder:{module_pictures}",
        "data.shots=2",
        "seeds=[1]",
    ]
    run_experiments([config.load(["linear_probe-quick"], settings)], out)
    return only_run(out)


@pytest.fixture
def predicted(cli, fitted):
    def call(*arguments):
        done = cli("predict", fitted, *arguments, "--json")
        assert done.code == 0, done.err
        return json.loads(done.out)["predictions"]

    return call


def test_files_and_folders_in_order_with_the_stored_temperature(
    predicted, fitted, module_pictures, tmp_path
):
    one = module_pictures / "test" / "red_thing" / "3.png"
    folder = module_pictures / "val"
    (tmp_path / "notes.txt").write_text("no picture")

    found = predicted(one, folder, "--top", "2")

    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    assert [p["input"] for p in found] == [str(one), *(str(folder / n) for n in names)]
    assert len(found) == 13
    run = load_run(fitted)
    assert run.temperature is not None
    from clipadapt.core.api.data import Inputs
    from clipadapt.datasets._images import ImageFiles

    files = ImageFiles(Path(), [p["input"] for p in found])
    scores = run.classifier.predict_scores(Inputs(files, tuple(p["input"] for p in found)))
    want = softmax(scores, run.temperature)
    labels = run.classifier.classnames
    for row, p in zip(want, found, strict=True):
        assert set(p) == {"input", "label", "probability", "top"}
        assert p["label"] == labels[row.argmax()]
        assert p["probability"] == pytest.approx(row.max(), abs=1e-6)
        assert [t["probability"] for t in p["top"]] == pytest.approx(
            np.sort(row)[::-1][:2].tolist(), abs=1e-6
        )
        assert p["top"][0] == {"label": p["label"], "probability": p["probability"]}
    hits = [p["label"].replace(" ", "_") in p["input"] for p in found]
    assert np.mean(hits) > 0.8


def test_many_pictures_are_scored_in_parts(predicted, module_pictures, monkeypatch):
    whole = predicted(module_pictures, "--top", "99")
    monkeypatch.setattr("clipadapt.core.runs.inference.CHUNK", 5)

    parts = predicted(module_pictures, "--top", "99")

    for part, all_at_once in zip(parts, whole, strict=True):
        assert part["input"] == all_at_once["input"]
        assert part["label"] == all_at_once["label"]
        assert part["probability"] == pytest.approx(all_at_once["probability"], abs=1e-6)
    assert len(whole) == 42
    assert all(len(p["top"]) == 3 for p in whole)
    assert [sum(t["probability"] for t in p["top"]) for p in whole] == pytest.approx([1.0] * 42)


def test_lines_for_people(cli, fitted, module_pictures):
    one = module_pictures / "test" / "red_thing" / "3.png"

    done = cli("predict", fitted, one, "--top", "2")

    ranked, name = done.out.rstrip("\n").split("\t")
    assert name == str(one)
    assert ranked.startswith("red thing 0.")
    assert ranked.count(", ") == 1
    assert "not calibrated" not in done.err


def test_a_run_without_a_temperature_says_so(cli, records, tiny_clip, module_pictures, tmp_path):
    command = ["zeroshot", "--model", tiny_clip, "--dataset", f"folder:{module_pictures}"]
    records(cli(*command, "--out", tmp_path / "runs", "--json"))

    done = cli("predict", only_run(tmp_path / "runs"), module_pictures / "test", "--json")

    assert len(json.loads(done.out)["predictions"]) == 12
    assert "the probabilities are not calibrated" in done.err


def test_the_sheet_holds_every_picture_and_is_replaced_whole(predicted, module_pictures, tmp_path):
    odd = tmp_path / "odd" / '<i>&".png'
    picture(odd, (200, 40, 40), 5)
    sheet = tmp_path / "new" / "sheet.html"

    predicted(module_pictures / "test", odd.parent, "--html", sheet, "--top", "3")
    text = sheet.read_text(encoding="utf-8")
    predicted(odd, "--html", sheet)

    assert text.count("<figure>") == text.count("data:image/jpeg;base64,") == 13
    assert text.count("<li ") == 39
    assert "&lt;i&gt;&amp;&quot;.png" in text
    assert "<i>" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert sheet.read_text(encoding="utf-8").count("<figure>") == 1
    assert [p.name for p in sheet.parent.iterdir()] == ["sheet.html"]


def test_unreadable_pictures_can_be_left_out(cli, predicted, fitted, module_pictures, tmp_path):
    shutil.copytree(module_pictures / "test" / "red_thing", tmp_path / "mixed")
    (tmp_path / "mixed" / "1.png").write_bytes(b"\x89PNG broken")
    (tmp_path / "mixed" / "readme.md").write_text("x")

    refused = cli("predict", fitted, tmp_path / "mixed")
    found = predicted(tmp_path / "mixed", "--on-bad-image", "skip")
    none = cli("predict", fitted, tmp_path / "mixed" / "1.png", "--on-bad-image", "skip")

    assert refused.code == 2
    assert "1.png" in refused.text
    assert "--on-bad-image skip" in refused.text
    assert "left out: 1 other files (.md)" in refused.text
    assert [Path(p["input"]).name for p in found] == ["0.png", "2.png", "3.png"]
    assert none.code == 2
    assert "none of the 1 images can be decoded" in none.text


def test_inspect_gives_the_facts_of_the_record(cli, fitted):
    record = json.loads((fitted / "record.json").read_text())

    plain = json.loads(cli("inspect", fitted, "--json").out)
    lines = cli("inspect", fitted).out.splitlines()

    assert plain["run"]["run_id"] == record["run_id"] == fitted.name
    assert plain["method"]["name"] == "clip/linear_probe"
    assert plain["method"]["settings"]["solver"] == "batched"
    assert "name" not in plain["method"]["settings"]
    for part in ("model", "data", "evaluation", "selection", "calibration", "cost", "flags"):
        assert plain[part] == record[part]
    assert plain["metrics"]["accuracy"]["value"] == record["metrics"]["accuracy"]["value"]
    assert set(plain["metrics"]["ece"]) == {"value"}
    assert plain["parameters"] == {
        "trainable": record["n_trainable_params"],
        "total": record["n_total_params"],
    }
    assert plain["files"] == {p.name: p.stat().st_size for p in (fitted / "classifier").iterdir()}
    assert plain["trained"] is None
    assert f"  trainable: {record['n_trainable_params']:,}" in lines
    assert "trained: none" in lines
    accuracy = record["metrics"]["accuracy"]
    shown = " ".join(f"{accuracy[k]:.4g}" for k in ("value", "low", "high"))
    assert (
        f"  accuracy: {shown.replace(' ', ' [', 1).replace(' ', ', ').replace(', [', ' [')}]"
        in lines
    )


def test_a_failed_run_can_be_inspected(cli, fitted, tmp_path):
    shutil.copytree(fitted, tmp_path / "a" / "b" / "c" / "run")
    folder = tmp_path / "a" / "b" / "c" / "run"
    shutil.rmtree(folder / "classifier")
    failure = {"status": "failed", "error": "RuntimeError: no memory", "metrics": {}, "files": {}}
    rewrite(folder, lambda record: record.update(failure))

    lines = cli("inspect", folder).out.splitlines()
    predicted = cli("predict", folder, fitted)

    assert "  error: RuntimeError: no memory" in lines
    assert "files: none" in lines
    assert predicted.code == 2


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def wrong(cli, tmp_path):
    """Run a command that must fail; return its message after checking its manners."""

    def call(*arguments, program="clipadapt"):
        before = sorted(tmp_path.rglob("*"))
        done = cli(*arguments, program=program)
        assert done.code == 2, done.err
        assert done.out == ""
        assert "Traceback" not in done.err
        assert done.err.count("error:") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return done.text

    return call


def test_what_is_no_image(wrong, fitted, module_pictures, tmp_path):
    (tmp_path / "a.txt").write_text("hello, I am text")
    (tmp_path / "empty.png").write_text("")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").write_text("x")
    good = module_pictures / "test"

    assert "a.txt' is not an image: it starts like text" in wrong(
        "predict", fitted, tmp_path / "a.txt"
    )
    assert "the file is empty" in wrong("predict", fitted, good, tmp_path / "empty.png")
    text = wrong("predict", fitted, tmp_path / "none", "--html", tmp_path / "s.html")
    assert f"the folder '{tmp_path / 'none'}' contains no images" in text
    assert "JPEG" in text


def test_what_is_not_there(wrong, fitted, module_pictures, tmp_path):
    text = wrong("predict", fitted, module_pictures / "tset")

    assert f"there is no file or folder '{module_pictures / 'tset'}'" in text
    assert "did you mean 'test'" in text
    assert "a path is empty" in wrong("predict", fitted, "")
    assert "is not the folder of a run" in wrong("predict", module_pictures, module_pictures)
    assert "is not the folder of a run" in wrong("inspect", tmp_path / "nowhere")


@pytest.mark.parametrize("top", ["0", "-2"])
def test_a_top_that_is_none(wrong, fitted, module_pictures, top):
    text = wrong("predict", fitted, module_pictures, "--top", top)

    assert f"--top must be at least 1 (got {top})" in text


def test_a_sheet_that_cannot_be_written(wrong, fitted, module_pictures, tmp_path):
    picture(tmp_path / "mine.jpg", (1, 2, 3), 1)
    before = (tmp_path / "mine.jpg").read_bytes()
    (tmp_path / "dir.html").mkdir()
    (tmp_path / "file").write_text("")

    for name in ("mine.jpg", "dir.html"):
        text = wrong("predict", fitted, module_pictures, "--html", tmp_path / name)
        assert "--html needs the name of an .html file" in text
    inside = wrong("predict", fitted, module_pictures, "--html", tmp_path / "file" / "s.html")

    assert "cannot write to the folder" in inside
    assert "--html FILE" in inside
    assert (tmp_path / "mine.jpg").read_bytes() == before


def test_a_run_of_the_other_track(wrong, cli, records, fitted, module_pictures, tmp_path):
    path = tmp_path / "reviews.csv"
    rows = [f"a {w} plot {i},{y}" for i in range(40) for y, w in (("neg", "dull"), ("pos", "fine"))]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    where = ["--set", f"data.name=csv:{path}", "--out", tmp_path / "runs", "--json"]
    records(cli("run", "tfidf_svm", *where, program="textsent"))

    text = wrong("predict", only_run(tmp_path / "runs"), module_pictures)
    image = wrong("predict", fitted, "a fine film", program="textsent")

    assert "is of text/tfidf_svm, which reads texts" in text
    assert "'textsent'" in text
    assert "is of clip/linear_probe, which reads images" in image
    assert "'clipadapt'" in image


def test_a_run_of_another_model(wrong, cli, records, module_pictures, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    from tests.unit.models import tiny

    model = tiny.write(tmp_path / "model", "clip")
    command = [
        "zeroshot",
        "--model",
        f"local-dir:{model}",
        "--dataset",
        f"folder:{module_pictures}",
    ]
    records(cli(*command, "--out", tmp_path / "runs", "--json"))
    run = only_run(tmp_path / "runs")
    weights = model / "open_clip_model.safetensors"
    state = load_file(weights)
    state["visual.proj"] = state["visual.proj"] + torch.ones(())
    save_file(state, weights)

    for command in (["predict", run, module_pictures], ["inspect", run]):
        text = wrong(*command)
        assert "was made with other weights of 'local-dir:model'" in text
    shutil.rmtree(model)
    assert str(model) in wrong("predict", run, module_pictures)


def test_a_classifier_that_is_damaged(wrong, fitted, module_pictures, tmp_path):
    run = tmp_path / "a" / "b" / "c"
    shutil.copytree(fitted, run)
    (run / "classifier" / "classifier.safetensors").write_bytes(b"x" * 40)

    for command in (("predict", run, module_pictures), ("inspect", run)):
        assert "classifier.safetensors is not what its record says" in wrong(*command)
    as_version_1(run)
    assert "no readable classifier" in wrong("predict", run, module_pictures)


def test_export_of_what_cannot_be_exported(wrong, fitted, tmp_path):
    (tmp_path / "there").mkdir()

    text = wrong("export", fitted, "--format", "peft", "--output", tmp_path / "new")
    taken = wrong("export", fitted, "--format", "openclip", "--output", tmp_path / "there")
    nothing = wrong("export", tmp_path, "--format", "openclip", "--output", tmp_path / "new")

    assert "a run of clip/linear_probe cannot be exported as 'peft'" in text
    assert "accepted: classifier, openclip" in text
    assert "already exists and is not changed" in taken
    assert "is not the folder of a run" in nothing


@pytest.mark.slow
def test_a_real_run_predicts_pictures_into_a_sheet(cli, records, tmp_path):
    from clipadapt.core.api.data import DatasetOptions
    from clipadapt.core.api.registry import DATASETS

    settings = ["model.name=stitched", "data.name=openmoji:line", "data.shots=4", "seeds=[1]"]
    given = [w for s in settings for w in ("--set", s)]
    (record,) = records(
        cli("run", "linear_probe-quick", *given, "--out", tmp_path / "runs", "--json")
    )
    found = DATASETS.resolve("openmoji:line", "clip")
    test = found.provider(found.argument, DatasetOptions()).split("test")
    for i in range(len(test)):
        path = tmp_path / "emoji" / test.classnames[test.labels[i]] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        test.inputs.examples[i].save(path)

    done = cli(
        "predict", only_run(tmp_path / "runs"), tmp_path / "emoji", "--html", tmp_path / "s.html", "--json"
    )  # fmt: skip

    predictions = json.loads(done.out)["predictions"]
    hits = [Path(p["input"]).parent.name == p["label"] for p in predictions]
    assert np.mean(hits) == pytest.approx(record["metrics"]["accuracy"]["value"])
    text = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert text.count("<figure>") == len(test)
    assert len(text) < 20_000 * len(test)


def test_a_run_evaluated_on_other_classes_predicts_those(cli, tiny_clip, tmp_path):
    out = tmp_path / "runs"
    settings = [
        f"model.name={tiny_clip}",
        "model.precision=fp32",
        "data.name=synthetic:4x12",
        "data.classes=base",
        "evaluation.also=[{split: test, classes: new}]",
    ]
    done = cli(
        *("run", "zero_shot", "--out", out, "--json"), *(x for s in settings for x in ("--set", s))
    )
    assert done.code == 0, done.err
    records = json.loads(done.out)["records"]
    (other,) = (r for r in records if r["evaluation"]["classes"] == "new")
    (folder,) = (p.parent for p in out.glob(f"*/*/{other['run_id']}/record.json"))
    image = tmp_path / "picture.png"
    Image.new("RGB", (32, 32), "red").save(image)
    stranger = out / "a" / "b" / "c"
    (stranger / "classifier").mkdir(parents=True)
    (stranger / "record.json").write_text(
        "{"
    )  # another run's damage is none of this one's business

    got = cli("predict", folder, image, "--top", 9, "--json")

    assert got.code == 0, got.err
    (prediction,) = json.loads(got.out)["predictions"]
    named = {t["label"] for t in prediction["top"]}
    assert named == set(other["per_class"]["classnames"])


@pytest.mark.parametrize("damage", ["settings", "names", "gone"])
def test_a_damaged_run_is_told(damage, cli, tiny_clip, tmp_path):
    done = cli(
        # A closed set of classes: an open one is put right from the record.
        *("run", "linear_probe-quick", "--out", tmp_path / "runs", "--set", "seeds=[1]"),
        *("--set", f"model.name={tiny_clip}", "--set", "data.name=synthetic:3x12"),
    )
    assert done.code == 0, done.err
    (folder,) = (p.parent for p in (tmp_path / "runs").glob("*/*/*/record.json"))
    if damage == "settings":
        rewrite(folder, lambda record: record["config"]["method"].update(old_key=1))
    elif damage == "names":
        as_version_1(folder)
        facts = folder / "classifier" / "classifier.json"
        facts.write_text(
            facts.read_text().replace('"classnames": [', '"classnames": ["one more", ')
        )
    else:
        shutil.rmtree(folder / "classifier")
    image = tmp_path / "picture.png"
    Image.new("RGB", (32, 32), "red").save(image)

    got = cli("predict", folder, image)

    assert got.code == 2
    expected = {"settings": "old_key", "names": "classes", "gone": "has no saved classifier"}
    assert expected[damage] in got.text
    assert "Traceback" not in got.err


@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_relative_model_works_from_another_folder(
    form, cli, records, tiny_models, module_pictures, tmp_path, monkeypatch
):
    (tmp_path / "work" / "models").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    if form == "folder":
        shutil.copytree(tiny_models["clip"].removeprefix("local-dir:"), "models/mine")
        spellings = ["local-dir:models/mine", f"local-dir:{tmp_path / 'work' / 'models' / 'mine'}"]
    else:
        import open_clip
        from safetensors.torch import save_file

        save_file(open_clip.create_model("RN50").state_dict(), "models/mine.safetensors")
        spellings = ["RN50/models/mine.safetensors", "RN50/./models/mine.safetensors"]
    ids = set()
    for i, name in enumerate(spellings):
        out = tmp_path / f"runs{i}"
        command = ["zeroshot", "--model", name, "--dataset", f"folder:{module_pictures}", "--limit", "3"]  # fmt: skip
        (record,) = records(cli(*command, "--out", out, "--json"))
        ids.add(record["run_id"])
    assert len(ids) == 1

    monkeypatch.chdir(tmp_path / "elsewhere")
    done = cli("predict", only_run(tmp_path / "runs0"), module_pictures / "test" / "red_thing")

    assert done.code == 0, done.err


def test_a_folder_that_has_the_name_of_the_model_is_not_taken_for_it(
    cli, records, module_pictures, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    command = ["zeroshot", "--model", "random:ViT-S-32-alt", "--dataset", f"folder:{module_pictures}"]  # fmt: skip
    records(cli(*command, "--limit", "3", "--out", "runs", "--json"))
    (tmp_path / "ViT-S-32-alt").mkdir()

    done = cli("predict", only_run(tmp_path / "runs"), module_pictures / "test" / "red_thing")

    assert done.code == 0, done.err


def test_an_address_and_stdin_are_no_images(wrong, fitted):
    assert "'https://example.org/a.png' is a URL" in wrong(
        "predict", fitted, "https://example.org/a.png"
    )
    assert "predict does not read stdin ('-')" in wrong("predict", fitted, "-")


def test_an_image_named_twice_is_predicted_twice_alike(predicted, module_pictures):
    one = module_pictures / "test" / "red_thing" / "3.png"

    found = predicted(one, one, one.parent)

    assert [Path(p["input"]).name for p in found] == ["3.png", "3.png", "0.png", "1.png", "2.png", "3.png"]  # fmt: skip
    assert found[0] == found[1] == found[5]


def test_texts_come_from_stdin_by_either_way(cli, records, tmp_path, monkeypatch):
    import io

    path = tmp_path / "reviews.csv"
    rows = [f"a {w} plot {i},{y}" for i in range(40) for y, w in (("neg", "dull"), ("pos", "fine"))]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    where = ["--set", f"data.name=csv:{path}", "--out", tmp_path / "runs", "--json"]
    records(cli("run", "tfidf_svm", *where, program="textsent"))
    run = only_run(tmp_path / "runs")

    def from_stdin(*arguments):
        stdin = io.TextIOWrapper(io.BytesIO(b"a fine plot\r\na dull plot\n\n"))
        monkeypatch.setattr("sys.stdin", stdin)
        done = cli("predict", run, *arguments, "--json", program="textsent")
        assert done.code == 0, done.err
        return json.loads(done.out)["predictions"]

    plain = from_stdin()
    assert [p["input"] for p in plain] == ["a fine plot", "a dull plot"]
    assert [p["label"] for p in plain] == ["pos", "neg"]
    assert from_stdin("-") == from_stdin("--file", "-") == plain

    (tmp_path / "texts.txt").write_text("a fine plot\n")
    done = cli("predict", run, "a dull plot", tmp_path / "texts.txt", program="textsent")
    assert done.code == 0
    assert done.err.count("is read as a text; for the lines of this file: --file") == 1


@pytest.mark.parametrize("name", ["zero_shot", "linear_probe"])
def test_the_python_api_and_the_command_give_one_answer(
    name, cli, records, tiny_clip, module_pictures, tmp_path
):
    from clipadapt import CLIPClassifier

    params = {"linear_probe": {"search": "none", "C": 1.0, "refit": False}}.get(name, {})
    settings = {f"method.{k}": json.dumps(v) for k, v in params.items()}
    settings |= {"model.name": tiny_clip, "data.name": f"folder:{module_pictures}", "seeds": "[1]"}
    settings |= {"evaluation.calibrate": "false", "method.name": f"clip/{name}"}
    words = [w for k, v in settings.items() for w in ("--set", f"{k}={v}")]
    (record,) = records(cli("run", name, *words, "--out", tmp_path / "runs", "--json"))
    own = {k: v for k, v in record["config"]["method"].items() if k != "name"}
    images = sorted((module_pictures / "train").rglob("*.png"))
    labels = [p.parent.name for p in images]
    tests = sorted((module_pictures / "test").rglob("*.png"))

    done = cli("predict", only_run(tmp_path / "runs"), module_pictures / "test", "--top", 9, "--json")  # fmt: skip
    fitted = CLIPClassifier(tiny_clip, name, own, random_state=1).fit(images, labels)
    # Without a validation split the estimator has no temperature; the run's may come from the method.
    temperature = record["calibration"]["temperature"] or 1.0
    found = softmax(fitted.predict_scores(tests), temperature)

    predictions = json.loads(done.out)["predictions"]
    assert [p["input"] for p in predictions] == [str(t) for t in tests]
    for prediction, row in zip(predictions, found, strict=True):
        by_name = {t["label"].replace(" ", "_"): t["probability"] for t in prediction["top"]}
        np.testing.assert_allclose(row, [by_name[c] for c in fitted.classes_], atol=1e-6)
