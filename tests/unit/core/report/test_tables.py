from __future__ import annotations

import csv
import io
from html.parser import HTMLParser

import numpy as np
import pytest

from clipadapt.core.api.errors import RecordError, UnknownNameError
from clipadapt.core.records.predictions import Predictions
from clipadapt.core.report.grouping import group_records
from clipadapt.core.report.notes import conditions
from clipadapt.core.report.rows import Row
from clipadapt.core.report.tables import build_table, render, render_per_class
from tests.unit.core.records.test_records import ENVIRONMENT, make_failure, make_record, metric

TORCH = repr(ENVIRONMENT.packages["torch"])


def somewhere(**changes):
    return ENVIRONMENT.model_copy(update=changes)


def installed(name, version):
    return somewhere(packages={**ENVIRONMENT.packages, name: version})


def run(seed=1, value=0.723, low=0.681, high=0.76, **changes):
    changes.setdefault("metrics", {"accuracy": metric(value, low, high)})
    fields = {"run_id": f"{seed:016x}", "seed": seed, **changes}
    return make_record(**fields)


def markdown(records, **options):
    lines = render(build_table(records, **options)).splitlines()
    cells = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    return [[c.strip() for c in row] for row in cells[:1] + cells[2:]]


def test_one_seed_keeps_its_own_interval():
    header, row = markdown([run()])
    assert dict(zip(header, row, strict=True)) == {
        "dataset": "folder:photo",
        "split": "test",
        "model": "stitched",
        "method": "clip/coop (coop-quick)",
        "shots": "4",
        "seeds": "1",
        "n": "100",
        "accuracy, %": "72.3 [68.1, 76.0]",
        "parameters": "8,192",
        "fit, s": "1.50",
        "encode, s": "20.0",
        "predict, s": "0.50",
        "peak memory, MiB": "300",
        "flags": "",
    }


def test_without_predictions_a_mean_over_seeds_has_no_interval():
    (line,) = build_table([run(seed, v) for seed, v in enumerate([0.70, 0.74, 0.75])]).lines
    assert (line.seeds, line.interval.value) == (3, pytest.approx(0.73))
    assert (line.interval.low, line.interval.high) == (None, None)


def test_costs_are_means_memory_is_the_largest_and_flags_are_counted():
    records = [
        run(1, cost__fit_seconds=1.0, cost__peak_memory_bytes=100, flags=["collapse", "leakage"]),
        run(2, cost__fit_seconds=3.0, cost__peak_memory_bytes=None, flags=["leakage"]),
        run(3, cost__fit_seconds=5.0, cost__peak_memory_bytes=900),
    ]
    table = build_table(records)
    row = table.lines[0].row
    assert row.fit_seconds == pytest.approx(3.0)
    assert row.peak_memory_bytes == 900
    assert row.flags == {"collapse": 1, "leakage": 2}
    assert "collapse (1 of 3), leakage (2 of 3)" in render(table, "html")


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation__dataset": "openmoji:line"},
        {"evaluation__split": "val"},
        {"evaluation__protocol": "base_to_new"},
        {"model__name": "other"},
        {"method__name": "clip/lora"},
        {"method__recipe": "coop"},
        {"data__shots": 8},
        {"data__shots": None},
        {"model": None},
        {"data__sha256": "d2"},
        {"method__recipe": None},
    ],
)
def test_groups(changes):
    records = [run(1), run(2, **changes)]
    assert [line.seeds for line in build_table(records).lines] == [1, 1]
    assert build_table(records).lines == build_table(records[::-1]).lines


def test_the_protocol_is_a_column_only_if_it_differs():
    assert "protocol" not in markdown([run(1)])[0]
    header, *rows = markdown([run(1), run(2, evaluation__protocol="base_to_new")])
    assert [row[header.index("protocol")] for row in rows] == [r"base\_to\_new", "standard"]


@pytest.mark.parametrize(
    ("changes", "field", "first", "second"),
    [
        ({"data__n_test": 50}, "data.n_test", "100", "50"),
        ({"model__weights_sha256": "w2"}, "model.weights_sha256", "'w1'", "'w2'"),
        ({"method__version": 2}, "method.version", "1", "2"),
        ({"environment": installed("torch", "1.0")}, "environment.packages.torch", TORCH, "'1.0'"),
    ],
)
def test_records_that_differ_are_refused_with_names_and_values(changes, field, first, second):
    with pytest.raises(RecordError) as caught:
        build_table([run(1), run(2, **changes)])
    assert str(caught.value) == (
        "runs of clip/coop (coop-quick) on folder:photo (seeds 1 and 2) cannot be averaged because they differ:\n"
        f"  {field}: {first} in 0000000000000001, {second} in 0000000000000002\n"
        "  hint: move the folders of one of them elsewhere, or run all seeds again with another --out DIR"
    )


def test_a_method_without_training_is_one_row_whatever_the_shots():
    def zero_shot(run_id, shots):
        method = {"method__name": "clip/zero_shot", "method__uses_train": False}
        return run(1, run_id=run_id * 16, data__shots=shots, **method)

    header, *rows = markdown([zero_shot("a", None), zero_shot("b", 4), run(2)])

    shots = header.index("shots")
    assert {(r[header.index("method")].split()[0], r[shots]) for r in rows} == {
        ("clip/coop", "4"),
        ("clip/zero\\_shot", "-"),
    }
    assert len(rows) == 2


@pytest.mark.parametrize("name", ["ece_calibrated", "set_coverage"])
def test_a_metric_calibrated_on_val_has_a_row_for_each_number_of_shots(name):
    records = [
        run(1, run_id=f"{k}" * 16, data__shots=k, method__name="clip/zero_shot",
            method__uses_train=False, metrics={name: metric(k / 100, 0.0, 1.0)})
        for k in (1, 4)
    ]  # fmt: skip
    header, *rows = markdown(records, metric=name)
    assert [r[header.index("shots")] for r in rows] == ["1", "4"]


def test_equal_conditions_are_stated_once():
    records = [run(1), run(2, run_id="b" * 16, evaluation__dataset="folder:sketch")]

    (said,) = (n for n in build_table(records).notes if n.startswith("Evaluated on"))

    assert said.startswith("Evaluated on: folder:photo (test), folder:sketch (test): protocol ")


def test_the_seconds_of_encoding_are_explained_where_there_are_any():
    def said(**cost):
        return [n for n in build_table([run(1, **cost)]).notes if n.startswith("encode, s: ")]

    assert len(said()) == 1
    assert said(cost__encode_seconds=0.0) == []


@pytest.mark.parametrize(
    ("changes", "first", "second"),
    [
        ({"model__dtype": "bf16"}, "dtype=fp32", "dtype=bf16"),
        ({"environment": somewhere(device="cuda:1")}, "device=cpu", "device=cuda"),
        (
            {"config": {"method": {"name": "clip/coop", "lr": 0.002}, "fast": "off"}},
            "",
            "fast=off",
        ),
        ({"environment": somewhere(threads=7)}, "threads=2", "threads=7"),
        ({"evaluation__templates": ["{}"]}, "templates=a photo of a {}.", "templates={}"),
        ({"evaluation__templates": ["{}", "a {}"]}, "templates=a photo of a {}.", "templates=2"),
        ({"evaluation__classnames_sha256": "c2"}, "classnames=c1", "classnames=c2"),
        (
            {"config": {"data": {"name": "x"}, "method": {"name": "clip/coop", "lr": 0.1}}},
            "method.lr=0.002",
            "method.lr=0.1",
        ),
        (
            {"config": {"method": {"name": "clip/coop", "lr": 0.002, "r": 4}}},
            "",
            "method.r=4",
        ),
    ],
)
def test_rows_with_other_settings_are_labelled_with_them(changes, first, second):
    table = build_table([run(1), run(2), run(1, run_id="b" * 16, **changes)])

    own = (first,) if first else ()
    assert {(x.seeds, x.row.group.settings) for x in table.lines} == {(2, own), (1, (second,))}
    assert "settings" in render(table)
    assert "settings" not in render(build_table([run(1), run(2)]))


@pytest.mark.parametrize(
    ("with_templates", "words"),
    [
        (False, "prompts in words (cupl), class names"),
        (True, 'prompts in words (cupl), template "a photo of a {}.", class names'),
    ],
)
def test_prompts_in_words_are_named_instead_of_the_template(with_templates, words):
    told = {"method__prompts": "prompts in words (cupl)", "method__uses_templates": with_templates}

    record = make_record(evaluation__templates=["a photo of a {}."], **told)

    assert words in conditions([record])


@pytest.mark.parametrize(("paths", "hashes", "n_rows"), [("aa", "12", 2), ("ab", "11", 1)])
def test_a_file_in_the_settings_counts_by_its_content(paths, hashes, n_rows):
    key = "method.prompts.descriptions"
    records = [
        run(
            seed,
            config={"method": {"prompts": {"form": "cupl", "descriptions": path}}},
            method__contents={key: digit * 64},
        )
        for seed, path, digit in zip((1, 2), paths, hashes, strict=True)
    ]

    table = build_table(records)

    assert len(table.lines) == n_rows
    if n_rows == 2:
        assert all(digit * 8 in render(table) for digit in hashes)


def test_settings_that_do_not_affect_the_result_are_ignored():
    def config(path, **more):
        return {"data": {"name": path}, "method": {"name": "clip/coop"}, **more}

    records = [
        run(1, config=config("folder:photo", seeds=[1], workers=2, store="on")),
        run(2, config=config("folder:/elsewhere/photo", seeds=[1, 2], workers=None, store="off")),
    ]
    assert build_table(records).lines[0].seeds == 2


def test_two_runs_of_one_seed_are_refused_but_copies_count_once():
    table = build_table([run(1), run(1), run(2, 0.8)])
    assert table.lines[0].seeds == 2
    assert "count once: 1 left out" in render(table)
    with pytest.raises(RecordError, match=r"2 runs of .* have the same seed 1: a+, b+"):
        build_table([run(1, run_id="a" * 16), run(1, run_id="b" * 16)])


def test_failed_runs_are_counted_and_never_averaged():
    records = [
        run(1),
        make_failure(run_id="f1", seed=2),
        make_failure(run_id="f2", seed=1, method__name="clip/lora", method__recipe=None),
    ]
    table = build_table(records)
    coop, lora = table.lines
    assert (coop.seeds, len(coop.row.failed), coop.interval.value) == (1, 1, 0.723)
    assert (lora.seeds, len(lora.row.failed), lora.interval) == (0, 1, None)
    assert table.notes[0] == (
        "2 failed runs, not included in any mean: clip/coop (coop-quick) on folder:photo, seed 2: ValueError: nan; "
        "clip/lora on folder:photo, seed 1: ValueError: nan."
    )
    for text in (render(table, f) for f in ("markdown", "latex", "html")):
        assert "2 failed runs" in text
    only = build_table(records[1:2])
    assert only.lines[0].interval is None
    assert "| - |" in render(only)


def test_metrics_are_shown_in_their_unit():
    metrics = {
        "accuracy": metric(0.5),
        "nll": metric(1.23456, 1.1, 1.4, unit="nats", higher=False),
    }
    header, row = markdown([run(metrics=metrics)], metric="nll")
    assert row[header.index("NLL, nats (lower is better)")] == "1.235 [1.100, 1.400]"
    header, row = markdown([run(metrics=metrics)])
    assert row[header.index("accuracy, %")] == "50.0"


def test_an_unknown_metric_lists_those_present():
    with pytest.raises(UnknownNameError) as caught:
        build_table([run()], metric="acuracy")
    assert caught.value.problem == (
        "unknown metric 'acuracy'; did you mean 'accuracy'? Known: accuracy"
    )


def test_a_metric_that_some_groups_lack_is_empty_there():
    metrics = {"accuracy": metric(0.5), "top5_accuracy": metric(0.9)}
    table = build_table([run(1, metrics=metrics), run(2, data__shots=8)], metric="top5_accuracy")
    assert [x.interval and x.interval.value for x in table.lines] == [0.9, None]
    with pytest.raises(RecordError, match=r"metrics.top5_accuracy.unit: 'fraction' in .*, None in"):
        build_table([run(1, metrics=metrics), run(2)], metric="top5_accuracy")


def test_no_records_is_a_clear_error():
    with pytest.raises(RecordError, match="no records to make a table of"):
        build_table([])


def test_csv_holds_raw_fractions():
    records = [
        run(1, 0.7),
        run(2, 0.8),
        make_failure(run_id="f", method__name='a,"b"\nc', model=None),
    ]
    rows = list(csv.DictReader(io.StringIO(render(build_table(records), "csv"))))
    assert {r["method"] for r in rows} == {"clip/coop", 'a,"b"\nc'}
    row = next(r for r in rows if r["method"] == "clip/coop")
    assert float(row["value"]) == pytest.approx(0.75)
    assert (row["low"], row["high"], row["n"]) == ("", "", "100")
    assert row["metric"] == "accuracy"
    assert row["unit"] == "fraction"
    assert row["peak_memory_bytes"] == str(300 << 20)
    failed = next(r for r in rows if r["method"] != "clip/coop")
    assert (failed["seeds"], failed["failed"], failed["value"], failed["model"]) == (
        "0",
        "1",
        "",
        "",
    )


NASTY = r"[a|b] & <c> 50% $x$ #1_2 {d} ~e^ \f `g` *h*"


def test_markdown_is_escaped():
    text = render(build_table([run(evaluation__dataset=NASTY + "\nnext")]))
    row = text.splitlines()[2]
    assert row.startswith(
        r"| \[a\|b\] &amp; &lt;c&gt; 50% \$x\$ \#1\_2 \{d\} \~e^ \\f \`g\` \*h\* next | test |"
    )
    assert len(text.splitlines()[0].replace(r"\|", "").split("|")) == len(
        row.replace(r"\|", "").split("|")
    )


def test_latex_is_escaped():
    text = render(build_table([run(evaluation__dataset=NASTY)]), "latex")
    assert (
        r"{[}a\textbar{}b] \& \textless{}c\textgreater{} 50\% \$x\$ \#1\_2 \{d\} \textasciitilde{}e"
        r"\textasciicircum{} \textbackslash{}f `g` *h* & test & stitched & clip/coop (coop-quick) &"
    ) in text
    assert r"accuracy, \%" in text
    assert "72.3 [68.1, 76.0]" in text
    assert "\\begin{tabular}{llllrrrrrrrrrl}" in text


def test_html_is_escaped():
    class Cells(HTMLParser):
        def __init__(self):
            super().__init__()
            self.tags, self.texts = [], []

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)

        def handle_data(self, data):
            self.texts.append(data)

    parser = Cells()
    parser.feed(render(build_table([run(evaluation__dataset="<script>" + NASTY)]), "html"))
    assert "<script>" + NASTY in parser.texts
    assert set(parser.tags) <= {"table", "thead", "tbody", "tr", "th", "td", "p"}


def test_an_unknown_format_is_named():
    with pytest.raises(UnknownNameError, match="unknown table format 'md'"):
        render(build_table([run()]), "md")


def test_recall_per_class_with_its_interval():
    record = run(per_class={"classnames": ["a|b", "c", "none"]})
    labels = np.repeat([0, 1], 10)
    given = np.repeat([0, 1, 0, 1], [8, 2, 5, 5])
    scores = np.eye(3, dtype=np.float32)[given]

    lines = render_per_class(
        record, Predictions(tuple(map(str, range(20))), labels, scores)
    ).splitlines()

    assert lines[0] == "| class | n | recall, % | most often predicted as |"
    assert lines[2].startswith("| a\\|b | 10 | 80.0 [")
    assert lines[2].endswith("| c |")
    assert lines[3].startswith("| c | 10 | 50.0 [")
    assert lines[4] == "| none | 0 | - | - |"


def test_a_setting_has_a_column_where_a_row_is_not_inductive():
    runs = [run(1), run(2, method__name="clip/together", method__setting="transductive")]

    header, *rows = markdown(runs)
    text = render(build_table(runs))

    assert {r[header.index("setting")] for r in rows} == {"inductive", "transductive"}
    assert "Rows of different settings are never compared." in text
    assert "setting" not in markdown(runs[:1])[0]
    assert "Setting:" not in render(build_table(runs[:1]))
    last = list(csv.DictReader(io.StringIO(render(build_table(runs), "csv"))))
    assert {row["setting"] for row in last} == {"inductive", "transductive"}


def test_runs_of_different_settings_are_never_averaged():
    runs = [run(1, value=0.5), run(2, value=0.7, method__setting="online")]

    assert [line.seeds for line in build_table(runs).lines] == [1, 1]


def of_kinds(*kinds, metric_name="nll"):
    return [
        run(
            seed=1,
            run_id=f"{i:016x}",
            method__name=f"clip/m{i}",
            probabilities=kind,
            metrics={
                "accuracy": metric(0.7, 0.6, 0.8),
                metric_name: metric(2.5 + i, 2.0, 4.0, unit="nats", higher=False),
            },
        )
        for i, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize("name", ["nll", "brier", "ece", "ece_calibrated"])
def test_a_column_of_unlike_probabilities_says_so(name):
    table = build_table(of_kinds("sigmoid", "softmax", metric_name=name), metric=name)
    (note,) = (n for n in table.notes if "sigmoid" in n)
    assert "cannot be compared" in note
    header, *rows = markdown(of_kinds("sigmoid", "softmax", metric_name=name), metric=name)
    assert [r[header.index("probabilities")] for r in rows] == ["sigmoid", "softmax"]
    cells = csv.DictReader(io.StringIO(render(table, "csv")))
    assert [c["probabilities"] for c in cells] == ["sigmoid", "softmax"]


def test_like_probabilities_and_accuracies_need_no_note():
    for records, name in (
        (of_kinds("sigmoid", "sigmoid"), "nll"),
        (of_kinds("softmax", "softmax"), "nll"),
        (of_kinds("sigmoid", "softmax"), "accuracy"),
    ):
        table = build_table(records, metric=name)
        assert not [n for n in table.notes if "sigmoid" in n]
        assert "probabilities" not in markdown(records, metric=name)[0]


def test_a_margin_without_the_metric_does_not_make_a_column_unlike():
    sigmoid, margin = of_kinds("sigmoid", "softmax")
    margin = run(run_id="a" * 16, method__name="clip/zero")
    assert not [n for n in build_table([sigmoid, margin], metric="nll").notes if "sigmoid" in n]


def test_seeds_of_unlike_probabilities_have_no_mean():
    first, second = of_kinds("sigmoid", "softmax")
    second = second.model_copy(update={"seed": 2, "method": first.method})
    with pytest.raises(RecordError, match="probabilities: 'sigmoid' in .* 'softmax' in"):
        build_table([first, second], metric="nll")
    (group,) = group_records([first, second])
    assert Row(group).mean("nll") is None
    assert Row(group).mean("accuracy") == pytest.approx(0.7)
