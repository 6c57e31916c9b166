"""What reaches a terminal, a spreadsheet or a browser is text: names from users are shown, never obeyed."""

from __future__ import annotations

import csv
import io
import os
import pty
import re
import subprocess

import pytest

from clipadapt.core.records.run_store import RunStore
from clipadapt.core.report.page import build_report
from clipadapt.core.report.summary import build_summary, render_summary
from clipadapt.core.report.tables import build_table, render
from clipadapt.datasets._images import Thumbnail
from clipadapt.sheet import write_sheet
from tests.unit.core.records.test_records import make_record, metric
from tests.unit.core.report.test_answers import save

# Clears a screen, sets a window's title, turns the direction of what follows, half a character, line ends of all kinds.
HOSTILE = "a\x1b[2J\x1b]0;x\x07b\u202ec\x9bd\u2028e\rf\udcffg"
OBEYED = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


@pytest.fixture
def store(tmp_path):
    """Records that hold what the entrances refuse, as one from elsewhere may."""
    store = RunStore(tmp_path / "runs")
    config = {
        "data": {"name": HOSTILE, "limit": 7},
        "method": {"name": "clip/coop", "note": HOSTILE},
    }
    changes = {
        "evaluation__dataset": HOSTILE,
        "evaluation__protocol": f"p|q\n# {HOSTILE}",
        "evaluation__templates": [f"{HOSTILE} {{}}"],
        "model__name": HOSTILE,
        "method__recipe": HOSTILE,
        "flags": [HOSTILE],
        "per_class": {"classnames": [f"{HOSTILE}{c}|`\n" for c in range(5)]},
    }
    save(store, 80, config=config, **changes)
    save(store, 60, seed=2, config=config, **{**changes, "method__name": "clip/lora"})
    failed = {k: v for k, v in changes.items() if k != "per_class"}
    failed |= {"status": "failed", "error": f"E: {HOSTILE}", "metrics": {}, "run_id": "f" * 16}
    store.save_failure(make_record(**failed))
    return store


@pytest.mark.parametrize("form", ["markdown", "latex", "html", "csv"])
def test_no_table_holds_what_a_terminal_obeys(store, form):
    text = render(build_table(store.load_all(), store=store), form)
    assert not OBEYED.search(text)
    assert r"\x1b[2J" in text or r"x1b" in text  # it is shown
    text.encode("utf-8")


def test_neither_summary_nor_page_does(store):
    summary = build_summary(store)
    page, _ = build_report(store.root, examples=False)
    for text in (*(render_summary(summary, f) for f in ("markdown", "html")), page):
        assert not OBEYED.search(text)
        text.encode("utf-8")
    assert r"\x1b[2J" in page
    lines = render_summary(summary).splitlines()
    assert len([x for x in lines if x.startswith("## ")]) == len(summary.blocks)


@pytest.mark.parametrize("program", ["clipadapt", "textsent"])
@pytest.mark.parametrize("form", ["markdown", "csv", "latex", "html"])
def test_the_command_shows_them_too(cli, store, program, form):
    done = cli("table", store.root, "--format", form, program=program)
    assert done.code == 0
    assert not OBEYED.search(done.out + done.err)


@pytest.mark.parametrize("program", ["clipadapt", "textsent"])
def test_messages_show_what_they_name(cli, tmp_path, program):
    place = tmp_path / "a\x1b[2Jb"
    for arguments in (
        ("table", place),
        ("report", place),
        ("run", str(place)),
        ("predict", place, "x"),
        ("validate", "zero_shot", "--set", "data.name=\x1b[2J"),
        ("doctor", "--dataset", "folder:\x1b[2J"),
    ):
        done = cli(*arguments, program=program)
        assert done.code == 2, arguments
        assert not OBEYED.search(done.out + done.err), arguments


def test_one_line_for_each_input_whatever_its_name_holds(capsys):
    from clipadapt.core.cli.output import print_predictions

    class Run:
        temperature, sigmoid = 1.0, False

        def note_of(self, n):
            return ""

    names = ["plain.png", "two\nlines\t.png", "\x1b[31mred.png"]
    predictions = [
        {"input": name, "top": [{"label": "a\nb\x1b", "probability": 0.5}]} for name in names
    ]
    print_predictions(Run(), predictions, as_json=False)
    out = capsys.readouterr().out
    assert not OBEYED.search(out)
    lines = out.splitlines()
    assert [line.split("\t")[1] for line in lines] == [
        "plain.png", r"two\nlines\t.png", r"\x1b[31mred.png",
    ]  # fmt: skip


def test_a_sheet_shows_names(tmp_path):
    top = [{"label": HOSTILE, "probability": 1.0}]
    prediction = {"label": HOSTILE, "input": HOSTILE, "top": top}
    write_sheet(tmp_path / "s.html", make_record(), [prediction], [Thumbnail(b"", 1, 1)])
    assert not OBEYED.search((tmp_path / "s.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r", "＝"])
def test_no_cell_of_a_csv_is_a_formula_and_numbers_stay_numbers(begin):
    text = f"{begin}HYPERLINK(1)"
    metrics = {"accuracy": metric(0.5, 0.4, 0.6, n=9)}
    record = make_record(
        evaluation__dataset=text, method__name=text, method__recipe=text, model__name=text,
        evaluation__protocol=text, evaluation__templates=[text], flags=[text], metrics=metrics,
        n_trainable_params=5,
    )  # fmt: skip
    (row,) = csv.DictReader(io.StringIO(render(build_table([record]), "csv")))
    for name, cell in row.items():
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "＝")), name
    assert row["dataset"].startswith(("'", "\\"))
    assert (float(row["value"]), float(row["low"]), row["n"], row["n_trainable_params"]) == (
        0.5, 0.4, "9", "5",
    )  # fmt: skip


# ---------------------------------------------------------------- consoles of other kinds


@pytest.fixture
def abroad(tmp_path):
    """Records whose names cp1252 and ASCII lack."""
    store = RunStore(tmp_path / "红")
    save(store, 80, evaluation__dataset="红色圆圈", method__recipe="été ✓")
    return store


def run(console, program, *arguments, **environment):
    return subprocess.run(
        [console(program), *map(str, arguments)],
        capture_output=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("program", ["clipadapt", "textsent"])
@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONIOENCODING": "ascii"},
        {"LANG": "C", "LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["cp1252", "ascii", "C", "C without UTF-8"],
)
def test_a_console_of_another_encoding(console, abroad, program, environment):
    done = run(console, program, "table", abroad.root, **environment)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"80.0 [" in done.stdout
    wrong = run(console, program, "table", abroad.root / "没有", **environment)
    assert wrong.returncode == 2
    assert b"Traceback" not in wrong.stderr


@pytest.mark.parametrize("arguments", [("table", "/nowhere"), ("table", "--help"), ("tabl",)])
@pytest.mark.parametrize("program", ["clipadapt", "textsent"])
def test_no_colour_where_none_is_wanted(console, program, arguments):
    coloured = _on_a_terminal([console(program), *arguments], {"TERM": "xterm-256color"})
    plain = _on_a_terminal(
        [console(program), *arguments], {"TERM": "xterm-256color", "NO_COLOR": "1"}
    )
    assert b"\x1b[" in coloured
    assert b"\x1b[" not in plain


def _on_a_terminal(command, environment):
    """Return what a command prints where stdout and stderr are a terminal."""
    main, side = pty.openpty()
    kept = {
        k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR", "PY_COLORS"}
    }
    process = subprocess.Popen(
        command, stdin=side, stdout=side, stderr=side, env={**kept, **environment}
    )
    os.close(side)
    out = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:
            break
        if not part:
            break
        out += part
    os.close(main)
    process.wait(timeout=120)
    return out
