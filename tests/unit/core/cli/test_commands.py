"""The shared commands: what ``validate`` shows, and how each command gets its track."""

from __future__ import annotations

import json

import pytest

from clipadapt.core.api.registry import tracks
from clipadapt.core.cli.app import build_app
from clipadapt.core.cli.output import print_facts
from clipadapt.core.cli.streams import run_app

CONFIG = ("validate", "zero_shot", "--set", "data.name=synthetic", "--set", "model.name=stitched")


def test_validate_shows_value_origin_and_effect_of_each_key(cli):
    done = cli(*CONFIG, "--set", "workers=2")
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in done.out.splitlines()}

    assert done.code == 0
    assert lines["data.name"] == '"synthetic" (--set; affects result)'
    assert lines["workers"] == "2 (--set; affects cost)"
    assert lines["data.on_bad_image"] == '"error" (default; affects nothing)'
    assert lines["method.logit_scale"] == "null (zero_shot; affects result)"


def test_validate_prints_the_same_as_json(cli):
    found = json.loads(cli(*CONFIG, "--json").out)

    assert found.keys() == {"config", "origins", "affects"}
    assert found["affects"].keys() == found["origins"].keys()
    assert found["config"]["data"]["name"] == "synthetic"
    assert found["affects"]["store"] == "cost"


@pytest.mark.parametrize("track", tracks())
def test_one_function_serves_every_track(track, capsys):
    with pytest.raises(SystemExit):
        run_app(build_app(track, "About."), ["ls", "methods"])

    names = capsys.readouterr().out.splitlines()
    assert names
    assert all(name.startswith(f"{track}/") for name in names)


@pytest.mark.parametrize("track", tracks())
@pytest.mark.parametrize(
    "command", ["run", "bench", "export", "table", "report", "validate", "ls", "doctor"]
)
def test_each_command_has_an_example_with_its_own_program(track, command, capsys):
    with pytest.raises(SystemExit) as end:
        run_app(build_app(track, "About."), [command, "--help"])

    assert end.value.code == 0
    assert f"Example: {tracks()[track].program} {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["table", "compare"])
def test_a_folder_without_records_has_one_message_in_every_command(cli, tmp_path, command):
    (tmp_path / "empty").mkdir()
    for name, problem in (("empty", "there are no records in"), ("none", "there is no folder")):
        folder = tmp_path / name
        done = cli(command, *[folder] * (2 if command == "compare" else 1))

        assert done.code == 2
        assert done.text.strip() == (
            f"error: {problem} '{folder}' hint: records are written by 'clipadapt run', into 'runs'"
        )


@pytest.mark.parametrize(
    ("typed", "next_step"),
    [
        (("zeroshot",), "Example: clipadapt zeroshot --model stitched --dataset"),
        (("run", "--model", "stitched"), "Example: clipadapt run linear_probe-quick --model"),
        (("run", "coop", "--shot", "4"), "Example: clipadapt run linear_probe-quick --model"),
        (("--model", "stitched", "zeroshot"), "come after the command that they belong to"),
    ],
)
def test_a_usage_error_ends_on_what_to_type(cli, typed, next_step):
    done = cli(*typed)

    assert done.code == 2
    assert next_step in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


def test_help_and_success_end_on_no_advice(cli):
    assert "Options come after" not in cli().err
    assert cli("ls", "methods").err == ""


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (("run", "linear_probe-quick", "--model", "stitched"), "name a dataset with --dataset"),
        (("run", "zero_shot", "--dataset", "synthetic"), "--model stitched"),
        (
            ("validate", "coop-quick", "--dataset", "synthetic", "--set", "epochs=5"),
            "epochs: Extra inputs are not permitted (got 5); did you mean 'method.epochs'?",
        ),
        (("zeroshot", "--model", "MODEL", "--dataset", "pictures"), "images is folder:PATH"),
        (
            ("zeroshot", "--model", "stitched", "--dataset", "rotten_tomatoes:offline"),
            "'rotten_tomatoes' is a dataset of textsent",
        ),
        (
            ("zeroshot", "--model", "minilm", "--dataset", "synthetic"),
            "'minilm' is a model of textsent",
        ),
    ],
)
def test_a_mistake_of_a_first_hour_says_what_to_type(cli, typed, expected, tiny_clip):
    done = cli(*(tiny_clip if word == "MODEL" else word for word in typed))

    assert done.code == 2
    assert expected in done.err
    assert "; Known" not in done.err


def test_a_path_without_the_name_of_its_format_says_where_it_goes(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run_app(build_app("text", "About."), ["doctor", "--dataset", str(tmp_path)])

    assert end.value.code != 0
    said = "".join(capsys.readouterr())
    assert f"write what it is before the path: one of these names, then :{tmp_path}" in said


def test_sentences_in_a_list_of_facts_are_separated(capsys):
    print_facts({"deviations": ["no refit", "own draws"], "trained": ["q", "v"]}, as_json=False)

    assert capsys.readouterr().out == "deviations: no refit; own draws\ntrained: q v\n"
