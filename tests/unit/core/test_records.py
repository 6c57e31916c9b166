from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from datetime import UTC, datetime

import numpy as np
import pytest
from pydantic import ValidationError

from clipadapt.core import records
from clipadapt.core.errors import RecordError
from clipadapt.core.metrics import MetricValue
from clipadapt.core.records import (
    Calibration,
    Cost,
    DataFacts,
    EvaluationFacts,
    MethodFacts,
    ModelFacts,
    Predictions,
    RunRecord,
    RunStore,
    Selection,
    make_fit_id,
    make_run_id,
    slug,
)
from clipadapt.core.sampling import Manifest

ENVIRONMENT = records.environment(device="cpu", threads=2)


def metric(value, low=None, high=None, unit="fraction", higher=True, n=100):
    return MetricValue(value=value, low=low, high=high, n=n, higher_is_better=higher, unit=unit)


def make_record(**changes):
    """A record that is ok; ``evaluation__split`` and the like change parts."""
    data = {"name": "folder:photo", "sha256": "d1", "n_train": 16, "n_val": 4, "n_test": 100,
            "n_classes": 4, "shots": 4, "manifest_sha256": None, "skipped": 0}  # fmt: skip
    evaluation = {"dataset": "folder:photo", "split": "test", "templates": ["a photo of a {}."],
                  "classnames_sha256": "c1", "protocol": "standard"}  # fmt: skip
    model = {"name": "stitched", "weights_sha256": "w1", "dtype": "fp32"}
    method = {"name": "clip/coop", "version": 1, "recipe": "coop-quick", "deviations": []}
    cost = {"fit_seconds": 1.5, "encode_seconds": 20.0, "predict_seconds": 0.5, "cold_seconds": 22.0,
            "peak_memory_bytes": 300 << 20, "saved_bytes": 10}  # fmt: skip
    parts = {"data": data, "evaluation": evaluation, "model": model, "method": method, "cost": cost}
    for key in [k for k in changes if "__" in k]:
        part, field = key.split("__")
        parts[part][field] = changes.pop(key)
    fields = {
        "run_id": "0123456789abcdef",
        "fit_id": "fedcba9876543210",
        "status": "ok",
        "config": {"data": {"name": "folder:photo"}, "method": {"name": "clip/coop", "lr": 0.002}},
        "seed": 1,
        "data": DataFacts(**data),
        "evaluation": EvaluationFacts(**evaluation),
        "model": ModelFacts(**model),
        "method": MethodFacts(**method),
        "n_trainable_params": 8192,
        "metrics": {"accuracy": metric(0.723, 0.681, 0.76)},
        "cost": Cost(**cost),
        "environment": ENVIRONMENT,
        "started_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    }
    return RunRecord(**{**fields, **changes})


def make_failure(**changes):
    return make_record(status="failed", error="ValueError: nan", metrics={}, **changes)


def make_predictions(n=10, n_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    return Predictions(
        tuple(f"class/{i}.png" for i in range(n)),
        rng.integers(0, n_classes, n),
        rng.standard_normal((n, n_classes)).astype(np.float32),
    )


# ---------------------------------------------------------------- the record


def test_the_fields_are_those_of_the_design():
    fields = make_record().model_dump()
    assert list(fields) == [
        "schema_version", "run_id", "fit_id", "status", "error", "attempt", "config", "seed", "data",
        "evaluation", "model", "method", "selection", "calibration", "n_trainable_params", "n_total_params", "metrics",
        "cost", "flags", "leakage", "per_class", "predictions_sha256", "environment", "started_at",
        "metrics_version",
    ]  # fmt: skip
    assert list(fields["environment"]) == [
        "git_commit", "git_dirty", "python", "platform", "cpu_flags", "device", "threads", "packages",
    ]  # fmt: skip


def test_a_failed_run_has_an_error_and_no_metrics():
    assert make_failure().metrics == {}
    with pytest.raises(ValidationError, match="a failed run has an error and no metrics"):
        make_record(status="failed", error="x")
    with pytest.raises(ValidationError, match="a failed run has an error and no metrics"):
        make_record(status="failed", metrics={})
    with pytest.raises(ValidationError, match="a run that is ok has no error"):
        make_record(error="x")


def test_the_environment_is_described_without_a_framework():
    code = (
        "import sys; from clipadapt.core.records import environment; "
        "e = environment(); assert e.packages['torch'] and e.threads >= 1, e; "
        "print([m for m in ('torch', 'scipy', 'pandas', 'sklearn') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert out.stdout.strip() == "[]"
    assert ENVIRONMENT.device == "cpu"
    assert ENVIRONMENT.threads == 2
    assert "ruff" not in ENVIRONMENT.packages
    assert (ENVIRONMENT.git_commit is None) == (ENVIRONMENT.git_dirty is None)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
def test_peak_memory_begins_anew():
    # In a process of its own: one that has run other tests gives memory back at any time.
    script = """
import numpy as np
from clipadapt.core import records
assert records.reset_peak_memory()
before = records.peak_memory()
block = np.ones(64 << 20, np.uint8)
grown = records.peak_memory()
del block
after = records.peak_memory()
assert records.reset_peak_memory()
print(before, grown, after, records.peak_memory())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    before, grown, after, anew = map(int, done.stdout.split())
    assert abs(after - grown) < 1 << 20  # the kernel counts in batches
    assert 60 << 20 < grown - before < 80 << 20
    assert anew < grown - (50 << 20)


# ---------------------------------------------------------------- identity


def test_ids_follow_content_and_not_order():
    fit = {"lr": 0.1, "seed": 1, "names": ["a", "b"]}
    evaluation = {"dataset": "x", "split": "test"}
    run_id = make_run_id(fit=fit, evaluation=evaluation)
    assert len(run_id) == 16
    assert run_id == make_run_id(fit=dict(reversed(fit.items())), evaluation=evaluation)
    assert run_id != make_run_id(fit={**fit, "seed": 2}, evaluation=evaluation)
    assert run_id != make_run_id(fit=fit, evaluation={**evaluation, "split": "val"})
    assert make_fit_id(fit=fit) == make_fit_id(fit=dict(reversed(fit.items())))
    assert make_fit_id(fit=fit) != make_fit_id(fit={**fit, "lr": 0.2})
    with pytest.raises(ValueError, match="JSON"):
        make_fit_id(fit={"lr": float("nan")})


def test_slugs_are_file_names_and_never_shared():
    names = [
        "openmoji:line", "openmoji-line", "openmoji/line", "openmoji line", "Openmoji-line", "..", ".", "",
        "a/../b", "folder:" + "deep/" * 200, "folder:" + "deep/" * 201, "ünï", "con\udcffx", "x\n", "-x",
        slug("openmoji:line"), slug(slug("openmoji:line")),
    ]  # fmt: skip
    slugs = [slug(n) for n in names]
    assert len({s.lower() for s in slugs}) == len(names)
    for s in slugs:
        assert s.isascii()
        assert 0 < len(s) <= 64
        assert s[0].isalnum()
        assert not set(s) & set('/\\:*?"<>| \n')
    assert slug("zero_shot") == "zero_shot"
    assert slug("openmoji:line").startswith("openmoji-line-")


# ---------------------------------------------------------------- predictions


def test_predictions_round_trip_with_equal_bytes(tmp_path):
    predictions = make_predictions()
    predictions.write(tmp_path / "a.npz")
    predictions.write(tmp_path / "b.npz")
    back = Predictions.read(tmp_path / "a.npz")

    assert back.ids == predictions.ids
    np.testing.assert_array_equal(back.labels, predictions.labels)
    np.testing.assert_array_equal(back.scores, predictions.scores)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert back.sha256() == predictions.sha256() != make_predictions(seed=1).sha256()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {e.date_time for e in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_short_form_keeps_what_the_metrics_need():
    from scipy.special import logsumexp

    full = make_predictions(n=40, n_classes=30)
    assert full.shortened(most=1200) is full
    assert full.shortened(most=10, keep=30) is full
    short = full.shortened(most=1199, keep=5)

    assert short.scores.shape == (40, 5)
    np.testing.assert_array_equal(short.scores, -np.sort(-full.scores, axis=1)[:, :5])
    np.testing.assert_array_equal(short.classes[:, 0], full.scores.argmax(axis=1))
    np.testing.assert_array_equal(short.predicted, full.predicted)
    np.testing.assert_array_equal(short.label_scores, full.scores[np.arange(40), full.labels])
    np.testing.assert_allclose(short.logsumexp, logsumexp(full.scores, axis=1), rtol=1e-6)


def test_equal_scores_are_kept_in_the_order_of_their_classes():
    scores = np.zeros((1, 1000), np.float32)
    scores[0, ::7] = 1
    flat = Predictions(("a",), np.zeros(1, np.int64), scores)
    assert flat.shortened(most=10).classes.tolist() == [list(range(0, 140, 7))]


def test_the_short_form_round_trips(tmp_path):
    short = make_predictions(n=40, n_classes=30).shortened(most=10, keep=5)
    short.write(tmp_path / "x.npz")
    back = Predictions.read(tmp_path / "x.npz")
    assert back.sha256() == short.sha256()
    np.testing.assert_array_equal(back.classes, short.classes)


def test_wrong_predictions_are_refused():
    with pytest.raises(ValueError, match="not unique"):
        Predictions(("a", "a"), np.zeros(2, np.int64), np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"labels must be int64 \(1,\)"):
        Predictions(("a",), np.zeros(2, np.int64), np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match="scores must be float32"):
        Predictions(("a",), np.zeros(1, np.int64), np.zeros((1, 3)))


# ---------------------------------------------------------------- the store of runs


def test_a_run_is_saved_whole_and_found_again(tmp_path):
    store = RunStore(tmp_path / "runs")
    classifier = tmp_path / "made"
    classifier.mkdir()
    (classifier / "weights.safetensors").write_bytes(b"w")
    manifest = Manifest.create(
        dataset="folder:photo", dataset_sha256="d1", seed=1, shots=4, train=["a", "b\udcff"]
    )
    record = make_record(
        selection=Selection(epoch=None, by="accuracy", value=0.5),
        calibration=Calibration(temperature=1.5),
        flags=["collapse"],
        per_class={"classnames": ["a", "é\udcff"], "confusion": [[1, 0], [0, 1]]},
    )
    predictions = make_predictions()
    saved = store.save(
        record,
        predictions,
        history=[{"epoch": 1, "loss": np.float32(0.5)}, {"loss": float("nan"), "x": np.int64(3)}],
        classifier_dir=classifier,
        manifest=manifest,
    )

    folder = store.run_dir(record)
    assert folder.relative_to(store.root).parts[-1] == record.run_id
    assert sorted(p.name for p in folder.iterdir()) == [
        "classifier", "history.jsonl", "manifest.json", "predictions.npz", "record.json",
    ]  # fmt: skip
    assert saved.predictions_sha256 == predictions.sha256()
    assert store.find(record.run_id) == saved == RunStore.load(folder)
    assert store.is_complete(record.run_id)
    assert store.find("0" * 16) is None
    assert not store.is_complete("0" * 16)
    assert store.load_all() == [saved]
    np.testing.assert_array_equal(store.load_predictions(folder).scores, predictions.scores)
    assert [json.loads(line) for line in (folder / "history.jsonl").open()] == [
        {"epoch": 1, "loss": 0.5},
        {"loss": None, "x": 3},
    ]
    assert (folder / "classifier" / "weights.safetensors").read_bytes() == b"w"
    assert Manifest.read(folder / "manifest.json") == manifest
    assert json.loads((folder / "record.json").read_text())["started_at"] == "2026-01-02T03:04:05Z"


def test_a_failed_attempt_is_kept_beside_the_next(tmp_path):
    store = RunStore(tmp_path)
    first = store.save_failure(make_failure())
    assert first.attempt == 1
    assert not store.is_complete(first.run_id)
    assert store.find(first.run_id) == first
    second = store.save_failure(make_failure(seed=1))
    assert second.attempt == 2
    assert store.find(first.run_id).attempt == 2
    third = store.save(make_record(), make_predictions())

    folder = store.run_dir(third)
    assert third.attempt == 3
    assert store.is_complete(third.run_id)
    assert sorted(p.name for p in folder.glob("*.json")) == [
        "attempt-1.json", "attempt-2.json", "record.json",
    ]  # fmt: skip
    assert json.loads((folder / "attempt-1.json").read_text())["error"] == "ValueError: nan"
    assert len(store.load_all()) == 1


def test_a_failure_never_replaces_a_complete_run(tmp_path):
    store = RunStore(tmp_path)
    saved = store.save(make_record(), make_predictions())
    assert store.save_failure(make_failure()) == saved
    assert store.is_complete(saved.run_id)


def test_status_and_call_must_agree(tmp_path):
    with pytest.raises(ValueError, match="use save_failure"):
        RunStore(tmp_path).save(make_failure(), make_predictions())
    with pytest.raises(ValueError, match="use save"):
        RunStore(tmp_path).save_failure(make_record())


def test_load_all_is_recursive_and_passes_unfinished_folders_over(tmp_path):
    for name in ("a", "b/c"):
        RunStore(tmp_path / name).save(make_record(), make_predictions())
    unfinished = RunStore(tmp_path / "a").run_dir(make_record()).parent / ".tmp-1-ab"
    unfinished.mkdir()
    (unfinished / "record.json").write_text("{")
    assert len(RunStore(tmp_path).load_all()) == 2


def test_a_missing_folder_is_a_clear_error(tmp_path):
    with pytest.raises(RecordError, match=f"there is no folder '{tmp_path}/x'"):
        RunStore(tmp_path / "x").load_all()
    with pytest.raises(RecordError, match=r"is not the folder of a run: it has no record\.json"):
        RunStore.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "is truncated or not a record"),
        (lambda _: b"", "is truncated or not a record"),
        (lambda _: b"[]", "is truncated or not a record"),
        (lambda _: b"\xff\xfe", "is truncated or not a record"),
        (lambda raw: raw.replace(b'"seed": 1', b'"seed": "x"'), "is not a valid record: seed: "),
        (lambda raw: raw.replace(b'"seed": 1', b'"sed": 1'), "is not a valid record: seed: "),
        (
            lambda raw: raw.replace(b'"schema_version": 1', b'"schema_version": 2'),
            "has schema version 2; this clipadapt reads up to 1",
        ),
    ],
)
def test_a_record_that_cannot_be_read_is_named_with_a_way_out(tmp_path, change, message):
    store = RunStore(tmp_path)
    store.save(make_record(), make_predictions())
    path = store.run_dir(make_record()) / "record.json"
    raw = path.read_bytes()
    path.write_bytes(change(raw))
    assert path.read_bytes() != raw
    for read in (store.load_all, lambda: store.find(make_record().run_id)):
        with pytest.raises(RecordError) as caught:
            read()
        assert str(path) in caught.value.problem
        assert message in caught.value.problem
        assert caught.value.hint


def test_predictions_that_are_not_the_records_are_refused(tmp_path):
    store = RunStore(tmp_path)
    store.save(make_record(), make_predictions())
    folder = store.run_dir(make_record())
    path = folder / "predictions.npz"

    make_predictions(seed=1).write(path)
    with pytest.raises(RecordError, match="is not what its record says"):
        store.load_predictions(folder)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RecordError, match="is damaged"):
        store.load_predictions(folder)
    np.savez(path, ids=np.array(["a", 1], dtype=object))
    with pytest.raises(RecordError, match="is damaged"):
        store.load_predictions(folder)
    path.unlink()
    with pytest.raises(RecordError, match="there are no predictions"):
        store.load_predictions(folder)
    failed = store.save_failure(make_failure(run_id="f" * 16))
    with pytest.raises(RecordError, match="failed and has no predictions: ValueError: nan"):
        store.load_predictions(store.run_dir(failed))


def test_an_unwritable_root_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"cannot write the run to .*Not a directory"):
        RunStore(tmp_path / "file").save(make_record(), make_predictions())
