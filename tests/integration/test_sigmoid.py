"""Runs of a model with a sigmoid loss: the probability of a class is the sigmoid of its score, calibrated on val."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from clipadapt.core.records.run_store import RunStore
from clipadapt.core.runs.inference import load_run

COOP = ("--set", "method.n_ctx=2", "--set", "method.epochs=1")


@pytest.mark.parametrize(("recipe", "more"), [("zero_shot", ()), ("coop-quick", COOP)])
def test_predict_gives_one_sigmoid_per_class(recipe, more, tiny_models, cli, tmp_path):
    shots = ("--set", "data.shots=2", *more) if recipe != "zero_shot" else ()
    given = ("--set", "data.name=synthetic:3x12", "--set", f"model.name={tiny_models['siglip']}")
    done = cli("run", recipe, *given, *shots, "--set", "seeds=[1]", "--out", tmp_path, "--json")
    (record,) = json.loads(done.out)["records"]
    assert record["probabilities"] == "sigmoid"
    folder = next(tmp_path.rglob("record.json")).parent
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")

    shown = cli("predict", folder, tmp_path / "red.png", "--top", "3", "--json")

    run = load_run(folder)
    kept = RunStore.load_predictions(folder)
    assert run.temperature is not None
    (top,) = (p["top"] for p in json.loads(shown.out)["predictions"])
    from clipadapt.core.api.data import Inputs

    with Image.open(tmp_path / "red.png") as image:
        inputs = Inputs([image.convert("RGB")], ("red.png",))
        scores = run.classifier.predict_scores(inputs)[0].astype(float)
    expected = 1 / (1 + np.exp(-scores / run.temperature))
    for entry in top:
        index = run.classifier.classnames.index(entry["label"])
        assert entry["probability"] == pytest.approx(expected[index], rel=1e-4)
    assert "one sigmoid per class" in shown.err

    z = kept.scores.astype(float)
    losses = np.logaddexp(0, z).sum(1) - z[np.arange(len(z)), kept.labels]
    assert record["metrics"]["nll"]["value"] == pytest.approx(losses.mean())

    done = cli("export", folder, "--format", "classifier", "--output", tmp_path / "exported")
    assert done.code == 0, done.err
    facts = json.loads((tmp_path / "exported/classifier.json").read_text())
    assert facts["probabilities"] == "sigmoid"
    assert "one sigmoid per class" in (tmp_path / "exported/README.md").read_text()
    page = cli("report", tmp_path, "--output", tmp_path / "page.html")
    assert page.code == 0, page.err
    assert "one sigmoid per class" in (tmp_path / "page.html").read_text()


def test_a_fixed_scale_without_bias_is_a_softmax(tiny_models, cli, tmp_path):
    given = ("--set", "data.name=synthetic:3x12", "--set", f"model.name={tiny_models['siglip']}")
    done = cli("run", "zero_shot", *given, "--set", "method.logit_scale=100", "--out", tmp_path, "--json")  # fmt: skip
    (record,) = json.loads(done.out)["records"]
    assert record["probabilities"] == "softmax"
