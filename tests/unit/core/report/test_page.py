from __future__ import annotations

import builtins
import json
import os
import pty
import re
import tracemalloc
from html.parser import HTMLParser

import numpy as np
import pytest

from clipadapt.core.api.errors import ClipAdaptError, RecordError
from clipadapt.core.records.predictions import Predictions
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.report import page as report
from clipadapt.core.report.formats import format_interval
from clipadapt.core.report.gains import gains
from clipadapt.core.report.section import SECTIONS, section
from clipadapt.core.report.sections.cost import pareto
from clipadapt.core.report.summary import build_summary
from clipadapt.core.report.tables import build_table, render
from clipadapt.core.scoring.metrics import METRICS, ExampleValues
from clipadapt.core.scoring.metrics import metric as metric_function
from tests.unit.core.records.test_records import make_record, metric
from tests.unit.core.report.report_runs import DATA, HOSTILE, NAMES, PATH, save_all, save_run


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text of every element of a section."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._section = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self._section = dict(attrs)["id"]

    def handle_data(self, data):
        if data.strip():
            self.texts.setdefault(self._section, []).append(" ".join(data.split()))

    def text(self, section: str) -> str:
        return " ".join(self.texts[section])


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> RunStore:
    return save_all(tmp_path_factory.mktemp("report") / "runs")


@pytest.fixture(scope="module")
def html(store) -> str:
    return report.build_report(store.root)[0]


@pytest.fixture(scope="module")
def page(html) -> Reader:
    return Reader(html)


def test_every_row_shows_the_figures_of_the_summary(store, page):
    shown = page.text("leaderboard")
    for block in build_summary(store).blocks:
        for ranked in block.rows:
            assert format_interval(ranked.row.accuracy).split(" ")[0] in shown
    rows = [a for tag, a in page.tags if tag == "tr" and "data-method" in a]
    # zero-shot and the margins once, two methods at three numbers of shots, the failure
    assert len(rows) == 1 + 1 + 6 + 1
    assert {r.get("data-shots") for r in rows} == {None, "1", "2", "4"}
    assert "(1 failed)" in shown


def test_class_names_paths_and_errors_are_escaped(html, page):
    assert HOSTILE not in html
    assert PATH not in html
    assert [a for tag, a in page.tags if tag == "script"] == [{}]  # the page's own
    assert not [a for tag, a in page.tags if tag == "img" or any(k.startswith("on") for k in a)]
    assert "alert(1)" in page.text("classes")
    for name in NAMES:
        assert " ".join(name.split()) in page.text("classes")
    assert PATH in page.text("recipes")
    assert f"RuntimeError: {HOSTILE}" in page.text("data")


def test_the_page_makes_no_request_and_runs_only_its_own_script(html, page):
    (policy,) = [
        a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'", policy)
    assert "unsafe-inline" not in policy.partition("script-src")[2]
    links = [v for _, a in page.tags for k, v in a.items() if k in {"src", "href", "action"}]
    assert links
    assert all(link.startswith("#") for link in links)
    assert {url[:5] for url in re.findall(r"url\(([^)]*)\)", html)} == {"data:"}
    for target in (link[1:] for link in links):
        assert f'id="{target}"' in html


def test_each_picture_is_embedded_once(html, page):
    thumbs = [a["class"].split()[-1] for tag, a in page.tags if "thumb" in (a.get("class") or "")]
    assert thumbs
    styles = re.findall(r"^(?:<style>)?\.(t\d+)\{background-image", html, flags=re.MULTILINE)
    assert sorted(set(thumbs)) == sorted(set(styles))
    assert len(styles) == len(set(styles))
    assert "1: plain" in page.text("examples") or "2: plain" in page.text("examples")


def test_fixed_and_broken_are_counted_by_the_votes_of_the_seeds(store, page):
    from clipadapt.core.records.history import run_folder

    def share(method: str, shots: int | None):
        found = [
            RunStore.load_predictions(run_folder(store, r))
            for r in store.load_all()
            if r.method.name == method and r.data.shots == shots
        ]
        return sum((p.predicted == p.labels).astype(float) for p in found) / len(found)

    coop, probe = share("clip/coop", 4), share("clip/linear_probe", 4)
    one, two = ((coop > 0.5) & (probe < 0.5)).sum(), ((coop < 0.5) & (probe > 0.5)).sum()
    text = page.text("examples")
    n = len(coop)
    assert (
        f"{DATA}, test, 4 shots: {one} fixed, {two} broken of {n}" in text
        or f"{DATA}, test, 4 shots: {two} fixed, {one} broken of {n}" in text
    )


def test_margins_have_no_calibration_and_a_note_says_so(page):
    text = page.text("calibration")
    assert "The scores are margins, not logits" in text
    assert "calibration cannot be computed" in text
    assert "AURC, %" in text


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_unlike_probabilities_are_marked_and_noted(tmp_path, kind):
    store = RunStore(tmp_path)
    save_run(store, "clip/zero_shot", 0.3, shots=None, probabilities=kind)
    save_run(store, "clip/coop", 0.8, shots=4)

    shown = Reader(report.build_report(tmp_path)[0]).text("leaderboard")

    assert ("cannot be compared" in shown) == (kind == "sigmoid")
    assert shown.count(" sigmoid ") == (4 if kind == "sigmoid" else 0)  # three cells and the note


def test_recipes_leakage_and_environment_are_shown(page):
    assert f"A paper of {HOSTILE}" in page.text("recipes")
    assert "train and test 1 2 thumbnails" in page.text("data")
    assert "examples of the evaluation split, or near copies of them" in page.text("data")
    assert "Linux" in page.text("environment")
    assert "val loss" in page.text("curves")


def test_without_the_data_examples_are_named_by_id(tmp_path):
    store = RunStore(tmp_path)
    for method, strength in (("clip/coop", 2.0), ("clip/lora", 0.2)):
        save_run(store, method, strength, data__sha256="changed")

    page = Reader(report.build_report(tmp_path)[0])

    assert "it has changed since the run" in page.text("examples")
    assert not [a for _, a in page.tags if "thumb" in (a.get("class") or "")]
    assert re.search(r"test/red circle/\d+", page.text("examples"))


def test_examples_may_be_left_out(store):
    page = Reader(report.build_report(store.root, examples=False)[0])

    assert not [a for _, a in page.tags if "thumb" in (a.get("class") or "")]


def test_a_section_is_one_decorated_function(store, monkeypatch):
    report.build_report(store.root, examples=False)
    monkeypatch.delitem(SECTIONS, "environment")

    @section("Dates <of> runs", nav="Dates", order=15, template="<p>{{ first }}</p>")
    def dates_of_runs(page):
        return {"first": f"<{min(r.started_at for r in page.records).year}>"}

    monkeypatch.setitem(SECTIONS, "dates-of-runs", SECTIONS["dates-of-runs"])
    try:
        page = Reader(report.build_report(store.root, examples=False)[0])
    finally:
        del SECTIONS["dates-of-runs"]

    assert page.text("dates-of-runs").startswith("Dates <of> runs <20")
    assert list(page.texts)[1:4] == ["findings", "dates-of-runs", "leaderboard"]
    assert "environment" not in page.texts


def test_a_registered_metric_gets_a_column(tmp_path):
    @metric_function("share of class 0", leaderboard=("",))
    def first_class(s):
        return ExampleValues(s.predicted == 0)

    try:
        save_run(RunStore(tmp_path), "clip/coop", 1.0)
        page = Reader(report.build_report(tmp_path, examples=False)[0])
    finally:
        del METRICS["first_class"]

    assert "share of class 0, %" in page.text("leaderboard")


def test_unlike_records_are_not_averaged(tmp_path):
    store = RunStore(tmp_path)
    save_run(store, "clip/coop", 1.0, seed=1)
    save_run(store, "clip/coop", 1.0, seed=2, model__weights_sha256="other")

    with pytest.raises(RecordError, match=r"cannot be averaged(.|\n)*model.weights_sha256"):
        report.build_report(tmp_path)


def test_pareto_keeps_points_that_are_not_dominated():
    points = [(10.0, 0.5), (1.0, 0.4), (5.0, 0.4), (10.0, 0.6), (20.0, 0.6), (1.0, 0.3)]

    assert pareto(points) == [1, 3]
    assert pareto([]) == []


@pytest.mark.parametrize("program", ["clipadapt", "textsent"])
def test_the_command_writes_the_page(cli, store, tmp_path, program):
    output = tmp_path / "new folder" / "report.html"

    done = cli("report", store.root, "--output", output, program=program)

    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("21 runs:")
    assert output.read_text(encoding="utf-8").startswith("<!doctype html>")


def damaged(root, change):
    """Save one run and change its record's text."""
    save_run(RunStore(root), "clip/coop", 1.0)
    (path,) = root.rglob("record.json")
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda root: None, "no folder"),
        (lambda root: root.mkdir(), "there are no records in"),
        (lambda root: damaged(root, lambda t: t[: len(t) // 2]), "truncated or not a record"),
        (
            lambda root: damaged(root, lambda t: json.dumps({"schema_version": 99})),
            "schema version 99",
        ),
        (
            lambda root: damaged(root, lambda t: json.dumps({"schema_version": 1})),
            "not a valid record",
        ),
    ],
    ids=["missing", "empty", "truncated", "newer", "other"],
)
def test_runs_that_cannot_be_shown_give_one_message(cli, tmp_path, prepare, says):
    root, output = tmp_path / "runs", tmp_path / "report.html"
    prepare(root)

    done = cli("report", root, "--output", output)

    assert done.code == 2
    assert says in done.text
    assert "Traceback" not in done.err
    assert not output.exists()


def test_an_output_that_cannot_be_written_gives_one_message(cli, store, tmp_path):
    (tmp_path / "file").write_text("x")

    folder = cli("report", store.root, "--output", tmp_path)
    below_a_file = cli("report", store.root, "--output", tmp_path / "file" / "report.html")

    assert (folder.code, below_a_file.code) == (2, 2)
    assert "is a folder, not a file" in folder.text
    assert "cannot write to the folder" in below_a_file.text
    assert "--output" in below_a_file.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_without_jinja2_the_extra_is_named(store, monkeypatch):
    real = builtins.__import__

    def absent(name, *rest, **more):
        if name == "jinja2":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ClipAdaptError, match=r"clipadapt\[report\]"):
        report.build_report(store.root)


def test_unreadable_records_and_predictions_are_named_and_the_others_shown(cli, tmp_path):
    root, output = tmp_path / "runs", tmp_path / "report.html"
    store = RunStore(root)
    save_run(store, "clip/coop", 1.0, seed=1)
    record = store.run_dir(save_run(store, "clip/coop", 1.0, seed=2))
    scores = store.run_dir(save_run(store, "clip/lora", 1.0, seed=1))
    (record / "record.json").write_text("{")
    (scores / "predictions.npz").write_bytes(b"nothing")

    done = cli("report", root, "--output", output, "--no-examples")

    assert done.code == 0, done.err
    assert str(record) in done.err
    page = output.read_text(encoding="utf-8")
    head = page.split("<form")[0]
    assert str(record) in head
    assert str(scores) in head
    assert Reader(page).text("leaderboard").count("clip/coop") >= 1
    table = cli("table", root)
    assert table.code == 0
    assert str(record) in table.err
    assert "clip/lora" in table.out


def test_each_state_of_a_dataset_has_its_own_row(tmp_path):
    store = RunStore(tmp_path)
    save_run(store, "clip/coop", 1.0, seed=1, data__sha256="11112222" * 8)
    save_run(store, "clip/coop", 1.0, seed=2, data__sha256="33334444" * 8)

    page = Reader(report.build_report(tmp_path, examples=False)[0])

    for state in ("11112222", "33334444"):
        assert f"data {state}" in page.text("leaderboard")


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_written_through(cli, store, tmp_path, exists):
    target, link = tmp_path / "there" / "page.html", tmp_path / "report.html"
    target.parent.mkdir()
    if exists:
        target.write_text("old")
    link.symlink_to(target)

    assert cli("report", store.root, "--output", link, "--no-examples").code == 0

    assert link.is_symlink()
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("kind", ["device", "fifo", "loop"])
def test_devices_pipes_and_loops_are_refused(cli, store, tmp_path, kind):
    output = tmp_path / "report.html"
    if kind == "device":  # a terminal's: no test may risk the machine's own
        _, side = pty.openpty()
        output.symlink_to(os.ttyname(side))
    elif kind == "fifo":
        os.mkfifo(output)
    else:
        output.symlink_to(output)
    before = os.lstat(output)

    done = cli("report", store.root, "--output", output, "--no-examples")

    assert done.code == 2
    assert "Traceback" not in done.err
    assert os.path.samestat(before, os.lstat(output))


def test_table_and_page_of_20_000_classes_never_hold_the_confusion_matrix(tmp_path):
    n, kept = 20_000, 20
    labels, rng = np.arange(n, dtype=np.int64), np.random.default_rng(0)
    classes = rng.integers(0, n, (n, kept)).astype(np.int32)
    classes[: n // 2, 0] = labels[: n // 2]
    scores = -np.sort(rng.random((n, kept), dtype=np.float32), axis=1)
    best = scores[:, 0].copy()
    ids = tuple(f"{i:05d}.png" for i in range(n))
    store = RunStore(tmp_path)
    store.save(
        make_record(
            data__n_test=n,
            data__n_classes=n,
            metrics={"accuracy": metric(0.5, 0.49, 0.51, n=n)},
            per_class={"classnames": [f"class {c}" for c in range(n)]},
        ),
        Predictions(ids, labels, scores, classes, best, best + 3),
    )

    tracemalloc.start()
    try:
        render(build_table(store.load_all(), store=store))
        of_table = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        page, _ = report.build_report(tmp_path, examples=False)
        of_page = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert of_table < 50e6  # the confusion matrix alone would be 3,200e6
    assert of_page < 150e6
    assert len(page) < 500_000
    assert "are left out" in page


def test_writing_a_page_returns_what_it_shows_so_that_no_second_summary_is_needed(store, tmp_path):
    page = report.write_report(store.root, tmp_path / "page.html", examples=False)

    assert {r.run_id for r in page.records} == {r.run_id for r in store.load_all()}
    assert gains(page.summary, "clip/zero_shot") == gains(build_summary(store), "clip/zero_shot")
