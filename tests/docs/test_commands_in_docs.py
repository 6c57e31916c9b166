"""Every command in the documentation: those in ``bash`` blocks are run, those in other blocks are parsed.

A page is run from top to bottom in an empty folder, without a network: files that it shows with a title are written,
its Python is executed, its commands must succeed. Blocks marked ``sh`` need a hub, a GPU or a cluster; every option in
them must exist.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = sorted(p for p in (ROOT / "docs").rglob("*.md") if "reference/methods" not in p.as_posix())
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PROGRAMS = ("clipadapt", "textsent")
# One review in five: to encode all of them takes most of the time of the pages on texts. Notebooks run this first.
FEWER_REVIEWS = """
from textsent.datasets import rotten_tomatoes

def some(whole=rotten_tomatoes.wheel_reviews):
    texts, labels = whole()
    return texts[::5], labels[::5]
"""


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Return language, title and text of every code block."""
    return [(m[1], m[2] or "", m[3]) for m in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def lines_of(text: str) -> list[str]:
    """Return the commands of a block, without comments and with continued lines joined."""
    whole = text.replace("\\\n", " ")
    return [
        line for raw in whole.splitlines() if (line := re.sub(r"\s+# .*|^#.*", "", raw).strip())
    ]


def runnable(page: Path) -> bool:
    return any(language == "bash" for language, _, _ in blocks(page))


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in PAGES if runnable(p)], ids=lambda p: p.relative_to(ROOT / "docs").as_posix()
)
def test_a_page_works_from_top_to_bottom(page, tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    fewer: dict[str, Any] = {}
    exec(FEWER_REVIEWS, fewer)
    monkeypatch.setattr("textsent.datasets.rotten_tomatoes.wheel_reviews", fewer["some"])
    namespace: dict[str, Any] = {}
    variables: dict[str, str] = {}
    for language, title, text in blocks(page):
        if title:
            Path(title).parent.mkdir(parents=True, exist_ok=True)
            Path(title).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, str(page), "exec"), namespace)
        elif language == "bash":
            for line in lines_of(text):
                run(line, variables, cli)


def run(line: str, variables: dict[str, str], cli: Any) -> None:
    assigned = re.fullmatch(r"(\w+)=\$\((.+)\)", line)
    if assigned:
        done = subprocess.run(
            ["bash", "-c", assigned[2]], capture_output=True, text=True, check=True
        )
        variables[assigned[1]] = done.stdout.strip()
        assert variables[assigned[1]], line
        return
    for name, value in variables.items():
        line = line.replace(f"${name}", value)
    program, *arguments = shlex.split(line)
    assert program in PROGRAMS, line
    done = cli(*arguments, program=program)
    assert done.code == 0, f"{line}\n{done.err}"
    assert done.out or done.err, line


def commands(page: Path) -> list[str]:
    """Return the lines of all shell blocks that call one of the programs."""
    return [
        line
        for language, _, text in blocks(page)
        if language in {"", "sh", "bash"}
        for line in lines_of(text)
        if line.split()[0] in PROGRAMS
    ]


@pytest.mark.parametrize("page", TEXTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_option_in_a_text_exists(page):
    from typer.main import get_command

    import clipadapt.cli
    import textsent.cli

    apps = {"clipadapt": clipadapt.cli.app, "textsent": textsent.cli.app}
    for line in commands(page):
        program, *words = shlex.split(line)
        command: Any = get_command(apps[program])
        while words and hasattr(command, "commands"):
            if words[0].startswith("-"):
                break
            name = words.pop(0)
            assert name in command.commands, line
            command = command.commands[name]
        known = {"--help", "-h", *(o for p in command.params for o in p.opts)}
        unknown = [
            w for w in words if re.match(r"--?[a-z]", w) and w.partition("=")[0] not in known
        ]
        assert unknown == [], line


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_its_notebooks_run(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    for name in ("docs", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*-runs"))
    for name in ("mkdocs.yml", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    startup = tmp_path / "ipython/profile_default/startup"
    startup.mkdir(parents=True)
    (startup / "fewer.py").write_text(f"{FEWER_REVIEWS}\nrotten_tomatoes.wheel_reviews = some\n")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "NO_MKDOCS_2_WARNING": "1",
            "PYTHONPATH": path,
            "IPYTHONDIR": str(tmp_path / "ipython"),
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr

    method = (tmp_path / "site/reference/methods/clip/coop/index.html").read_text("utf-8")
    for expected in ("n_ctx", "K. Zhou", "coop-quick", "Deviations from the source", "Measured"):
        assert expected in method, expected
    for name, expected in (("images", "linear_probe-quick"), ("text", "tfidf_svm-quick")):
        page = (tmp_path / f"site/notebooks/{name}/index.html").read_text("utf-8")
        assert expected in page
        assert "Traceback" not in page
        assert "Warning" not in page.partition("jp-Notebook")[2]
        records = list((tmp_path / "docs/notebooks/notebook-runs").rglob("record.json"))
        assert records
    (record,) = (tmp_path / "docs/notebooks/notebook-runs").glob("*/text-tfidf_svm*/*/record.json")
    assert json.loads(record.read_text("utf-8"))["data"]["n_test"] < 200  # of fewer reviews


@pytest.mark.parametrize("page", TEXTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_setting_in_a_text_exists(page):
    from clipadapt.core.experiments.settings import declarations

    of_sweeps = {"datasets", "models", "methods", "shots", "seeds", "settings"}
    named = re.findall(r"--set '?([a-z_]+(?:\.[a-z_]+)*)=", page.read_text(encoding="utf-8"))
    known = declarations().keys() | of_sweeps

    assert [key for key in named if key not in known and not key.startswith("method.")] == []
