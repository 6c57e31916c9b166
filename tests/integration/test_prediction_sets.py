"""Prediction sets as a user gets them: in records, on the page, and from ``predict`` of both packages."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import clipadapt
from clipadapt.core.api.errors import ConfigError, DataError
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.report.page import build_report
from clipadapt.core.runs.inference import load_run
from clipadapt.core.scoring.prediction_sets import (
    CAVEATS,
    SetScore,
    prediction_sets,
    set_figures,
)
from tests.integration.conftest import COLOURS, picture, rewrite
from textsent import load_run as load_text_run


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Noisy pictures of three colours; 30 of val and 24 of test."""
    root = tmp_path_factory.mktemp("sets") / "images"
    for s, (split, n) in enumerate((("train", 6), ("val", 10), ("test", 8))):
        for c, (name, colour) in enumerate(COLOURS.items()):
            for i in range(n):
                mixed = tuple(
                    int(0.6 * x + 0.4 * y) for x, y in zip(colour, (110, 110, 110), strict=True)
                )
                picture(root / split / name / f"{i}.png", mixed, 1000 * s + 100 * c + i)
    return root


@pytest.fixture(scope="module")
def trained(images, tiny_clip, tmp_path_factory):
    """Train and return the folder of the run."""
    from clipadapt.core.experiments import config
    from clipadapt.core.runs.session import run_experiments

    def train(recipe, *settings):
        out = tmp_path_factory.mktemp("runs")
        given = [f"model.name={tiny_clip}", f"data.name=folder:{images}", "seeds=[1]", *settings]
        (record,) = run_experiments([config.load([recipe], given)], out)
        return RunStore(out).run_dir(record)

    return train


@pytest.fixture(scope="module")
def on_val(trained):
    return trained("zero_shot")


@pytest.fixture(scope="module")
def held_out(trained):
    return trained("linear_probe-quick", "data.calibration_share=0.5", "method.refit=true")


def record_of(folder):
    return RunStore.load(folder)


# ---------------------------------------------------------------- records


def test_a_record_holds_coverage_size_and_size_by_class(on_val):
    record = record_of(on_val)
    sets, stored = record.prediction_sets, RunStore.load_predictions(on_val, record)
    examples = RunStore.load_calibration(on_val, record)
    run = load_run(on_val)

    p = run.probabilities(stored.scores)
    threshold = examples.threshold(SetScore(), 0.9)
    inside = prediction_sets(p, threshold, SetScore())
    want = set_figures(inside, stored.labels)

    assert (sets.n_calibration, sets.calibrated_on, sets.caveats) == (30, "val", ("temperature",))
    assert sets.headline.threshold == threshold
    assert (sets.headline.coverage, sets.headline.size) == pytest.approx(want[:2])
    assert record.metrics["set_coverage"].value == pytest.approx(want.coverage)
    assert record.metrics["set_size"].value == pytest.approx(want.size)
    assert record.metrics["set_size"].unit == "classes"
    assert not record.metrics["set_size"].higher_is_better
    size = inside.sum(axis=1)
    assert sets.size_by_class == pytest.approx([size[stored.labels == c].mean() for c in range(3)])
    # 30 examples allow 70 to 95 %, not 99 %
    assert {(p.score, p.nominal) for p in sets.points} == {
        (kind, level) for kind in ("lac", "aps", "raps") for level in (0.7, 0.8, 0.9, 0.95)
    }


def test_a_part_of_val_may_be_kept_for_calibration_alone(held_out, on_val):
    kept, whole = record_of(held_out), record_of(on_val)

    assert kept.prediction_sets.calibrated_on == "held_out"
    assert kept.prediction_sets.caveats == ()
    assert kept.prediction_sets.n_calibration == kept.data.n_val == 15
    assert whole.data.n_val == 30


def test_what_is_wrong_with_val_is_recorded(trained):
    few = record_of(trained("linear_probe-quick", "data.shots=4"))
    refitted = record_of(trained("linear_probe-quick", "method.refit=true"))

    assert set(few.prediction_sets.caveats) == {"balanced", "temperature", "selection"}
    assert refitted.prediction_sets is None
    assert "set_size" not in refitted.metrics
    assert "calibration.npz" not in refitted.files


def test_sets_on_another_dataset_say_so(images, tiny_clip, tmp_path):
    from clipadapt.core.experiments import config
    from clipadapt.core.runs.session import run_experiments

    for c, (name, colour) in enumerate(COLOURS.items()):
        for i in range(4):
            picture(tmp_path / "other" / "test" / name / f"{i}.png", colour, 9000 + 10 * c + i)
    also = f'[{{"dataset": "folder:{tmp_path}/other"}}]'
    given = [f"model.name={tiny_clip}", f"data.name=folder:{images}", f"evaluation.also={also}"]
    home, other = run_experiments([config.load(["zero_shot"], given)], tmp_path / "runs")

    assert home.prediction_sets.caveats == ("temperature",)
    assert other.prediction_sets.caveats == ("temperature", "dataset")


def test_the_evaluation_on_val_predicts_the_sets_of_its_fit(cli, images, tiny_clip, tmp_path):
    from clipadapt.core.experiments import config
    from clipadapt.core.runs.session import run_experiments

    given = [f"model.name={tiny_clip}", f"data.name=folder:{images}"]
    given.append('evaluation.also=[{"split": "val"}]')
    records = run_experiments([config.load(["zero_shot"], given)], tmp_path / "runs")
    home, on_val = (
        json.loads(
            cli("predict", RunStore(tmp_path / "runs").run_dir(r), images / "test", "--coverage", "0.9", "--json").out
        )
        for r in records
    )  # fmt: skip

    assert on_val["predictions"] == home["predictions"]
    assert "set" in home["predictions"][0]


def test_too_few_examples_give_no_metrics(trained):
    record = record_of(trained("zero_shot", "data.calibration_share=0.1"))

    assert record.prediction_sets.n_calibration == 3
    assert {p.nominal for p in record.prediction_sets.points} == {0.7}
    assert record.prediction_sets.size_by_class == ()
    assert "set_size" not in record.metrics


@pytest.mark.parametrize("share", ["0.01", "-1", "0.95"])
def test_a_share_that_leaves_nothing_is_refused(cli, images, tiny_clip, tmp_path, share):
    done = cli(
        "run", "zero_shot", "--set", f"model.name={tiny_clip}", "--set", f"data.name=folder:{images}",
        "--set", f"data.calibration_share={share}", "--out", tmp_path / "runs",
    )  # fmt: skip

    assert done.code == 2
    assert "data.calibration_share" in done.text
    assert "Traceback" not in done.text


def test_an_older_record_still_loads_and_has_no_sets(cli, on_val, images, tmp_path):
    shutil.copytree(on_val, tmp_path / "a" / "b" / on_val.name)
    old = tmp_path / "a" / "b" / on_val.name
    (old / "calibration.npz").unlink()

    def older(fields):
        del fields["prediction_sets"], fields["files"]["calibration.npz"]
        del fields["metrics"]["set_size"], fields["metrics"]["set_coverage"]

    rewrite(old, older)

    assert record_of(old).prediction_sets is None
    refused = cli("predict", old, images / "test", "--coverage", "0.9")
    assert refused.code == 2
    assert "has no calibration examples for prediction sets" in refused.text
    assert "--calibrate-on PATH" in refused.text
    assert cli("predict", old, images / "test").code == 0


def test_damaged_calibration_examples_are_noticed(cli, on_val, images, tmp_path):
    shutil.copytree(on_val, tmp_path / "run")
    (tmp_path / "run" / "calibration.npz").write_bytes(b"PK damaged")

    done = cli("predict", tmp_path / "run", images / "test", "--coverage", "0.9")

    assert done.code == 2
    assert "calibration.npz is not what its record says" in done.text


def test_the_page_shows_coverage_against_size(on_val, held_out):
    html, _ = build_report(on_val.parents[2], examples=False)
    empty, _ = build_report(held_out.parents[2], examples=False)

    assert '<section id="prediction-sets">' in html
    assert html.count("% asked for") == 4
    assert "the calibration examples also fitted the temperature" in html
    assert ">30<" in html
    assert all(f'<tr><th scope="row">{n.replace("_", " ")}</th>' in html for n in COLOURS)
    assert '<section id="prediction-sets">' in empty


def test_inspect_lists_the_measured_sets(cli, on_val, tmp_path):
    found = json.loads(cli("inspect", on_val, "--json").out)["prediction_sets"]
    lines = cli("inspect", on_val).out.splitlines()

    stored = json.loads((on_val / "record.json").read_text())["prediction_sets"]
    assert found == {k: v for k, v in stored.items() if not k.endswith("_by_class")}
    assert sum("points: score " in line for line in lines) == 12
    assert any(line.strip() == "calibrated_on: val" for line in lines)


def test_tables_show_the_metrics(cli, on_val):
    value = record_of(on_val).metrics["set_size"].value

    done = cli("table", on_val.parents[2], "--metric", "set_size")

    assert done.code == 0
    assert "size of 90 % sets, classes" in done.out.replace("\\", "")
    assert f"{value:.3f}" in done.out


# ---------------------------------------------------------------- predict


def test_predict_gives_the_sets_of_the_library(cli, on_val, images):
    done = cli(
        "predict", on_val, images / "test", "--coverage", "0.9", "--set-score", "aps", "--json"
    )

    assert done.code == 0, done.err
    found = json.loads(done.out)
    run, rule = load_run(on_val), found["prediction_sets"]
    examples = RunStore.load_calibration(on_val, run.record)
    assert rule["threshold"] == examples.threshold(SetScore("aps"), 0.9)
    assert rule["n_calibration"] == 30
    stored = RunStore.load_predictions(on_val, run.record)
    inside = prediction_sets(run.probabilities(stored.scores), rule["threshold"], SetScore("aps"))
    want = set_figures(inside, stored.labels)
    assert rule["measured"]["coverage"]["value"] == pytest.approx(want.coverage)
    assert rule["measured"]["size"] == pytest.approx(want.size)
    assert len(found["predictions"]) == 24
    sizes = [len(p["set"]) for p in found["predictions"]]
    assert np.mean(sizes) == pytest.approx(want.size)
    assert all(p["set"][0] == p["label"] for p in found["predictions"] if p["set"])
    assert "none_of_these" not in found["predictions"][0]


def test_lines_and_sheet_show_sets_and_rejections(cli, on_val, images, tmp_path):
    arguments = (
        "predict", on_val, images / "test", "--coverage", "0.9", "--reject-rate", "0.2",
    )  # fmt: skip
    done = cli(*arguments, "--html", tmp_path / "sheet.html")
    as_json = json.loads(cli(*arguments, "--json").out)

    n_rejected = sum(p["none_of_these"] for p in as_json["predictions"])
    lines = done.out.splitlines()
    assert [line.count("\t") for line in lines] == [2] * 24
    assert all(line.split("\t")[1].startswith("{") for line in lines)
    assert sum(line.startswith("none of these (") for line in lines) == n_rejected
    assert "a set contains the true class with probability 0.9 (lac" in done.err
    assert "which at most 20 % of inputs of a known class have" in done.err
    measured = as_json["prediction_sets"]["measured"]["rejected"]
    assert measured["value"] == pytest.approx(n_rejected / 24)
    assert measured["low"] < measured["value"] < measured["high"] or measured["value"] == 0
    sheet = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert sheet.count("<small>set: {") == 24
    assert sheet.count("<strong>none of these</strong>") == n_rejected
    assert "A set contains the true class" in sheet


def test_sets_are_calibrated_on_a_folder_of_ones_own(cli, held_out, images, tmp_path):
    for c, (name, colour) in enumerate(COLOURS.items()):
        for i in range(9):
            picture(tmp_path / "mine" / name / f"{i}.png", colour, 5000 + 100 * c + i)

    done = cli(
        "predict", held_out, images / "test", "--coverage", "0.95", "--json",
        "--calibrate-on", tmp_path / "mine",
    )  # fmt: skip

    assert done.code == 0, done.err
    rule = json.loads(done.out)["prediction_sets"]
    assert rule["n_calibration"] == 27  # all of them, not the part that a hash calls val
    assert rule["calibrated_on"] == f"'{tmp_path / 'mine'}'"
    assert rule["caveats"] == []


def test_what_cannot_be_calibrated_is_refused(cli, held_out, images, tmp_path):
    for name in ("red_thing", "yellow_thing"):
        picture(tmp_path / "other" / name / "0.png", (9, 9, 9), 1)
    shutil.copytree(images / "train", tmp_path / "split" / "train")
    shutil.copytree(images / "test", tmp_path / "split" / "test")

    def message(*arguments):
        done = cli("predict", held_out, images / "test", *arguments)
        assert done.code == 2
        assert done.out == ""
        assert "Traceback" not in done.text
        return done.text

    few = message("--coverage", "0.99")
    assert "a coverage of 0.99 needs at least 99 calibration examples, and there are 15" in few
    assert "at most 0.938" in few
    assert "needs at least 99 calibration examples" in message("--reject-rate", "0.01")
    assert "the class 'yellow thing', which the run does not know" in message(
        "--coverage", "0.6", "--calibrate-on", tmp_path / "other"
    )
    assert "is the run's own dataset" in message("--coverage", "0.9", "--calibrate-on", images)
    assert "never on test" in message("--coverage", "0.9", "--calibrate-on", tmp_path / "split")
    assert "--coverage must be between 0 and 1 (got 90)" in message("--coverage", "90")
    assert "--set-score must be one of lac, aps, raps" in message(
        "--coverage", "0.9", "--set-score", "acp"
    )
    assert "hint: --coverage 0.9\n" in message("--coverage", "90") + "\n"
    assert "hint: --coverage 0.9\n" in message("--coverage", "2") + "\n"
    assert "hint: --reject-rate 0.05" in message("--reject-rate", "0")
    assert "--set-score only matters with --coverage" in message("--set-score", "aps")
    assert "there is no file or folder 'no/such'" in message(
        "--coverage", "0.9", "--calibrate-on", "no/such"
    )
    assert "only matters for prediction sets" in message("--calibrate-on", tmp_path / "other")


def test_texts(cli, tmp_path):
    def textsent(*arguments):
        return cli(*arguments, program="textsent")

    words = {"good": ("fine", "warm", "lovely"), "bad": ("dull", "cold", "weak")}
    rng = np.random.default_rng(1)
    rows = ["text,label,split"]
    for split, n in (("train", 20), ("val", 12), ("test", 10)):
        for label, own in words.items():
            for i in range(n):
                said = rng.choice([*own, *words["good"]], 3)
                rows.append(f"{split} {i} a {' '.join(said)} {label[0]}{i} film,{label},{split}")
    (tmp_path / "films.csv").write_text("\n".join(rows))
    extra = [r.rpartition(",")[0] for r in rows if r.endswith(("val", "split"))]
    (tmp_path / "extra.csv").write_text("\n".join([extra[0], *(f"more {r}" for r in extra[1:])]))
    run = textsent(
        "run", "tfidf_svm", "--set", f"data.name=csv:{tmp_path / 'films.csv'}", "--set", "seeds=[1]",
        "--out", tmp_path / "runs",
    )  # fmt: skip
    assert run.code == 0, run.err
    (record,) = (tmp_path / "runs").rglob("record.json")

    done = textsent("predict", record.parent, "a fine warm film", "--coverage", "0.9", "--json")
    own = textsent(
        "predict", record.parent, "a fine warm film", "--reject-rate", "0.1", "--json",
        "--calibrate-on", tmp_path / "extra.csv",
    )  # fmt: skip

    assert done.code == own.code == 0, done.err + own.err
    assert set(json.loads(done.out)["predictions"][0]["set"]) <= {"good", "bad"}
    assert json.loads(own.out)["prediction_sets"]["n_calibration"] == 24
    assert json.loads(own.out)["prediction_sets"]["threshold"] is None
    in_python = load_text_run(record.parent).predict_sets(["a fine warm film"])
    assert list(in_python.sets[0]) == json.loads(done.out)["predictions"][0]["set"]


def test_the_evaluated_examples_never_calibrate_under_any_name(cli, held_out, images, tmp_path):
    """A folder of copies has another fingerprint; its content is that of the run's test split."""
    shutil.copytree(images / "test", tmp_path / "copied")
    for c, (name, colour) in enumerate(COLOURS.items()):
        for i in range(9):
            picture(tmp_path / "mixed" / name / f"{i}.png", colour, 6000 + 100 * c + i)
    shutil.copy(images / "test" / "red_thing" / "3.png", tmp_path / "mixed" / "red_thing" / "x.png")

    def given(folder):
        return cli(
            "predict", held_out, images / "test", "--coverage", "0.9", "--calibrate-on", folder
        )

    whole, one = given(tmp_path / "copied"), given(tmp_path / "mixed")

    assert whole.code == one.code == 2
    assert whole.out == one.out == ""
    assert "24 of the 24 examples of" in whole.text
    assert "1 of the 28 examples of" in one.text
    assert "are examples that the run is evaluated on ('" in one.text
    assert "never on test" in one.text
    (tmp_path / "mixed" / "red_thing" / "x.png").unlink()
    assert given(tmp_path / "mixed").code == 0


def test_nearly_equal_examples_and_missing_data_are_caveats(cli, trained, images, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(images, data)
    run = trained("zero_shot", f"data.name=folder:{data}")
    for name in COLOURS:
        (tmp_path / "mine" / name).mkdir(parents=True)
        for file in (data / "test" / name).iterdir():
            with Image.open(file) as image:
                large = image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC)
            large.save(tmp_path / "mine" / name / file.name)

    def said():
        done = cli(
            "predict", run, images / "test", "--coverage", "0.9", "--json",
            "--calibrate-on", tmp_path / "mine",
        )  # fmt: skip
        assert done.code == 0, done.err
        return json.loads(done.out)["prediction_sets"]["caveats"]

    assert said() == [CAVEATS["copies"]]
    shutil.rmtree(data)
    assert said() == [CAVEATS["unchecked"]]


# ---------------------------------------------------------------- Python


def test_python_gives_the_sets_of_the_command(cli, on_val, images):
    files = [str(p) for p in sorted((images / "test").rglob("*.png"))]
    command = json.loads(
        cli("predict", on_val, *files, "--coverage", "0.8", "--set-score", "aps",
            "--reject-rate", "0.2", "--json").out
    )  # fmt: skip

    found = clipadapt.load_run(on_val).predict_sets(files, 0.8, score="aps", reject_rate=0.2)

    want = {p["input"]: p for p in command["predictions"]}
    assert found.sets == tuple(tuple(want[f]["set"]) for f in files)
    assert found.none_of_these.tolist() == [want[f]["none_of_these"] for f in files]
    assert found.rule.facts() == command["prediction_sets"]
    assert repr(found).startswith("<prediction sets: 24 with ")
    assert "a set contains the true class with probability 0.8" in found._repr_html_()


def test_python_rejects_alone_and_refuses_what_the_command_refuses(on_val, images, tmp_path):
    run = clipadapt.load_run(on_val)
    file = next((images / "test").rglob("*.png"))
    shutil.copytree(images / "test", tmp_path / "copied")

    alone = run.predict_sets([file], None, reject_rate=0.2)
    assert (alone.sets, alone.none_of_these.shape) == ((), (1,))
    assert run.predict_sets([file]).none_of_these is None
    with pytest.raises(ConfigError, match="predict_sets needs a coverage or a reject rate"):
        run.predict_sets([file], None)
    with pytest.raises(ConfigError, match="must be between 0 and 1"):
        run.predict_sets([file], 90)
    with pytest.raises(DataError, match="needs at least 99 calibration examples"):
        run.predict_sets([file], 0.99)
    with pytest.raises(DataError, match="that the run is evaluated on"):
        run.predict_sets([file], calibrate_on=tmp_path / "copied")


def test_trained_examples_never_calibrate_a_trained_method(cli, on_val, held_out, images, tmp_path):
    """A fit is surer of the examples that it is trained on than of new ones, so its sets would be too small."""
    shutil.copytree(images / "train", tmp_path / "copied")

    def given(folder):
        picture_ = images / "test" / "red_thing" / "0.png"
        arguments = ["predict", folder, picture_, "--coverage", "0.8"]
        return cli(*arguments, "--calibrate-on", tmp_path / "copied")

    refused = given(held_out)
    assert refused.code == 2
    assert "18 of the 18 examples" in refused.text
    assert "are examples that the run is trained on" in refused.text
    assert given(on_val).code == 0  # zero-shot is not trained
