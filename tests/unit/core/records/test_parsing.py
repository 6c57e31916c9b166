"""Records of a folder are parsed field by field, and are those that each file alone gives."""

from __future__ import annotations

from collections import Counter

import pytest

from clipadapt.core.api.errors import RecordError
from clipadapt.core.files.checksums import sealed, unsealed
from clipadapt.core.records.parsing import RecordParser
from clipadapt.core.records.reading import parse_record, read_record
from clipadapt.core.records.run_store import RECORD, RunStore, record_text
from tests.unit.core.records.test_records import make_failure, make_record
from tests.unit.core.report.report_runs import save_all


def test_the_records_of_a_folder_are_those_of_their_files(tmp_path):
    store = save_all(tmp_path)

    found = store.load_all()

    paths = sorted(tmp_path.rglob(RECORD))
    assert len(found) == len(paths) == 21
    for record, path in zip(found, paths, strict=True):
        alone = read_record(path)
        assert record == alone
        assert record.model_fields_set == alone.model_fields_set
        assert record_text(record) == record_text(alone)
        assert store.loaded_from(record.run_id) == path.parent


def test_equal_fields_are_parsed_once_and_others_are_not_kept(tmp_path):
    parser = RecordParser()
    bodies = [record_text(make_record(seed=s, run_id=f"{s:016}"))[:-1].encode() for s in range(200)]

    found = [parser.parse(body) for body in bodies]

    assert None not in found
    assert len({id(r.config) for r in found if r}) == 1
    assert sorted(r.seed for r in found if r) == list(range(200))
    kept = Counter(name for name, _ in parser._known.values())
    assert kept["config"] == 1
    assert kept["run_id"] < 64


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"seed": ', '"seed": "one", "x": '),
        ('  "attempt": 1,\n', '  "attempt": 1,\n  "later": 2,\n'),
        ('  "attempt": 1,\n', '  "attempt": 0,\n'),
        ('  "seed"', ' "seed"'),
        ('"status": "ok"', '"status": "failed"'),
        ('  "cost"', '  "price"'),
        ('"environment"', '"surroundings"'),
    ],
)
def test_what_is_not_a_record_as_written_is_read_the_long_way(tmp_path, old, new):
    text = record_text(make_record()).replace(old, new)
    content, path = sealed(text), tmp_path / RECORD
    body = unsealed(content)
    assert body is not None
    assert RecordParser().parse(body) is None
    results = []
    for parser in (None, RecordParser()):
        try:
            results.append(str(parse_record(content, path, parser)))
        except RecordError as err:
            results.append(str(err))
    assert results[0] == results[1]


def test_a_record_without_later_fields_has_their_defaults(tmp_path):
    for record in (make_record(), make_failure()):
        lines = record_text(record).splitlines(keepends=True)
        text = "".join(x for x in lines if not x.startswith('  "probabilities"'))
        content = sealed(text)

        found = parse_record(content, tmp_path / RECORD, RecordParser())

        assert found == parse_record(content, tmp_path / RECORD) == record


def test_folders_inside_a_run_and_hidden_ones_hold_no_records(tmp_path):
    store = save_all(tmp_path / "runs")
    first = min(store.root.rglob(RECORD))
    for copy in (first.parent / "classifier", store.root / ".aside", store.root / "x" / "y" / "z"):
        copy.mkdir(parents=True, exist_ok=True)
        (copy / RECORD).write_bytes(first.read_bytes())

    found = RunStore(store.root)
    records = found.load_all()

    assert len(records) == 22
    assert found.loaded_from(first.parent.name) is None  # there are two of it
    assert len(RunStore(first.parent).load_all()) == 1
