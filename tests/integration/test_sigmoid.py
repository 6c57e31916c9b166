"""Runs of a model with a sigmoid loss: zero-shot probabilities are sigmoids, those of a softmax loss are a softmax."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from scipy.special import logsumexp, softmax

from clipadapt.core.records.run_store import RunStore
from clipadapt.core.runs.inference import load_run

COOP = ("--set", "method.n_ctx=2", "--set", "method.epochs=1")


def sigmoids(z):
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize(
    ("recipe", "more", "kind", "of", "said"),
    [
        ("zero_shot", (), "sigmoid", sigmoids, "one sigmoid per class"),
        ("coop-quick", COOP, "softmax", softmax, "softmax of the scores"),
    ],
)
def test_predictions_and_exports_have_the_probabilities_of_the_loss(
    recipe, more, kind, of, said, tiny_models, cli, tmp_path
):
    shots = ("--set", "data.shots=2", *more) if recipe != "zero_shot" else ()
    given = ("--set", "data.name=synthetic:3x12", "--set", f"model.name={tiny_models['siglip']}")
    done = cli("run", recipe, *given, *shots, "--set", "seeds=[1]", "--out", tmp_path, "--json")
    (record,) = json.loads(done.out)["records"]
    assert record["probabilities"] == kind
    folder = next(tmp_path.rglob("record.json")).parent
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")

    shown = cli("predict", folder, tmp_path / "red.png", "--top", "3", "--json")

    run = load_run(folder)
    kept = RunStore.load_predictions(folder)
    temperature = run.temperature or 1.0
    assert (temperature != 1) == (kind == "sigmoid")  # val does not determine it for the softmax
    (top,) = (p["top"] for p in json.loads(shown.out)["predictions"])
    from clipadapt.core.api.data import Inputs

    with Image.open(tmp_path / "red.png") as image:
        inputs = Inputs([image.convert("RGB")], ("red.png",))
        scores = run.classifier.predict_scores(inputs)[0].astype(float)
    expected = of(scores / temperature)
    for entry in top:
        index = run.classifier.classnames.index(entry["label"])
        assert entry["probability"] == pytest.approx(expected[index], rel=1e-4)
    assert ("one sigmoid per class" in shown.err) == (kind == "sigmoid")

    z = kept.scores.astype(float)
    normalizer = np.logaddexp(0, z).sum(1) if kind == "sigmoid" else logsumexp(z, axis=1)
    losses = normalizer - z[np.arange(len(z)), kept.labels]
    assert record["metrics"]["nll"]["value"] == pytest.approx(losses.mean())

    done = cli("export", folder, "--format", "classifier", "--output", tmp_path / "exported")
    assert done.code == 0, done.err
    facts = json.loads((tmp_path / "exported/classifier.json").read_text())
    assert facts.get("probabilities", "softmax") == kind
    assert said in (tmp_path / "exported/README.md").read_text()
    page = cli("report", tmp_path, "--output", tmp_path / "page.html")
    assert page.code == 0, page.err
    written = (tmp_path / "page.html").read_text()
    assert ("one sigmoid per class" in written) == (kind == "sigmoid")


def test_a_fixed_scale_without_bias_is_a_softmax(tiny_models, cli, tmp_path):
    given = ("--set", "data.name=synthetic:3x12", "--set", f"model.name={tiny_models['siglip']}")
    done = cli("run", "zero_shot", *given, "--set", "method.logit_scale=100", "--out", tmp_path, "--json")  # fmt: skip
    (record,) = json.loads(done.out)["records"]
    assert record["probabilities"] == "softmax"
