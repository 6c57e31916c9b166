"""Methods whose predictions depend on the other test examples: transductive and online ones."""

from __future__ import annotations

import hashlib
import json

import pytest

# Scores that show which inputs were given together, and in which order.
PLUGIN = '''
"""Scores by the place of an input in its call."""
from typing import ClassVar
import numpy as np
from clipadapt.core.api.limits import OrderSeed
from clipadapt.core.api.method import MethodConfig

class Config(MethodConfig):
    {key}

class Fitted:
    n_trainable_params, score_kind = 0, "logit"
    def __init__(self, names):
        self.classnames = names
    def predict_scores(self, inputs):
        scores = np.zeros((len(inputs), len(self.classnames)), np.float32)
        scores[:, 0] = np.arange(len(inputs))
        scores[:, 1] = len(inputs)
        return scores
    def save(self, directory):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "names.txt").write_text("|".join(self.classnames))

class Known:
    Config: ClassVar = Config
    version: ClassVar = 1
    requires: ClassVar = None
    setting: ClassVar = "{setting}"
    def __init__(self, config):
        self.config = config
    def fit(self, backbone, task, ctx):
        return Fitted(task.classnames)
    def load(self, directory, backbone):
        return Fitted(tuple((directory / "names.txt").read_text().split("|")))

METHOD = Known
'''


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """A transductive, an online and an incomplete online method."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    for name, setting, key in (
        ("together", "transductive", "pass"),
        ("stream", "online", "order_seed: OrderSeed = 1"),
        ("unordered", "online", "pass"),
    ):
        (folder / f"{name}.py").write_text(PLUGIN.format(setting=setting, key=key))
        (tmp_path / f"{name}.yaml").write_text(f"method: {{name: {name}}}\n")
    monkeypatch.setenv("CLIPADAPT_PLUGINS", str(folder))
    return tmp_path


@pytest.fixture
def run(cli, records, pictures, plugins):
    """Run one of the methods; return its record, its predictions and its folder."""

    def run(name, *more, out="runs"):
        command = ["run", plugins / f"{name}.yaml", "--set", f"data.name=folder:{pictures}"]
        done = cli(*command, *more, "--out", plugins / out, "--json")
        assert done.code == 0, done.text
        (record,) = json.loads(done.out)["records"]
        (folder,) = (plugins / out).rglob(record["run_id"])
        return record, folder

    return run


def stored(folder, record):
    from clipadapt.core.records.run_store import RunStore

    return RunStore.load_predictions(folder, RunStore.load(folder))


def test_an_online_method_sees_the_examples_in_the_recorded_order(run):
    record, folder = run("stream")
    found = stored(folder, record)

    seen = [found.ids[i] for i in found.scores[:, 0].argsort()]
    assert sorted(seen) == sorted(found.ids)
    assert seen != list(found.ids)
    digest = hashlib.sha256("\0".join(seen).encode()).hexdigest()
    assert record["evaluation"]["order_sha256"] == digest
    assert record["method"]["setting"] == "online"
    assert run("stream")[0] == record  # resumed
    again, _ = run("stream", out="again")
    assert again["evaluation"]["order_sha256"] == digest
    other, _ = run("stream", "--set", "method.order_seed=2")
    assert other["evaluation"]["order_sha256"] != digest
    assert other["run_id"] != record["run_id"]


def test_a_split_is_predicted_in_one_call(run, cli, pictures, monkeypatch):
    from clipadapt.core.runs import inference

    monkeypatch.setattr(inference, "CHUNK", 2)
    record, folder = run("together")
    n = record["data"]["n_test"]
    assert (stored(folder, record).scores[:, 1] == n).all()
    assert (record["method"]["setting"], record["evaluation"]["order_sha256"]) == (
        "transductive",
        None,
    )

    done = cli("predict", folder, pictures / "test", "--json")
    alone = cli("predict", folder, next((pictures / "test").rglob("*.png")), "--json")

    labels = [p["label"] for p in json.loads(done.out)["predictions"]]
    assert len(labels) == n > 2
    assert len(set(labels)) == 1  # the class whose score is n, which is more than every place
    assert "is transductive" not in done.text
    assert "clip/together is transductive and predicts all inputs together" in alone.err


def test_predict_keeps_the_order_of_its_arguments(run, cli, pictures):
    _, folder = run("stream")
    images = sorted((pictures / "test").rglob("*.png"))[::-1]

    done = cli("predict", folder, *images, "--top", 9, "--json")

    predictions = json.loads(done.out)["predictions"]
    assert [p["input"] for p in predictions] == list(map(str, images))
    first = predictions[0]["top"][0]["label"]
    rising = [next(t for t in p["top"] if t["label"] != first)["probability"] for p in predictions]
    assert rising == sorted(rising)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        (
            "stream",
            ["--set", "method.order_seed=null"],
            "method.order_seed: the predictions depend",
        ),
        ("stream", ["--set", "method.order_seed=-1"], "method.order_seed: "),
        ("unordered", [], "clip/unordered is an online method"),
    ],
)
def test_a_missing_order_is_refused(cli, pictures, plugins, name, more, message):
    data = f"data.name=folder:{pictures}"

    done = cli("run", plugins / f"{name}.yaml", "--set", data, *more, "--out", plugins / "runs")

    assert done.code == 2
    assert message in " ".join(done.text.split())
    assert "Traceback" not in done.text


def test_listings_and_tables_show_the_setting(run, cli, plugins):
    _, folder = run("together")
    run("stream")

    listed = cli("ls", "methods")
    kinds = dict(line.split("\t")[:2] for line in listed.out.splitlines())
    assert kinds["clip/together"].endswith(", transductive")
    assert kinds["clip/zero_shot"] == "zero-shot"
    document = json.loads(cli("ls", "methods", "--json").out)
    assert document["settings"]["clip/stream"] == "online"
    assert document["settings"]["clip/zero_shot"] == "inductive"
    assert "setting: transductive" in cli("inspect", folder).out
    table = cli("table", plugins / "runs").out
    assert "| online " in table
    assert "A transductive one sees all unlabelled test examples at once" in table
    page = plugins / "page.html"
    assert cli("report", plugins / "runs", "--output", page).code == 0
    assert "test, transductive" in page.read_text()


def test_tda_without_an_order_is_refused(cli, pictures, tmp_path):
    words = [f"data.name=folder:{pictures}", "model.name=stitched", "method.order_seed=null"]
    settings = [part for word in words for part in ("--set", word)]

    done = cli("run", "tda-quick", *settings, "--out", tmp_path / "runs")

    assert done.code == 2
    assert done.text.count("error:") == 1
    assert (
        "method.order_seed: the predictions depend on the order of the test examples" in done.text
    )
    assert "Traceback" not in done.text
