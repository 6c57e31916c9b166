"""Adapted models as a user handles them: export, inspect, other data, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from clipadapt.core.api.data import Inputs
from clipadapt.core.experiments import config
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.runs.inference import load_run
from clipadapt.core.runs.session import run_experiments
from tests.integration.conftest import COLOURS, picture

SHORT = ["method.epochs=2", "method.augment=none", "method.batch_size=6"]
SETTINGS = {
    "coop": [*SHORT, "method.n_ctx=4", "method.ctx_init=a photo of a"],
    "lora": [*SHORT, "method.steps_per_shot=null", "method.lr=0.02", "method.lora_dropout=0"],
    "full_finetune": [*SHORT, "method.lr=0.001", "method.warmup_steps=1"],
    "clip_adapter": SHORT,
    "tip_adapter": ["method.views=1", "method.beta_steps=2"],
    "linear_probe": ["method.max_iter=50"],
}


def draw(root: Path, shift: int, splits: tuple[tuple[str, int], ...]) -> Path:
    """Write a folder set of the three classes, its colours shifted."""
    seed = 1000 * shift
    for split, n in splits:
        for name, colour in COLOURS.items():
            for i in range(n):
                seed += 1
                moved = tuple(int(np.clip(c + shift, 0, 255)) for c in colour)
                picture(root / split / name / f"{i}.png", moved, seed)
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "photos"
    return draw(root, 0, (("train", 4), ("val", 4), ("test", 4)))


@pytest.fixture(scope="module")
def sketches(tmp_path_factory) -> Path:
    return draw(tmp_path_factory.mktemp("data") / "sketches", 60, (("test", 5),))


@pytest.fixture(scope="module")
def fitted(photos, sketches, tiny_clip, tmp_path_factory):
    """Records and run folders of a method, fitted once and judged on both sets."""
    done: dict[str, tuple[list[Any], list[Path]]] = {}

    def get(name: str) -> tuple[list[Any], list[Path]]:
        if name not in done:
            out = tmp_path_factory.mktemp(name)
            settings = [
                f"model.name={tiny_clip}",
                "model.precision=fp32",
                f"data.name=folder:{photos}",
                "data.shots=4",
                "seeds=[1]",
                f"evaluation.also=[{{dataset: 'folder:{sketches}'}}]",
                *SETTINGS[name],
            ]
            found = run_experiments([config.load([name], settings)], out)
            done[name] = (found, [RunStore(out).run_dir(r) for r in found])
        return done[name]

    return get


@pytest.fixture
def wrong(cli, tmp_path):
    """Run a command that must fail; return its message after checking its manners."""

    def call(*arguments):
        before = sorted(p for p in tmp_path.rglob("*") if p.is_file())
        done = cli(*arguments)
        assert done.code == 2, done.err
        assert done.out == ""
        assert "Traceback" not in done.err
        assert done.err.count("error:") == 1
        assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == before
        return done.text

    return call


# ---------------------------------------------------------------- domain shift


@pytest.mark.parametrize("name", ["coop", "lora", "full_finetune", "clip_adapter", "tip_adapter"])
def test_one_fit_is_evaluated_on_a_second_set_of_the_same_classes(name, fitted, sketches):
    (home, away), folders = fitted(name)

    assert home.fit_id == away.fit_id
    assert home.run_id != away.run_id
    assert (home.evaluation.dataset, away.evaluation.dataset) == (
        "folder:photos",
        "folder:sketches",
    )
    assert home.data.name == away.data.name == "folder:photos"
    assert (home.data.n_train, home.data.n_test, away.data.n_test) == (12, 12, 15)
    assert home.n_trainable_params == away.n_trainable_params
    assert home.calibration == away.calibration
    assert [(f / "classifier").is_dir() for f in folders] == [True, False]

    # Both records are of the one classifier that was saved.
    run = load_run(folders[1])
    for folder, root in zip(folders, (None, sketches), strict=True):
        kept = RunStore.load_predictions(folder)
        if root is not None:
            from clipadapt.datasets._images import ImageFiles

            files = ImageFiles(root, list(kept.ids))
            scores = run.classifier.predict_scores(Inputs(files, kept.ids))
            np.testing.assert_allclose(scores, kept.scores, rtol=1e-4, atol=1e-4)
        hits = (kept.scores.argmax(axis=1) == kept.labels).mean()
        record = away if root else home
        assert record.metrics["accuracy"].value == pytest.approx(hits)
        assert "zero_shot_accuracy" in record.metrics


def test_other_classes_need_an_open_vocabulary(cli, records, photos, tiny_clip, tmp_path):
    other = tmp_path / "other"
    for i, name in enumerate(("yellow_thing", "red_thing")):
        for k in range(2):
            picture(other / "test" / name / f"{k}.png", (200, 200 - 150 * i, 0), 10 * i + k)
    given = [
        f"model.name={tiny_clip}", f"data.name=folder:{photos}", "data.shots=4", "seeds=[1]",
        f"evaluation.also=[{{dataset: 'folder:{other}'}}]",
    ]  # fmt: skip

    def run(name):
        words = [w for s in [*given, *SETTINGS[name]] for w in ("--set", s)]
        return cli("run", name, *words, "--out", tmp_path / name, "--json")

    open_, closed = run("coop"), run("full_finetune")

    home, away = records(open_)
    assert home["fit_id"] == away["fit_id"]
    assert away["data"]["n_test"] == 4
    assert closed.code == 2
    assert "classes that were not trained on folder:photos: yellow thing" in closed.text
    # It is refused before the fit: nothing was written.
    assert not (tmp_path / "full_finetune").exists()


# ---------------------------------------------------------------- inspect and export


def test_inspect_of_a_coop_run_shows_words(fitted, cli):
    _, (folder, _) = fitted("coop")

    found = json.loads(cli("inspect", folder, "--json").out)
    lines = cli("inspect", folder).out

    vectors = found["trained"]["context"]
    assert [v["nearest"][0]["word"] for v in vectors] == ["a", "photo", "of", "a"]
    assert all(0 < v["nearest"][0]["distance"] < 0.2 for v in vectors)
    assert found["parameters"]["trainable"] == 4 * 32
    for word in ("photo", "of"):
        assert f"nearest: word {word}, distance 0." in lines


def test_export_of_a_coop_run(fitted, cli, tmp_path):
    _, (folder, away) = fitted("coop")

    done = cli("export", folder, "--format", "classifier", "--output", tmp_path / "out")
    again = cli("export", away, "--format", "classifier", "--output", tmp_path / "away")

    assert done.code == again.code == 0, done.err
    assert done.out.strip() == str(tmp_path / "out")
    file = tmp_path / "out" / "classifier.safetensors"
    run = load_run(folder)
    with safe_open(file, framework="np") as stored:
        assert stored.metadata()["base_weights_sha256"] == run.backbone.weights_sha256
        np.testing.assert_array_equal(stored.get_tensor("weight"), run.classifier.weights)
    with safe_open(tmp_path / "away" / file.name, framework="np") as stored:
        np.testing.assert_array_equal(stored.get_tensor("weight"), run.classifier.weights)


@pytest.mark.parametrize("name", ["lora", "full_finetune"])
def test_an_exported_model_is_named_like_any_other(name, fitted, cli, records, photos, tmp_path):
    (home, _), (folder, _) = fitted(name)

    done = cli("export", folder, "--format", "openclip", "--output", tmp_path / "mine")
    found = cli(
        "zeroshot", "--model", f"local-dir:{tmp_path / 'mine'}", "--dataset", f"folder:{photos}",
        "--set", "model.precision=fp32", "--out", tmp_path / "runs", "--json",
    )  # fmt: skip

    assert done.code == 0, done.err
    (record,) = records(found)
    (run,) = [p.parent for p in (tmp_path / "runs").rglob("record.json")]
    merged, own = RunStore.load_predictions(run), RunStore.load_predictions(folder)
    assert merged.ids == own.ids
    if name == "lora":  # both towers are merged: the plain model scores as the adapted one
        scale = load_run(run).backbone.logit_scale
        np.testing.assert_allclose(100 / scale * merged.scores, own.scores, atol=2e-3)
        assert record["metrics"]["accuracy"]["value"] == home.metrics["accuracy"].value
    else:  # its head lies beside it
        assert (tmp_path / "mine" / "classifier.safetensors").is_file()


def test_a_peft_adapter_is_written_whole(fitted, cli, tmp_path):
    _, (folder, _) = fitted("lora")

    done = cli("export", folder, "--format", "peft", "--output", tmp_path / "adapter")

    assert done.code == 0, done.err
    names = {p.name for p in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pkl"))]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        ("coop", "peft", "of clip/coop cannot be exported as 'peft'; accepted: classifier, openclip"),
        ("coop", "clasifier", "did you mean 'classifier'?"),
        ("lora", "classifier", "cannot be exported as 'classifier'; accepted: openclip, peft"),
        ("lora", "open_clip", "did you mean 'openclip'?"),
        ("linear_probe", "onx", "hint: use --format onnx"),
        ("full_finetune", "peft", "cannot be exported as 'peft'; accepted: openclip"),
        ("linear_probe", "hf", "cannot be exported as 'hf'; accepted: classifier, openclip"),
        ("tip_adapter", "classifer", "did you mean 'classifier'?"),
        ("clip_adapter", "peft", "accepted: classifier, openclip"),
    ],
)  # fmt: skip
def test_formats_that_a_method_has_not(name, form, message, fitted, wrong, tmp_path):
    _, folders = fitted(name)

    assert message in wrong("export", folders[0], "--format", form, "--output", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_run_of_another_model_is_not_exported(wrong, cli, records, photos, tiny_clip, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(tiny_clip.removeprefix("local-dir:"), model)
    given = [f"model.name=local-dir:{model}", f"data.name=folder:{photos}", "data.shots=2", "seeds=[1]"]  # fmt: skip
    words = [w for s in [*given, *SETTINGS["coop"]] for w in ("--set", s)]
    records(cli("run", "coop", *words, "--out", tmp_path / "runs", "--json"))
    (run,) = [p.parent for p in (tmp_path / "runs").rglob("record.json")]
    weights = model / "open_clip_model.safetensors"
    state = load_file(weights)
    state["token_embedding.weight"] = state["token_embedding.weight"] + torch.ones(())
    save_file(state, weights)

    for command in (
        ["export", run, "--format", "classifier", "--output", tmp_path / "new"],
        ["inspect", run],
        ["predict", run, photos],
    ):
        assert "was made with other weights of 'local-dir:model'" in wrong(*command)


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (
            "lora hf",
            ["the image tower of", "no layer with the role 'q'", "it has: pointwise", "method.roles=[pointwise]"],
        ),
        (
            "lora clip method.roles=[pointwise]",
            ["no layer with the role 'pointwise'", "it has: q, k, v, out, mlp"],
        ),
        (
            "lora clip method.roles=[qq]",
            ["method.roles.0: Input should be 'q', 'k', 'v', 'out', 'mlp', 'pointwise' or 'auto' (got 'qq')"],
        ),
        ("lora clip method.roles=[]", ["method.roles: Tuple should have at least 1 item"]),
        (
            "lora clip method.encoder=image method.blocks=1",
            ["the last 1 units of", "have no layer with the roles q, k, v", "increase method.blocks"],
        ),
        (
            "lora clip method.encoder=vision",
            ["method.encoder: Input should be 'image', 'text' or 'both' (got 'vision')"],
        ),
        (
            "lora clip method.rank=4 method.lora_alfa=1",
            ["method.rank: Extra inputs are not permitted", "did you mean 'lora_alpha'?"],
        ),
        ("zero_shot-dclip clip", ["the form dclip need a file", "set method.prompts.descriptions=FILE.json"]),
        ("zero_shot clip method.prompts.descriptions=none.json", ["cannot read the descriptions file 'none.json'"]),
        ("zero_shot clip method.prompts.form=gpt", ["method.prompts.form: Input should be 'cupl', 'dclip' or"]),
        ("zero_shot clip method.prompts.combin=max", ["method.prompts.combin: Extra", "did you mean 'combine'?"]),
        (
            f"coop clip method.ctx_init={'a_photo_' * 60}",
            ["leave no room for a class name", "reads 77", "fewer words in method.ctx_init"],
        ),
        (
            f"coop siglip method.ctx_init={'a_photo_' * 7}",
            ["14 context vectors and the class name 'blue thing' are 17 tokens, longer than the 16"],
        ),
        ("coop hf method.n_ctx=40", ["40 context vectors", "longer than the 16", "lower method.n_ctx"]),
        ("coop clip method.ctx_init=_", ["method.ctx_init '_' contains no words"]),
        (
            "coop clip method.ctx_init=a_photo method.CSC=true",
            ["'a_photo' initializes a shared context, but CSC is on", "method.CSC=false"],
        ),
        (
            "coop clip method.n_ctxx=4 method.class_token_positon=end",
            ["method.n_ctxx", "did you mean 'n_ctx'?", "did you mean 'class_token_position'?"],
        ),
        (
            "coop clip method.schedule=linear method.lr=0",
            ["or 'constant' (got 'linear')", "method.lr: Input should be greater than 0"],
        ),
        (
            "full_finetune clip method.blocks=9 method.warmup_steps=0",
            ["method.blocks is 9", "has 4 units", "choose a value from 1 to 4"],
        ),
        ("full_finetune clip method.block=2", ["method.block", "did you mean 'blocks'?"]),
        ("wise_ft clip method.alpha=1.5", ["method.alpha: Input should be less than or equal to 1 (got 1.5)"]),
        ("tip_adapter_f clip method.keep=first", ["method.keep: Input should be 'last' or 'best' (got 'first')"]),
        ("tip_adapter clip method.view=2", ["method.view", "did you mean 'views'?"]),
        (
            "clip_adapter clip method.reduction=0 method.ratio=2",
            ["method.reduction: Input should be greater than 0", "method.ratio: Input should be less than"],
        ),
    ],
    ids=lambda v: v[:40] if isinstance(v, str) else "",
)  # fmt: skip
def test_settings_that_do_not_fit(words, messages, wrong, tiny_models, photos, tmp_path):
    recipe, family, *settings = words.split()
    given = [
        f"model.name={tiny_models[family]}",
        f"data.name=folder:{photos}",
        "data.shots=2",
        "seeds=[1]",
        *settings,
    ]

    text = wrong("run", recipe, *(w for s in given for w in ("--set", s)), "--out", tmp_path / "r")

    for message in messages:
        assert message in text


def test_descriptions_count_by_their_content(cli, wrong, tiny_clip, photos, sketches, tmp_path):
    sentences = {name: [f"a {name} on a table", "used every day"] for name in COLOURS}
    (tmp_path / "one.json").write_text(json.dumps(sentences))
    (tmp_path / "two.json").write_text(json.dumps(sentences, indent=1))
    lacking = {k: v for k, v in sentences.items() if k != "red_thing"}
    (tmp_path / "less.json").write_text(json.dumps(lacking))
    words = ["--set", f"model.name={tiny_clip}", "--set", f"data.name=folder:{photos}"]
    words += [
        "--set",
        f"evaluation.also=[{{dataset: 'folder:{sketches}'}}]",
        "--out",
        tmp_path / "r",
    ]

    def given(name):
        return [
            "run",
            "zero_shot-dclip",
            *words,
            "--set",
            f"method.prompts.descriptions={tmp_path / name}",
        ]

    first, second = (
        json.loads(cli(*given(name), "--json").out)["records"] for name in ("one.json", "two.json")
    )
    refused = wrong(*given("less.json"))

    assert [r["run_id"] for r in first] == [r["run_id"] for r in second]
    assert {r["status"] for r in first} == {"ok"}
    assert len(list((tmp_path / "r").rglob("record.json"))) == 2
    assert "less.json' has no entry for 1 of 3 classes: 'red thing'" in refused
    (tmp_path / "one.json").unlink()
    run = next((tmp_path / "r").rglob("record.json")).parent
    assert cli("predict", run, photos / "test" / "red_thing" / "0.png").code == 0
