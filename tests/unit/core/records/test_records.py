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

from clipadapt.core.api.errors import DamagedError, RecordError
from clipadapt.core.data.sampling import Manifest
from clipadapt.core.files.checksums import sealed
from clipadapt.core.records import environment as env
from clipadapt.core.records.predictions import Predictions
from clipadapt.core.records.run_store import RunStore
from clipadapt.core.records.schema import (
    Calibration,
    Cost,
    DataFacts,
    EvaluationFacts,
    MethodFacts,
    ModelFacts,
    RunRecord,
    Selection,
    make_fit_id,
    make_run_id,
    slug,
)
from clipadapt.core.scoring.metrics import MetricValue

ENVIRONMENT = env.environment(device="cpu", threads=2)


def metric(value, low=None, high=None, unit="fraction", higher=True, n=100):
    return MetricValue(value=value, low=low, high=high, n=n, higher_is_better=higher, unit=unit)


def make_record(**changes):
    """Return a record with status ok; ``evaluation__split`` and the like change nested fields."""
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


def test_the_record_has_the_documented_fields():
    fields = make_record().model_dump()
    assert list(fields) == [
        "schema_version", "run_id", "fit_id", "status", "error", "attempt", "config", "seed", "data",
        "evaluation", "model", "method", "selection", "calibration", "prediction_sets", "probabilities",
        "n_trainable_params", "n_total_params", "metrics", "cost", "flags", "leakage", "per_class",
        "predictions_sha256", "files",
        "environment", "started_at", "metrics_version",
    ]  # fmt: skip
    assert list(fields["environment"]) == [
        "git_commit", "git_dirty", "python", "platform", "cpu_flags", "device", "threads", "packages",
        "folder", "devices", "gpu",
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
        "import sys; from clipadapt.core.records.environment import environment; "
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
def test_peak_memory_can_be_reset():
    # In a separate process, as a process that has run other tests may release memory at any time.
    script = """
import numpy as np
from clipadapt.core.records import environment as env
assert env.reset_peak_memory()
before = env.peak_memory()
block = np.ones(64 << 20, np.uint8)
grown = env.peak_memory()
del block
after = env.peak_memory()
assert env.reset_peak_memory()
print(before, grown, after, env.peak_memory())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    before, grown, after, reset = map(int, done.stdout.split())
    assert abs(after - grown) < 1 << 20  # the kernel counts in batches
    assert 60 << 20 < grown - before < 80 << 20
    assert reset < grown - (50 << 20)


# ---------------------------------------------------------------- identity


def test_ids_depend_on_content_and_not_on_order():
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


def test_slugs_are_unique_file_names():
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
    back = Predictions.parse((tmp_path / "a.npz").read_bytes(), tmp_path / "a.npz")

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


def test_non_zero_cells_of_the_confusion_matrix():
    labels = np.array([2, 0, 0, 2, 1], np.int64)
    scores = np.eye(4, dtype=np.float32)[[2, 3, 3, 0, 1]]
    found = Predictions(tuple("abcde"), labels, scores)
    cells = list(zip(*(a.tolist() for a in found.confusions()), strict=True))
    assert cells == [(0, 3, 2), (1, 1, 1), (2, 0, 1), (2, 2, 1)]
    assert all(a.size == 0 for a in Predictions((), labels[:0], scores[:0]).confusions())


def test_the_short_form_round_trips(tmp_path):
    short = make_predictions(n=40, n_classes=30).shortened(most=10, keep=5)
    short.write(tmp_path / "x.npz")
    back = Predictions.parse((tmp_path / "x.npz").read_bytes(), tmp_path / "x.npz")
    assert back.sha256() == short.sha256()
    np.testing.assert_array_equal(back.classes, short.classes)


def test_invalid_predictions_are_rejected():
    with pytest.raises(ValueError, match="not unique"):
        Predictions(("a", "a"), np.zeros(2, np.int64), np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"labels must be int64 \(1,\)"):
        Predictions(("a",), np.zeros(2, np.int64), np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match="scores must be float32"):
        Predictions(("a",), np.zeros(1, np.int64), np.zeros((1, 3)))


# ---------------------------------------------------------------- the run store


def test_a_run_is_saved_and_found_again(tmp_path):
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
    assert store.find("0" * 16) is None
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
    assert store.find(first.run_id) == first
    second = store.save_failure(make_failure(seed=1))
    assert second.attempt == 2
    assert store.find(first.run_id).attempt == 2
    third = store.save(make_record(), make_predictions())

    folder = store.run_dir(third)
    assert third.attempt == 3
    assert store.find(third.run_id).status == "ok"
    assert sorted(p.name for p in folder.glob("*.json")) == [
        "attempt-1.json", "attempt-2.json", "record.json",
    ]  # fmt: skip
    assert json.loads((folder / "attempt-1.json").read_text())["error"] == "ValueError: nan"
    assert len(store.load_all()) == 1


def test_a_failure_never_replaces_a_complete_run(tmp_path):
    store = RunStore(tmp_path)
    saved = store.save(make_record(), make_predictions())
    assert store.save_failure(make_failure()) == saved
    assert store.find(saved.run_id).status == "ok"


def test_status_and_call_must_agree(tmp_path):
    with pytest.raises(ValueError, match="use save_failure"):
        RunStore(tmp_path).save(make_failure(), make_predictions())
    with pytest.raises(ValueError, match="use save"):
        RunStore(tmp_path).save_failure(make_record())


def test_load_all_is_recursive_and_skips_unfinished_folders(tmp_path):
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


def test_a_folder_of_runs_in_place_of_a_run_names_the_latest_one(tmp_path):
    store = RunStore(tmp_path)
    store.save(make_record(), make_predictions())

    with pytest.raises(RecordError, match="is not the folder of a run") as caught:
        RunStore.load(tmp_path)

    assert caught.value.hint == f"it contains 1 of them; the latest is {store.folders()[0]}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "is truncated or not a record"),
        (lambda _: b"", "is truncated or not a record"),
        (lambda _: b"[]", "is truncated or not a record"),
        (lambda _: b"\xff\xfe", "is truncated or not a record"),
        (lambda _: b"[" * 100_000, "is truncated or not a record"),
        (lambda raw: raw[:-1], "it does not end in the sha256 of its content"),
        (lambda raw: raw.replace(b'"seed": 1', b'"seed": 2'), "its content has changed since it was written"),
        (
            lambda raw: raw.replace(b'"schema_version": 3', b'"schema_version": 1'),
            "its content has changed since it was written",
        ),
        (lambda raw: as_version_1(raw).replace(b'"seed": 1', b'"seed": "x"'), "is not a valid record: seed: "),
        (lambda raw: as_version_1(raw).replace(b'"seed": 1', b'"sed": 1'), "is not a valid record: seed: "),
    ],
)  # fmt: skip
def test_an_unreadable_record_is_reported_with_its_path_and_a_hint(tmp_path, change, message):
    store = RunStore(tmp_path)
    store.save(make_record(), make_predictions())
    path = store.run_dir(make_record()) / "record.json"
    raw = path.read_bytes()
    path.write_bytes(change(raw))
    assert path.read_bytes() != raw
    with pytest.raises(DamagedError) as caught:
        store.load(path.parent)
    assert str(path) in caught.value.problem
    assert message in caught.value.problem
    assert caught.value.hint
    said: list[str] = []
    assert store.load_all(said.append) == []
    assert caught.value.problem in said[0]
    assert store.find(make_record().run_id) is None


def test_one_bad_record_is_reported_and_the_others_are_returned(tmp_path):
    store = RunStore(tmp_path)
    for run_id in ("a" * 16, "b" * 16):
        store.save(make_record(run_id=run_id), make_predictions())
    bad = store.run_dir(make_record(run_id="a" * 16)) / "record.json"
    bad.write_bytes(bad.read_bytes()[:-100])
    said: list[str] = []

    assert [r.run_id for r in store.load_all(said.append)] == ["b" * 16]
    assert len(said) == 1
    assert str(bad) in said[0]
    assert store.find("b" * 16).run_id == "b" * 16


@pytest.mark.parametrize(
    "name", ["record.json", "predictions.npz", "history.jsonl", "classifier/w"]
)
def test_a_damaged_run_is_replaced_and_kept_aside(tmp_path, name):
    store, made = RunStore(tmp_path / "runs"), tmp_path / "made"
    made.mkdir()
    (made / "w").write_bytes(b"weights")
    parts = {"history": [{"loss": 1.0}], "classifier_dir": made}
    store.save(make_record(), make_predictions(), **parts)
    folder = store.run_dir(make_record())
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)

    why = store.damage(make_record().run_id)
    assert str(folder / name) in why
    assert store.find(make_record().run_id) is None
    again = store.save(make_record(), make_predictions(), **parts)

    assert again.attempt == 1
    assert store.find(again.run_id) == again
    assert not store.damage(again.run_id)
    aside = folder.with_name(f".damaged-{folder.name}")
    assert (aside / name).read_bytes() == raw
    assert [r.run_id for r in store.load_all()] == [again.run_id]


def test_a_record_of_a_newer_version_is_reported_and_never_replaced(tmp_path):
    store = RunStore(tmp_path)
    store.save(make_record(), make_predictions())
    path = store.run_dir(make_record()) / "record.json"
    body = path.read_text().partition(',\n  "sha256"')[0].replace('version": 3', 'version": 99')
    path.write_bytes(sealed(body + "}"))
    before = path.read_bytes()

    for read in (
        lambda: store.load(path.parent),
        lambda: store.find(make_record().run_id),
        lambda: store.save(make_record(), make_predictions()),
    ):
        with pytest.raises(
            RecordError, match=r"has schema version 99; this clipadapt reads up to 3"
        ):
            read()
    assert path.read_bytes() == before


def test_records_of_version_1_are_read(tmp_path):
    store = RunStore(tmp_path)
    dense = {"classnames": ["a", "b"], "confusion": [[1, 0], [0, 1]]}
    saved = store.save(make_record(per_class=dense), make_predictions())
    path = store.run_dir(saved) / "record.json"
    path.write_bytes(as_version_1(path.read_bytes()))

    (read,) = store.load_all()
    assert read == saved.model_copy(update={"files": {}, "per_class": {"classnames": ["a", "b"]}})
    assert RunStore.load_predictions(path.parent).predicted.shape == (10,)


def as_version_1(raw):
    """Return the record as version 1 had it, without checksums."""
    fields = json.loads(raw)
    del fields["sha256"], fields["files"]
    return json.dumps({**fields, "schema_version": 1}).encode()


@pytest.mark.parametrize(
    "header",
    [
        {"descr": "<f4", "shape": (200_000_000_000,)},
        {"descr": "<f4", "shape": (3, 10**30)},
        {"descr": "<f4", "shape": (-1, -4)},
        {"descr": "|O", "shape": (1,)},
        {"descr": "<U400000000", "shape": (500,)},
    ],
)
def test_a_header_with_a_wrong_size_allocates_no_memory(tmp_path, header):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("scores.npy", "w") as file:
        np.lib.format.write_array_header_2_0(file, {"fortran_order": False, **header})
        file.write(b"\0" * 64)
    with pytest.raises(DamagedError, match=r"x\.npz is damaged"):
        Predictions.parse(path.read_bytes(), path)


def test_an_entry_with_a_wrong_size_is_rejected(tmp_path):
    path = tmp_path / "x.npz"
    make_predictions().write(path)
    raw = bytearray(path.read_bytes())
    at = raw.find(b"PK\x01\x02")  # of the first entry: the sizes are at 20 (packed) and 24
    raw[at + 24 : at + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(DamagedError, match=r"x\.npz is damaged"):
        Predictions.parse(path.read_bytes(), path)


def test_predictions_that_do_not_match_the_record_are_rejected(tmp_path):
    store = RunStore(tmp_path)
    store.save(make_record(), make_predictions())
    folder = store.run_dir(make_record())
    path = folder / "predictions.npz"

    make_predictions(seed=1).write(path)
    with pytest.raises(RecordError, match="is not what its record says"):
        store.load_predictions(folder)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RecordError, match="is not what its record says"):
        store.load_predictions(folder)
    with pytest.raises(RecordError, match="is damaged"):
        Predictions.parse(path.read_bytes(), path)
    np.savez(path, ids=np.array(["a", 1], dtype=object))
    with pytest.raises(RecordError, match="is damaged"):
        Predictions.parse(path.read_bytes(), path)
    path.unlink()
    with pytest.raises(RecordError, match=r"the file .*predictions\.npz is missing"):
        store.load_predictions(folder)
    failed = store.save_failure(make_failure(run_id="f" * 16))
    with pytest.raises(RecordError, match="failed and has no predictions: ValueError: nan"):
        store.load_predictions(store.run_dir(failed))


def test_an_unwritable_root_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"cannot write the run to .*Not a directory"):
        RunStore(tmp_path / "file").save(make_record(), make_predictions())


def test_a_run_of_another_machine_is_adopted_completely_or_not_at_all(tmp_path):
    there, here = RunStore(tmp_path / "there"), RunStore(tmp_path / "here")
    saved = there.save(make_record(), make_predictions(), history=[{"loss": 1.0}])
    folder = there.run_dir(saved)
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}

    damaged = {**files, "history.jsonl": b'{"loss": 2.0}\n'}
    with pytest.raises(DamagedError, match=r"history\.jsonl of the run .* arrived damaged"):
        here.adopt(damaged)
    assert not here.root.exists() or here.load_all() == []
    here.save_failure(make_failure())
    adopted = here.adopt(files)

    assert adopted.attempt == 2
    assert here.find(saved.run_id) == adopted
    assert not here.damage(saved.run_id)
    assert set(adopted.files) == {"attempt-1.json", "history.jsonl", "predictions.npz"}
