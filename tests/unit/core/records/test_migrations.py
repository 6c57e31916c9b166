"""Stored records of earlier schema versions are read as records of the current one."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from clipadapt.core.api.errors import DamagedError
from clipadapt.core.records.migrations import SCHEMA_VERSION, upgrade
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.report.tables import build_table, render

DATA = Path(__file__).parent / "data"
VERSIONS = (1, 2)


def stored(version: int, folder: Path) -> RunStore:
    """Return a store that holds the stored record of a version."""
    run = folder / "dataset" / "method" / "run"
    run.mkdir(parents=True)
    (run / "record.json").write_bytes((DATA / f"version_{version}.json").read_bytes())
    return RunStore(folder)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_stored_record_is_read_and_shown_in_a_table(version, tmp_path):
    raw = json.loads((DATA / f"version_{version}.json").read_text())
    store = stored(version, tmp_path)
    (record,) = store.load_all(pytest.fail)

    assert raw["schema_version"] == version
    assert record.schema_version == SCHEMA_VERSION
    assert (record.run_id, record.fit_id) == (raw["run_id"], raw["fit_id"])
    assert record.metrics["accuracy"].value == raw["metrics"]["accuracy"]["value"]
    (row,) = csv.DictReader(io.StringIO(render(build_table([record]), "csv")))
    assert row["dataset"] == raw["evaluation"]["dataset"]
    assert row["n_trainable_params"] == str(raw["n_trainable_params"])


def test_version_1_loses_its_confusion_matrix_and_gains_the_new_names(tmp_path):
    (record,) = stored(1, tmp_path).load_all(pytest.fail)

    assert record.per_class == {"classnames": ["mammal", "bird"]}
    assert record.files == {}
    assert record.method.uses_train is False
    assert record.metrics_version == 1
    first, second = record.leakage.overlaps
    assert (first.trained, first.evaluated, first.exact) == ("train", "test", 1)
    assert (second.trained, second.evaluated, second.exact) == ("val", "test", 0)


def test_version_2_is_checked_against_its_seal_and_gains_the_new_names(tmp_path):
    store = stored(2, tmp_path)
    (record,) = store.load_all(pytest.fail)

    assert record.method.uses_train is True
    assert record.flags == ("not_the_official_split", "evaluated_on_val")
    (overlap,) = record.leakage.overlaps
    assert (overlap.trained, overlap.evaluated) == ("train", "val")

    (path,) = tmp_path.glob("*/*/*/record.json")
    path.write_text(path.read_text().replace('"seed": 42', '"seed": 43'))
    with pytest.raises(DamagedError, match="its content has changed since it was written"):
        store.load(path.parent)


@pytest.mark.parametrize("version", VERSIONS)
def test_upgrading_changes_a_copy_only(version):
    raw = json.loads((DATA / f"version_{version}.json").read_text())
    before = json.dumps(raw)

    once = upgrade(raw)

    assert json.dumps(raw) == before
    assert upgrade(once) == once
