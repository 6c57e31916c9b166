"""Tables for a terminal: nothing is wider than the screen, no figure is broken, nothing is lost silently."""

from __future__ import annotations

import re

import pytest
from rich.cells import cell_len

from clipadapt.core.records.run_store import RunStore
from clipadapt.core.report import terminal
from clipadapt.core.report.formats import Column
from clipadapt.core.report.summary import build_summary
from clipadapt.core.report.tables import build_table
from clipadapt.core.report.terminal import Screen
from tests.unit.core.report.test_answers import save

STYLE = re.compile(r"\x1b\[[0-9;]*m")
COLUMNS = (
    Column("dataset", text=True, given=True),
    Column("method", text=True),
    Column("accuracy, %", figure=True),
    Column("n", rank=1),
    Column("peak memory, MiB", rank=2),
    Column("flags", text=True),
)


def row(
    dataset="dtd", method="clip/coop", accuracy="72.3 [68.1, 76.0]", n="100", memory="300", flags=""
):
    return [dataset, method, accuracy, n, memory, flags]


def shown(rows, width, **options):
    text = terminal.grid(COLUMNS, rows, (), Screen(width, styled=False), **options)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    return text


def test_what_is_equal_in_all_rows_is_a_caption():
    text = shown([row(), row(method="clip/lora", memory="310")], 80)

    head, *_, caption = text.splitlines()
    assert head.split() == ["method", "accuracy,", "%", "peak", "memory,", "MiB"]
    assert caption == "Equal in all rows: dataset dtd; n 100"


def test_the_figure_stays_a_column_even_if_it_is_equal():
    text = shown([row(), row(method="clip/lora")], 80)

    assert text.count("72.3 [68.1, 76.0]") == 2
    assert "peak memory 300 MiB" in text


def test_a_single_row_keeps_its_name_and_figures():
    text = shown([row(flags="collapse")], 80)

    assert text.splitlines()[0].split() == [
        "method", "accuracy,", "%", "n", "peak", "memory,", "MiB", "flags",
    ]  # fmt: skip
    assert text.splitlines()[-1] == "dataset dtd"


def test_a_narrow_screen_loses_costs_first_and_says_so():
    rows = [row(), row("eurosat", "clip/lora", n="90", memory="20", flags="leakage")]

    assert "Not shown" not in shown(rows, 80)
    assert shown(rows, 54).splitlines()[-1] == "Not shown at this width: peak memory, MiB."
    text = shown(rows, 44)
    assert " ".join(text.split()).endswith("Not shown at this width: n; peak memory, MiB.")
    for part in ("dtd", "eurosat", "clip/lora", "72.3 [68.1, 76.0]", "leakage"):
        assert part in text


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 120, 200])
@pytest.mark.parametrize(
    "name", ["a", "clip/tip_adapter_f (tip_adapter_f-quick)", "x" * 90, "猫" * 30]
)
def test_no_line_is_wider_than_the_screen_and_no_figure_is_broken(width, name):
    rows = [row(name), row("b", name, flags="collapse, below_zero_shot"), row(method="c")]
    text = shown(rows, width)

    whole = (
        text if width > 20 else " ".join(text.split())
    )  # on 20 characters, a figure has two lines
    assert whole.count("72.3 [68.1, 76.0]") == 3


def test_means_stand_apart_and_are_not_needed_to_be_equal():
    rows = [row(), row("eurosat"), row("mean of 2 datasets", n="200", memory="-")]
    text = shown(rows, 80, n_last=1)

    assert "\n\nmean of 2 datasets" in text
    assert "Equal in all rows: method clip/coop; n 100; peak memory 300 MiB" in text


def test_bold_and_dim_alone_are_used_and_only_where_styles_are():
    rows, bold = [row(), row(method="clip/lora", accuracy="80.0")], {(1, 2)}
    styled = terminal.grid(COLUMNS, rows, bold, Screen(80))

    assert set(STYLE.findall(styled)) <= {"\x1b[0m", "\x1b[1m", "\x1b[2m"}
    assert "\x1b[1m80.0" in styled.replace(" ", "")
    plain = terminal.grid(COLUMNS, rows, bold, Screen(80, styled=False))
    assert [x.split() for x in STYLE.sub("", styled).splitlines()] == [
        x.split() for x in plain.splitlines()
    ]


def test_ascii_is_ascii():
    rows = [row(), row("eurosat"), row("mean of 2 datasets")]
    text = terminal.grid(COLUMNS, rows, (), Screen(80, styled=False, unicode=False), n_last=1)

    assert text.isascii()
    assert "----" in text


def test_nothing_that_a_terminal_obeys_and_no_markup_is_passed_on():
    hostile = "a\x1b[2J\x1b]0;x\x07 [bold red]b[/] :smile: \u202e"
    text = shown([row(hostile), row("b", hostile, flags=hostile)], 200)

    assert "\x1b" not in text
    assert "\u202e" not in text
    assert r"\x1b[2J" in text
    assert "[bold red]b[/] :smile:" in text


def test_a_table_and_a_summary_fit_and_have_their_notes(tmp_path):
    store = RunStore(tmp_path)
    for dataset in ("dtd", "eurosat"):
        for seed, hits in enumerate((60, 70), start=1):
            save(store, hits, seed=seed, evaluation__dataset=dataset, data__name=dataset)
    records = store.load_all()

    for width in (60, 80, 200):
        where = Screen(width, styled=False)
        table = terminal.render(build_table(records, store=store), where)
        summary = terminal.render_summary(build_summary(store), where)
        assert max(map(cell_len, (table + summary).splitlines())) <= width
        assert "mean of" in table
        assert "Intervals are 95 %" in table
        assert "Intervals are 95 %" in summary
        assert "|" not in table
