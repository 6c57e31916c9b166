"""Remembered answers: every table is the one without them, whatever changed on disk, and nothing is read twice."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clipadapt.core.records.run_store import PREDICTIONS, RunStore
from clipadapt.core.report import answer_index
from clipadapt.core.report.answer_index import AnswerIndex, Examples, stamp_of
from clipadapt.core.report.run_files import RunFiles
from clipadapt.core.report.summary import build_summary, render_summary
from clipadapt.core.report.tables import build_table, render
from tests.unit.core.report.report_runs import save_all, save_run

FORMATS = ("markdown", "csv", "latex", "html")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder; small and recent predictions are remembered too."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CLIPADAPT_CACHE", str(folder))
    monkeypatch.setattr(answer_index, "WORTH_BYTES", 1)
    monkeypatch.setattr(answer_index, "TICK_NS", -(10**15))
    return folder


def read(root: Path) -> list[str]:
    """Everything that a folder of runs is shown as, by a new command."""
    store = RunStore(root)
    table = build_table(store.load_all(), store=store)
    summary = build_summary(store)
    return [render(table, form) for form in FORMATS] + [
        render_summary(summary, form) for form in ("markdown", "json")
    ]


def without_index(root: Path, cache: Path) -> list[str]:
    shutil.rmtree(cache, ignore_errors=True)
    found = read(root)
    shutil.rmtree(cache, ignore_errors=True)
    return found


def count_reads(monkeypatch) -> list[Path]:
    done: list[Path] = []
    load = RunStore.load_predictions

    def counted(folder, record=None):
        done.append(folder)
        return load(folder, record)

    monkeypatch.setattr(RunStore, "load_predictions", staticmethod(counted))
    return done


def test_a_second_command_reads_no_predictions_and_shows_the_same(tmp_path, cache, monkeypatch):
    save_all(tmp_path / "runs")
    plain = without_index(tmp_path / "runs", cache)
    first = read(tmp_path / "runs")
    reads = count_reads(monkeypatch)

    second = read(tmp_path / "runs")

    assert not reads
    assert first == second == plain


@pytest.mark.parametrize("change", ["flipped", "truncated", "missing", "as before but for a bit"])
def test_changed_predictions_are_read_and_checked_again(tmp_path, cache, change):
    store = save_all(tmp_path / "runs")
    intact = read(tmp_path / "runs")
    path = sorted(store.root.rglob(PREDICTIONS))[3]
    content, stat = bytearray(path.read_bytes()), path.stat()
    if change == "missing":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content[: 100 if change == "truncated" else None])
    if change == "as before but for a bit":
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    changed = read(tmp_path / "runs")

    assert changed != intact
    assert path.parent.name in changed[0]  # a note names it
    assert changed == without_index(tmp_path / "runs", cache)


def test_a_run_that_was_replaced_or_removed_is_seen(tmp_path, cache):
    store = save_all(tmp_path / "runs")
    before = read(tmp_path / "runs")

    record = save_run(store, "clip/coop", 5.0, shots=2, seed=2)
    replaced = read(tmp_path / "runs")
    shutil.rmtree(store.run_dir(record))
    removed = read(tmp_path / "runs")

    assert before != replaced != removed
    assert removed == without_index(tmp_path / "runs", cache)
    save_run(store, "clip/coop", 5.0, shots=2, seed=2)
    assert replaced == without_index(tmp_path / "runs", cache)


@pytest.mark.parametrize("change", ["flipped", "truncated", "empty", "of another version"])
def test_a_damaged_index_is_ignored_and_written_again(tmp_path, cache, change, monkeypatch):
    save_all(tmp_path / "runs")
    expected = read(tmp_path / "runs")
    (path,) = cache.glob("answers/*.arrow")
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes({
        "flipped": content,
        "truncated": content[:-100],
        "empty": b"",
        "of another version": content.replace(b"answers 1", b"answers 0"),
    }[change])  # fmt: skip

    assert read(tmp_path / "runs") == expected
    reads = count_reads(monkeypatch)
    assert read(tmp_path / "runs") == expected
    assert not reads


def test_two_processes_that_write_at_once_keep_each_others_answers(tmp_path, cache):
    store = save_all(tmp_path / "runs")
    records = [r for r in store.load_all() if r.status == "ok"]
    halves = records[::2], records[1::2]

    def remember(some):
        files = RunFiles(RunStore(store.root))
        files.read_ahead(some)
        files.remember()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(remember, halves))

    index = AnswerIndex(store.root)
    assert all(index.find(store.run_dir(r), r) for r in records)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, cache):
    save_all(tmp_path / "runs")
    expected = read(tmp_path / "runs")
    shutil.rmtree(cache)
    cache.write_text("not a folder")

    assert read(tmp_path / "runs") == read(tmp_path / "runs") == expected


def test_a_run_without_a_folder_is_a_note_and_no_error(tmp_path, cache):
    store = save_all(tmp_path / "runs")
    records = store.load_all()
    here = records[5]
    shutil.rmtree(store.run_dir(here))

    for known in (store, RunStore(store.root)):
        table = build_table(records, store=known)
        assert any(here.run_id in note for note in table.notes)
        assert any(here.run_id in x for x in build_summary(known, records=records).left_out)


def test_recent_files_and_small_folders_are_not_remembered(tmp_path, cache, monkeypatch):
    save_all(tmp_path / "runs")
    monkeypatch.setattr(answer_index, "TICK_NS", 10**15)
    read(tmp_path / "runs")
    assert not cache.exists()
    monkeypatch.setattr(answer_index, "TICK_NS", -(10**15))
    monkeypatch.setattr(answer_index, "WORTH_BYTES", 10**9)
    read(tmp_path / "runs")
    assert not cache.exists()


def test_an_index_is_bounded_and_keeps_the_latest(tmp_path, cache, monkeypatch):
    store = save_all(tmp_path / "runs")
    records = [r for r in store.load_all() if r.status == "ok"]
    for i, record in enumerate(records):
        os.utime(store.run_dir(record) / PREDICTIONS, ns=(i, i))
    n = records[0].data.n_test
    monkeypatch.setattr(answer_index, "MOST_BYTES", 3 * n)
    expected = read(tmp_path / "runs")

    index = AnswerIndex(store.root)
    assert [bool(index.find(store.run_dir(r), r)) for r in records][-4:] == [False, *3 * [True]]
    assert read(tmp_path / "runs") == expected


@pytest.mark.parametrize("n_classes", [2, 256, 257, 70_000])
def test_ids_labels_and_classes_of_any_size_come_back(tmp_path, cache, n_classes):
    record = save_run(RunStore(tmp_path / "runs"), "clip/coop", 1.0)
    folder = RunStore(tmp_path / "runs").run_dir(record)
    rng = np.random.default_rng(0)
    ids = np.sort(np.array([f"a/{i} \udc80é\n" for i in range(50)]))
    examples = Examples(ids, rng.integers(n_classes, size=50))
    predicted = rng.integers(n_classes, size=50)
    predicted[0] = n_classes - 1
    index = AnswerIndex(tmp_path / "runs")
    index.add(folder, record, stamp_of(folder), (examples.key(), examples), predicted)
    index.write()

    found = AnswerIndex(tmp_path / "runs").find(folder, record)

    assert found is not None
    assert found[0] == examples.key() == found[1].key()
    assert found[1].ids.dtype == ids.dtype
    np.testing.assert_array_equal(found[1].labels, examples.labels)
    np.testing.assert_array_equal(found[2], predicted)
