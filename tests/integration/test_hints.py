"""What help and hints tell people to type works: every example, every listed name, every command in a hint."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
import typer

import clipadapt.cli
import textsent.cli
from tests.conftest import ROOT
from tests.integration.conftest import picture

APPS = {"clipadapt": clipadapt.cli.app, "textsent": textsent.cli.app}
OFFLINE = {"clipadapt": "synthetic", "textsent": "rotten_tomatoes:offline"}


def examples(program):
    """Yield the command of every ``Example:`` that ``--help`` shows."""

    def walk(command):
        if command.epilog:
            yield command.epilog.removeprefix("Example: ")
        for inner in getattr(command, "commands", {}).values():
            yield from walk(inner)

    yield from walk(typer.main.get_command(APPS[program]))


EXAMPLES = [(p, e) for p in APPS for e in examples(p)]


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_clip):
    """A folder with pictures of classes, and the run of each program that its examples need."""
    from clipadapt.core.experiments import config
    from clipadapt.core.runs.session import run_experiments

    folder = tmp_path_factory.mktemp("examples")
    for split in ("train", "test"):
        for i, name in enumerate(("red", "blue")):
            picture(folder / "PATH" / split / name / "0.png", (200 * (1 - i), 0, 200 * i), i)
    picture(folder / "photos" / "a.png", (200, 0, 0), 1)
    clip = config.load(["zero_shot"], [f"model.name={tiny_clip}", "data.name=synthetic:2x4"])
    text = config.load(
        ["tfidf_svm-quick"], ["data.name=rotten_tomatoes:offline", "data.shots=4"], track="text"
    )
    runs = {}
    for program, experiment in (("clipadapt", clip), ("textsent", text)):
        run_experiments([experiment], folder / program)
        runs[program] = next((folder / program).rglob("record.json")).parent
    return folder, runs


@pytest.mark.parametrize(("program", "example"), EXAMPLES, ids=[e for _, e in EXAMPLES])
def test_every_example_of_the_help_runs(cli, place, monkeypatch, tmp_path, program, example):
    folder, runs = place
    monkeypatch.chdir(folder)
    said, *words = shlex.split(example)
    assert said == program
    if words[:2] == ["export", "RUN_DIR"]:  # which formats there are is the method's affair
        form = "classifier" if program == "clipadapt" else None
        words = [form if form and w == words[3] else w for w in words]
    run = {
        "RUN_DIR": str(runs[program]),
        **dict.fromkeys(("runs", "other-runs"), str(folder / program)),
    }
    words = [run.get(w, w) for w in words]
    words = [str(tmp_path / "made") if w == "PATH" else w for w in words]
    if words[0] == "app":  # it would serve until Ctrl-C; test_app.py does
        monkeypatch.setattr("clipadapt.core.cli.app_command.serve", lambda *_, **__: None)
        monkeypatch.setattr("clipadapt.core.cli.app_command.require_gradio", lambda: None)
        words = ["0" if w == "8000" else w for w in words]
    if words[0] in {"run", "zeroshot", "bench", "explore"}:
        words += ["--out", str(tmp_path / "out")]
    if words[:2] == ["cache", "prune"] or words[0] == "export":
        words = words if words[0] == "cache" else [*words[:-1], str(tmp_path / "made")]

    done = cli(*words, program=program)

    if words[0] == "export" and done.code == 2:
        assert "cannot be exported as" in done.err  # of this method; others have the format
        return
    if words[0] == "push":  # without a network or a token; tests/hub pushes for real
        assert done.code == 2, done.err
        assert "cannot push to" in done.err
        return
    assert done.code == 0, done.err
    if "--json" in words:
        json.loads(done.out)


@pytest.mark.parametrize("program", APPS)
def test_every_listed_config_is_valid(cli, program):
    names = json.loads(cli("ls", "configs", "--json", program=program).out)["configs"]

    for name in names:
        done = cli("validate", name, "--set", f"data.name={OFFLINE[program]}", program=program)
        assert done.code == 0, (name, done.err)


@pytest.mark.parametrize("program", APPS)
def test_every_listed_sweep_can_be_planned_and_no_other_is_listed(cli, tmp_path, program):
    from clipadapt.core.experiments import sweep

    track = "clip" if program == "clipadapt" else "text"
    listed = json.loads(cli("ls", "sweeps", "--json", program=program).out)["sweeps"]

    every = {p.stem for p in (ROOT / "configs" / "sweeps").glob("*.yaml")}
    for name in listed:
        assert sweep.load_sweep(name, track=track)
    for name in every - set(listed):
        done = cli("bench", name, "--dry-run", "--out", tmp_path / "o", program=program)
        assert done.code == 2
        assert name not in re.findall(r"Known: (.*)", done.err)
    assert {"clipadapt": "openmoji", "textsent": "sentiment"}[program] in listed


def hints():
    """Every literal of the packages with a command of ours in it, as ``hint=`` and messages write it."""
    for package in ("clipadapt", "textsent"):
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for call in (n for n in ast.walk(tree) if isinstance(n, ast.keyword)):
                if call.arg != "hint":
                    continue
                for node in ast.walk(call.value):
                    if isinstance(node, ast.Constant) and isinstance(node.value, str):
                        for command in re.findall(r"'((?:clipadapt|textsent) [^']+)'", node.value):
                            yield f"{path.relative_to(ROOT).as_posix()}: {command}", command


HINTS = sorted(set(hints()))


@pytest.mark.parametrize("command", [c for _, c in HINTS], ids=[w for w, _ in HINTS])
def test_every_command_in_a_hint_runs(cli, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(command.replace("{", "").replace("}", ""))
    words = ["1000" if w == "N" else w for w in words]

    done = cli(*words, program=program)

    assert done.code == 0, done.err


@pytest.mark.parametrize("program", APPS)
def test_the_hint_of_a_wrong_setting_is_a_command_that_shows_its_keys(cli, program):
    recipe = {"clipadapt": "linear_probe", "textsent": "logreg"}[program]
    data = f"data.name={OFFLINE[program]}"

    wrong = cli("validate", recipe, "--set", data, "--set", "method.CC=1", program=program)
    command = re.search(r"'([^']+)'\s*$", wrong.text)[1]
    said, *words = shlex.split(command)
    shown = cli(*words, program=said)

    assert wrong.code == 2
    assert said == program
    assert shown.code == 0
    assert "method.C" in shown.out


def test_a_recipe_of_the_other_program_is_offered_as_one_can_type_it(cli):
    wrong = cli("validate", "tfidf_svm", "--set", "data.name=rotten_tomatoes:offline")
    offered = re.search(r"write (\S+)", wrong.text)[1]

    done = cli("validate", offered, "--set", "data.name=rotten_tomatoes:offline")

    assert wrong.code == 2
    assert done.code == 0, done.err


@pytest.mark.parametrize("where", ["folder:~/PATH", "--out", "--classnames", "--templates"])
def test_a_tilde_is_expanded_everywhere(cli, place, tmp_path, monkeypatch, tiny_clip, where):
    folder, _ = place
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "PATH").symlink_to(folder / "PATH")
    (tmp_path / "n.txt").write_text("one\ntwo\n")
    (tmp_path / "t.txt").write_text("a {}.\n")
    values = {"--out": "~/out", "--classnames": "~/n.txt", "--templates": "~/t.txt"}
    words = ["zeroshot", "--model", tiny_clip, "--dataset", "folder:~/PATH"]
    out = [] if where == "--out" else ["--out", "o"]

    done = cli(*words, *out, *([where, values[where]] if where in values else []))
    nobody = cli(*words[:-1], "folder:~nobody0/x", "--out", "o2")

    assert done.code == 0, done.err
    assert not Path("~").exists()
    assert (tmp_path / "out").is_dir() is (where == "--out")
    assert nobody.code == 2
    assert "there is no user '~nobody0'" in nobody.err
