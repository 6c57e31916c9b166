"""Options of ``run`` and ``zeroshot`` that are short for a setting."""

from __future__ import annotations

import json

import pytest

OPTIONS = ("--shots", "4", "--seeds", "1-3,7")
SETTINGS = ("--set", "data.shots=4", "--set", "seeds=[1,2,3,7]")


@pytest.mark.parametrize(
    ("program", "recipe", "model", "data"),
    [
        ("clipadapt", "coop-quick", "stitched", "openmoji:line"),
        ("textsent", "svm-quick", "minilm", "rotten_tomatoes:offline"),
    ],
)
def test_options_and_settings_are_the_same_experiment(cli, program, recipe, model, data):
    options = ("--model", model, "--dataset", data, *OPTIONS)
    settings = ("--set", f"model.name={model}", "--set", f"data.name={data}", *SETTINGS)

    short = json.loads(cli("validate", recipe, *options, "--json", program=program).out)
    long = json.loads(cli("validate", recipe, *settings, "--json", program=program).out)

    assert short["config"] == long["config"]
    assert short["config"]["seeds"] == [1, 2, 3, 7]
    assert short["origins"]["model.name"] == "--model"
    assert long["origins"]["model.name"] == "--set"


def test_run_takes_them(cli, records, tiny_clip, tmp_path):
    found = records(
        cli("run", "zero_shot", "--model", tiny_clip, "--dataset", "synthetic:2x4", "--seeds", "1,2",
            "--out", tmp_path / "runs", "--json")
    )  # fmt: skip

    assert [r["seed"] for r in found] == [1, 2]
    assert {r["data"]["name"] for r in found} == {"synthetic:2x4"}


@pytest.mark.parametrize(
    ("option", "setting", "key"),
    [
        ("--model", "model.name=stitched", "model.name"),
        ("--dataset", "data={name: synthetic}", "data.name"),
        ("--shots", "data.shots=4", "data.shots"),
        ("--seeds", "seeds=[1]", "seeds"),
        ("--seeds", "seeds=1", "seeds"),
    ],
)
@pytest.mark.parametrize("command", ["run", "validate"])
def test_one_value_given_twice_is_refused(cli, command, option, setting, key):
    given = ("--model", "stitched", "--dataset", "openmoji:line", *OPTIONS)
    value = dict(zip(given[::2], given[1::2], strict=True))[option]
    done = cli(command, "zero_shot", option, value, "--set", setting)

    assert done.code == 2
    assert f"error: {option} and --set {key} set the same value" in done.err
    assert f"{option} is short for --set {key}=VALUE" in done.err


@pytest.mark.parametrize(
    ("option", "value", "setting"),
    [
        ("--templates", "a sketch of a {}.", "data.templates=80"),
        ("--limit", "3", "data.limit=4"),
        ("--split", "test", "evaluation.split=val"),  # equal to the default, and given
        ("--on-bad-image", "skip", "data.on_bad_image=error"),
    ],
)
def test_zeroshot_refuses_it_too(cli, option, value, setting):
    words = ["zeroshot", "--model", "stitched", "--dataset", "synthetic"]
    done = cli(*words, option, value, "--set", setting)

    assert done.code == 2
    assert f"{option} and --set {setting.partition('=')[0]} set the same value" in done.err


def test_a_setting_whose_option_was_not_given_is_taken(cli, records, tiny_clip, tmp_path):
    words = ["zeroshot", "--model", tiny_clip, "--dataset", "synthetic:2x4", "--out", tmp_path]
    found = records(cli(*words, "--set", "data.templates=a sketch of a {}.", "--json"))

    assert found[0]["evaluation"]["templates"] == ["a sketch of a {}."]


def test_seeds_may_be_written_as_a_list(cli):
    words = ("validate", "coop-quick", "--dataset", "synthetic", "--model", "stitched", "--json")
    found = json.loads(cli(*words, "--seeds", "[1, 2]").out)

    assert found["config"]["seeds"] == [1, 2]


@pytest.mark.parametrize(
    "seeds", ["", "a", "1,", "3-1", "-1", "1.5", "1-99999999", "1;2", "[[1]", "٣"]
)
def test_seeds_that_are_no_numbers(cli, seeds):
    done = cli("run", "zero_shot", f"--seeds={seeds}")

    assert done.code == 2
    assert (
        "error: --seeds takes whole numbers such as 1,2,3, or a range such as 1-3 (got" in done.err
    )


def test_a_seed_twice_and_shots_of_none(cli):
    done = cli("run", "zero_shot", "--dataset", "synthetic", "--seeds", "1,1-2", "--shots", "0")

    assert done.code == 2
    assert "seeds: list each seed once (got " in done.err
    assert "data.shots: Input should be greater than 0 (got 0)" in done.err


def test_a_template_can_be_typed(cli, records, tiny_clip, tmp_path):
    words = ["zeroshot", "--model", tiny_clip, "--dataset", "synthetic:2x4", "--out", tmp_path]
    found = records(cli(*words, "--templates", "a sketch of a {}.", "--json"))

    assert found[0]["evaluation"]["templates"] == ["a sketch of a {}."]
    for wrong in ("a sketch of a cat.", "a {} or a {}", "a {c}", "{}{}"):
        done = cli(*words, "--templates", wrong)
        assert done.code == 2
        assert f"the template '{wrong}' needs exactly one '{{}}' for the class name" in done.err
    for missing in ("9", "my templates.txt"):
        done = cli(*words, "--templates", missing)
        assert done.code == 2
        assert "accepted: single, 7, 80" in done.err
