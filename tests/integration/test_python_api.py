"""The Python API gives what the commands give: the same ids, figures, predictions and files."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import clipadapt
import textsent
from clipadapt.core.api.errors import ClipAdaptError, ConfigError, DataError, RecordError
from clipadapt.core.api.progress import Silent
from tests.integration.conftest import picture

MEASURED = {"cost", "started_at", "sha256", "files"}
"""Fields of a record that differ between two runs of the same experiment."""
NAMES = [
    "evaluate", "fit", "load_dataset", "load_model", "load_run", "records", "sweep",
]  # fmt: skip


class Notes(Silent):
    """Keeps what is shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str, /) -> None:
        self.lines.append(message)


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Work in an empty folder, where the default folder of the records is."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def same(run: clipadapt.Run, record: dict) -> None:
    """Check that a run is the one whose record a command printed."""
    own = json.loads(run.record.model_dump_json())
    for fields in (own, record):
        fields["config"]["evaluation"].pop("also")  # which others are evaluated is not of this run
    assert {k: v for k, v in own.items() if k not in MEASURED} == {
        k: v for k, v in record.items() if k not in MEASURED
    }
    content = {k: v for k, v in own["files"].items() if k != "curves.png"}
    assert content == {k: v for k, v in record["files"].items() if k != "curves.png"}


def test_importing_the_packages_and_asking_for_names_loads_no_framework():
    code = (
        "import sys, clipadapt, textsent\n"
        "names = set(dir(clipadapt)) & set(dir(textsent))\n"
        f"assert {set(NAMES)!r} <= names, names\n"
        "assert 'zero_shot' in dir(clipadapt) and 'zero_shot' not in dir(textsent)\n"
        "heavy = {'torch', 'open_clip', 'transformers', 'sklearn', 'pandas', 'PIL', 'numpy', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "clipadapt.fit, textsent.records\n"
        "heavy -= {'PIL', 'numpy', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="module 'textsent' has no attribute 'fitt'"):
        textsent.fitt  # noqa: B018


def test_fit_is_the_command_run(cli, records, tiny_clip, pictures, library):
    arguments = (
        "--set", f"model.name={tiny_clip}", "--set", f"data.name=folder:{pictures}", "--set", "data.shots=2",
        "--set", "seeds=[3]", "--set", "method.n_ctx=4", "--set", "method.epochs=2", "--json",
    )  # fmt: skip
    (want,) = records(cli("run", "coop-quick", *arguments, "--out", "other"))

    model = clipadapt.load_model(tiny_clip)
    data = clipadapt.load_dataset(pictures)
    run = clipadapt.fit("coop-quick", model, data, shots=2, seed=3, n_ctx=4, epochs=2)

    same(run, want)
    assert run.path.is_relative_to(library.resolve() if run.path.is_absolute() else "runs")
    assert (
        records(cli("run", "coop-quick", *arguments))[0]["started_at"]
        == (json.loads(run.record.model_dump_json())["started_at"])
    )  # the command finds the run of the library complete
    assert run.metrics["accuracy"] == run.accuracy == want["metrics"]["accuracy"]["value"]
    assert repr(run).startswith(f"<run {want['run_id']}: coop-quick on folder:pictures, local-dir")
    assert [e.epoch for e in run.history] == sorted(e.epoch for e in run.history)


def test_zero_shot_is_the_command_zeroshot(cli, records, tiny_clip, pictures, library):
    arguments = ("--model", tiny_clip, "--dataset", f"folder:{pictures}", "--limit", 5)
    (want,) = records(cli("zeroshot", *arguments, "--templates", "7", "--json", "--out", "other"))

    data = clipadapt.load_dataset(f"folder:{pictures}", templates="7")
    run = clipadapt.zero_shot(tiny_clip, data, limit=5)

    want["config"]["data"] |= run.record.config["data"]  # "classnames: null" given or not
    same(run, want)
    assert run.record.evaluation.templates != data.data.templates


def test_predictions_of_lists_are_those_of_the_run(tiny_clip, pictures, library):
    torch = pytest.importorskip("torch")
    model, data = clipadapt.load_model(tiny_clip), clipadapt.load_dataset(pictures)
    run = clipadapt.fit("linear_probe-quick", model, data)
    test = data.split("test")
    paths = [pictures / "test" / i.removeprefix("test/") for i in test.inputs.ids]
    images = [Image.open(p) for p in paths]
    arrays = [np.asarray(i) for i in images]
    tensors = [torch.from_numpy(a.copy()).permute(2, 0, 1) for a in arrays]

    scores = run.predict_scores(paths)

    np.testing.assert_array_equal(scores, run.predictions.scores)
    floats = torch.stack(tensors).float() / 255
    for given in (images, arrays, np.stack(arrays), tensors, torch.stack(tensors), floats,
                  [str(paths[0]), images[1], arrays[2], *tensors[3:]]):  # fmt: skip
        np.testing.assert_array_equal(run.predict_scores(given), scores)
    assert run.predict(paths).tolist() == [run.classnames[i] for i in scores.argmax(axis=1)]
    probabilities = run.predict_proba(paths)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    labels = [run.classnames[i] for i in test.labels]
    assert run.score(paths, labels) == pytest.approx(run.accuracy)
    features = model.encode([paths[0], images[1]])
    assert features.shape == (2, model.backbone.embed_dim)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    assert model.encode_text(["a dog", "a cat"]).shape == features.shape

    again = clipadapt.load_run(run.path)
    np.testing.assert_array_equal(again.predict_scores(paths), scores)
    assert repr(again) == repr(run)


def test_evaluate_writes_the_record_of_a_further_target(
    cli, records, tiny_clip, pictures, library, tmp_path, monkeypatch
):
    colours = {"red_thing": (90, 40, 40), "blue_thing": (40, 60, 90), "green_thing": (50, 80, 60)}
    for name, colour in colours.items():
        for i in range(3):
            picture(tmp_path / "dark" / "test" / name / f"{i}.png", colour, i)
    also = (
        f"[{{dataset: 'folder:{tmp_path}/dark'}}, {{split: val}}, {{split: test, classes: base}}]"
    )
    arguments = [
        "run", "coop-quick", "--set", f"model.name={tiny_clip}", "--set", f"data.name=folder:{pictures}",
        "--set", "data.shots=2", "--set", "method.epochs=2", "--set", f"evaluation.also={also}",
        "--seeds", "1", "--out", "other", "--json",
    ]  # fmt: skip
    want = records(cli(*arguments))
    run = clipadapt.fit("coop-quick", tiny_clip, pictures, shots=2, epochs=2)
    fits = []
    from clipadapt.core.api.registry import METHODS

    method = METHODS.get("clip/coop")
    monkeypatch.setattr(method, "fit", lambda *a: fits.append(a))

    dark = clipadapt.evaluate(run, tmp_path / "dark")
    val = clipadapt.evaluate(run, split="val")
    base = clipadapt.evaluate(clipadapt.load_run(dark.path), classes="base")

    for found, record in zip((run, dark, val, base), want, strict=True):
        same(found, record)
    assert not fits
    assert clipadapt.evaluate(run).record == run.record
    assert clipadapt.evaluate(run, split="val").record.started_at == val.record.started_at
    assert "folder:dark (trained on folder:pictures)" in repr(dark)
    frame = clipadapt.records("runs")
    assert sorted(frame["run_id"]) == sorted(r["run_id"] for r in want)
    assert len(set(frame["fit_id"])) == 1


def test_evaluate_refuses_a_fit_whose_data_have_changed(tiny_clip, pictures, library):
    run = clipadapt.fit("linear_probe-quick", tiny_clip, pictures)
    picture(pictures / "train" / "red_thing" / "new.png", (210, 40, 40), 99)

    with pytest.raises(RecordError, match="cannot be evaluated further: its training data"):
        clipadapt.evaluate(run, split="val")
    with pytest.raises(ConfigError, match="evaluate takes a run, got str"):
        clipadapt.evaluate("runs", split="val")  # type: ignore[arg-type]


def test_sweep_is_the_command_bench(cli, records, tiny_clip, pictures, library, tmp_path):
    sweep = {
        "datasets": [f"folder:{pictures}"], "models": [tiny_clip], "seeds": [1, 2], "shots": [1, 2],
        "methods": ["linear_probe-quick", {"recipe": "zero_shot", "shots": [None], "seeds": [1]}],
    }  # fmt: skip
    (tmp_path / "mine.yaml").write_text(json.dumps(sweep))
    want = records(cli("bench", "mine.yaml", "--out", "other", "--json"))

    found = clipadapt.sweep(
        methods=sweep["methods"], models=[clipadapt.load_model(tiny_clip)], datasets=[pictures],
        shots=(1, 2), seeds=range(1, 3), progress=Silent(),
    )  # fmt: skip
    again = clipadapt.sweep("mine.yaml", seeds=[2], progress=Silent())

    assert [r.run_id for r in found] == [r["run_id"] for r in want]
    assert len(found) == 5
    assert not found.failures
    assert [r.run_id for r in again if r.record.data.shots] == [
        r["run_id"] for r in want if r["seed"] == 2
    ]
    assert found.table().startswith("| ")
    assert found.table("macro_f1", "csv").count("\n") == 4
    assert "<table>" in found._repr_html_()
    assert repr(found).startswith("<5 runs in runs>\n| ")
    assert found[0].run_id == found.runs[0].run_id == want[0]["run_id"]
    assert len(found[1:]) == 4


def test_records_are_a_data_frame(tiny_clip, pictures, library, monkeypatch):
    run = clipadapt.fit("linear_probe-quick", tiny_clip, pictures, shots=2, C=0.5, out="a")
    clipadapt.zero_shot(tiny_clip, pictures, out="a")

    frame = clipadapt.records("a").set_index("method")

    probe = frame.loc["clip/linear_probe"]
    assert probe["accuracy"] == run.accuracy
    assert probe["accuracy_low"] < probe["accuracy"] <= probe["accuracy_high"]
    assert (probe["shots"], probe["method.C"], probe["run_id"]) == (2, 0.5, run.run_id)
    assert clipadapt.load_run(probe["path"]).run_id == run.run_id
    assert frame["shots"].isna().tolist() == [False, True]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ClipAdaptError, match=r"needs pandas.*\n.*pip install \"clipadapt\[pandas"):
        clipadapt.records("a")
    with pytest.raises(RecordError, match="there is no folder 'nowhere'"):
        clipadapt.records("nowhere")


def test_charts_draw_into_the_axes_given(tiny_clip, pictures, library):
    plt = pytest.importorskip("matplotlib.pyplot")
    run = clipadapt.fit("coop-quick", tiny_clip, pictures, shots=2, epochs=3)
    _, (left, middle, right) = plt.subplots(1, 3)

    assert run.plot_curve(left) is left
    assert run.plot_reliability(middle) is middle
    found = clipadapt.sweep(
        methods=["linear_probe-quick", "zero_shot"], models=[tiny_clip], datasets=[pictures], shots=[1, 2],
        seeds=[1, 2], progress=Silent(),
    )  # fmt: skip
    assert found.plot_shots(right) is right

    logged = {e.epoch for e in run.history if e.train_loss is not None}
    assert set(left.lines[0].get_xdata()) == logged
    assert (left.get_xlabel(), left.get_ylabel()) == ("epoch", "loss, nats")
    assert "temperature" in middle.get_title()
    assert [t.get_text() for t in right.get_xticklabels()] == ["1", "2"]
    assert right.get_ylabel() == "accuracy, %"
    new = run.plot_reliability(calibrated=False)
    assert new.figure is not middle.figure
    plt.close("all")
    probe = clipadapt.fit("linear_probe-quick", tiny_clip, pictures, shots=2)
    with pytest.raises(RecordError, match="logged no epochs, so it has no learning curve"):
        probe.plot_curve()
    with pytest.raises(ClipAdaptError, match="unknown value of a learning curve 'los'"):
        run.plot_curve(value="los")  # type: ignore[arg-type]


def test_results_show_themselves(tiny_clip, pictures, library):
    model, data = clipadapt.load_model(tiny_clip), clipadapt.load_dataset(pictures)
    run = clipadapt.fit("linear_probe-quick", model, data, shots=2)

    assert repr(data) == "<dataset folder:pictures: 3 classes; train 18, val 12, test 12>"
    assert "<model local-dir:clip: fp32 on cpu" in repr(model) or "bf16" in repr(model)
    for one in (model, data, run):
        html = one._repr_html_()
        assert html.startswith("<table>")
        assert html.count("<tr>") == html.count("</tr>") > 3
    assert "red thing" in data._repr_html_()
    assert "accuracy" in run._repr_html_()
    assert run.run_id in run._repr_html_()


def test_texts(cli, records, library, tmp_path):
    words = {"good": "a fine and moving film", "bad": "a dull and lifeless film"}
    rows = [f"{text} number {i},{label}" for i in range(12) for label, text in words.items()]
    (tmp_path / "reviews.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    name = f"csv:{tmp_path}/reviews.csv"
    arguments = ("--set", f"data.name={name}", "--set", "method.max_ngram=1", "--set", "seeds=[1]")
    want = cli("run", "tfidf_svm", *arguments, "--out", "other", "--json", program="textsent")
    (record,) = records(want)

    run = textsent.fit("tfidf_svm", None, textsent.load_dataset(name), max_ngram=1)

    same(run, record)
    assert run.predict(["a dull one", "moving"]).tolist() == ["bad", "good"]
    assert textsent.records()["method.max_ngram"].tolist() == [1]
    with pytest.raises(ConfigError, match="which reads texts"):
        clipadapt.load_run(run.path)
    for wrong, message in (
        ("a text", "expected several texts, got one str"),
        ([], "found no texts"),
        ([1], "text 0: expected a str, got int"),
        (["a", " "], "text 1 is empty"),
        (np.array([["a"]]), "got a ndarray of shape"),
    ):
        with pytest.raises(DataError, match=message):
            run.predict(wrong)


def test_text_models_encode_lists(tiny_texts, library):
    model = textsent.load_model(tiny_texts["bert"])

    features = model.encode(["a fine film", "a dull one"], pooling="mean")

    assert features.shape == (2, model.backbone.width)
    assert not np.array_equal(features, model.encode(["a fine film", "a dull one"]))
    assert "weights" in model._repr_html_()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, d: clipadapt.load_model("stiched"), "did you mean 'stitched'"),
        (lambda m, d: clipadapt.load_model(5), "a model is given by its name, got 5"),
        (lambda m, d: clipadapt.load_dataset("openmoj:line"), "did you mean 'openmoji'"),
        (lambda m, d: clipadapt.load_dataset(5), "a dataset is given by its name or folder, got 5"),
        (lambda m, d: clipadapt.fit("copo", m, d), "no config 'copo'.*did you mean 'coop'"),
        (lambda m, d: clipadapt.fit(None, m, d), "given by the name of its recipe, got None"),
        (lambda m, d: clipadapt.fit("coop", m, d, n_ct=4), "method.n_ct: .*did you mean 'n_ctx'"),
        (lambda m, d: clipadapt.fit("coop", None, d), "clip/coop needs a model, but none is set"),
        (
            lambda m, d: clipadapt.fit("coop", clipadapt.load_dataset(d), m),
            "(?s)a model is given by its name or as load_model.*model comes before the dataset",
        ),
        (
            lambda m, d: clipadapt.fit("coop", m, d, settings={"data.shot": 1}),
            "data.shot: .* did you mean 'shots'",
        ),
        (lambda m, d: clipadapt.fit("coop", m, d, shots=0), r"data.shots: .*\(got 0\)"),
        (lambda m, d: clipadapt.sweep(methods=["coop"]), r"the sweep sweep has no datasets"),
        (
            lambda m, d: clipadapt.sweep(methods=["coop"], datasets=[clipadapt.load_dataset(d, templates="7")]),
            "by its name alone, not with data.templates",
        ),
        (lambda m, d: clipadapt.load_run("nowhere"), "nowhere"),
        (lambda m, d: clipadapt.zero_shot(m, d, split="tets"), "evaluation.split: .*got 'tets'"),
        (lambda m, d: clipadapt.zero_shot(m, "folder:/nowhere"), "/nowhere"),
    ],
)  # fmt: skip
def test_mistakes_are_one_clear_message(tiny_clip, pictures, library, call, message):
    with pytest.raises(ClipAdaptError, match=message):
        call(tiny_clip, pictures)
    assert not library.exists()


def test_images_that_are_not_accepted(tiny_clip, library):
    torch = pytest.importorskip("torch")
    model = clipadapt.load_model(tiny_clip)
    for given, message in (
        ("a.png", "expected several images, got one str"),
        ([torch.zeros(4, 8, 8)], r"image 0: expected a tensor of shape \(3, height, width\)"),
        (torch.full((1, 3, 8, 8), 2.0), r"a float32 tensor must be in \[0, 1\], got values from 2"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "tensor of uint8 or floats in .*, got int64"),
        (["/nowhere.png"], "cannot read the file '/nowhere.png'"),
    ):
        with pytest.raises(DataError, match=message):
            model.encode(given)


def test_warnings_of_a_fit_are_shown(tiny_clip, pictures, library):
    notes = Notes()
    data = clipadapt.load_dataset(pictures, progress=notes)
    clipadapt.fit("linear_probe-quick", tiny_clip, data, progress=notes)
    clipadapt.fit("linear_probe-quick", tiny_clip, data, progress=notes)

    assert any("1 of 1 runs were complete already, skipped" in line for line in notes.lines)
    assert sum("42 read in 3 classes" in line for line in notes.lines) == 1


def test_a_folder_below_the_working_directory_is_shown_without_the_path_of_the_machine(
    tmp_path, monkeypatch
):
    from clipadapt.core.python import show

    monkeypatch.chdir(tmp_path)

    assert show.folder(tmp_path / "runs" / "a") == "runs/a"
    assert show.folder(tmp_path.parent / "b") == str(tmp_path.parent / "b")
