"""Table, summary and page show the same interval for the same figure, for every metric."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
import pytest

from clipadapt.core.records.predictions import Predictions
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.report import page as report
from clipadapt.core.report.summary import build_summary, render_summary
from clipadapt.core.report.tables import build_table, render
from clipadapt.core.scoring.combined import harmonic_interval
from clipadapt.core.scoring.metrics import METRICS, compute_metrics
from clipadapt.core.scoring.statistics import crossed_interval, wilson
from tests.unit.core.records.test_records import make_record

CLASSES = 5

OF_CLASSES = [m.name for m in METRICS.values() if not m.probabilities and not m.sets]


def save(store, hits, *, n=100, seed=1, **changes):
    """Save a run with the last ``hits`` of ``n`` examples right and the others predicted as the next class."""
    labels = np.arange(n, dtype=np.int64) % CLASSES
    predicted = np.where(np.arange(n) >= n - hits, labels, (labels + 1) % CLASSES)
    scores = 3 * np.eye(CLASSES, dtype=np.float32)[predicted]
    values = {
        "run_id": f"{seed:04d}{hits:04d}{len(str(changes)):08x}",
        "fit_id": f"fit{seed}",
        "seed": seed,
        "data__n_test": n,
        "metrics": compute_metrics(scores, labels, temperature=2.0),
        "metrics_version": 2,
        "calibration": {"temperature": 2.0},
        **changes,
    }
    ids = tuple(f"e{i:05d}" for i in range(n))
    return store.save(make_record(**values), Predictions(ids, labels, scores))


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs")


def seeds(store, counts):
    for seed, hits in enumerate(counts):
        save(store, hits, seed=seed)
    return store.load_all()


def measured(store, metric="accuracy"):
    (line,) = build_table(store.load_all(), metric=metric, store=store).lines
    return line.interval


@pytest.mark.parametrize("counts", [(90,), (90, 90, 90), (90, 90, 91), (100, 100, 100), (70, 90)])
def test_table_summary_page_csv_and_latex_show_the_same_interval(store, counts):
    records = seeds(store, counts)
    right = np.array([np.arange(100) >= 100 - hits for hits in counts])
    expected = crossed_interval(right)
    shown = f"{100 * expected.value:.1f} [{100 * expected.low:.1f}, {100 * expected.high:.1f}]"

    table = build_table(records, store=store)

    for form in ("markdown", "latex", "html"):
        assert shown in render(table, form)
    (line,) = csv.DictReader(io.StringIO(render(table, "csv")))
    assert (float(line["low"]), float(line["high"])) == (expected.low, expected.high)
    assert line["n"] == "100"
    assert shown in render_summary(build_summary(store))
    page = re.sub(r"<[^>]+>", "", report.build_report(store.root, examples=False)[0])
    assert shown in page


def test_equal_seeds_have_the_interval_of_one_fit_and_similar_seeds_a_similar_one(store, tmp_path):
    equal = _interval(tmp_path / "a", (90, 90, 90))
    near = _interval(tmp_path / "b", (90, 90, 91))
    one = wilson(90, 100)

    assert (equal.low, equal.high) == (one.low, one.high)
    assert (near.low, near.high) == pytest.approx((one.low, one.high), abs=0.01)


def _interval(folder, counts):
    store = RunStore(folder)
    seeds(store, counts)
    return measured(store)


@pytest.mark.parametrize("metric", OF_CLASSES)
@pytest.mark.parametrize("counts", [(100,), (100, 100, 100), (99, 100, 100), (0, 0), (1, 0)])
def test_intervals_have_a_width_and_stay_in_range(store, metric, counts):
    seeds(store, counts)
    found = measured(store, metric)
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1
    assert found.high - found.low > 0.01


@pytest.mark.parametrize("metric", [*OF_CLASSES, "nll", "brier_calibrated"])
def test_an_identical_second_seed_changes_nothing(store, metric):
    save(store, 83, seed=1)
    one = measured(store, metric)
    save(store, 83, seed=2)
    two = measured(store, metric)
    assert two.value == pytest.approx(one.value)
    assert (two.low, two.high) == pytest.approx((one.low, one.high), abs=1e-9)


def test_a_metric_that_is_not_a_mean_over_examples_has_no_interval(store):
    seeds(store, (90, 91))
    assert (measured(store, "ece").low, measured(store, "aurc").high) == (None, None)


def test_h_of_perfect_accuracies_is_not_certain(store):
    for seed in (1, 2):
        for classes in ("base", "new"):
            save(store, 100, seed=seed, evaluation__classes=classes)

    table = build_table(store.load_all(), store=store)
    (h,) = [line.interval for line in table.lines if line.classes == "H"]
    perfect = np.ones((2, 100), dtype=bool)
    expected = harmonic_interval(perfect, perfect)

    assert (h.value, h.low, h.high) == (1.0, expected.low, 1.0)
    assert expected.low < 0.995
    assert h.n == 200
    (both,) = build_summary(store).base_to_new
    assert (both.harmonic.low, both.harmonic.high) == (h.low, h.high)


def test_without_readable_predictions_there_is_no_interval_and_a_note_says_so(store):
    seeds(store, (90, 92))
    damaged = next(store.root.rglob("predictions.npz"))
    damaged.write_bytes(b"")

    table = build_table(store.load_all(), store=store)

    found = table.lines[0].interval
    assert (found.value, found.low) == (pytest.approx(0.91), None)
    assert any(str(damaged) in note for note in table.notes)


def test_a_limit_of_the_data_is_shown_even_if_all_rows_have_it(store):
    config = {"data": {"name": "x", "limit": 100}, "method": {"name": "clip/coop"}}
    save(store, 90, config=config)
    assert "data.limit=100" in render(build_table(store.load_all(), store=store))
    assert "data.limit=100" in build_summary(store).blocks[0].rows[0].label


def test_each_state_of_a_dataset_that_is_only_evaluated_is_a_row(store):
    for seed, sha in ((1, "11112222"), (1, "33334444"), (2, "33334444")):
        run_id = f"{seed}{sha}0000000"
        save(
            store,
            90,
            seed=seed,
            run_id=run_id,
            evaluation__dataset="shifted",
            evaluation__sha256=sha * 8,
        )

    lines = build_table(store.load_all(), store=store).lines

    assert {(x.seeds, x.row.group.settings) for x in lines} == {
        (1, ("evaluation data=11112222",)),
        (2, ("evaluation data=33334444",)),
    }
    assert {b.title for b in build_summary(store).blocks} == {
        f"shifted, evaluation data {sha}, test, 4 shots" for sha in ("11112222", "33334444")
    }


def test_old_and_new_macro_f1_are_not_mixed(store):
    save(store, 90, seed=1, metrics_version=1)
    table = build_table(store.load_all(), metric="macro_f1", store=store)
    assert any("an earlier version" in note for note in table.notes)
    save(store, 90, seed=2)
    assert build_summary(store).blocks[0].rows[0].row.mean("macro_f1") is None
    assert build_table(store.load_all(), store=store).lines[0].seeds == 2
    with pytest.raises(Exception, match=r"metrics_version: 1 in .*, 2 in"):
        build_table(store.load_all(), metric="macro_f1", store=store)


@pytest.mark.parametrize("command", ["table", "summary", "page"])
def test_predictions_are_read_once(store, monkeypatch, command):
    for seed in (1, 2):
        for classes in ("base", "new"):
            save(store, 90 + seed, seed=seed, evaluation__classes=classes)
    per_class = {"classnames": [str(c) for c in range(CLASSES)]}
    save(store, 80, seed=1, per_class=per_class)
    save(store, 80, seed=2, per_class=per_class)
    read, load = [], RunStore.load_predictions

    def counted(folder, record):
        read.append(record.run_id)
        return load(folder, record)

    monkeypatch.setattr(RunStore, "load_predictions", staticmethod(counted))
    if command == "table":
        render(build_table(store.load_all(), store=store))
    elif command == "summary":
        render_summary(build_summary(store))
    else:
        report.build_report(store.root, examples=False)
    assert sorted(read) == sorted(r.run_id for r in store.load_all())
