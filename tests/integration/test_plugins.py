"""The example of CONTRIBUTING runs as it stands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.integration.conftest import picture


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    name, code = re.search(
        r"<!-- example: (\w+\.py) -->\n```python\n(.*?)```", text, re.DOTALL
    ).groups()
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / name).write_text(code, encoding="utf-8")
    monkeypatch.setenv("CLIPADAPT_PLUGINS", str(folder))
    return folder


def test_the_example_is_listed_without_being_imported(cli, plugins):
    (plugins / "broken.py").write_text("METHOD = 1 / 0\n")

    listed = json.loads(cli("ls", "methods", "--json").out)["methods"]

    assert "clip/nearest_mean" in listed
    assert "clip/broken" in listed


def test_the_example_runs_from_a_config_and_saves(cli, plugins, tmp_path, tiny_clip):
    config = tmp_path / "config.yaml"
    config.write_text("method: {name: nearest_mean, scale: 20}\n")
    where = ["--out", tmp_path / "runs", "--json"]
    settings = [
        "--set",
        f"model.name={tiny_clip}",
        "--set",
        "data.name=synthetic",
        "--set",
        "data.shots=4",
    ]

    done = cli("run", config, *settings, *where)

    assert done.code == 0, done.err
    (record,) = json.loads(done.out)["records"]
    assert record["method"]["name"] == "clip/nearest_mean"
    assert record["config"]["method"]["scale"] == 20
    assert record["n_trainable_params"] > 0
    assert list((tmp_path / "runs").rglob("means.safetensors"))


def test_a_run_of_the_example_predicts_as_long_as_the_plugin_is_there(
    cli, plugins, tmp_path, tiny_clip, monkeypatch
):
    settings = [f"model.name={tiny_clip}", "data.name=synthetic", "data.shots=4", "seeds=[1]"]
    words = [w for s in settings for w in ("--set", s)]
    config = tmp_path / "config.yaml"
    config.write_text("method: {name: nearest_mean}\n")
    done = cli("run", config, *words, "--out", tmp_path / "runs")
    assert done.code == 0, done.err
    (run,) = [p.parent for p in (tmp_path / "runs").rglob("record.json")]
    pictures = tmp_path / "pictures"
    for i in range(2):
        picture(pictures / f"{i}.png", (200, 30, 30), i)

    predicted = cli("predict", run, pictures, "--json")
    misspelt = cli("run", config, *words, "--set", "method.scal=2", "--out", tmp_path / "other")
    monkeypatch.delenv("CLIPADAPT_PLUGINS")
    without = cli("predict", run, pictures)

    assert len(json.loads(predicted.out)["predictions"]) == 2
    assert misspelt.code == without.code == 2
    assert "method.scal: Extra inputs are not permitted" in misspelt.text
    assert "did you mean 'scale'?" in misspelt.text
    assert "unknown method 'clip/nearest_mean'" in without.text
    assert "Traceback" not in misspelt.err + without.err


def test_a_plugin_may_belong_to_the_text_track(cli, plugins):
    (plugins / "mine.py").write_text('TRACK = "text"\nMETHOD = object\n')

    assert (
        "text/mine" in json.loads(cli("ls", "methods", "--json", program="textsent").out)["methods"]
    )
    assert "clip/mine" not in json.loads(cli("ls", "methods", "--json").out)["methods"]


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("zero_shot.py", "METHOD = object\n", "would replace 'clip/zero_shot'"),
        ("odd.py", "METHOD = (\n", "is not valid Python"),
    ],
)
def test_a_bad_plugin_is_named(cli, plugins, name, code, message):
    (plugins / name).write_text(code)

    done = cli("ls", "methods")

    assert done.code == 2
    assert message in done.text


def test_a_plugin_folder_that_is_none(cli, monkeypatch):
    monkeypatch.setenv("CLIPADAPT_PLUGINS", "/nowhere/at/all")

    done = cli("ls", "methods")

    assert done.code == 2
    assert "which is not a folder" in done.text


def test_plugins_work_in_a_process_of_their_own(plugins, console):
    done = subprocess.run(
        [console("clipadapt"), "ls", "methods"], capture_output=True, text=True, check=True
    )

    assert "clip/nearest_mean" in done.stdout.split()
    assert sys.executable
