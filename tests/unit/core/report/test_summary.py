from __future__ import annotations

import json
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy import stats

from clipadapt.core.api.errors import RecordError, UnknownNameError
from clipadapt.core.records.predictions import Predictions
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.records.schema import Selection
from clipadapt.core.report.comparisons import rank
from clipadapt.core.report.summary import build_summary, render_summary
from clipadapt.core.report.tables import build_table
from clipadapt.core.scoring.metrics import compute_metrics
from clipadapt.core.scoring.statistics import (
    crossed_interval,
    crossed_p_value,
    difference_interval,
    wilson,
)
from tests.unit.core.records.test_records import make_failure, make_record

N = 60
LABELS = np.arange(N, dtype=np.int64) % 2
IDS = tuple(f"e{i:02d}" for i in range(N))


def right(n_wrong, start=0):
    """Return which examples are predicted correctly: all but ``n_wrong`` consecutive ones from ``start``."""
    correct = np.ones(N, dtype=bool)
    correct[(start + np.arange(n_wrong)) % N] = False
    return correct


def save(store, method, correct, *, seed=1, split="test", ids=IDS, labels=LABELS, **changes):
    """Save a run whose predictions are right where ``correct`` is True, and wrong elsewhere."""
    predicted = np.where(correct, labels, 1 - labels)
    scores = np.eye(2, dtype=np.float32)[predicted]
    history = changes.pop("history", None)
    name = f"{method}/{changes.get('method__recipe')}/{changes.get('data__shots')}"
    values = {
        "method__uses_train": not method.endswith("/zero_shot"),
        "run_id": f"{name}{seed}{split}".encode().hex()[-40:],
        "fit_id": f"{name}{seed}",
        "seed": seed,
        "method__name": method,
        "method__recipe": None,
        "data__name": "reviews",
        "data__n_test": len(ids),
        "data__shots": None,
        "evaluation__dataset": "reviews",
        "evaluation__split": split,
        "evaluation__templates": [],
        "config": {"data": {"name": "reviews"}, "method": {"name": method}},
        "metrics": compute_metrics(scores, labels),
        "per_class": {"classnames": ["neg|ative", "positive"]},
        **changes,
    }
    return store.save(
        make_record(**values), Predictions(tuple(ids), labels, scores), history=history
    )


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs")


def only(store, **options):
    (block,) = build_summary(store, **options).blocks
    return block


def rows(store):
    return [r.row for r in only(store).rows]


def test_one_row_per_method_with_val_next_to_test(store):
    for seed, wrong in ((1, 6), (2, 9), (3, 12)):
        save(store, "text/lora", right(wrong), seed=seed, n_total_params=1_000_000)
        save(store, "text/lora", right(3), seed=seed, split="val")
    save(store, "text/svm", right(20))

    block = only(store)

    lora, svm = (r.row for r in block.rows)
    assert (lora.label, svm.label) == ("text/lora", "text/svm")
    assert [[r.seed for r in row.ok] for row in (lora, svm)] == [[1, 2, 3], [1]]
    expected = crossed_interval(np.stack([right(6), right(9), right(12)]))
    assert lora.accuracy == expected
    assert lora.accuracy.value == pytest.approx(1 - 27 / 180)
    assert lora.val_accuracy == wilson(57, 60)  # the same in every seed
    assert svm.accuracy == wilson(40, 60)
    assert svm.val_accuracy is None
    assert (lora.n_trainable_params, lora.n_total_params) == (8192, 1_000_000)
    assert lora.examples_per_second == pytest.approx(60 / 0.5)
    assert "Without val accuracy" in " ".join(build_summary(store).notes)


def test_means_of_metrics_and_classes_agree_with_scikit_learn(store):
    from sklearn.metrics import f1_score, precision_recall_fscore_support

    rng = np.random.default_rng(0)
    draws = rng.random((2, N)) < 0.8
    for seed, correct in enumerate(draws):
        save(store, "text/lora", correct, seed=seed)
    predicted = [np.where(c, LABELS, 1 - LABELS) for c in draws]

    (lora,) = rows(store)

    assert lora.mean("macro_f1") == pytest.approx(
        np.mean([f1_score(LABELS, p, average="macro") for p in predicted])
    )
    weighted = [precision_recall_fscore_support(LABELS, p, average="weighted") for p in predicted]
    assert lora.mean("weighted_precision") == pytest.approx(np.mean([w[0] for w in weighted]))
    assert lora.mean("weighted_recall") == pytest.approx(np.mean([w[1] for w in weighted]))
    each = np.mean([precision_recall_fscore_support(LABELS, p) for p in predicted], axis=0)
    for c, figures in enumerate(lora.classes):
        got = (figures.precision, figures.recall, figures.f1, figures.support)
        assert got == pytest.approx(tuple(each[:, c]))


def test_the_precision_of_a_class_that_is_never_predicted_is_zero_without_a_warning(store):
    save(store, "text/svm", LABELS == 1)  # everything is predicted as positive
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (svm,) = rows(store)
    assert (svm.classes[0].precision, svm.classes[0].recall, svm.classes[0].f1) == (0, 0, 0)


def test_one_seed_each_is_mcnemar_on_examples_joined_by_id(store):
    a, b = right(5), right(20, start=3)
    save(store, "text/lora", a)
    order = np.random.default_rng(1).permutation(N)
    save(store, "text/svm", b[order], ids=[IDS[i] for i in order], labels=LABELS[order])

    (pair,) = only(store).comparisons

    n10, n01 = int((a & ~b).sum()), int((~a & b).sum())
    assert pair.p_value == pytest.approx(stats.binomtest(n10, n10 + n01, 0.5).pvalue)
    assert pair.p_adjusted == pair.p_value
    assert pair.difference.value == pytest.approx((n10 - n01) / N)
    difference = a.astype(float) - b
    # Bonett and Price add one example that only the first gets right and one that only the second gets right.
    t = stats.ttest_1samp([*difference, 1.0, -1.0], 0).confidence_interval(0.95)
    assert (pair.difference.low, pair.difference.high) == pytest.approx((t.low, t.high))
    assert (pair.first, pair.second, pair.test) == ("text/lora", "text/svm", "McNemar")


def test_only_shared_examples_are_compared(store):
    save(store, "text/lora", right(5))
    part = np.arange(10, 50)
    save(
        store, "text/svm", right(0)[part], ids=[IDS[i] for i in part], labels=LABELS[part]
    )  # fmt: skip
    (pair,) = only(store).comparisons
    assert (pair.n_examples, pair.p_value, pair.difference.value) == (40, 1.0, 0.0)


def test_an_example_with_two_labels_is_refused(store):
    save(store, "text/lora", right(5))
    save(store, "text/svm", right(5), labels=1 - LABELS)
    with pytest.raises(RecordError, match="'e00' has two labels"):
        build_summary(store)


def test_several_seeds_are_tested_on_the_differences(store):
    rng = np.random.default_rng(2)
    a, b = rng.random((3, N)) < 0.9, rng.random((3, N)) < 0.6
    for seed in range(3):
        save(store, "text/lora", a[seed], seed=seed)
        save(store, "text/head", b[seed], seed=seed)
    save(store, "text/svm", b[0])

    pairs = {(c.first, c.second): c for c in only(store).comparisons}

    difference = a.astype(np.int8) - b
    assert pairs["text/lora", "text/head"].difference == difference_interval(
        difference, cautious=True
    )
    assert pairs["text/lora", "text/head"].p_value == pytest.approx(
        crossed_p_value(difference, cautious=True)
    )
    against_one = pairs["text/lora", "text/svm"]
    expected = difference_interval(a.astype(float) - b[0], cautious=True)
    assert (against_one.difference.value, against_one.difference.low) == pytest.approx((
        expected.value,
        expected.low,
    ))
    assert against_one.test == "crossed, 3 seeds against 1"
    order = sorted(pairs.values(), key=lambda c: c.p_value)
    holm = np.maximum.accumulate([(3 - i) * c.p_value for i, c in enumerate(order)])
    assert [c.p_adjusted for c in order] == pytest.approx(np.minimum(holm, 1))


def test_seeds_that_never_differ_count_once(store):
    for seed in range(3):
        save(store, "text/svm", right(20), seed=seed)
        save(store, "text/logreg", right(6), seed=seed)
    block = only(store)
    assert [r.row.accuracy for r in block.rows] == [wilson(54, 60), wilson(40, 60)]
    (pair,) = block.comparisons
    assert (pair.test, pair.p_value) == ("McNemar", pytest.approx(stats.binomtest(14, 14).pvalue))


def test_methods_without_a_common_seed_are_not_compared(store):
    for method, seeds in (("text/lora", (1, 2)), ("text/head", (3, 4))):
        for seed in seeds:
            save(store, method, right(5 + seed), seed=seed)
    block = only(store)
    assert block.comparisons == ()
    assert [r.letters for r in block.rows] == ["a", "b"]  # never compared, so no common letter


def test_single_seeds_are_compared_if_equal_and_zero_shot_is_compared_with_every_seed(store):
    save(store, "text/lora", right(5), seed=1)
    save(store, "text/head", right(6), seed=2)
    save(store, "text/zero_shot", right(7), seed=1)
    block = only(store)
    assert {(c.first, c.second) for c in block.comparisons} == {
        ("text/lora", "text/zero_shot"),
        ("text/head", "text/zero_shot"),
    }
    letters = {r.label: set(r.letters) for r in block.rows}
    assert not letters["text/lora"] & letters["text/head"]
    assert letters["text/lora"] & letters["text/zero_shot"]


def test_methods_without_common_examples_share_no_letter(store):
    save(store, "text/lora", right(5)[:30], ids=IDS[:30], labels=LABELS[:30])
    save(store, "text/head", right(5)[30:], ids=IDS[30:], labels=LABELS[30:])
    block = only(store)
    assert block.comparisons == ()
    assert len({r.letters for r in block.rows}) == 2


def test_the_p_value_is_where_the_interval_meets_zero():
    rng = np.random.default_rng(3)
    one_seed = rng.normal(0.1, 1, size=(1, 50))
    assert crossed_p_value(one_seed) == pytest.approx(stats.ttest_1samp(one_seed[0], 0).pvalue)
    one_example = rng.normal(0.5, 1, size=(6, 1))
    assert crossed_p_value(one_example) == pytest.approx(
        stats.ttest_1samp(one_example[:, 0], 0).pvalue
    )
    several = rng.normal(0.15, 1, size=(3, 80)) + rng.normal(size=80) * 0.3
    for sign in (1, -1):
        p = crossed_p_value(sign * several)
        interval = crossed_interval(sign * several, 1 - p)
        assert min(abs(interval.low), abs(interval.high)) == pytest.approx(0, abs=1e-6)
    assert crossed_p_value(np.zeros((3, 10))) == 1.0
    # If every difference is the same, the spread is unknown, not 0: the p-value is that of the sign test.
    assert crossed_p_value(np.ones((3, 10))) == stats.binomtest(10, 10).pvalue


def test_the_p_value_is_not_too_small_under_the_null():
    rng = np.random.default_rng(4)
    small = 0
    for _ in range(300):
        seeds, examples = rng.normal(size=(3, 1)) * 0.3, rng.normal(size=(1, 40)) * 0.5
        small += crossed_p_value(seeds + examples + rng.normal(size=(3, 40))) < 0.05
    assert small / 300 < 0.08


def bold(text):
    return [line.split("|")[3].strip() for line in text.splitlines() if "| **" in line][:1]


def test_the_best_is_bold_only_where_it_beats_the_runner_up(store):
    save(store, "text/lora", right(3))
    save(store, "text/head", right(5, start=1))
    assert [r.best for r in only(store).rows] == [False, False]
    assert "**" not in render_summary(build_summary(store)).split("### By class")[0]
    save(store, "text/full_finetune", right(0))
    save(store, "text/head", right(30), method__recipe="far")
    block = only(store)
    assert [r.best for r in block.rows] == [False] * 4  # 60 against 57 is not significant


def test_a_clear_winner_is_marked(store):
    save(store, "text/lora", right(2))
    save(store, "text/svm", right(20))
    assert [r.best for r in only(store).rows] == [True, False]
    text = render_summary(build_summary(store))
    assert bold(text) == ["**96.7 [88.6, 99.1]**"]
    assert "<strong>96.7" in render_summary(build_summary(store), "html")


HISTORY = [
    {"epoch": e, "train_loss": loss, "val_loss": val, "val_accuracy": acc, "train_accuracy": tr}
    for e, loss, val, acc, tr in [
        (1, 0.5, 0.42, 0.82, 0.85),
        (2, 0.3, 0.37, 0.84, 0.92),
        (3, 0.1, 0.62, 0.83, 0.99),
    ]
]


def test_overfitting_is_shown(store):
    chosen = Selection(epoch=2, by="val accuracy", value=0.84)
    save(store, "text/full_finetune", right(5), history=HISTORY, selection=chosen)
    save(store, "text/svm", right(9), history=[{"C": 1.0, "val_accuracy": 0.8}])

    tuned, svm = rows(store)

    assert tuned.chosen_epochs == (2,)
    assert tuned.loss_rise == pytest.approx(0.62 - 0.37)
    assert tuned.accuracy_gap == pytest.approx(0.92 - 0.84)
    assert (svm.chosen_epochs, svm.loss_rise, svm.accuracy_gap) == ((None,), None, None)
    row = next(x for x in render_summary(build_summary(store)).splitlines() if "full" in x)
    assert "| 2 | +0.250 | +8.0 |" in row


def test_blocks_by_shots_share_the_zero_shot_run(store):
    save(store, "clip/zero_shot", right(20))
    for shots in (4, 16):
        save(store, "clip/coop", right(10), data__shots=shots)
    blocks = build_summary(store).blocks
    assert [b.title for b in blocks] == ["reviews, test, 4 shots", "reviews, test, 16 shots"]
    assert [[r.label for r in b.rows] for b in blocks] == [["clip/coop", "clip/zero_shot"]] * 2


def test_models_are_named_where_they_differ(store):
    save(store, "text/lora", right(5), model__name="small")
    save(store, "text/lora", right(9), model__name="big", run_id="x", fit_id="y")
    assert [r.label for r in only(store).rows] == ["text/lora on small", "text/lora on big"]


def test_failed_runs_are_counted_and_named(store):
    save(store, "text/lora", right(5))
    store.save_failure(
        make_failure(run_id="f", seed=7, method__name="text/svm", method__recipe=None,
                     evaluation__dataset="reviews", data__shots=None)
    )  # fmt: skip
    lora, svm = only(store).rows
    assert (len(svm.row.failed), svm.row.accuracy, svm.best, lora.best) == (1, None, False, False)
    notes = build_summary(store).notes
    assert notes[0].startswith(
        "1 failed run, not included in any mean: text/svm on reviews, seed 7"
    )


def test_unlike_runs_are_refused(store):
    save(store, "text/lora", right(5), seed=1)
    save(store, "text/lora", right(5), seed=2, model__weights_sha256="w2")
    with pytest.raises(RecordError, match=r"model.weights_sha256: 'w1'"):
        build_summary(store)


def test_each_state_of_a_dataset_is_a_block_with_its_hash(store):
    states = ("d1" + "0" * 62, "d2" + "0" * 62)
    for sha, seed in zip(states, (1, 2), strict=True):
        save(store, "text/lora", right(5), seed=seed, data__sha256=sha)
        save(store, "text/head", right(6), seed=seed, data__sha256=sha)
    summary = build_summary(store)
    assert [b.title for b in summary.blocks] == [f"reviews, data {sha[:8]}, test" for sha in states]
    for block in summary.blocks:
        assert [len(r.row.ok) for r in block.rows] == [1, 1]
    lines = build_table(store.load_all(), store=store).lines
    assert {(x.row.first.method.name, x.row.group.settings) for x in lines} == {
        (m, (f"data={sha[:8]}",)) for m in ("text/lora", "text/head") for sha in states
    }


def test_a_run_whose_predictions_cannot_be_read_is_left_out_and_named(store):
    kept = save(store, "text/head", right(6))
    lost = store.run_dir(save(store, "text/lora", right(5)))
    (lost / "predictions.npz").write_bytes(b"no archive")
    summary = build_summary(store)
    assert [r.row.run_ids for r in summary.blocks[0].rows] == [(kept.run_id,)]
    assert str(lost) in summary.notes[0]


def test_a_run_on_val_alone_is_a_block(store):
    save(store, "text/lora", right(5), split="val")
    assert only(store).title == "reviews, val"


def test_only_the_given_records_are_summarised_and_none_is_an_error(store):
    kept = save(store, "text/lora", right(5))
    save(store, "text/svm", right(9))
    assert [r.label for r in only(store, records=[kept, kept]).rows] == ["text/lora"]
    with pytest.raises(RecordError, match="no records"):
        build_summary(store, records=[])


def test_runs_below_a_common_folder_are_found(store, tmp_path):
    save(store, "text/lora", right(5))
    assert rows(RunStore(tmp_path))[0].accuracy.value == pytest.approx(55 / 60)


def test_published_numbers_say_when_they_are_not_comparable(store):
    settings = {"name": "text/lora", "r": 16}
    for dataset, flags in (
        ("rotten_tomatoes:offline", ("not_the_official_split",)),
        ("rotten_tomatoes", ()),
    ):
        save(store, "text/lora", right(5), data__name=dataset, evaluation__dataset=dataset, flags=flags,
             model__name="distilbert-base-uncased", config={"method": settings}, run_id=dataset[-7:],
             data__n_test=1066)  # fmt: skip

    official, offline = build_summary(store, reference=True).blocks

    (ours,) = official.rows[0].row.published
    assert (ours.reference.val["accuracy"], ours.reference.test["accuracy"]) == (0.8415, 0.8293)
    assert ours.not_comparable == ()
    (other,) = offline.rows[0].row.published
    assert other.not_comparable == (
        "data rotten_tomatoes:offline, published on rotten_tomatoes",
        "not the official split",
    )
    text = render_summary(build_summary(store, reference=True))
    assert text.count("### Published numbers") == 2
    assert "82.9 (not comparable)" in text
    assert "| 82.9 |" in text
    assert "Published" not in render_summary(build_summary(store))


def test_json_holds_raw_figures(store):
    save(store, "text/lora", right(6))
    document = json.loads(render_summary(build_summary(store), "json"))
    (method,) = document["blocks"][0]["methods"]
    assert method["accuracy"]["value"] == pytest.approx(0.9)
    assert method["classes"][0]["name"] == "neg|ative"


def test_names_are_escaped(store):
    save(store, "text/lora", right(5), evaluation__dataset="<b>*x*", data__name="<b>*x*")
    text = render_summary(build_summary(store))
    assert text.startswith("## &lt;b&gt;\\*x\\*, test\n")
    assert "neg\\|ative" in text

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attrs):
            seen.add(tag)

    seen = set()
    parser = Tags()
    parser.feed(render_summary(build_summary(store), "html"))
    assert seen <= {"h2", "h3", "table", "thead", "tbody", "tr", "th", "td", "p", "strong"}


def test_of_many_classes_only_the_hardest_are_printed(store):
    n = 40
    labels = np.arange(N, dtype=np.int64) % n
    scores = np.eye(n, dtype=np.float32)[np.where(labels < 5, labels + 1, labels)]
    record = make_record(
        metrics=compute_metrics(scores, labels),
        data__n_test=N,
        per_class={"classnames": [f"c{i:02d}" for i in range(n)]},
    )
    store.save(record, Predictions(IDS, labels, scores))
    summary = build_summary(store)
    assert len(summary.blocks[0].rows[0].row.classes) == n
    text = render_summary(summary)
    assert "20 classes with a higher F1 are left out" in text
    assert "| c00 |" in text
    assert "| c39 |" not in text


def test_an_unknown_format_is_named(store):
    save(store, "text/lora", right(6))
    with pytest.raises(UnknownNameError, match="unknown summary format 'md'"):
        render_summary(build_summary(store), "md")


def test_rows_of_different_settings_share_no_letter_no_test_and_no_block(tmp_path):
    store = RunStore(tmp_path)
    together = {"method__setting": "transductive"}
    save(store, "clip/zero_shot", right(20))
    for shots in (1, 4):
        save(store, "clip/coop", right(10), data__shots=shots)
        save(store, "clip/together", right(10), data__shots=shots, **together)
    save(store, "clip/other", right(40), data__shots=4, **together)

    blocks = build_summary(store).blocks

    found = {(b.setting, b.shots): [r.label for r in b.rows] for b in blocks}
    assert found == {
        ("inductive", 1): ["clip/coop", "clip/zero_shot"],
        ("inductive", 4): ["clip/coop", "clip/zero_shot"],
        ("transductive", 1): ["clip/together"],
        ("transductive", 4): ["clip/together", "clip/other"],
    }
    assert all(len({r.row.setting for r in b.rows}) == 1 for b in blocks)
    titles = [b.title for b in blocks if b.setting != "inductive"]
    assert all(title.endswith(", transductive") for title in titles)
    text = render_summary(build_summary(store))
    assert "Rows of different settings are never compared." in text


def test_rows_of_different_settings_are_not_compared_even_if_ranked_together(tmp_path):
    store = RunStore(tmp_path)
    save(store, "clip/coop", right(1))
    save(store, "clip/together", right(40), method__setting="transductive")
    rows = [r.row for b in build_summary(store).blocks for r in b.rows]

    ranked, comparisons = rank(rows)

    assert not comparisons
    assert not any(r.best for r in ranked)
    assert len({r.letters for r in ranked}) == len(ranked)
