"""What goes wrong in silence is flagged: collapse, and ending below one's own zero-shot start."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest

from clipadapt.core.records.run_store import RunStore

# It reads the class from the id, so that a test can say what it makes of each picture.
PLUGIN = '''
"""Scores by id."""
from typing import ClassVar
import numpy as np
from clipadapt.core.api.method import MethodConfig

class Config(MethodConfig):
    fitted: str = "right"
    start: str = "none"
    epochs: int = 0

def scores(inputs, names, kind):
    own = [names.index(i.split("/")[1].replace("_", " ")) for i in inputs.ids]
    if kind == "half":
        own = [c if i.endswith(("0.png", "1.png")) else c + 1 for c, i in zip(own, inputs.ids)]
    shift = {"right": 0, "half": 0, "wrong": 1}.get(kind)
    best = [0 if shift is None else (c + shift) % len(names) for c in own]
    return np.eye(len(names), dtype=np.float32)[best]

class Fitted:
    n_trainable_params, score_kind = 0, "logit"
    def __init__(self, config, names):
        self.config, self.classnames = config, names
    def predict_scores(self, inputs):
        return scores(inputs, self.classnames, self.config.fitted)
    def save(self, directory):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "names.txt").write_text("|".join(self.classnames))

class FromZeroShot(Fitted):
    def zero_shot_scores(self, inputs):
        return scores(inputs, self.classnames, self.config.start)
    def inspect(self):
        return {"start": self.config.start, "words": [{"word": "a", "distance": 0.25}]}

class Known:
    Config: ClassVar = Config
    version: ClassVar = 1
    requires: ClassVar = None
    def __init__(self, config):
        self.config = config
    def fit(self, backbone, task, ctx):
        for epoch in range(1, self.config.epochs + 1):
            ctx.log(epoch=epoch, train_loss=1 / epoch, val_accuracy=epoch / 10)
        return (FromZeroShot if self.config.start != "none" else Fitted)(self.config, task.classnames)
    def load(self, directory, backbone):
        return FromZeroShot(self.config, tuple((directory / "names.txt").read_text().split("|")))

METHOD = Known
'''


@pytest.fixture
def known(cli, records, pictures, tmp_path, monkeypatch):
    """Run the method on the small folder; return its record and what was said."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "known.py").write_text(PLUGIN)
    (tmp_path / "known.yaml").write_text("method: {name: known}\n")
    monkeypatch.setenv("CLIPADAPT_PLUGINS", str(tmp_path / "plugins"))

    def run(*more, **settings):
        given = [f"--set=method.{k}={v}" for k, v in settings.items()]
        done = cli(
            "run", tmp_path / "known.yaml", "--set", f"data.name=folder:{pictures}",
            "--set", "evaluation.calibrate=false", *given, *more,
            "--json", "--out", tmp_path / "runs",
        )  # fmt: skip
        return records(done), done.err

    return run


@pytest.mark.parametrize(
    ("fitted", "start", "flags"),
    [
        ("right", "none", []),
        ("right", "wrong", []),
        ("right", "right", []),
        ("half", "half", []),
        ("half", "right", ["below_zero_shot"]),
        ("wrong", "none", ["collapse"]),
        ("one", "none", ["collapse"]),
        ("one", "wrong", ["collapse"]),
        ("one", "half", ["collapse", "below_zero_shot"]),
    ],
)
def test_flags(known, fitted, start, flags):
    ((record,), err) = known(fitted=fitted, start=start)

    want = {"right": 1.0, "half": 0.5, "wrong": 0.0, "one": 1 / 3}
    assert record["flags"] == flags
    assert record["metrics"]["accuracy"]["value"] == pytest.approx(want[fitted])
    assert ("zero_shot_accuracy" in record["metrics"]) == (start != "none")
    if start != "none":
        judged = record["metrics"]["zero_shot_accuracy"]
        assert judged["value"] == pytest.approx(want[start])
        assert judged["low"] < judged["value"] or start == "wrong"
        assert (judged["n"], judged["unit"]) == (12, "fraction")
    for flag in flags:
        assert f"warning: clip/known on folder:pictures, seed 1: {flag}: " in err
    assert err.count("warning:") == len(flags)


def test_flags_stand_in_the_table(known, cli, tmp_path):
    known(fitted="half", start="right")

    table = cli("table", tmp_path / "runs", "--format", "csv").out
    start = cli("table", tmp_path / "runs", "--metric", "zero_shot_accuracy").out

    assert ",below_zero_shot," in table
    assert "100.0 [" in start


def test_each_target_is_judged_for_itself(known, pictures, tmp_path):
    """Learnt order of classes differs from that of the second data set; the start follows its columns."""
    other = tmp_path / "other"
    for split in ("test",):
        for name in ("green_thing", "red_thing"):
            for i in (2, 3):
                path = other / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes((pictures / "test" / name / f"{i}.png").read_bytes())

    home, away = known(
        "--set", f"evaluation.also=[{{dataset: 'folder:{other}'}}]", fitted="half", start="right"
    )[0]

    assert home["metrics"]["accuracy"]["value"] == 0.5
    assert away["metrics"]["accuracy"]["value"] < 0.5
    assert away["metrics"]["zero_shot_accuracy"]["value"] == 1.0
    assert home["flags"] == ["below_zero_shot"]
    assert set(away["flags"]) >= {"below_zero_shot"}
    assert home["fit_id"] == away["fit_id"]


def test_the_start_changes_nothing_of_the_fit(known, tmp_path):
    found = [known(fitted="half", start=start)[0][0] for start in ("right", "wrong")]

    assert len({r["run_id"] for r in found}) == 2
    assert len({r["predictions_sha256"] for r in found}) == 1
    assert found[0]["metrics"]["accuracy"] == found[1]["metrics"]["accuracy"]


def test_a_start_of_the_wrong_shape_is_a_defect(known, tmp_path, monkeypatch):
    from clipadapt.core.api.registry import METHODS

    module = sys.modules[METHODS.get("clip/known").__module__]
    monkeypatch.setattr(
        module.FromZeroShot, "zero_shot_scores", lambda self, x: np.zeros((len(x), 9), np.float32)
    )
    with pytest.raises(TypeError, match=r"zero_shot_scores returned float32 \(12, 9\), expected"):
        known(start="right")
    (failed,) = RunStore(tmp_path / "runs").load_all()
    assert failed.status == "failed"


def folder_of(tmp_path, record):
    (path,) = (tmp_path / "runs").rglob(f"{record['run_id']}/record.json")
    return path.parent


def test_a_run_of_several_epochs_has_a_learning_curve(known, cli, tmp_path):
    (one, two), err = known("--set", "seeds=[1,2]", epochs=3)
    (short,), _ = known(epochs=1)

    for record in (one, two):
        picture = folder_of(tmp_path, record) / "curves.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert f"learning curve: {picture}" in err
    assert not (folder_of(tmp_path, short) / "curves.png").exists()
    RunStore.load_predictions(folder_of(tmp_path, one))


def test_without_matplotlib_the_run_is_none_the_worse(known, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    (record,), err = known(epochs=3)

    assert record["status"] == "ok"
    assert "no learning curves: learning curves need matplotlib" in err
    assert not (folder_of(tmp_path, record) / "curves.png").exists()


def test_inspect_shows_what_the_classifier_says(known, cli, tmp_path):
    (record,), _ = known(start="wrong")
    folder = folder_of(tmp_path, record)

    text = cli("inspect", folder).out.splitlines()
    plain = json.loads(cli("inspect", folder, "--json").out)

    assert plain["trained"] == {"start": "wrong", "words": [{"word": "a", "distance": 0.25}]}
    assert text[text.index("trained:") :] == [
        "trained:", "  start: wrong", "  words: word a, distance 0.25",
    ]  # fmt: skip


@pytest.mark.parametrize("way", ["slash", "relative", "copy", "renamed"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_training_examples_are_flagged_however_it_is_named(
    known, pictures, tmp_path, monkeypatch, way, split
):
    monkeypatch.chdir(tmp_path)
    names = {"slash": f"{pictures}/", "relative": "pictures/../pictures/./"}
    if way in {"copy", "renamed"}:
        base = "pictures" if way == "copy" else "other"  # equal names of unequal data are refused
        names[way] = str(shutil.copytree(pictures, tmp_path / "copy" / base))
    if way == "renamed":
        for i, path in enumerate(sorted((tmp_path / "copy").rglob("*.png"))):
            path.rename(path.with_name(f"{i}_{path.name}"))

    (home, away), _ = known(
        "--set", f"evaluation.also=[{{dataset: 'folder:{names[way]}', split: {split}}}]",
        "--set", "data.name=folder:pictures",
    )  # fmt: skip

    assert home["flags"] == []
    assert f"evaluated_on_{split}" in away["flags"]


def test_a_limit_does_not_turn_a_few_copies_into_the_whole_split(known, pictures, tmp_path):
    data = shutil.copytree(pictures, tmp_path / "copies" / "pictures")
    for name in ("red_thing", "green_thing"):
        shutil.copy(data / "train" / name / "0.png", data / "test" / name / "0.png")

    (record,), _ = known("--set", f"data.name=folder:{data}", "--set", "data.limit=2")

    assert record["flags"] == ["duplicates_across_splits", "leakage"]


def test_fast_off_is_another_run_in_the_same_folder(known):
    (first,), _ = known()
    (slow,), err = known("--set", "fast=off")
    (again,), err_again = known("--set", "fast=off")

    assert "skipped" not in err
    assert first["run_id"] != slow["run_id"] == again["run_id"]
    assert "1 of 1 runs were complete already, skipped" in err_again


@pytest.mark.parametrize("way", ["spelling", "copy", "extract"])
def test_training_texts_are_flagged_however_they_are_named(cli, records, tmp_path, way):
    words = {"bad": ("dull", "weak", "slow", "poor"), "good": ("fine", "warm", "bright", "rich")}
    rows = {
        split: [
            f"a {word} film of {i} {split} parts,{label},{split}"
            for label, own in words.items()
            for word in own
            for i in range(2)
        ]
        for split in ("train", "val", "test")
    }
    head = "text,label,split"
    path = tmp_path / "reviews.csv"
    path.write_text("\n".join([head, *rows["train"], *rows["val"], *rows["test"]]) + "\n")
    other = {
        "spelling": f"{tmp_path}/./reviews.csv",
        "copy": tmp_path / "copied.csv",
        "extract": tmp_path / "extract.csv",
    }[way]
    if way == "copy":
        other.write_bytes(path.read_bytes())
    if way == "extract":  # what was trained on, as somebody's test set
        held = [r.replace(",train", ",test") for r in rows["train"]]
        other.write_text("\n".join([head, *rows["val"], *held]) + "\n")
    split = "test" if way == "extract" else "train"

    home, away = records(
        cli(
            "run", "tfidf_svm-quick", "--set", f"data.name=csv:{path}", "--set",
            f"evaluation.also=[{{dataset: 'csv:{other}', split: {split}}}]",
            "--set", "seeds=[1]", "--json", "--out", tmp_path / "runs", program="textsent",
        )
    )  # fmt: skip

    assert "evaluated_on_train" not in home["flags"]
    assert "evaluated_on_train" in away["flags"]


def test_zero_shot_is_flagged_too(cli, records, tiny_clip, pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "copy" / "pictures")
    home, away = records(
        cli(
            "zeroshot", "--model", tiny_clip, "--dataset", f"folder:{pictures}",
            "--set", f"evaluation.also=[{{dataset: 'folder:{tmp_path}/copy/pictures', split: train}}]",
            "--json", "--out", tmp_path / "runs",
        )
    )  # fmt: skip
    assert "evaluated_on_train" not in home["flags"]
    assert "evaluated_on_train" in away["flags"]


@pytest.mark.parametrize(
    ("keys", "hints", "others"),
    [
        ("", ["compare the settings of the method with those of its recipe"], ["learning rate"]),
        ("lr: float = 0.25", ["lower the learning rate (0.25)"], ["recipe"]),
        (
            "lr: float = 0.25\n    @property\n    def learning_rate(self):\n        return None",
            ["compare the settings"],
            ["learning rate"],
        ),
    ],
)
def test_scores_that_are_not_finite_get_a_hint_that_the_method_can_follow(
    keys, hints, others, known, tmp_path, cli, pictures
):
    code = PLUGIN.replace("    epochs: int = 0\n", f"    epochs: int = 0\n    {keys}\n")
    code = code.replace("return np.eye", "return np.nan * np.eye")
    (tmp_path / "plugins" / "known.py").write_text(code)

    done = cli(
        "run", tmp_path / "known.yaml", "--set", f"data.name=folder:{pictures}", "--out", tmp_path / "runs"
    )  # fmt: skip

    assert done.code == 2
    assert "the scores are not finite; the run diverged" in done.text
    assert "model.precision" not in done.text  # there is no model
    assert all(hint in done.text for hint in hints)
    assert not any(other in done.text for other in others)


@pytest.mark.parametrize(("precision", "said"), [("bf16", True), ("fp32", False)])
def test_float32_is_suggested_only_if_the_model_is_not_in_it(
    precision, said, tiny_clip, cli, tmp_path, pictures, monkeypatch
):
    from clipadapt.methods.zero_shot import ZeroShotClassifier

    monkeypatch.setattr(
        ZeroShotClassifier,
        "predict_scores",
        lambda self, inputs: np.full((len(inputs), len(self.classnames)), np.nan, dtype=np.float32),
    )

    done = cli(
        "run", "zero_shot", "--set", f"data.name=folder:{pictures}", "--set", f"model.name={tiny_clip}",
        "--set", f"model.precision={precision}", "--out", tmp_path / "runs",
    )  # fmt: skip

    assert ("--set model.precision=fp32" in done.text) == said
    assert "learning rate" not in done.text
