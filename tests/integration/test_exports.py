"""Every method and format: the export's own code, in the other library alone and offline, gives the run's scores."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from clipadapt.core.api.data import Inputs
from clipadapt.core.api.errors import ClipAdaptError, ConfigError
from clipadapt.core.api.registry import METHODS
from clipadapt.core.experiments import config
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.runs.inference import export_run, load_run
from clipadapt.core.runs.session import run_experiments
from clipadapt.datasets._images import ImageFiles
from tests.contract.conftest import CLIP_FAMILIES, settings
from tests.exports import run_readmes
from tests.integration.conftest import COLOURS, picture

pytestmark = pytest.mark.slow


CLIP_METHODS = [n for n in METHODS.names() if n.startswith("clip/")]
FORMATS = ("classifier", "openclip", "peft", "onnx")
# Tracing takes a second; tests/contract and tests/unit/methods/test_onnx.py cover the other methods.
ONNX = {
    ("clip/linear_probe", "clip"),
    ("clip/lora", "clip"),
    ("clip/zero_shot", "siglip"),
}
# All methods on one family, and on the others those whose exports differ by the network.
CASES = [
    (name, family)
    for name in CLIP_METHODS
    for family in CLIP_FAMILIES
    if family == "clip" or name in {"clip/linear_probe", "clip/lora", "clip/zero_shot"}
]
# Their scores need prompts per image, training, a stream, or the other test images.
NO_FORMAT = {f"clip/{name}" for name in ("cocoop", "tda", "tpt", "transclip", "zero")}
# Prompts in the blocks of the image tower, which open_clip does not have.
ONNX_ALONE = {f"clip/{name}" for name in ("ivlp", "maple", "promptsrc")}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "photos"
    seed = 0
    for split in ("train", "val", "test"):
        for name, colour in COLOURS.items():
            for i in range(4):
                seed += 1
                picture(root / split / name / f"{i}.png", colour, seed)
    return root


class Exports(NamedTuple):
    found: dict[tuple[str, str, str], Any]
    offered: dict[str, tuple[set[str], Path]]


@pytest.fixture(scope="module")
def exported(photos, tiny_models, tmp_path_factory):
    """All exports of all cases, run at once: by method, family and format what came out and what was expected.

    ``offered`` has the formats of every method, and its run.
    """
    root = tmp_path_factory.mktemp("exports")
    places, expected, offered = [], {}, {}
    for name, family in CASES:
        model = tiny_models[family]
        given = {
            "data": {"name": f"folder:{photos}", "shots": 4},
            "method": {"name": name, **settings(name, family)},
            "model": {"name": model, "precision": "fp32"},
            "seeds": [1],
        }
        out = root / "runs"
        (record,) = run_experiments(
            [config.build([("test", given)], source="test", track="clip")], out
        )
        run_dir = RunStore(out).run_dir(record)
        run = load_run(run_dir)
        formats = getattr(run.classifier, "export_formats", ())
        offered.setdefault(name, (set(formats), run_dir))
        formats = [f for f in formats if f != "onnx" or (name, family) in ONNX]
        if not formats:
            continue
        image = photos / "test" / "red_thing" / "1.png"
        inputs = Inputs(ImageFiles(Path(), [str(image)]), ("0",))
        scores = run.classifier.predict_scores(inputs)
        (prediction,) = run.predict(inputs, 9)
        by_name = {t["label"]: t["probability"] for t in prediction["top"]}
        kept = RunStore.load_predictions(run_dir)
        row = kept.scores[kept.ids.index("test/red_thing/1.png")]
        np.testing.assert_allclose(scores[0], row, atol=1e-4)
        for form in formats:
            folder = root / f"{name.partition('/')[2]}-{family}-{form}"
            export_run(run_dir, form, root / "new")
            (root / "new").rename(folder)  # moved since it was written
            shutil.copy(image, folder / "photo.jpg")
            (folder / "base").symlink_to(model.removeprefix("local-dir:"))
            probabilities = [by_name[c] for c in run.classifier.classnames]
            expected[name, family, form] = (folder, record, scores, probabilities)
            places.append(folder)
    found = dict(zip(expected, run_readmes(places, root), strict=True))
    return Exports({key: (found[key], *expected[key]) for key in expected}, offered)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("name", "family"), CASES)
def test_the_readme_gives_the_scores_of_the_run(name, family, form, exported):
    if (name, family, form) not in exported.found:
        pytest.skip(f"{name} has no format {form}, or it is not traced here")
    found, folder, record, scores, probabilities = exported.found[name, family, form]

    np.testing.assert_allclose(found["probabilities"][0], probabilities, atol=1e-4)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert json.dumps([c.replace("_", " ") for c in sorted(COLOURS)]) in text
    assert record.run_id in text
    for file in folder.iterdir():
        if file.suffix in {".md", ".json"} and file.name != "open_clip_config.json":
            assert str(folder.parent) not in file.read_text(encoding="utf-8"), file.name
    if form == "onnx":
        names = {p.name for p in folder.iterdir()} - {"photo.jpg", "base"}
        assert names == {"README.md", "model.onnx", "onnx.json"}
        return
    np.testing.assert_allclose(found["scores"], scores, atol=1e-4)
    facts = json.loads((folder / "classifier.json").read_text())
    assert facts["temperature"] == record.calibration.temperature
    assert sorted(p.name for p in folder.glob("*.safetensors")) != []


@pytest.mark.parametrize("name", CLIP_METHODS)
def test_every_method_offers_formats_or_says_why_it_has_none(name, exported, tmp_path):
    formats, run_dir = exported.offered[name]

    if name in NO_FORMAT:
        assert formats == set()
        with pytest.raises(ConfigError, match=r"; it has no export formats: it\w* .{20}") as error:
            export_run(run_dir, "onnx", tmp_path / "new")
        assert "'clipadapt predict' reads" in error.value.hint
        assert not list(tmp_path.iterdir())
        return
    others = {"clip/lora": {"peft"}, "clip/full_finetune": set(), "clip/wise_ft": set()}
    own = {"openclip", *others.get(name, {"classifier"})}
    assert formats == {"onnx", *(set() if name in ONNX_ALONE else own)}


def test_the_metadata_of_an_onnx_file_name_its_run(exported):
    import onnx

    _, folder, record, *_ = exported.found["clip/linear_probe", "clip", "onnx"]
    model = onnx.load(folder / "model.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}

    assert facts["run_id"] == record.run_id
    assert facts["method"] == "clip/linear_probe"
    assert json.loads(facts["temperature"]) == record.calibration.temperature


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_all_files_have_the_mode_of_the_user(umask, exported, tmp_path):
    cases = {"classifier": "clip/linear_probe", "openclip": "clip/zero_shot", "peft": "clip/lora"}
    if umask == 0o077:  # which takes seconds
        cases["onnx"] = "clip/linear_probe"
    before = os.umask(umask)
    try:
        for form, name in cases.items():
            export_run(exported.offered[name][1], form, tmp_path / form)
    finally:
        os.umask(before)

    for path in (tmp_path / form for form in cases):
        assert path.stat().st_mode & 0o777 == 0o777 & ~umask
        modes = {p.name: p.stat().st_mode & 0o777 for p in path.rglob("*") if p.is_file()}
        assert modes == dict.fromkeys(modes, 0o666 & ~umask)
        assert len(modes) >= 3


def test_an_onnx_export_that_fails_is_one_message_and_leaves_nothing(
    exported, tmp_path, monkeypatch, cli
):
    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: 1 / 0)
    run_dir = exported.offered["clip/linear_probe"][1]

    done = cli("export", str(run_dir), "--format", "onnx", "--output", str(tmp_path / "new"))

    assert done.code == 2
    assert "error: torch cannot write this network as onnx: division by zero" in done.err
    assert "hint: use another --format" in done.err
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_a_vit_is_one_of_open_clips_own_layers(exported):
    _, folder, *_ = exported.found["clip/lora", "clip", "peft"]
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="np") as file:
        names = set(file.keys())

    block = "base_model.model.visual.transformer.resblocks.0.attn"
    assert f"{block}.lora_A.weight" in names
    assert not [n for n in names if ".attn.q." in n]


def test_what_the_format_cannot_hold_is_said(exported):
    _, folder, *_ = exported.found["clip/zero_shot", "hf", "openclip"]
    text = (folder / "README.md").read_text(encoding="utf-8")

    assert "hf_model_name" in text.partition("## What it does not contain")[2]
    _, folder, *_ = exported.found["clip/zero_shot", "clip", "classifier"]
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "the base model: BASE stands for the open_clip folder" in text


def test_dora_of_a_vit_is_refused_for_peft(photos, tiny_models, tmp_path):
    given = {
        "data": {"name": f"folder:{photos}", "shots": 1},
        "method": {
            "name": "clip/lora",
            **settings("clip/lora", "clip"),
            "epochs": 1,
            "use_dora": True,
        },
        "model": {"name": tiny_models["clip"], "precision": "fp32"},
        "seeds": [1],
    }
    built = config.build([("test", given)], source="test", track="clip")
    (record,) = run_experiments([built], tmp_path / "runs")
    run_dir = RunStore(tmp_path / "runs").run_dir(record)

    with pytest.raises(ClipAdaptError, match="does not support DoRA") as error:
        export_run(run_dir, "peft", tmp_path / "adapter")

    assert "--format openclip" in error.value.hint
    assert not (tmp_path / "adapter").exists()
    assert not list(tmp_path.glob(".tmp*"))
    export_run(run_dir, "openclip", tmp_path / "merged")


# ---------------------------------------------------------------- texts

TEXT_METHODS = [n for n in METHODS.names() if n.startswith("text/")]
TRAINED = ("text/bitfit", "text/full_finetune", "text/head", "text/lora")
TEXTS = ["a fine film", "a dull one"]  # those of the READMEs
TEXT_CASES = [
    *(
        (name, family)
        for name in TRAINED
        for family in ("distilbert", "bert", "roberta", "no_pooler")
        if family in {"distilbert", "no_pooler"} or name == "text/lora"
    ),
    ("text/logreg", "bert"),
    ("text/setfit", "roberta"),
    ("text/svm", "distilbert"),
    ("text/tfidf_svm", "no encoder"),
]
FORMATS_OF_TEXTS = ("classifier", "hf", "peft", "onnx")
TEXT_FORMATS = {
    **{name: {"hf", "onnx"} for name in TRAINED},
    "text/lora": {"hf", "peft", "onnx"},
    "text/logreg": {"classifier", "hf", "onnx"},
    "text/setfit": {"hf", "onnx"},
    "text/svm": {"classifier", "hf", "onnx"},
    "text/tfidf_svm": {"classifier", "onnx"},
}
# Tracing takes a second; tests/contract runs the networks of the other methods.
TEXT_ONNX = {
    ("text/lora", "bert"),
    ("text/setfit", "roberta"),
    ("text/svm", "distilbert"),
    ("text/tfidf_svm", "no encoder"),
}


@pytest.fixture(scope="module")
def reviews(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    # One label in four is the other one: without a mistake on val no temperature would suit it.
    pairs = (("dull", "bad", "good"), ("fine", "good", "bad"))
    rows = [f"a {w} plot {i},{y if i % 4 else no}" for i in range(60) for w, y, no in pairs]
    path.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def encoders(tiny_texts, tmp_path_factory) -> dict[str, str]:
    """The tiny encoders, and a BERT whose checkpoint has no pooler: it is drawn with the head."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("encoders") / "no_pooler"
    shutil.copytree(tiny_texts["bert"], folder)
    weights = folder / "model.safetensors"
    kept = {k: v for k, v in load_file(weights).items() if "pooler" not in k}
    save_file(kept, weights, metadata={"format": "pt"})
    return {**tiny_texts, "no_pooler": str(folder)}


def fit_text(name: str, model: str | None, data: Path, out: Path) -> Path:
    """Fit on the reviews; return the run's folder."""
    given = {
        "data": {"name": f"csv:{data}"},
        "method": {"name": name, **settings(name, "")},
        **({"model": {"name": model, "precision": "fp32"}} if model else {}),
        "seeds": [1],
    }
    (record,) = run_experiments([config.build([("test", given)], source="test", track="text")], out)
    return RunStore(out).run_dir(record)


@pytest.fixture(scope="module")
def exported_texts(reviews, encoders, tmp_path_factory):
    """All exports of trained text classifiers, run at once."""
    root = tmp_path_factory.mktemp("text-exports")
    expected = {}
    for name, family in TEXT_CASES:
        run_dir = fit_text(name, encoders.get(family), reviews, root / "runs")
        run = load_run(run_dir)
        found = run.predict(Inputs(TEXTS, ("0", "1")), 2)
        names = run.classifier.classnames
        rows = [{t["label"]: t["probability"] for t in p["top"]} for p in found]
        assert set(run.classifier.export_formats) == TEXT_FORMATS[name]
        for form in run.classifier.export_formats:
            if form == "onnx" and (name, family) not in TEXT_ONNX:
                continue
            folder = root / f"{name.partition('/')[2]}-{family}-{form}"
            export_run(run_dir, form, root / "new")
            (root / "new").rename(folder)
            if family in encoders:
                (folder / "base").symlink_to(encoders[family])
            expected[name, family, form] = (folder, run, [[r[n] for n in names] for r in rows])
    found = run_readmes([folder for folder, *_ in expected.values()], root)
    return {key: (one, *expected[key]) for key, one in zip(expected, found, strict=True)}


@pytest.mark.parametrize("form", FORMATS_OF_TEXTS)
@pytest.mark.parametrize(("name", "family"), TEXT_CASES)
def test_a_text_classifier_is_calibrated_in_the_other_library(name, family, form, exported_texts):
    if (name, family, form) not in exported_texts:
        pytest.skip(f"{name} has no format {form}, or it is not traced here")
    found, folder, run, probabilities = exported_texts[name, family, form]

    # A run that learned nothing has none; the others show that it travels.
    assert run.temperature != 1.0
    assert sum(r.temperature is None for _, _, r, _ in exported_texts.values()) <= 4
    got = found.get("probabilities")
    if got is None:
        rows = [{one["label"]: one["score"] for one in ranked} for ranked in found["found"]]
        got = [[row[n] for n in run.classifier.classnames] for row in rows]
    np.testing.assert_allclose(got, probabilities, atol=1e-4)
    for file in folder.iterdir():
        if file.suffix in {".md", ".json"}:
            assert str(folder.parent) not in file.read_text(encoding="utf-8"), file.name
        assert file.suffix not in {".pkl", ".bin", ".joblib"}


@pytest.mark.parametrize(("name", "family"), sorted(TEXT_ONNX))
def test_the_onnx_file_of_a_text_classifier_says_what_it_is(name, family, exported_texts):
    import onnx

    _, folder, run, _ = exported_texts[name, family, "onnx"]
    model = onnx.load(folder / "model.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}

    assert facts["run_id"] == run.record.run_id
    assert facts["method"] == name
    assert json.loads(facts["temperature"]) == run.temperature
    names = list(run.classifier.classnames)
    assert json.loads(facts["classnames"]) == names
    assert json.loads((folder / "onnx.json").read_text())["classnames"] == names
    source = "sklearn" if name == "text/tfidf_svm" else "torch"
    assert 0 <= float(facts[f"max_difference_from_{source}"]) <= 1e-4
    inputs = ["words"] if source == "sklearn" else ["input_ids", "attention_mask"]
    assert [i.name for i in model.graph.input] == inputs
    shape = [d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["n", "length"]
    content = (folder / "model.onnx").read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in content  # no paths of this machine
    assert sys.prefix.encode() not in content


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_all_files_of_a_text_export_have_the_mode_of_the_user(umask, exported_texts, tmp_path):
    cases = {"hf": "text/head", "peft": "text/lora", "classifier": "text/svm"}
    runs = {form: exported_texts[name, "distilbert", form][2] for form, name in cases.items()}
    runs["onnx"] = exported_texts["text/tfidf_svm", "no encoder", "onnx"][2]
    before = os.umask(umask)
    try:
        for form, run in runs.items():
            export_run(run.folder, form, tmp_path / form)
    finally:
        os.umask(before)

    for path in (tmp_path / form for form in runs):
        assert path.stat().st_mode & 0o777 == 0o777 & ~umask
        modes = {p.name: p.stat().st_mode & 0o777 for p in path.rglob("*") if p.is_file()}
        assert modes == dict.fromkeys(modes, 0o666 & ~umask)
        assert len(modes) >= 3


def test_a_text_run_names_the_formats_that_it_has(exported_texts, tmp_path, monkeypatch):
    run = exported_texts["text/tfidf_svm", "no encoder", "onnx"][2]

    with pytest.raises(ConfigError, match="as 'hf'; accepted: classifier, onnx"):
        export_run(run.folder, "hf", tmp_path / "new")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ClipAdaptError, match="needs onnxruntime, which is not installed") as error:
        export_run(run.folder, "onnx", tmp_path / "new")

    assert error.value.hint == 'pip install "clipadapt[onnx]"'
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the model that is not loaded by its name


def test_an_export_of_stitched_needs_no_hub_and_gives_its_scores(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {
        "data": {"name": f"folder:{photos}", "shots": 2},
        "method": {"name": "clip/linear_probe"},
        "model": {"name": "stitched", "precision": "fp32"},
        "seeds": [1],
    }
    out = tmp_path / "runs"
    (record,) = run_experiments([config.build([("test", given)], source="test", track="clip")], out)
    run = load_run(RunStore(out).run_dir(record))
    image = photos / "test" / "red_thing" / "1.png"
    inputs = Inputs(ImageFiles(Path(), [str(image)]), ("0",))
    export_run(RunStore(out).run_dir(record), "openclip", Path("mine"))

    load = (
        "import open_clip; open_clip.create_model_and_transforms('local-dir:mine'); print('loaded')"
    )
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "blank"), "PATH": ""}
    env["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-c", load]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "loaded\n", done.stderr[-2000:]

    Path("mine").rename("moved")
    shutil.copy(image, "moved/photo.jpg")
    (found,) = run_readmes([tmp_path / "moved"], tmp_path)
    np.testing.assert_allclose(found["scores"], run.classifier.predict_scores(inputs), atol=1e-4)
    text = (tmp_path / "moved" / "README.md").read_text(encoding="utf-8")
    assert "preprocess.transforms[0].size = 256" in text
    assert str(tmp_path) not in text
