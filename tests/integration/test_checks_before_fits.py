"""What is refused before the first fit: methods that cannot use a model, settings without effect, unknown names."""

from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize("how", [(), ("--dry-run",)])
def test_a_sweep_with_a_method_that_cannot_use_the_model_is_refused(
    cli, tiny_models, tmp_path, how
):
    plan = {
        "datasets": ["synthetic:3x8", "synthetic:2x8"], "models": [tiny_models["hf"]],
        "methods": ["zero_shot", "maple-quick"], "shots": [2], "seeds": [1],
    }  # fmt: skip
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))

    done = cli("bench", tmp_path / "plan.yaml", "--out", tmp_path / "runs", *how)

    assert done.code == 2
    assert done.err.count("maple adds prompts to the image tower, but") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ivlp-quick",), "ivlp adds prompts to the image tower, but"),
        (("lora-quick", "--set", "method.blocks=900"), "method.blocks is 900; the"),
        (("full_finetune-quick", "--set", "method.blocks=900"), "method.blocks is 900; the"),
    ],
)
def test_a_run_is_refused_before_its_progress(cli, tiny_models, tmp_path, words, message):
    data = ("--model", tiny_models["hf"], "--dataset", "synthetic:3x8", "--shots", "2")

    done = cli("run", *words, *data, "--out", tmp_path / "runs")

    assert done.code == 2
    assert done.err.count(message) == 1
    assert "runs:" not in done.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["run", "validate"])
def test_templates_that_a_method_replaces_are_refused(cli, tmp_path, command):
    (tmp_path / "words.json").write_text("{}")
    words = ("--set", f"method.prompts.descriptions={tmp_path / 'words.json'}")

    done = cli(
        command, "zero_shot-dclip", *words, "--dataset", "synthetic", "--set", "data.templates=7"
    )

    assert done.code == 2
    assert "data.templates has no effect here: clip/zero_shot uses prompts in words (dclip)" in done.err  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dataset", "foldr:/x"), "unknown dataset 'foldr'; did you mean 'folder'"),
        (("--dataset", "synthetic", "--model", "stiched"), "did you mean 'stitched'"),
    ],
)
def test_validate_refuses_unknown_names(cli, words, message):
    done = cli("validate", "coop", *words)

    assert done.code == 2
    assert message in done.err


def test_validate_notes_a_missing_model(cli):
    without = cli("validate", "coop", "--dataset", "synthetic")
    named = cli("validate", "coop", "--dataset", "synthetic", "--model", "stitched")

    assert (without.code, named.code) == (0, 0)
    assert "note: clip/coop needs a model, and none is set (--model NAME)" in without.err
    assert "note:" not in named.err


def test_the_hint_names_the_recipe_that_was_given(cli):
    done = cli("run", "coop-quick", "--dataset", "synthetic", "--set", "method.prompts={}")

    assert done.code == 2
    assert "clipadapt validate coop-quick" in done.err
    assert "did you mean" not in done.err
