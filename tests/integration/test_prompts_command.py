"""``clipadapt prompts`` as its user types it: what it prints, the files it writes, and wrong inputs."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from clipadapt.cli import app
from clipadapt.core.api.errors import ClipAdaptError


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
    again = typed(*words[:4], "--templates", str(chosen), "--json")
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--split", "test", "--confirm"), "--confirm evaluates on test"),
        (("--limit", "0"), "--limit must be at least 1"),
        (("--templates", "missing.txt"), "no templates 'missing.txt'"),
        (("--html", "page.txt"), "--html needs the name of an .html file"),
    ],
)
def test_wrong_inputs(words, message, pictures, tiny_models):
    result = typed("--model", tiny_models["clip"], "--dataset", f"folder:{pictures}", *words)

    assert isinstance(result.exception, ClipAdaptError)
    assert message in str(result.exception)
