"""``clipadapt prompts`` as its user types it: what it prints, the files it writes, and wrong inputs."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from clipadapt.cli import app
from clipadapt.core.api.errors import ClipAdaptError
from tests.integration.conftest import picture


def typed(*words: str):
    return CliRunner().invoke(app, ["prompts", *words])


def test_one_document_the_selected_templates_and_a_page(pictures, tiny_models, tmp_path):
    chosen, page = tmp_path / "chosen.txt", tmp_path / "prompts.html"
    words = ("--model", tiny_models["clip"], "--dataset", f"folder:{pictures}", "--templates", "7")

    result = typed(*words, "--confirm", "--write", str(chosen), "--html", str(page), "--json")

    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert len(found["templates"]) == 8  # the dataset's own and the seven
    assert [e["split"] for e in found["ensembles"]] == ["val", "test"]
    assert chosen.read_text().splitlines() == [s["template"] for s in found["selection"]]
    assert page.read_text().count("<h2>") >= 5
    assert [x for x in result.stderr.splitlines() if x.startswith("written: ")] == [
        f"written: {chosen}",
        f"written: {page}",
    ]
    again = typed(*words[:4], "--templates", str(chosen), "--json")
    assert again.exit_code == 0, again.output


def test_the_figures_are_those_of_zeroshot(pictures, tiny_models, tmp_path):
    words = ("--model", tiny_models["clip"], "--dataset", f"folder:{pictures}", "--split", "val")
    own = ("--templates", "a drawing of the {}", "--json")

    audit = json.loads(typed(*words, *own).stdout)
    (record,) = json.loads(
        CliRunner().invoke(app, ["zeroshot", *words, *own, "--out", str(tmp_path)]).stdout
    )["records"]

    assert audit["precision"] == record["model"]["dtype"] == "fp32"
    (one,) = (t for t in audit["templates"] if t["template"] == own[1])
    assert one["accuracy"] == record["metrics"]["accuracy"]["value"]
    asked = typed(*words, *own, "--set", "model.precision=bf16")
    assert json.loads(asked.stdout)["precision"] == "bf16"


@pytest.fixture
def without_val(tmp_path):
    """A folder of images in train and test."""
    for split in ("train", "test"):
        for i, name in enumerate(("red", "blue")):
            for k in range(2):
                color = (200 * (1 - i), 40 * k, 200 * i)
                picture(
                    tmp_path / "own" / split / name / f"{k}.png", color, k + 2 * (split == "test")
                )
    return tmp_path / "own"


def test_without_val_the_templates_are_measured_on_train(without_val, tiny_models):
    words = ("--model", tiny_models["clip"], "--dataset", f"folder:{without_val}")

    result = typed(*words, "--templates", "7", "--json")

    assert result.exit_code == 0, result.output
    assert [e["split"] for e in json.loads(result.stdout)["ensembles"]] == ["train"]
    assert "has no split 'val'; templates are measured on train" in result.stderr
    asked = typed(*words, "--split", "val")
    assert "has no split 'val'; it has train, test" in str(asked.exception)
    assert "--split train" in asked.exception.hint


def test_a_val_that_is_test_is_not_selected_on(tmp_path, tiny_models):
    for i, name in enumerate(("n01440764", "n01443537")):
        picture(tmp_path / "imagenet" / "val" / name / "0.JPEG", (200 * (1 - i), 0, 200 * i), i)
    words = ("--model", tiny_models["clip"], "--dataset", f"imagenet:{tmp_path / 'imagenet'}")

    assert "no split beside test" in str(typed(*words).exception)
    for more in ((), ("--confirm",)):
        refused = typed(*words, "--split", "val", *more)
        assert "not selected on 'val' of imagenet" in str(refused.exception)
        assert "zeroshot evaluates given templates" in refused.exception.hint


@pytest.mark.parametrize(
    ("words", "left", "message"),
    [
        ((), "test", "has no split beside test to select templates on"),
        (("--confirm",), "train", "has no split 'test'; it has train"),
    ],
)
def test_a_split_that_is_missing(words, left, message, without_val, tiny_models):
    (other,) = {"train", "test"} - {left}
    shutil.rmtree(without_val / other)

    result = typed("--model", tiny_models["clip"], "--dataset", f"folder:{without_val}", *words)

    assert isinstance(result.exception, ClipAdaptError)
    assert message in str(result.exception)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--split", "test", "--confirm"), "templates are not selected on test"),
        (("--split", "test"), "templates are not selected on test"),
        (("--set", "method.name=coop"), "clipadapt prompts does not use method.name"),
        (("--set", "data.shots=4"), "clipadapt prompts does not use data.shots"),
        (("--limit", "0"), "--limit must be at least 1"),
        (("--templates", "missing.txt"), "there is no templates file 'missing.txt'"),
        (("--templates", "a photo"), "the template 'a photo' needs exactly one '{}'"),
        (("--html", "page.txt"), "--html needs the name of an .html file"),
    ],
)
def test_wrong_inputs(words, message, pictures, tiny_models):
    result = typed("--model", tiny_models["clip"], "--dataset", f"folder:{pictures}", *words)

    assert isinstance(result.exception, ClipAdaptError)
    assert message in str(result.exception)
