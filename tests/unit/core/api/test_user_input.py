"""What users give is checked where it enters: YAML, names, paths."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from clipadapt.core.api import user_input as _given
from clipadapt.core.api.errors import ConfigError, did_you_mean
from clipadapt.core.experiments import config, dotted
from clipadapt.core.files import safe_yaml as _yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(20)
)
MERGED_LAUGHS = "a: &a {x: 1}\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [{', '.join(['*' + chr(97 + i)] * 9)}]}}\n"
    for i in range(20)
)
CHAIN = "- &n0 [x]\n" + "".join(f"- &n{i + 1} [*n{i}]\n" for i in range(500))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("[yes, Off]", ["yes", "Off"]),
        ("2024-13-45", "2024-13-45"),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("007", "007"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("1e-3", 1e-3),
        ("-.5", -0.5),
        ("!!float 1", 1.0),
        ("!!str 5", "5"),
        ("'5'", "5"),
        ("TRUE", True),
        ("~", None),
        ("", None),
        ("a: {<<: {b: 1, c: 3}, b: 2}", {"a": {"b": 2, "c": 3}}),
        ("{a: &x [1], b: *x}", {"a": [1], "b": [1]}),
        ("{a: {<<: [{b: 1}, {b: 2}]}}", {"a": {"b": 1}}),
    ],
)
def test_yaml_scalars(text, value):
    got = _yaml.parse(text)

    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' occurs twice"),
        ("&a [*a]", "'*a' is undefined, or contains itself"),
        ("[" * 100_000, "more than 32 levels deep"),
        ("{a: " * 5000, "more than 32 levels deep"),
        (LAUGHS, "more than 20,000 values"),
        (MERGED_LAUGHS, "more than 20,000 values"),
        (CHAIN, "more than 32 levels deep"),
        ("- x\n" * 30_000, "more than 20,000 values"),
        ("#" * (2 << 20), "more than 1,048,576 characters"),
        ("9" * 5000, "a number with 5,000 digits"),
        ("!!int abc", "'abc' is not a value of the tag"),
        ("!!timestamp 2024-13-45", "is not a value of the tag"),
        ("!!python/object/apply:os.system [x]", "unknown tag"),
        ("!!python/name:os.system x", "is not a value of the tag"),
        ("<<: [1]", "'<<' needs a mapping"),
        ("<<: 5", "'<<' needs a mapping"),
        ("1.5: 2", "the key 1.5 is not a string"),
        ("? [a]\n: 2", "is not a string"),
        ("a:\n\tb: 1", "line 2, column 1"),
        ("---\na\n---\nb", "line 3, column 1: a second document"),
        ("a: \0", "not allowed"),
        ("a: \ud800", "not allowed"),
    ],
)
def test_invalid_yaml_is_refused_quickly(text, message):
    begun = time.monotonic()
    with pytest.raises(_yaml.YamlError) as caught:
        _yaml.parse(text)

    assert message in str(caught.value)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.yaml", b"", "contains nothing, expected a mapping"),
        ("comment.yaml", b"# only\n", "contains nothing, expected a mapping"),
        ("list.yaml", b"- a\n", "contains ['a'], expected a mapping"),
        ("utf16.yaml", "a: b".encode("utf-16"), "is not UTF-8 text: byte 0 is 0xff"),
        ("latin.yaml", b"# caf\xe9\n", "is not UTF-8 text: byte 5 is 0xe9"),
        ("large.yaml", b"#" * (2 << 20), "has more than 1,048,576 bytes"),
        ("bomb.yaml", LAUGHS.encode(), "is not YAML: line 5"),
    ],
)
def test_invalid_config_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ConfigError) as caught:
        config.load([str(tmp_path / name)])

    assert message in caught.value.problem


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfmethod: {name: zero_shot}\ndata: {name: synthetic}\n",
        b"method:\r\n  name: zero_shot\r\ndata:\r\n  name: synthetic\r\n",
        b"method: {name: zero_shot}\rdata: {name: synthetic}\r",
    ],
)
def test_byte_order_marks_and_other_line_ends_are_read(tmp_path, content):
    (tmp_path / "c.yaml").write_bytes(content)

    assert config.load([str(tmp_path / "c.yaml")]).config.data.name == "synthetic"


def test_only_regular_files_are_read_and_nothing_hangs(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")

    for name, message in (
        ("pipe.yaml", "is not a regular file"),
        ("zero.yaml", "is not a regular file"),
        ("folder.yaml", "is a folder"),
        ("loop.yaml", "no config"),
    ):
        with pytest.raises(ConfigError, match=message):
            config.load([str(tmp_path / name)])
    for name in ("pipe.yaml", "zero.yaml"):
        with pytest.raises(ConfigError, match="is not a regular file"):
            _given.read_text(tmp_path / name, "file", 100)


def test_interpolation_syntax_is_plain_text():
    got = config.load(["zero_shot"], ["data.name=${oc.env:HOME}", "model.name=???"])

    assert got.config.data.name == "${oc.env:HOME}"
    assert got.config.model.name == "???"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seeds=!!int abc", "(got '!!int abc')"),
        ("data.shots=" + "9" * 5000, "data.shots: Unable to parse input string as an integer"),
        ("data.limit=true", "data.limit: true and false are not values of this setting"),
        ("seeds=[true]", "seeds: true and false are not values of this setting"),
        ("threads=false", "threads: true and false are not values of this setting"),
        ("method.logit_scale=true", "method.logit_scale: true and false are not values"),
        ("method.logit_scale=.inf", "method.logit_scale: Input should be"),
        ("method.logit_scale=.nan", "method.logit_scale: Input should be"),
        ("resources.custom={a: true}", "resources.custom"),
        ("method=[a]", "method: Field required (got ['a'])"),
        ("method=5", "method: Field required (got 5)"),
        ("data=[1]", "data: Input should be a valid dictionary"),
        ("evaluation=null", "evaluation: Input should be a valid dictionary"),
        ('data.manifest="a\\0b"', "data.manifest: a setting must not contain control characters"),
        ('recipe.deviations=["\\ud800"]', "recipe.deviations.0: a setting must not contain control"),
        ('data.name="a\\nb"', "data.name: a name must not contain control characters"),
        ("data.name=" + "x" * 5000, "data.name: a name has at most 1000 characters, not 5,000"),
        ('model.name="\\e[31mred"', "model.name: a setting must not contain control characters"),
        ("evaluation.protocol='a|b'", "evaluation.protocol: a name has 1 to 100 letters, digits"),
        ('evaluation.protocol="a|b\\n# c"', "evaluation.protocol: a name has 1 to 100 letters"),
        ("evaluation.protocol=" + "x" * 101, "evaluation.protocol: a name has 1 to 100 letters"),
        ("evaluation.protocol=..", "evaluation.protocol: a name has 1 to 100 letters"),
        ('evaluation.also=[{dataset: "a\\tb"}]', "evaluation.also.0.dataset: a name must not"),
    ],
)  # fmt: skip
def test_invalid_values_of_settings(setting, message):
    with pytest.raises(ConfigError) as caught:
        config.load(["zero_shot"], ["data.name=synthetic", setting])

    assert message in caught.value.problem
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", ["few_shot", "16-shot, 3 seeds", "été", "परीक्षण", "v1.2 (mine)"])
def test_valid_names_of_protocols(name):
    got = config.build(
        [("t", {"data": {"name": "synthetic"}, "method": {"name": "zero_shot"}}),
         ("u", {"evaluation": {"protocol": name}})], source="t",
    )  # fmt: skip

    assert got.config.evaluation.protocol == name


@pytest.mark.parametrize("stem", ["a|b", "a\nb", "\x1b[31mred", "x" * 101])
def test_a_recipe_has_the_name_of_its_file(tmp_path, stem):
    path = tmp_path / f"{stem}.yaml"
    path.write_text("method: {name: zero_shot}\ndata: {name: synthetic}\n")

    with pytest.raises(ConfigError, match="is not a valid name of a recipe"):
        config.load([str(path)])


def test_merging_replaces_values_of_another_type():
    into: dict = {}
    first = {"a": {"b": 1, "c": [1]}, "d": 5}
    for over in (first, {"a": {"b": 2}}, {"d": {"e": 1}}, {"a": {"c": {"f": 1}}}):
        dotted.merge(into, over)

    assert into == {"a": {"b": 2, "c": {"f": 1}}, "d": {"e": 1}}
    assert first == {"a": {"b": 1, "c": [1]}, "d": 5}


def test_invalid_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    assert _given.user_path("~/x") == tmp_path / "x"
    assert _given.user_path("no/where") == Path("no/where")
    for wrong, message in (
        ("~nobody0/x", "there is no user '~nobody0'"),
        ("x" * 300, "File name too long"),
        ("x/" * 5000, "File name too long"),
        ("a\0b", "a character that a path cannot have"),
        ("\ud800", "a character that a path cannot have"),
        ("", "a path is empty"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            _given.user_path(wrong)
        assert len(str(caught.value)) < 400


def test_control_characters_are_shown_as_escapes():
    assert _given.visible("a\x1b[31m\n\ud800é") == "a\\x1b[31m\\n\\ud800é"
    assert _given.visible("a\n\tb\x07", lines=True) == "a\n\tb\\x07"
    assert _given.shown("x" * 500).endswith("...")


def test_a_name_is_not_suggested_for_itself():
    assert did_you_mean("coop", ["coop", "lora"]) == ""
    assert did_you_mean("Coop", ["coop"]) == "; did you mean 'coop'?"
    assert did_you_mean("x" * 1_000_000, ["coop"]) == ""
