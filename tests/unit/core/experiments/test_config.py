from __future__ import annotations

import pytest

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.experiments import config

BASE = {"data": {"name": "synthetic"}, "method": {"name": "clip/zero_shot"}}


def build(*fragments, **more):
    labelled = [(f"f{i}", f) for i, f in enumerate((BASE, *fragments))]
    return config.build(labelled, source="test", **more)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("data.name=folder:/my #1 data", "folder:/my #1 data"),
        ("data.name=folder:C: x", "folder:C: x"),
        ("data.name='quoted'", "quoted"),
        ("data.shots=4", 4),
        ("seeds=[1,2]", [1, 2]),
        ("store=off", "off"),
        ("data.limit=null", None),
        ("data.templates=7", 7),
    ],
)
def test_settings_from_a_shell(text, value):
    parsed = config.parse_settings([text])

    assert value in (
        parsed.get("data", {}).get(text.split("=")[0].split(".")[-1], parsed),
        *parsed.values(),
    )


def test_later_fragments_win_and_are_the_origin():
    got = build({"seeds": [3], "data": {"shots": 2}}, {"seeds": [4]})

    assert got.config.seeds == (4,)
    assert got.config.data.shots == 2
    assert got.origins["seeds"] == "f2"
    assert got.origins["data.shots"] == "f1"
    assert got.origins["data.limit"] == "default"


@pytest.mark.parametrize("value", [7, "7", 80])
def test_a_number_is_a_valid_name_of_templates(value):
    assert build({"data": {"templates": value}}).config.data.templates == str(value)


@pytest.mark.parametrize(
    ("fragment", "message"),
    [
        ({"seeds": [1, 1]}, "list each seed once"),
        ({"seeds": []}, "seeds: Tuple should have at least 1 item"),
        ({"data": {"shots": 0}}, "data.shots: Input should be greater than 0 (got 0)"),
        ({"evaluation": {"splt": "val"}}, "did you mean 'split'?"),
        ({"stor": "on"}, "did you mean 'store'?"),
        ({"shots": 4}, "did you mean 'data.shots'?"),
        ({"split": "val"}, "did you mean 'evaluation.split'?"),
        ({"evaluation": {"also": [{"splitt": "val"}]}}, "evaluation.also.0.splitt"),
    ],
)
def test_faults_name_path_value_and_nearest_key(fragment, message):
    with pytest.raises(ConfigError) as caught:
        build(fragment)
    assert message in str(caught.value)


def test_a_users_own_recipe_has_no_deviations(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("method: {name: zero_shot, logit_scale: 10}\n")

    own = config.load([str(mine)], ["data.name=synthetic"])
    changed = config.load(["zero_shot"], ["data.name=synthetic", "method.logit_scale=10"])

    assert own.recipe == "mine"
    assert own.deviations == ()
    assert changed.deviations == (
        *changed.config.recipe.deviations,
        "method.logit_scale=10.0 (--set)",
    )


def test_a_list_is_not_a_value_of_store(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("store: [on]\nmethod: {name: zero_shot}\ndata: {name: synthetic}\n")

    with pytest.raises(ConfigError, match="store: Input should be 'on' or 'off'"):
        config.load([str(bad)])


def test_prefixes_are_optional():
    assert build({"method": {"name": "zero_shot"}}).method_name == "clip/zero_shot"
    assert build({"method": {"name": "zero-shot"}}).method_name == "clip/zero_shot"
    assert build({"method": {"name": "tfidf_svm"}}, track="text").track == "text"


def test_a_mapping_replaces_the_settings_within_it():
    given = config.parse_settings(["data.shots=4", "data={name: synthetic}", "data.limit=5"])

    assert given == {"data": {"name": "synthetic", "limit": 5}}
