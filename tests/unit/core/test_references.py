from __future__ import annotations

import csv
import io

import pytest

from clipadapt.core.errors import ConfigError
from clipadapt.core.references import (
    all_references,
    caveats,
    differences,
    nearest_references,
    parse,
    references_for,
)
from clipadapt.core.tables import build_table, render
from tests.unit.core.test_records import make_record, metric

SVM = {"kernel": "rbf", "C": 1.0, "C_grid": [], "pooling": "cls", "layer": -1, "standardize": False}


def sentiment(method="text/svm", *, dataset="rotten_tomatoes", settings=None, **changes):
    config = {
        "data": {"name": dataset, "limit": None},
        "method": {"name": method, **(settings or SVM)},
    }
    values = {
        "data__name": dataset,
        "data__shots": None,
        "data__n_test": 1066,
        "evaluation__dataset": dataset,
        "evaluation__templates": [],
        "model__name": "distilbert-base-uncased",
        "method__name": method,
        "method__recipe": None,
        "config": config,
    }
    return make_record(**{**values, **changes})


def zero_shot(dataset, model, n_templates, **changes):
    return make_record(
        method__name="clip/zero_shot",
        evaluation__dataset=dataset,
        evaluation__templates=["{}"] * n_templates,
        model__name=model,
        **changes,
    )


def test_every_published_number_is_a_fraction_with_a_source():
    found = all_references()

    assert len(found) > 80
    for reference in found:
        assert reference.source
        assert reference.test
        assert all(0 < v < 1 for name, v in reference.test.items() if name != "nll")
    keys = [r.model_dump_json(exclude={"test", "val"}) for r in found]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("method", "settings", "val", "test", "parameters"),
    [
        ("text/svm", SVM, 0.8143, 0.7946, 0),
        ("text/full_finetune", {"lr": 5e-5}, 0.8424, 0.8358, 66_955_010),
        ("text/lora", {"r": 16}, 0.8415, 0.8293, 887_042),
    ],
)
def test_the_sentiment_tracks(method, settings, val, test, parameters):
    (found,) = references_for(sentiment(method, settings=settings))

    assert (found.val["accuracy"], found.test["accuracy"]) == (val, test)
    assert found.n_trainable_params == parameters
    assert caveats(sentiment(method, settings=settings), found) == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "rotten_tomatoes:offline"}, "data rotten_tomatoes:offline, published on rotten_tomatoes"),
        ({"model__name": "minilm"}, "model minilm, published with distilbert-base-uncased"),
        ({"settings": {**SVM, "kernel": "linear"}}, "method.kernel=linear, published with rbf"),
        ({"data__name": "csv:mine.csv"}, "learnt from csv:mine.csv, published from rotten_tomatoes"),
    ],
)  # fmt: skip
def test_what_differs_is_named_and_does_not_fit(changes, words):
    record = sentiment(**changes)

    assert references_for(record) == []
    (near,) = nearest_references(record)
    assert near.test["accuracy"] == 0.7946
    assert words in differences(record, near)


def test_other_shots_methods_and_data_are_not_even_near():
    for changes in ({"data__shots": 16}, {"method": "text/logreg"}, {"dataset": "csv:mine.csv"}):
        assert nearest_references(sentiment(**changes)) == []


def test_other_examples_are_a_caveat():
    (reference,) = references_for(sentiment())

    assert caveats(sentiment(flags=("not_the_official_split",)), reference) == (
        "not the official split",
    )
    assert caveats(sentiment(data__n_test=200), reference) == (
        "judged on 200 examples, published on 1,066",
    )
    limited = zero_shot(
        "imagenet", "ViT-B-32-quickgelu/openai", 80, config={"data": {"name": "i", "limit": 100}}
    )
    assert caveats(limited, references_for(limited)[0]) == ("judged on 100 examples only",)


def test_templates_tell_zero_shot_numbers_apart_and_shots_do_not():
    model = "ViT-B-32-quickgelu/openai"
    for shots in (None, 16):
        single = references_for(zero_shot("imagenet_sketch", model, 1, data__shots=shots))
        ensemble = references_for(zero_shot("imagenet-sketch", model, 80, data__shots=shots))
        assert [r.test["accuracy"] for r in single] == [0.4082]
        assert [r.test["accuracy"] for r in ensemble] == [0.4230, 0.4229]


def test_a_shift_of_data_needs_the_data_learnt_from():
    changes = {
        "method__name": "clip/coop",
        "model__name": "RN50-quickgelu/openai",
        "evaluation__dataset": "imagenet-sketch",
        "data__shots": 16,
        "config": {"method": {"n_ctx": 16}},
    }
    (found,) = references_for(make_record(data__name="imagenet", **changes))
    assert found.test["accuracy"] == 0.3104
    assert references_for(make_record(data__name="imagenet-sketch", **changes)) == []


def test_a_bad_file_names_the_number():
    with pytest.raises(ConfigError, match=r"x.yaml is no file of published numbers: test.accuracy"):
        parse(
            [{"source": "s", "dataset": "d", "models": ["m"], "numbers": [{"method": "a", "test": {"accuracy": "?"}}]}],
            "x.yaml",
        )  # fmt: skip


# ---------------------------------------------------------------- in the table


def header_and_rows(table):
    lines = [x for x in render(table).splitlines() if x.startswith("|")]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return cells[0], cells[2:]


def test_the_table_has_published_figures_where_they_fit_and_only_when_asked():
    metrics = {"accuracy": metric(0.80)}
    records = [
        sentiment(run_id="a", metrics=metrics),
        sentiment(run_id="b", model__name="minilm", metrics=metrics),
        sentiment(run_id="c", flags=("not_the_official_split",), method="text/lora", settings={"r": 16}),
    ]  # fmt: skip
    header, rows = header_and_rows(build_table(records, reference=True))
    at, model = header.index("published"), header.index("model")
    assert header[at - 2] == "accuracy, %"
    assert [(row[model], row[at]) for row in rows] == [
        ("distilbert-base-uncased", "82.9 (1, not comparable)"),
        ("distilbert-base-uncased", "79.5 (2)"),
        ("minilm", "-"),
    ]
    notes = build_table(records, reference=True).notes
    assert notes[-2].startswith("Published (1): sentiment tracks")
    assert notes[-2].endswith("not comparable: not the official split.")
    assert "not comparable" not in notes[-1]
    assert "published" not in header_and_rows(build_table(records))[0]


def test_val_and_other_metrics_have_their_own_published_figures():
    metrics = {"accuracy": metric(0.8), "nll": metric(0.4, unit="nats", higher=False)}
    val = sentiment(evaluation__split="val", metrics=metrics)
    header, (row,) = header_and_rows(build_table([val], reference=True))
    assert row[header.index("published")] == "81.4 (1)"
    test = sentiment("text/lora", settings={"r": 16}, metrics=metrics)
    header, (row,) = header_and_rows(build_table([test], metric="nll", reference=True))
    assert row[header.index("published")] == "0.432 (1)"


def test_a_table_without_a_fit_says_so():
    table = build_table([make_record()], reference=True)
    assert table.notes[-1].startswith("No published number fits")
    assert header_and_rows(table)[1][0][header_and_rows(table)[0].index("published")] == "-"


def test_csv_holds_published_fractions_and_sources():
    text = render(build_table([sentiment()], reference=True), "csv")
    (row,) = csv.DictReader(io.StringIO(text))
    assert row["published"] == "0.7946"
    assert row["published_source"].startswith("sentiment tracks")
    assert "published" not in render(build_table([sentiment()]), "csv")


def test_rows_that_learnt_elsewhere_are_told_apart():
    records = [
        make_record(run_id="a", evaluation__dataset="sketch", data__name="sketch"),
        make_record(run_id="b", evaluation__dataset="sketch", data__name="photo", data__sha256="d2"),
    ]  # fmt: skip
    assert {r.settings for r in build_table(records).rows} == {
        ("learnt from=None",),
        ("learnt from=photo",),
    }
