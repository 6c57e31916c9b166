"""Commands on a terminal, which a pseudo-terminal is, and in a pipe."""

from __future__ import annotations

import json

import pytest

from clipadapt.core.cli import terminal as cli_terminal
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.report.tables import build_table, render
from clipadapt.core.report.terminal import Screen
from tests.terminals import STYLE, lines, on_terminal
from tests.unit.core.report.test_answers import save

MARKDOWN = """\
| dataset | split | model | method | shots | seeds | accuracy, % | n | parameters | fit, s | encode, s | predict, s | \
peak memory, MiB | flags |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |
| folder:photo | test | stitched | clip/coop (coop-quick) | 4 | 1 | 60.0 [50.2, 69.1] | 100 | 8,192 | 1.50 | 20.0 | \
0.50 | 300 |  |

Intervals are 95 %: over test examples (Wilson) for one seed, over seeds and examples together for several. n: test \
examples.

encode, s: seconds that encoding the frozen features took; features from the cache count with the seconds of their \
first encoding.

Evaluated on: folder:photo (test): protocol standard, template "a photo of a \\{\\}.", class names c1.
"""


@pytest.fixture
def runs(tmp_path):
    store = RunStore(tmp_path / "runs")
    save(store, 60)
    return store


@pytest.mark.parametrize("form", [None, "markdown", "csv", "latex", "html"])
def test_in_a_pipe_a_table_is_what_it_was(cli, runs, form):
    done = cli("table", runs.root, *(["--format", form] if form else []))
    table = build_table(runs.load_all(), store=runs)

    assert done.out == render(table, form or "markdown")
    if form in {None, "markdown"}:
        assert done.out == MARKDOWN


@pytest.mark.parametrize("width", [80, 200])
def test_on_a_terminal_it_fits_the_width(console, runs, width):
    code, out = on_terminal([console("clipadapt"), "table", runs.root], width=width)
    shown = STYLE.sub("", out).splitlines()

    assert code == 0
    assert max(map(len, shown)) <= width
    assert any("─" * 40 in line for line in shown[:4])
    assert "dataset folder:photo; split test; model stitched; shots 4" in shown
    assert not out.startswith("|")


def test_a_format_is_the_same_on_a_terminal(console, runs):
    words = [console("clipadapt"), "table", runs.root, "--format", "markdown"]
    assert on_terminal(words) == (0, MARKDOWN)


def test_without_colour_there_are_no_styles(console, runs):
    words = [console("clipadapt"), "table", runs.root]
    assert "\x1b" in on_terminal(words)[1]
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in on_terminal(words, **environment)[1]


@pytest.mark.parametrize("width", [80, 200])
def test_the_screen_says_what_is_loaded_and_which_runs_are_left(
    console, tiny_clip, tmp_path, width
):
    words = [
        "run",
        "zero_shot",
        "--model",
        tiny_clip,
        "--dataset",
        "synthetic:2x4",
        "--seeds",
        "1,2",
    ]
    code, out = on_terminal([console("clipadapt"), *words, "--out", tmp_path / "r"], width=width)
    seen = lines(out)

    assert code == 0
    paths = "records: "  # a path is not broken
    assert [x for x in seen if len(x) > width and not x.startswith(paths)] == []
    assert any(x.startswith("find model ") for x in seen)
    assert any(x.startswith("open dataset synthetic:2x4") for x in seen)
    assert any("load model " in x and x.startswith("zero_shot") for x in seen)
    assert any(x.startswith("all") and "0/2 runs" in x for x in seen)
    assert any(x.startswith("all") and "1/2 runs" in x and " left" in x for x in seen)
    assert any(x.startswith("zero_shot ") and ", seed 2" in x for x in seen)


def test_what_a_pipe_reads_is_not_on_the_screen_of_the_bars(console, tiny_clip, tmp_path):
    words = ["run", "zero_shot", "--model", tiny_clip, "--dataset", "synthetic:2x4", "--json"]
    line = f"{console('clipadapt')} {' '.join(words)} --out {tmp_path / 'r'} > {tmp_path / 'out'}"
    code, out = on_terminal(["/bin/bash", "-c", line])

    assert code == 0
    assert "run_id" not in out
    assert len(json.loads((tmp_path / "out").read_text())["records"]) == 1


def test_a_warning_is_shown_once_for_several_runs(console, tiny_models, pictures, tmp_path):
    (tmp_path / "names").write_text("thing\nthing\nother\n")
    words = ["zeroshot", "--dataset", f"folder:{pictures}", "--classnames", tmp_path / "names"]
    models = [f"--model={tiny_models['clip']}", f"--model={tiny_models['hf']}"]
    _, out = on_terminal(
        [console("clipadapt"), *words, *models, "--out", tmp_path / "r"], width=200
    )

    assert out.count("has class names that are equal") == 1


@pytest.mark.parametrize("width", [80, 200])
def test_compare_fits_the_terminal_and_is_markdown_in_a_pipe(console, cli, tmp_path, width):
    for name, right in (("a", 60), ("b", 70)):
        save(RunStore(tmp_path / name), right)
    words = ["compare", tmp_path / "a", tmp_path / "b"]
    code, out = on_terminal([console("clipadapt"), *words], width=width)
    shown = STYLE.sub("", out).splitlines()

    assert code == 0
    assert max(map(len, shown)) <= width
    assert not any(line.startswith(("|", "#")) for line in shown)
    assert any("─" * 20 in line for line in shown)
    assert "60.0 [50.2, 69.1]" in out
    assert cli(*words).out.startswith("| pair | A, % |")


@pytest.mark.parametrize("width", [60, 120])
def test_prompts_fit_the_terminal_and_are_markdown_in_a_pipe(
    cli, pictures, tiny_models, monkeypatch, width
):
    words = ("prompts", "--model", tiny_models["clip"], "--dataset", f"folder:{pictures}")
    words = (*words, "--templates", "80")
    piped = cli(*words).out
    monkeypatch.setattr(cli_terminal, "screen", lambda: Screen(width, styled=False))
    out = cli(*words).out

    assert max(map(len, out.splitlines())) <= width
    assert "\nSuggestions\n" in out
    assert not any(line.startswith(("|", "#")) for line in out.splitlines())
    assert "\n## Suggestions\n\n- " in piped
    assert "The first and last 10 of" in piped
    assert "The first and last 10 of" in out
