"""The run store knows where a run is, keeps what it wrote, and sees what other processes write."""

from __future__ import annotations

import json

import pytest

from clipadapt.core.files.checksums import sealed
from clipadapt.core.records import reading, run_store
from clipadapt.core.records.run_store import Place, RunStore, record_text
from clipadapt.core.records.schema import RunRecord
from tests.unit.core.records.test_records import make_failure, make_predictions, make_record


def place_of(record: RunRecord) -> Place:
    return Place(record.evaluation.dataset, record.method.name)


@pytest.fixture
def reads(monkeypatch):
    """Paths of the records that are read from disk."""
    found = []

    def counted(path):
        found.append(path)
        return read(path)

    read = run_store.read_record_if_present
    monkeypatch.setattr(run_store, "read_record_if_present", counted)
    return found


def test_a_known_place_gives_what_the_search_gives(tmp_path):
    store = RunStore(tmp_path)
    saved = [
        store.save(
            make_record(run_id=f"{i:016}", method__name=f"clip/m{i % 3}"), make_predictions()
        )
        for i in range(6)
    ]

    for record in saved:
        fresh = RunStore(tmp_path)
        assert fresh.find(record.run_id, place_of(record)) == fresh.find(record.run_id) == record
    assert store.find("f" * 16, place_of(saved[0])) is None


def test_a_record_is_not_read_by_the_store_that_wrote_it_and_once_by_others(tmp_path, reads):
    store = RunStore(tmp_path)
    saved = store.save(make_record(), make_predictions())
    reads.clear()  # a write looks for an earlier attempt

    assert store.find(saved.run_id, place_of(saved)) is saved
    assert reads == []
    other = RunStore(tmp_path)
    assert other.find(saved.run_id, place_of(saved)) == saved
    assert other.find(saved.run_id, place_of(saved)) == saved
    assert len(reads) == 1


def test_a_record_that_another_process_replaced_is_read_again(tmp_path):
    mine, theirs = RunStore(tmp_path), RunStore(tmp_path)
    failed = mine.save_failure(make_failure())
    assert theirs.find(failed.run_id, place_of(failed)) == failed

    done = theirs.save(make_record(), make_predictions())

    assert mine.find(done.run_id, place_of(done)) == done
    theirs.run_dir(done).joinpath("record.json").unlink()
    assert mine.find(done.run_id, place_of(done)) is None


def test_a_run_whose_folder_was_moved_is_found(tmp_path):
    saved = RunStore(tmp_path).save(make_record(), make_predictions())
    folder = RunStore(tmp_path).run_dir(saved)
    folder.parent.rename(folder.parent.with_name("renamed"))

    assert RunStore(tmp_path).find(saved.run_id, place_of(saved)) == saved


def test_many_searches_for_missing_runs_list_the_store_once(tmp_path, monkeypatch):
    store, listed = RunStore(tmp_path), []
    saved = store.save(make_record(), make_predictions())
    list_folder = run_store._folders_in
    monkeypatch.setattr(
        run_store, "_folders_in", lambda folder: listed.append(folder) or list_folder(folder)
    )

    for i in range(50):
        assert store.find(f"{i:016}", place_of(saved)) is None

    assert len(listed) == len(set(listed)) == 3  # the root, a dataset and a method


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"config": {"data": {"name": "a", "allow_fewer": True}, "lr": 1e-3, "x": [1, None, "é"]}},
        {"per_class": {"classnames": ["a", "ü"]}, "flags": ["nan"], "cost__fit_seconds": 1 / 3},
        {"status": "failed", "error": "a\nb", "metrics": {}},
        {"data__name": "b\udc80d"},  # bytes of a file name that are not valid UTF-8
    ],
)
def test_a_sealed_record_is_read_as_with_every_check(changes, tmp_path):
    record = make_record(**changes)
    content = sealed(record_text(record))

    fast = reading.parse_record(content, tmp_path)
    raw = json.loads(content)
    del raw["sha256"]

    assert fast == RunRecord.model_validate(raw) == record
    assert record_text(fast) == record_text(record)


def test_a_record_without_a_valid_seal_has_every_check(tmp_path):
    raw = json.loads(record_text(make_record()))
    raw["seed"] = True
    with pytest.raises(reading.RecordError, match="true and false are not values"):
        reading.parse_record(json.dumps(raw | {"schema_version": 1}).encode(), tmp_path)


def test_a_written_record_equals_the_one_on_disk(tmp_path):
    store = RunStore(tmp_path)
    history = [{"epoch": 1, "train_loss": 0.1}]

    saved = store.save(make_record(cost__fit_seconds=1 / 3), make_predictions(), history=history)

    assert saved == RunStore.load(store.run_dir(saved))
    assert saved.files.keys() == {"predictions.npz", "history.jsonl"}
