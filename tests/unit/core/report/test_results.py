"""The result file of a sweep: complete, valid, and as its schema says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipadapt.core.records.run_store import RunStore
from clipadapt.core.report import results
from clipadapt.core.report.tables import build_table
from tests.unit.core.report.report_runs import save_all, save_run


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return save_all(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def built(store):
    return results.build_results(store, "own", store.load_all())


def test_the_schema_beside_the_module_is_that_of_the_model():
    """After a change, write it again: Results.model_json_schema(mode="serialization"), indent 2."""
    path = Path(results.__file__).with_name("results_schema.json")
    assert json.loads(path.read_text()) == results.Results.model_json_schema(mode="serialization")
    assert json.loads(path.read_text())["properties"]["schema_version"]["const"] == results.VERSION


def test_the_file_is_read_back_equal_and_plain(built):
    text = results.render_results(built)
    assert results.Results.model_validate_json(text) == built
    assert "NaN" not in text
    assert text.isascii()


def test_every_run_is_in_one_row(store, built):
    ids = [i for row in built.rows for i in (*row.run_ids, *row.failed)]
    assert sorted(ids) == sorted(r.run_id for r in store.load_all())
    assert sum(c.runs for c in built.conditions) == len(ids)


def test_figures_and_intervals_are_those_of_the_table(store, built):
    table = build_table(store.load_all(), store=store)
    shown = {line.row.run_ids: line.interval for line in table.lines}
    for row in built.rows:
        if not row.run_ids:
            continue
        want, metric = shown[row.run_ids], row.metrics["accuracy"]
        assert (metric.value, metric.low, metric.high) == (want.value, want.low, want.high)
        assert metric.n_runs == len(row.seeds) == len(metric.by_seed)
        assert metric.value == pytest.approx(sum(metric.by_seed.values()) / metric.n_runs)


def test_a_failed_run_is_named_and_not_averaged(built):
    (row,) = [r for r in built.rows if r.method == "clip/broken"]
    assert row.metrics == {}
    assert row.seeds == ()
    assert "RuntimeError" in row.failed["f" * 16]


def test_what_distinguishes_a_row_is_there(built):
    rows = [r for r in built.rows if r.method == "clip/coop"]
    assert [r.shots for r in rows] == [1, 2, 4]
    assert all(r.seeds == (1, 2, 3) and r.flags == {"leakage": 3} for r in rows)
    assert rows[0].settings["lr"] == 0.1
    assert rows[0].cost.n_trainable_params == 900


def test_runs_with_other_weights_are_a_problem_and_no_mean(tmp_path):
    store = RunStore(tmp_path)
    save_run(store, "clip/coop", 1.0, seed=1)
    save_run(store, "clip/coop", 1.0, seed=2, method__version=2)
    (row,) = results.build_results(store, "own", store.load_all()).rows
    assert row.metrics == {}
    assert row.problems
