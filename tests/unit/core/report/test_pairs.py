from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from clipadapt.core.records.run_store import RunStore
from clipadapt.core.report import terminal
from clipadapt.core.report.pairs import as_document, compare_folders, render_comparisons
from clipadapt.core.report.terminal import Screen
from tests.unit.core.report.test_summary import right, save


@pytest.fixture
def a(tmp_path):
    return RunStore(tmp_path / "a")


@pytest.fixture
def b(tmp_path):
    return RunStore(tmp_path / "b")


def compared(a, b):
    return compare_folders(a, b, a.load_all(), b.load_all())


def test_a_pair_has_its_paired_test_and_the_examples_that_changed(a, b):
    save(a, "text/head", right(10))
    save(b, "text/head", right(6, start=8), config={"method": {"name": "text/head", "C": 2.0}})
    found = compared(a, b)
    (pair,) = found.pairs
    assert found.only_a == found.only_b == ()
    assert pair.comparison.difference.value == pytest.approx(4 / 60)  # B minus A
    assert pair.comparison.p_value == pytest.approx(2 * (1 + 12 + 66 + 220 + 495) / 2**12)
    gained = [c.id for c in pair.changed if c.change > 0]
    lost = [c.id for c in pair.changed if c.change < 0]
    assert gained == [f"e{i:02d}" for i in range(8)]
    assert lost == [f"e{i:02d}" for i in range(10, 14)]
    first = pair.changed[0]
    assert (first.label, first.first, first.second) == ("neg|ative", "positive", "neg|ative")


def test_a_p_value_is_never_printed_as_zero(a, b):
    save(a, "text/head", right(0))
    save(b, "text/head", right(60))

    text = render_comparisons(compared(a, b))

    assert "below 0.0001" in text
    assert "0.0000" not in text


def test_what_differs_is_named_with_both_values(a, b):
    save(a, "text/head", right(10))
    changed = {"data": {"name": "reviews"}, "method": {"name": "text/head", "C": 2.0}}
    save(b, "text/head", right(6), config=changed, method__version=2)
    (pair,) = compared(a, b).pairs
    named = {name: (x, y) for name, x, y in pair.differences}
    assert named["method.C"] == ("absent", "2.0")
    assert named["method.version"] == ("1", "2")
    assert set(named) == {"method.C", "method.version"}


def test_equal_folders_have_no_difference_and_no_changed_example(a, b):
    for store in (a, b):
        for seed in (1, 2, 3):
            save(store, "text/lora", right(5 + seed), seed=seed)
    (pair,) = compared(a, b).pairs
    assert pair.differences == ()
    assert pair.changed == ()
    assert (pair.comparison.difference.value, pair.comparison.p_value) == (0.0, 1.0)
    assert "No setting, version or data differs." in render_comparisons(compared(a, b))


def test_seeds_in_common_are_compared_and_the_share_of_seeds_that_changed_is_told(a, b):
    for seed in (1, 2, 3):
        save(a, "text/lora", right(6), seed=seed)
    save(b, "text/lora", right(6), seed=2)
    save(b, "text/lora", right(5), seed=3)
    (pair,) = compared(a, b).pairs
    assert [(c.id, c.change) for c in pair.changed] == [("e05", 0.5)]
    assert ("seeds", "1, 2, 3", "2, 3") in pair.differences


def test_rows_without_a_counterpart_are_listed(a, b):
    save(a, "text/head", right(6))
    save(a, "text/lora", right(6))
    save(b, "text/head", right(6))
    found = compared(a, b)
    assert [p.title for p in found.pairs] == ["reviews, test: text/head"]
    assert found.only_a == ("reviews, test: text/lora",)


def test_two_methods_alone_on_the_same_data_are_a_pair(a, b):
    save(a, "text/head", right(6))
    save(b, "text/lora", right(3))
    (pair,) = compared(a, b).pairs
    assert pair.title == "reviews, test: text/head against text/lora"
    assert ("method", "text/head", "text/lora") in pair.differences


def test_other_examples_are_not_compared(a, b):
    save(a, "text/head", right(6))
    save(b, "text/head", right(6), ids=tuple(f"x{i}" for i in range(60)))
    (pair,) = compared(a, b).pairs
    assert pair.comparison is None
    assert "no common seed or example" in render_comparisons(compared(a, b))


def test_an_inductive_and_a_transductive_method_are_not_compared(a, b):
    save(a, "text/head", right(10))
    save(b, "text/lora", right(6), method__setting="transductive")
    text = render_comparisons(compared(a, b))
    assert "not compared: inductive against transductive" in text
    assert "no common seed" not in text


def test_holm_adjusts_over_the_pairs(a, b):
    for method, wrong in (("text/head", 20), ("text/lora", 12)):
        save(a, method, right(wrong))
        save(b, method, right(4))
    first, second = compared(a, b).pairs
    assert first.comparison.p_adjusted == pytest.approx(2 * first.comparison.p_value)
    assert second.comparison.p_adjusted == pytest.approx(second.comparison.p_value)


def test_the_number_of_examples_shown_is_limited_and_both_kinds_are_shown(a, b):
    save(a, "text/head", right(20))
    save(b, "text/head", right(20, start=10))
    text = render_comparisons(compared(a, b), examples=4)
    rows = [line for line in text.splitlines() if line.startswith("| e")]
    assert len(rows) == 4 + 1  # the head begins with "example"
    assert sum("+1.00" in r for r in rows) == sum("-1.00" in r for r in rows) == 2
    assert "16 more changed" in text
    assert len(as_document(compared(a, b))["pairs"][0]["changed"]) == 20


@pytest.mark.parametrize("width", [40, 80, 120])
def test_on_a_terminal_every_figure_of_a_pair_is_shown(a, b, width):
    for method, wrong in (("text/head", 20), ("text/lora", 12)):
        save(a, method, right(wrong))
        save(b, method, right(4))
    form = terminal.form(Screen(width, styled=False))
    text = render_comparisons(compared(a, b), examples=4, form=form)

    assert max(map(len, text.splitlines())) <= width
    for shown in ("66.7 [54.1, 77.3]", "+26.7 [", "gained", "lost", "12 more changed"):
        assert shown in text
    assert text.count("test McNemar") == 1


# ---------------------------------------------------------------- the command


def test_the_command_prints_one_json_document(a, b, cli):
    save(a, "text/head", right(10))
    save(b, "text/head", right(6))
    done = cli("compare", str(a.root), str(b.root), "--json")
    assert done.code == 0, done.err
    (pair,) = json.loads(done.out)["pairs"]
    assert pair["difference"]["value"] == pytest.approx(4 / 60)
    assert pair["accuracy"]["a"]["value"] == pytest.approx(50 / 60)


def test_two_runs_of_one_folder_are_compared(a, cli):
    one = save(a, "text/head", right(10))
    two = save(a, "text/lora", np.ones(60, dtype=bool))
    done = cli("compare", *(str(a.run_dir(r)) for r in (one, two)), "--json")
    assert done.code == 0, done.err
    (pair,) = json.loads(done.out)["pairs"]
    assert len(pair["changed"]) == 10


def test_a_copied_run_is_compared(a, tmp_path, cli):
    one = save(a, "text/head", right(10))
    two = save(a, "text/lora", np.ones(60, dtype=bool))
    shutil.copytree(a.run_dir(one), tmp_path / "copy")
    done = cli("compare", str(tmp_path / "copy"), str(a.run_dir(two)), "--json")
    assert done.code == 0, done.err
    (pair,) = json.loads(done.out)["pairs"]
    assert len(pair["changed"]) == 10


def test_a_folder_without_records_is_refused(a, tmp_path, cli):
    save(a, "text/head", right(10))
    (tmp_path / "empty").mkdir()
    for other in ("empty", "missing"):
        done = cli("compare", str(a.root), str(tmp_path / other))
        assert done.code == 2
        assert other in done.err
    assert cli("compare", str(a.root), str(a.root), "--examples", "-1").code == 2
