"""The last rows of a table: means over datasets where all have a figure."""

from __future__ import annotations

import json

import pytest

from clipadapt.core.records.run_store import RunStore
from clipadapt.core.report.formats import format_interval
from clipadapt.core.report.means import NOTE, mean_cells
from clipadapt.core.report.page import build_report
from clipadapt.core.report.summary import build_summary, render_summary
from clipadapt.core.report.tables import build_table, render
from clipadapt.core.scoring.combined import mean_interval
from tests.unit.core.report.test_answers import save
from tests.unit.core.scoring.test_statistics import hits


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs")


def on(store, dataset, counts, **changes):
    for seed, k in enumerate(counts, start=1):
        save(store, k, seed=seed, evaluation__dataset=dataset, data__name=dataset, **changes)


def means(store, metric="accuracy"):
    return build_table(store.load_all(), metric=metric, store=store).means


def test_a_mean_has_the_interval_of_fixed_datasets(store):
    on(store, "dtd", [60, 70])
    on(store, "eurosat", [80, 85])

    (mean,) = means(store)

    expected = mean_interval([hits(60, 70), hits(80, 85)])
    assert (mean.interval.value, mean.interval.low, mean.interval.high) == pytest.approx((
        expected.value,
        expected.low,
        expected.high,
    ))
    assert (mean.title, mean.split, mean.seeds, mean.interval.n) == (
        "mean of 2 datasets",
        "test",
        2,
        200,
    )


def test_settings_that_differ_between_the_datasets_are_named(store):
    for dataset, lr in (("dtd", 0.1), ("eurosat", 0.2)):
        on(store, dataset, [60], config={"method": {"name": "clip/coop", "lr": lr, "n_ctx": 4}})
    (note,) = (n for n in build_table(store.load_all(), store=store).notes if "Settings" in n)
    assert note.startswith("Settings that differ between the datasets of a mean: clip/coop")
    assert note.endswith("4 shots (method.lr).")


def test_one_dataset_has_none_and_its_table_is_as_before(store):
    on(store, "dtd", [60, 70])
    table = build_table(store.load_all(), store=store)

    assert table.means == ()
    assert NOTE not in table.notes


def test_a_method_without_a_figure_on_some_dataset_has_none_and_is_named(store):
    on(store, "dtd", [60])
    on(store, "eurosat", [80])
    on(store, "food101", [90])
    on(store, "dtd", [61], method__name="clip/lora", method__recipe="lora")
    on(store, "eurosat", [82], method__name="clip/lora", method__recipe="lora")
    table = build_table(store.load_all(), store=store)

    (mean,) = table.means
    assert mean.rows[0].first.method.name == "clip/coop"
    assert (
        "Without a mean, because a dataset has no figure: clip/lora (lora), 4 shots (not on food101)."
        in table.notes
    )


def test_shots_models_and_protocols_are_kept_apart(store):
    for shots in (1, 4):
        for dataset in ("dtd", "eurosat"):
            on(store, dataset, [50 + shots], data__shots=shots)

    assert [(m.rows[0].first.data.shots, m.interval.value) for m in means(store)] == [
        (1, pytest.approx(0.51)),
        (4, pytest.approx(0.54)),
    ]


def test_a_whole_dataset_stands_beside_test_splits(store):
    on(store, "dtd", [60])
    on(store, "folder:mine", [70], evaluation__split="all")

    (mean,) = means(store)
    assert mean.split == "test, all"


def test_datasets_that_were_only_evaluated_are_a_mean_of_their_own(store):
    """Trained on one, evaluated on others: the publication's mean is over the others."""
    on(store, "imagenet", [90])
    for dataset in ("dtd", "eurosat"):
        save(store, 60, evaluation__dataset=dataset, data__name="imagenet")

    (mean,) = means(store)
    assert [row.first.evaluation.dataset for row in mean.rows] == ["dtd", "eurosat"]


def test_base_and_new_classes_have_a_mean_each_and_h_is_of_both(store):
    for dataset, base, new in (("dtd", 80, 60), ("eurosat", 90, 40)):
        on(store, dataset, [base], evaluation__classes="base")
        on(store, dataset, [new], evaluation__classes="new")

    found = {m.classes: m.interval for m in means(store)}

    assert found.keys() == {"base", "new", "H"}
    assert found["H"].value == pytest.approx(2 * 0.85 * 0.5 / 1.35)
    assert found["H"].low < found["H"].value < found["H"].high
    assert found["H"].n == 400


def test_seeds_that_differ_between_datasets_have_a_mean(store):
    on(store, "dtd", [60, 70])
    on(store, "eurosat", [80])

    (mean,) = means(store)
    assert mean.seeds is None
    assert mean.interval.value == pytest.approx((0.65 + 0.8) / 2)
    assert mean.interval.low is not None


@pytest.mark.parametrize("metric", ["ece", "nll", "macro_f1", "mean_per_class_recall"])
def test_every_metric_has_a_mean_and_those_of_examples_an_interval(store, metric):
    on(store, "dtd", [60])
    on(store, "eurosat", [80])

    (mean,) = means(store, metric)
    rows = build_table(store.load_all(), metric=metric, store=store).lines
    assert mean.interval.value == pytest.approx(sum(x.interval.value for x in rows) / 2)
    assert (mean.interval.low is None) == (metric == "ece")


@pytest.mark.parametrize(
    ("form", "shown"), [("markdown", 1), ("html", 1), ("latex", 1), ("csv", 0)]
)
def test_readers_see_it_last_and_csv_holds_rows_alone(store, form, shown):
    on(store, "dtd", [60])
    on(store, "eurosat", [80])

    text = render(build_table(store.load_all(), store=store), form)
    assert text.count("mean of 2 datasets") == shown
    if shown:
        assert text.index("mean of 2 datasets") > text.index("eurosat")
    assert text.count(r"\midrule") == (2 if form == "latex" else 0)


def test_a_summary_has_them_too(store):
    on(store, "dtd", [60, 70])
    on(store, "eurosat", [80, 85])
    summary = build_summary(store)

    (mean,) = means(store)
    assert [m.interval for m in summary.means] == [mean.interval]
    assert "## Mean over datasets" in render_summary(summary)
    assert json.loads(render_summary(summary, "json"))["means"][0]["datasets"] == ["dtd", "eurosat"]
    assert NOTE in summary.notes


def test_a_failed_dataset_is_no_figure(store):
    on(store, "dtd", [60])
    on(store, "eurosat", [80])
    failed = next(r for r in store.load_all() if r.evaluation.dataset == "eurosat")
    store.save_failure(
        failed.model_copy(update={"run_id": "f" * 16, "seed": 2, "status": "failed", "error": "x"})
    )

    (mean,) = means(store)  # the other seed of it counts
    assert mean.seeds == 1


def test_the_page_shows_them_with_their_interval(store):
    on(store, "dtd", [60, 70])
    on(store, "eurosat", [80, 85])
    html, _ = build_report(store.root, examples=False)
    (mean,) = means(store)

    shown = html[html.index('<section id="means">') :]
    shown = shown[: shown.index("</section>")]
    assert format_interval(mean.interval) in shown
    assert "clip/coop" in shown
    assert NOTE in shown


def test_a_single_dataset_has_no_section_of_means(store):
    on(store, "dtd", [60, 70])

    assert 'id="means"' not in build_report(store.root, examples=False)[0]


def test_the_shots_of_a_method_without_training_do_not_count(store):
    of = {"method__name": "clip/zero_shot", "method__recipe": None, "method__uses_train": False}
    on(store, "dtd", [60], data__shots=1, **of)
    on(store, "eurosat", [80], data__shots=4, **of)

    (mean,) = means(store)
    assert mean.interval.value == pytest.approx(0.7)
    assert mean.plain()["shots"] is None
    (columns, (cells,)) = mean_cells([mean])
    assert cells[[c.title for c in columns].index("shots")] == "-"
    assert means(store, "nll_calibrated") == ()  # val differs with the shots


def test_the_interval_of_a_mean_stays_below_the_largest_value_of_its_metric(store):
    for dataset in ("dtd", "eurosat"):
        on(store, dataset, [1], n=3)

    (row, *_), (mean,) = (
        build_table(store.load_all(), metric="brier", store=store).lines,
        means(store, "brier"),
    )
    assert row.interval.high == pytest.approx(2.0)
    assert mean.interval.high == pytest.approx(2.0)
