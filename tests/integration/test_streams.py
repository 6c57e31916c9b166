"""Output that nobody takes, and plug-ins that misbehave: the exit code is that of the work, never a traceback."""

from __future__ import annotations

import json
import subprocess

import pytest


@pytest.fixture
def shell(console, tmp_path):
    """Run a shell line in which CLIP and TEXT stand for the two programs."""

    def call(line):
        line = line.replace("CLIP", console("clipadapt")).replace("TEXT", console("textsent"))
        return subprocess.run(
            ["bash", "-c", f"set -o pipefail; {line}"],
            capture_output=True, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip

    return call


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("CLIP ls methods >&-", 0),
        ("TEXT ls methods >&- 2>&- <&-", 0),
        ("CLIP validate zero_shot --set data.name=synthetic 2>&-", 0),
        ("CLIP validate zero_shto 2>&-", 2),
        ("CLIP validate zero_shto 2>/dev/full", 2),
        ("CLIP ls methods | true", 0),
        ("CLIP validate zero_shto 2>&1 >/dev/null | true", 2),
        ("CLIP ls methods >/dev/full", 2),
    ],
)
def test_streams_that_are_closed_full_or_left(shell, line, code):
    done = shell(line)

    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if "/dev/full" in line and "2>" not in line:
        assert "cannot write to the standard output: No space left" in done.stderr


def test_a_sweep_whose_reader_leaves_is_done_to_its_end(shell, tiny_clip, tmp_path):
    done = shell(
        f"CLIP run zero_shot --set model.name={tiny_clip} --set data.name=synthetic:2x4 --set seeds=[1,2] "
        "--out out 2>&1 | true"
    )

    assert done.returncode == 0
    assert len(list((tmp_path / "out").rglob("record.json"))) == 2


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("mine.py", "METHOD = 1\n", "METHOD is 1, not a class or function"),
        ("mine.py", "x = 1\n", "assigns none of METHOD, DATASET, MODEL"),
        ("mine.py", "METHOD = (\n", "is not valid Python"),
        ("mine.py", "((" * 5000 + "\n", "is not valid Python"),
        ("mine.py", "METHOD = object\nTRACK = 'audio'\n", "TRACK is 'audio'; accepted: clip, text"),
        ("my-plug.py", "METHOD = object\n", "must have a name of letters"),
        ("zero_shot.py", "METHOD = object\n", "would replace 'clip/zero_shot'"),
    ],
)
def test_a_file_that_is_no_plugin_is_named_and_the_rest_is_listed(
    cli, tmp_path, monkeypatch, name, code, message
):
    (tmp_path / name).write_text(code)
    monkeypatch.setenv("CLIPADAPT_PLUGINS", str(tmp_path))

    listed = cli("ls", "methods", "--json")
    used = cli("validate", "zero_shot", "--set", "data.name=synthetic")

    assert "clip/coop" in json.loads(listed.out)["methods"]
    for done in (listed, used):
        assert done.code == 2
        assert message in done.text
        assert str(tmp_path / name) in done.text
    assert used.out == ""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys\nMETHOD = object\nsys.exit(0)\n", "cannot be imported: SystemExit: 0"),
        ("METHOD = object\nimport nowhere_at_all\n", "cannot be imported: ModuleNotFoundError"),
        ("def METHOD():\n    METHOD()\nMETHOD()\n", "cannot be imported: RecursionError"),
        ("METHOD = object\nraise BaseException('odd')\n", "cannot be imported: BaseException: odd"),
        ("METHOD = object\n", "METHOD is <class 'object'>, without Config, version"),
        ("class METHOD:\n    Config = version = requires = fit = load = None\n", "a MethodConfig"),
        ("METHOD = [].append\nprint('printed')\n", "without Config"),
    ],
)
def test_a_plugin_that_fails_where_it_is_used_is_never_a_success(
    cli, tmp_path, monkeypatch, code, message
):
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.setenv("CLIPADAPT_PLUGINS", str(tmp_path))

    done = cli("validate", "zero_shot", "--set", "method.name=mine", "--set", "data.name=synthetic")

    assert done.code == 2
    assert done.out == ""
    assert message in done.text
    assert "mine.py" in done.text


def test_a_plugin_of_a_data_set_that_returns_none(cli, tmp_path, monkeypatch, tiny_clip):
    (tmp_path / "mine.py").write_text("def DATASET(argument, options):\n    return 5\n")
    monkeypatch.setenv("CLIPADAPT_PLUGINS", str(tmp_path))

    out = str(tmp_path / "runs")
    done = cli("zeroshot", "--model", tiny_clip, "--dataset", "mine", "--out", out)

    assert done.code == 2
    assert "the provider of 'mine' returned 5, which lacks name, classnames, splits" in done.text


@pytest.mark.parametrize("folder", ["/nowhere/at/all", "~nobody0/x", "a.txt", "x" * 300])
def test_a_folder_of_plugins_that_is_none(cli, tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("")
    monkeypatch.setenv("CLIPADAPT_PLUGINS", folder)

    listed = cli("ls", "methods")

    assert listed.code == 2
    assert "clip/coop" in listed.out
    assert "CLIPADAPT_PLUGINS names" in listed.text


def test_json_is_one_document_when_all_is_skipped_and_when_one_run_fails(
    cli, tmp_path, monkeypatch, tiny_clip
):
    (tmp_path / "sometimes.py").write_text(
        "from clipadapt.core.api.method import MethodConfig\n"
        "from clipadapt.core.api.registry import METHODS\n"
        "from clipadapt.core.api.errors import DivergedError\n"
        "ZeroShot = METHODS.get('clip/zero_shot')\n"
        "class METHOD(ZeroShot):\n"
        "    def fit(self, backbone, task, ctx):\n"
        "        if ctx.seed == 2:\n"
        "            raise DivergedError('the scores are not finite')\n"
        "        return super().fit(backbone, task, ctx)\n"
    )
    monkeypatch.setenv("CLIPADAPT_PLUGINS", str(tmp_path))
    common = ["--set", f"model.name={tiny_clip}", "--set", "data.name=synthetic:2x4", "--json"]
    words = ["run", "zero_shot", "--set", "method.name=sometimes", *common, "--set", "threads=1"]

    failed = cli(*words, "--set", "seeds=[1,2]", "--out", tmp_path / "out")
    skipped = cli(*words, "--set", "seeds=[1]", "--out", tmp_path / "out")

    assert failed.code == 2
    assert [r["status"] for r in json.loads(failed.out)["records"]] == ["ok", "failed"]
    assert failed.err.count("error: ") == 1
    assert skipped.code == 0
    assert len(json.loads(skipped.out)["records"]) == 1
    assert "skipped" in skipped.err
