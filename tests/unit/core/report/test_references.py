from __future__ import annotations

import csv
import io

import pytest

from clipadapt.core.api.errors import ConfigError
from clipadapt.core.data.classnames import classnames_sha256
from clipadapt.core.report.references import (
    all_references,
    caveats,
    differences,
    parse,
    published_for,
)
from clipadapt.core.report.tables import build_table, render
from clipadapt.datasets._imagenet import CLASSNAMES, TEMPLATES_7, TEMPLATES_80, WNIDS
from clipadapt.datasets._wnid import imagenet_names
from tests.unit.core.records.test_records import make_record, metric


def references_for(record):
    """Return the numbers that match a run."""
    return [p.reference for p in published_for([record]) if not p.differences]


def nearest_references(record):
    return [p.reference for p in published_for([record])]


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
        "data__n_classes": 2,
        "evaluation__dataset": dataset,
        "evaluation__templates": [],
        "model__name": "distilbert-base-uncased",
        "method__name": method,
        "method__recipe": None,
        "config": config,
    }
    return make_record(**{**values, **changes})


MODEL = "ViT-B-32-quickgelu/openai"
TEMPLATES = {1: ["a photo of a {}."], 7: list(TEMPLATES_7), 80: list(TEMPLATES_80)}


def zero_shot(dataset, model, n_templates, **changes):
    fields = {
        "method__name": "clip/zero_shot",
        "method__uses_train": False,
        "evaluation__dataset": dataset,
        "evaluation__templates": TEMPLATES[n_templates],
        "evaluation__classnames_sha256": classnames_sha256(CLASSNAMES),
        "model__name": model,
        "data__name": dataset,
        "data__n_classes": 1000,
        "data__n_test": 50_000,
    }
    return make_record(**{**fields, **changes})


def test_every_published_number_is_a_fraction_with_a_source():
    found = all_references()

    assert len(found) > 380
    for reference in found:
        assert reference.source
        assert "not recorded" not in reference.cited
        assert reference.n_test or reference.over
        assert reference.n_classes or reference.over or "TextAttack" in reference.source
        assert bool(reference.test) != bool(reference.base_to_new)
        assert all(0 < v < 1 for name, v in reference.test.items() if name != "nll")
        assert all(0 < v < 1 for v in reference.base_to_new.values())
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
        ({"data__name": "csv:mine.csv"}, "trained on csv:mine.csv, published for training on rotten_tomatoes"),
    ],
)  # fmt: skip
def test_differences_are_named_and_the_number_does_not_match(changes, words):
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
        "evaluated on 200 examples, published on 1,066",
    )
    limited = zero_shot(
        "imagenet", MODEL, 80, data__n_test=100, config={"data": {"name": "i", "limit": 100}}
    )
    assert caveats(limited, references_for(limited)[0]) == (
        "evaluated on 100 examples, published on 50,000",
    )
    val = sentiment(evaluation__split="val", config={"data": {"limit": 50}, "method": SVM})
    assert caveats(val, references_for(val)[0]) == ("evaluated on 1,066 examples only",)


def test_a_number_is_comparable_if_everything_that_affects_it_is_equal():
    record = zero_shot("imagenet", MODEL, 80)
    (reference,) = references_for(record)
    assert reference.test["accuracy"] == 0.6333
    assert caveats(record, reference) == ()
    assert caveats(zero_shot("imagenet", MODEL, 80, model__dtype="fp16"), reference) == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__n_classes": 7}, "evaluated on 7 classes, published on 1,000"),
        (
            {"per_class": {"classnames": list("abcdefg")}},
            "evaluated on 7 classes, published on 1,000",
        ),
        (
            {"evaluation__classnames_sha256": classnames_sha256(CLASSNAMES[::-1])},
            "other class names, or in another order",
        ),
        ({"model__dtype": "bf16"}, "computed in bf16, published in fp16"),
        ({"data__skipped": 3}, "3 examples could not be read"),
        ({"data__n_test": 49_000}, "evaluated on 49,000 examples, published on 50,000"),
        ({"flags": ("not_the_official_data",)}, "not the official data"),
    ],
)
def test_everything_that_affects_a_number_is_compared(changes, words):
    record = zero_shot("imagenet", MODEL, 80, **changes)
    (reference,) = references_for(record)
    assert words in caveats(record, reference)
    table = build_table([record], reference=True)
    assert table.lines[0].published == ()
    assert table.notes[-1].startswith("Not comparable with clip/zero_shot")
    assert f"What differs: {words}. Source: " in table.notes[-1]


def test_seven_of_the_200_classes_of_imagenet_r_are_another_task():
    record = zero_shot("imagenet-r", MODEL, 80, data__n_classes=7, data__n_test=30_000)
    assert caveats(record, references_for(record)[0]) == (
        "evaluated on 7 classes, published on 200",
    )


def test_base_and_all_classes_are_different_protocols():
    (reference,) = references_for(zero_shot("imagenet", MODEL, 80))
    evaluated = zero_shot("imagenet", MODEL, 80, evaluation__classes="base")
    assert differences(evaluated, reference) == ("evaluated on the base classes, published on all",)

    changes = {
        "method__name": "clip/coop",
        "method__uses_train": True,
        "model__name": "RN50-quickgelu/openai",
        "data__shots": 16,
    }
    config = {"data": {"name": "imagenet", "classes": "base"}, "method": {"n_ctx": 16}}
    record = zero_shot("imagenet", MODEL, 1, config=config, **changes)
    (near,) = nearest_references(record)
    assert differences(record, near) == ("trained on the base classes, published on all",)


def test_templates_are_compared_by_content():
    own = ["a picture of a {}.", *TEMPLATES_80[1:]]
    record = zero_shot("imagenet", MODEL, 80, evaluation__templates=own)
    assert references_for(record) == []
    (near,) = nearest_references(record)
    assert differences(record, near) == ("80 templates, 1 of them not among those published",)
    backwards = zero_shot("imagenet", MODEL, 80, evaluation__templates=TEMPLATES[80][::-1])
    assert references_for(backwards)
    one = zero_shot("imagenet", MODEL, 1, evaluation__templates=["{}"])
    assert any("template '{}', published with" in d for d in differences(one, references_for(
        zero_shot("imagenet", MODEL, 1))[0]))  # fmt: skip


def test_the_table_says_why_the_nearest_number_does_not_match():
    table = build_table([zero_shot("imagenet", MODEL, 7)], reference=True)
    assert table.lines[0].published == ()
    (near,) = [note for note in table.notes if note.startswith("Not comparable")]
    assert near.startswith(
        "Not comparable with clip/zero_shot (coop-quick): published imagenet 63.3."
    )
    assert near.endswith(
        "What differs: 7 templates, published with 80. Source: CLIP_benchmark, benchmark/benchmark.csv."
    )


def test_hashes_of_class_names_in_the_files_are_those_of_the_datasets():
    hashes = {r.classnames_sha256 for r in all_references()} - {None}
    assert hashes == {classnames_sha256(imagenet_names(WNIDS))}


def test_prompts_in_words_are_not_comparable_with_templates():
    plain = zero_shot("imagenet", MODEL, 80)
    words = zero_shot("imagenet", MODEL, 80, method__prompts="prompts in words (cupl)")
    (reference,) = references_for(plain)

    assert differences(words, reference) == ("prompts in words (cupl), published with templates",)


def test_zero_shot_numbers_are_distinguished_by_templates_and_not_by_shots():
    model = "ViT-B-32-quickgelu/openai"
    for shots in (None, 16):
        single = references_for(zero_shot("imagenet_sketch", model, 1, data__shots=shots))
        ensemble = references_for(zero_shot("imagenet-sketch", model, 80, data__shots=shots))
        assert [r.test["accuracy"] for r in single] == [0.4082]
        assert [r.test["accuracy"] for r in ensemble] == [0.4230, 0.4229]


def test_a_number_under_shift_needs_the_same_training_data():
    changes = {
        "method__name": "clip/coop",
        "method__uses_train": True,
        "model__name": "RN50-quickgelu/openai",
        "evaluation__dataset": "imagenet-sketch",
        "data__shots": 16,
        "config": {"method": {"n_ctx": 16}},
    }
    (found,) = references_for(make_record(data__name="imagenet", **changes))
    assert found.test["accuracy"] == 0.3104
    assert references_for(make_record(data__name="imagenet-sketch", **changes)) == []


def test_a_bad_file_names_the_number():
    with pytest.raises(
        ConfigError, match=r"x.yaml is not a valid file of published numbers: test.accuracy"
    ):
        parse(
            [{"source": "s", "dataset": "d", "models": ["m"], "numbers": [{"method": "a", "test": {"accuracy": "?"}}]}],
            "x.yaml",
        )  # fmt: skip


# ---------------------------------------------------------------- in the table


def header_and_rows(table):
    lines = [x for x in render(table).splitlines() if x.startswith("|")]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return cells[0], cells[2:]


def test_the_table_shows_published_numbers_that_match_and_only_on_request():
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
        ("distilbert-base-uncased", "-"),
        ("distilbert-base-uncased", "79.5 (1)"),
        ("minilm", "-"),
    ]
    notes = build_table(records, reference=True).notes
    draws, source, split, model = notes[-4:]
    assert "seeds and few-shot draws" in draws
    assert source.startswith("Published (1): sentiment tracks")
    assert split.startswith("Not comparable with text/lora: published rotten_tomatoes 82.9.")
    assert "What differs: not the official split. Source" in split
    assert "What differs: model minilm, published with distilbert-base-uncased. Source" in model
    assert "published" not in header_and_rows(build_table(records))[0]


def test_val_and_other_metrics_have_their_own_published_numbers():
    metrics = {"accuracy": metric(0.8), "nll": metric(0.4, unit="nats", higher=False)}
    val = sentiment(evaluation__split="val", metrics=metrics)
    header, (row,) = header_and_rows(build_table([val], reference=True))
    assert row[header.index("published")] == "81.4 (1)"
    test = sentiment("text/lora", settings={"r": 16}, metrics=metrics)
    header, (row,) = header_and_rows(build_table([test], metric="nll", reference=True))
    assert row[header.index("published")] == "0.432 (1)"


def test_a_table_without_a_match_says_so():
    table = build_table([make_record()], reference=True)
    assert table.notes[-1].startswith("No published number matches")
    assert header_and_rows(table)[1][0][header_and_rows(table)[0].index("published")] == "-"


def test_csv_holds_published_fractions_and_sources():
    text = render(build_table([sentiment()], reference=True), "csv")
    (row,) = csv.DictReader(io.StringIO(text))
    assert row["published"] == "0.7946"
    assert row["published_source"].startswith("sentiment tracks")
    assert "published" not in render(build_table([sentiment()]), "csv")


def test_rows_trained_on_other_data_are_labelled():
    records = [
        make_record(run_id="a", evaluation__dataset="sketch", data__name="sketch"),
        make_record(run_id="b", evaluation__dataset="sketch", data__name="photo", data__sha256="d2"),
    ]  # fmt: skip
    assert {x.row.group.settings for x in build_table(records).lines} == {
        (),
        ("trained on=photo",),
    }
